"""Steps that create a node's Docker networks and keep them as the file says.

A network's settings cannot be changed: one with other settings is created again, with its
containers. Networks of the lab that the file no longer has are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from testbed.nodes.marks import note, noted
from testbed.roles.docker.engine import Engine
from testbed.roles.docker.networks import ON_LINKS, on_node
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.roles.docker.engine import ContainerState, NetworkState
    from testbed.steps.context import Context
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

MADE = "docker-networks"  # mark: the networks that `up` has created, with their IDs


def networks_step(node: str) -> str:
    """Return the name of the step after which a node has its Docker networks."""
    return f"networks {node}"


def networks_steps(topology: Topology, node: str, after: str) -> Iterator[Step]:
    """Yield the step that creates a node's Docker networks; none without networks."""
    wanted = on_node(topology, node)
    if wanted:
        about = f"Docker networks: {', '.join(map(str, wanted))}"
        # A link of the node is there only when it is on the lab's networks.
        ahead = not any(one.driver in ON_LINKS for one in wanted)
        yield Step(networks_step(node), about, (after,), ahead=ahead, act=_make(topology, node))


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
                    said += _removed(engine, state, "removed")
            made = {}
            for name, network in wanted.items():
                found = there.get(name)
                if found is not None and found.digest != network.digest:
                    said += _removed(engine, found, "created again")
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


def _removed(engine: Engine, network: NetworkState, what: str) -> list[str]:
    """Remove a network, and say so."""
    containers = engine.remove_network(network)
    with_them = f" with {' and '.join(containers)}" if containers else ""
    return [f"{network.name} {what}{with_them}"]


def remove_all(context: Context, engine: Engine, node: str) -> bool:
    """Remove the networks of an earlier file from a node whose file has none.

    The daemon is asked only if there were some.
    """
    machine = context.node(node)
    if on_node(context.topology, node) or not (before := noted(machine, MADE)):
        return False
    for name, state in engine.networks().items():
        if before.get(name) == state.id:
            engine.remove_network(state)
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
