"""Steps that create a node's Docker networks and keep them as the file says.

A network's settings cannot be changed: one with other settings is created again, with its
containers. Networks of the lab that the file no longer has are removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.marks import note, noted
from testbed.roles.base import Again
from testbed.roles.docker.engine import LAB, Engine
from testbed.roles.docker.networks import OVERLAY, networks_of, on_node
from testbed.roles.docker.section import ROLE, DockerSection
from testbed.steps.step import Step
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from testbed.roles.docker.engine import ContainerState, NetworkState
    from testbed.steps.context import Context
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

RELEASE_SECONDS = 60.0  # until a swarm has released a network without containers
MADE = "docker-networks"  # mark: the networks that `up` has created, with their IDs


def networks_step(node: str) -> str:
    """Return the name of the step after which a node has its Docker networks."""
    return f"networks {node}"


def networks_steps(topology: Topology, node: str, after: str) -> Iterator[Step]:
    """Yield the step that creates a node's Docker networks; none without networks."""
    wanted = on_node(topology, node)
    if wanted:
        about = f"Docker networks: {', '.join(map(str, wanted))}"
        drivers = {one.driver for one in wanted}
        needs: tuple[str, ...] = (after,)
        if OVERLAY in drivers:
            from testbed.roles.docker.swarm import swarm_step

            needs = (after, swarm_step(node))
        ahead = are_early(topology, node)
        yield Step(networks_step(node), about, needs, ahead=ahead, act=_make(topology, node))


def are_early(topology: Topology, node: str) -> bool:
    """Tell whether a node's Docker networks can be created before the lab's networks.

    Links and swarms come with these, and Docker chooses subnets that are apart from them.
    """
    return all(one.driver == "bridge" and one.subnet for one in on_node(topology, node))


def overlay_needs(topology: Topology, node: str) -> tuple[str, ...]:
    """Return the step that other nodes of the swarm wait for: the first manager's networks."""
    first = DockerSection.of(topology).swarm[0]
    return () if first == node else (networks_step(first),)


def _make(topology: Topology, node: str) -> Callable[[Context], tuple[str, bool]]:
    wanted = {one.name: one for one in on_node(topology, node)}

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node)
        said: list[str] = []
        with Engine(machine) as engine:
            there = engine.networks()
            before = noted(machine, MADE)
            for name, state in there.items():
                if name not in wanted and before.get(name) == state.id:
                    said += _removed(context, engine, state, "removed")
            made = {}
            for name, network in wanted.items():
                found = there.get(name)
                if found is not None and found.digest != network.digest:
                    said += _removed(context, engine, found, "created again")
                    found = engine.create_network(context.lab, network)
                elif found is None:
                    again = name in before
                    said.append(f"{name} {'restored' if again else 'created'}")
                    found = engine.create_network(context.lab, network)
                made[name] = found.id
        if made != before:
            note(machine, MADE, made)
        return ", ".join(said) or f"{', '.join(wanted)} present", bool(said)

    return act


def _removed(context: Context, engine: Engine, network: NetworkState, what: str) -> list[str]:
    """Remove a network, and say so."""
    containers = _remove(context, engine, network)
    with_them = f" with {' and '.join(containers)}" if containers else ""
    return [f"{network.name} {what}{with_them}"]


def _remove(context: Context, engine: Engine, network: NetworkState) -> list[str]:
    """Remove a network with the lab's containers on it, on all nodes; return these."""
    if network.driver != OVERLAY:
        return engine.remove_network(network)
    removed = []
    for node in context.topology.with_role(ROLE):
        with Engine(context.node(node.name)) as one:
            for name in sorted(one.names(label=f"{LAB}={context.lab}")):
                found = one.find(name)
                if found is not None and network.name in found.networks:
                    with contextlib.suppress(LabError):  # its own step may remove it meanwhile
                        one.remove(name)
                    removed.append(name)
    wait = Wait(context, f"the swarm to let go of the network {network.name}", RELEASE_SECONDS)
    while True:  # managers hear a moment later that its containers are gone
        try:
            engine.remove_network(network)
        except LabError as error:
            wait.saw(error.message)
            wait.pause()
        else:
            return sorted(removed)


def remove_all(context: Context, engine: Engine, node: str) -> bool:
    """Remove the networks of an earlier file from a node whose file has none.

    The daemon is asked only if there were some.
    """
    machine = context.node(node)
    if on_node(context.topology, node) or not (before := noted(machine, MADE)):
        return False
    for name, state in engine.networks().items():
        if before.get(name) == state.id:
            _remove(context, engine, state)
    note(machine, MADE, {})
    return True


def free_addresses(engine: Engine, topology: Topology, container: Container) -> None:
    """Remove containers of the lab to which Docker gave a fixed address of another one.

    Their own steps, which come later, create them again.
    """
    for name, wanted in container.networks.items():
        fixed = {*map(str, wanted.addresses)}
        others = (
            one.name
            for one in topology.containers_on(container.node)
            if one.name != container.name and name in one.networks
        )
        for other in others if fixed else ():
            state = engine.find(other)
            here = state and state.networks.get(name)
            if here and fixed & {here.address, here.address6}:
                engine.remove(other)


def created_again(old: Topology, new: Topology) -> Iterator[Again]:
    """Yield networks of changed settings, their containers, and containers that share with these.

    A container that shares the network of another one is created again with that.
    """
    before, after = networks_of(old), networks_of(new)
    changed = {
        name for name, one in before.items() if name in after and after[name].digest != one.digest
    }
    for name in sorted(changed):
        yield Again("Docker network", name, (ROLE, "networks", name))
    stay = {
        name: one
        for name, one in new.containers.items()
        if name in old.containers and old.containers[name].to_dict() == one.to_dict()
    }
    why: dict[str, tuple[str, ...]] = {
        name: ("containers", name)
        for name in new.containers
        if name in old.containers and name not in stay
    }
    for name, one in stay.items():
        for network in one.networks:
            if network in changed:
                why[name] = (ROLE, "networks", network)
                yield Again("container", name, why[name])
    for name, one in stay.items():
        if one.shares in why:
            yield Again("container", name, why[one.shares])


def are_joined(engine: Engine, container: Container, found: ContainerState) -> bool:
    """Tell whether a container is on its networks, as these are, with its fixed addresses."""
    if not container.networks:
        return True
    there = engine.networks()
    for name, wanted in container.networks.items():
        endpoint = found.networks.get(name)
        if endpoint is None or name not in there or endpoint.network != there[name].id:
            return False
        fixed = {
            str(wanted.ipv4_address or endpoint.address) == endpoint.address,
            str(wanted.ipv6_address or endpoint.address6) == endpoint.address6,
            (wanted.mac_address or endpoint.mac) == endpoint.mac,
        }
        if found.running and not all(fixed):
            return False
    return True
