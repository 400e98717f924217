"""The state of a node's containers, compared with the topology."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.docker import glance
from testbed.roles.part import Part

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.docker.glance import Glance
    from testbed.steps.context import Context
    from testbed.topology.containers import Container


def _container(wanted: Container, seen: Glance) -> Part:
    """Return the state of one container of the topology."""
    address = seen.address or wanted.network
    if seen.state == "exited":
        how = f"exit status {seen.exit}" if seen.exit is not None else ""
        ok = wanted.expect is not None and seen.exit == wanted.expect
        expected = ", as expected" if ok else f", expected: exit {wanted.expect}"
        return Part(seen.name, seen.state, ok, how + expected * (wanted.expect is not None))
    if wanted.expect is not None:
        return Part(seen.name, seen.state, ok=False, detail=f"expected: exit {wanted.expect}")
    if seen.state == "running" and seen.health not in ("", "healthy"):
        return Part(seen.name, seen.health, ok=False, detail=address)
    return Part(seen.name, seen.state, seen.state == "running", address)


def _of_compose(name: str, wanted: str, seen: Glance | None) -> Part:
    """Return the state of a container that Compose has started; ``wanted`` is that after `up`."""
    if seen is None:
        return Part(name, "missing", ok=False)
    state = seen.health or seen.state
    if state == wanted:
        return Part(name, state, ok=True, detail=seen.address)
    return Part(name, state, ok=False, detail=f"expected: {wanted}")


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
    parts += [Part(s.name, s.state, ok=True, detail=s.address) for s in found.values()]
    return parts
