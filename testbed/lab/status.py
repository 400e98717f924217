"""The state of a lab as it is now, read from what runs and held against what was asked for."""

from __future__ import annotations

import signal
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.nodes.base import killed_for_memory

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.nodes.base import Node
    from testbed.roles.glance import Glance
    from testbed.topology.model import Container


@dataclass(frozen=True, slots=True)
class Part:
    """A service or a container: what it is, and whether it is as it should be."""

    name: str
    state: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node.

    ``state`` is up, stopped (a fault), missing (asked for, does not run) or
    stranger (not asked for).
    """

    name: str
    state: str
    addresses: list[str] = field(default_factory=list)
    provider: str = ""  #: what makes it; nothing of a stranger
    services: list[Part] = field(default_factory=list)
    containers: list[Part] = field(default_factory=list)
    words: str = ""  #: its last, where it has ended by itself and they can still be read

    @property
    def ok(self) -> bool:
        return self.state == "up" and all(p.ok for p in (*self.services, *self.containers))


@dataclass(frozen=True, slots=True)
class Status:
    """A lab.  ``ok`` means: everything that was asked for runs, and nothing else."""

    lab: str
    nodes: list[NodeStatus]

    @property
    def ok(self) -> bool:
        return bool(self.nodes) and all(node.ok for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        nodes = [{**asdict(node), "ok": node.ok} for node in self.nodes]
        return {"lab": self.lab, "ok": self.ok, "nodes": nodes}


def status(context: Context, stopped: Collection[str] = ()) -> Status:
    """Look at every node of a lab, all at once; those that are stopped answer nothing."""
    names = [
        *context.topology.nodes,
        *(n for n in context.nodes if n not in context.topology.nodes),
    ]
    ended = context.provider.ended(context.lab)
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(names)))) as pool:
        nodes = list(
            pool.map(
                lambda name: (
                    _stopped(context, name)
                    if name in stopped and name in context.topology.nodes
                    else _node(context, name, ended.get(name, ""))
                ),
                names,
            )
        )
    return Status(context.lab, nodes)


def _stopped(context: Context, name: str) -> NodeStatus:
    addresses = [str(a) for a in context.topology.nodes[name].networks.values()]
    return NodeStatus(name, "stopped", addresses, context.topology.provider_of(name))


def _node(context: Context, name: str, words: str) -> NodeStatus:
    spec = context.topology.nodes.get(name)
    addresses = [str(a) for a in spec.networks.values()] if spec else []
    provider = context.topology.provider_of(name) if spec else ""
    node = context.nodes.get(name)
    if node is None:
        return NodeStatus(name, "missing", addresses, provider, words=words)
    try:
        return NodeStatus(
            name,
            "up" if spec else "stranger",
            addresses,
            provider,
            _services(context, node) if spec else [],
            _containers(context, node) if spec and "docker" in spec.roles else [],
        )
    except LabError:  # it ended while we looked
        return NodeStatus(name, "missing", addresses, provider)


def _services(context: Context, node: Node) -> list[Part]:
    from testbed.roles import ROLES

    found = node.services()
    roles = context.topology.nodes[node.name].roles
    expected = [
        service
        for role in roles
        for service in ROLES[role].services_on(context.topology, node.name)
    ]
    parts = []
    for name in [*expected, *(n for n in found if n not in expected)]:
        state = found.get(name)
        if state is None:
            parts.append(Part(name, "missing", ok=False))
        else:
            how = f"pid {state.pid}" if state.status is None else _ending(node, state.status)
            parts.append(Part(name, state.state, state.state == "ready", how))
    return parts


def _ending(node: Node, status: int) -> str:
    """How a service has ended."""
    if status >= 0:
        return f"exit status {status}"
    killed = killed_for_memory(node) if -status == signal.SIGKILL else 0
    why = f"; for want of memory the kernel has killed {killed} processes of {node.name}"
    return f"signal {-status}{why if killed else ''}"


def _container(wanted: Container, seen: Glance) -> Part:
    """One container of the topology."""
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


def _containers(context: Context, node: Node) -> list[Part]:
    from testbed.roles import glance

    wanted = context.topology.containers_on(node.name)
    try:
        found = glance.containers(node)
    except LabError as error:
        return [Part(c.name, "unknown", ok=False, detail=str(error)) for c in wanted]
    parts = []
    for container in wanted:
        seen = found.pop(container.name, None)
        if seen is None:
            parts.append(Part(container.name, "missing", ok=False))
        else:
            parts.append(_container(container, seen))
    # Containers that the user has started are welcome, and not ours to judge.
    parts += [Part(s.name, s.state, ok=True, detail=s.address) for s in found.values()]
    return parts
