"""The state of a node's containers, compared with the topology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.docker import glance
from testbed.roles.docker.networks import on_node
from testbed.roles.docker.section import DockerSection
from testbed.roles.part import Part

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.docker.glance import Glance
    from testbed.steps.context import Context
    from testbed.topology.containers import Container


def _container(wanted: Container, seen: Glance) -> Part:
    """Return the state of one container of the topology."""
    address, as_wanted = _networks_of(wanted, seen)
    if seen.state == "exited":
        how = f"exit status {seen.exit}" if seen.exit is not None else ""
        ok = wanted.expect is not None and seen.exit == wanted.expect
        expected = ", as expected" if ok else f", expected: exit {wanted.expect}"
        return Part(seen.name, seen.state, ok, how + expected * (wanted.expect is not None))
    if wanted.expect is not None:
        return Part(seen.name, seen.state, ok=False, detail=f"expected: exit {wanted.expect}")
    if seen.state == "running" and seen.health not in ("", "healthy"):
        return Part(seen.name, seen.health, ok=False, detail=address)
    return Part(seen.name, seen.state, seen.state == "running" and as_wanted, address)


def _networks_of(wanted: Container, seen: Glance) -> tuple[str, bool]:
    """Return the addresses of a running container, and False if they are not the wanted ones."""
    if not wanted.networks:
        return seen.words or wanted.network, True
    order = [*wanted.networks, *(name for name in seen.networks if name not in wanted.networks)]
    words, ok = [], True
    for name in order:
        there = [one for one in seen.networks.get(name, ()) if one]
        words.append(f"{', '.join(there) or 'no address'} on {name}")
        if name not in wanted.networks:
            continue
        missing = [str(one) for one in wanted.networks[name].addresses if str(one) not in there]
        if missing:
            words[-1] += f" (wanted {', '.join(missing)})"
        elif name not in seen.networks:
            words[-1] = f"not on {name}"
        ok &= name in seen.networks and not missing
    return ", ".join(words), ok


def networks(context: Context, node: Node) -> list[Part]:
    """Return the state of a node's Docker networks; the daemon is asked only if there are some."""
    wanted = on_node(context.topology, node.name)
    if not wanted:
        return []
    try:
        found = glance.networks(node)
    except LabError as error:
        return [Part(one.name, "unknown", ok=False, detail=error.message) for one in wanted]
    parts = []
    for network in wanted:
        seen = found.get(network.name)
        if seen is None:
            parts.append(Part(network.name, "missing", ok=False))
            continue
        ok = seen.digest == network.digest
        words = [seen.driver, *seen.subnets, *(["internal"] if seen.internal else [])]
        words += [seen.link] if seen.link else []
        words += [] if ok else [f"wanted {network}"]
        parts.append(Part(network.name, "up" if ok else "different", ok, ", ".join(words)))
    return parts


def _of_compose(name: str, wanted: str, seen: Glance | None) -> Part:
    """Return the state of a container that Compose has started; ``wanted`` is that after `up`."""
    if seen is None:
        return Part(name, "missing", ok=False)
    state = seen.health or seen.state
    if state == wanted:
        return Part(name, state, ok=True, detail=seen.words)
    return Part(name, state, ok=False, detail=f"expected: {wanted}")


def swarm(context: Context, node: Node) -> list[Part]:
    """Return the node's part in the swarm of the lab."""
    managers = DockerSection.of(context.topology).swarm
    wanted = "manager" if node.name in managers else "worker"
    try:
        said = glance.swarm(node)
    except LabError as error:
        return [Part(wanted, "unknown", ok=False, detail=error.message)]
    role = "manager" if said.is_manager else "worker"
    ok = said.state == "active" and role == wanted
    other = f"is a {role}" if said.state == "active" and role != wanted else said.error
    return [Part(wanted, said.state, ok=ok, detail=other)]


def containers(context: Context, node: Node) -> list[Part]:
    wanted = context.topology.containers_on(node.name)
    try:
        found = glance.containers(node)
    except LabError as error:
        # A daemon must answer even if the topology has no containers on the node.
        names = [c.name for c in wanted] or ["any"]
        return [Part(name, "unknown", ok=False, detail=error.message) for name in names]
    parts = []
    for container in wanted:
        seen = found.pop(container.name, None)
        if seen is None:
            parts.append(Part(container.name, "missing", ok=False))
        else:
            parts.append(_container(container, seen))
    if context.topology.nodes[node.name].compose:
        from testbed.roles.docker import compose

        for name, state in compose.expected(node).items():
            parts.append(_of_compose(name, state, found.pop(name, None)))
    # Containers that the user started are allowed, in any state.
    parts += [Part(s.name, s.state, ok=True, detail=s.words) for s in found.values()]
    return parts
