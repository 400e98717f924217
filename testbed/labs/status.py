"""The current state of a lab: what runs, compared with the topology."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.labs import program_steps, settings_steps
from testbed.limits import FILES_PER_NODE, at_once
from testbed.nodes import wiring
from testbed.nodes.base import killed_for_memory
from testbed.roles.part import Part

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.wiring import Difference, Seen
    from testbed.steps.context import Context
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

STOPPED = "stopped"  #: state of a node or a service that a fault has stopped
BY_HAND = "stopped by hand"  #: state of what `testbed stop` has stopped


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The state of a node.

    ``state`` is up, stopped (by a fault), stopped by hand, missing (in the topology, but does not
    run) or stranger (not in the topology).
    """

    name: str
    state: str
    addresses: list[str] = field(default_factory=list)
    provider: str = ""  #: empty for a stranger
    services: list[Part] = field(default_factory=list)
    containers: list[Part] = field(default_factory=list)
    links: list[Part] = field(default_factory=list)
    routes: list[Part] = field(default_factory=list)
    settings: list[Part] = field(default_factory=list)
    more: dict[str, list[Part]] = field(default_factory=dict)  #: other parts of roles, by kind
    words: str = ""  #: its last output, if it ended without a request and the output still exists

    @property
    def ok(self) -> bool:
        return self.state == "up" and all(
            part.ok
            for part in (
                *self.links, *self.routes, *self.settings, *self.services, *self.containers,
                *chain.from_iterable(self.more.values()),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a lab.  ``ok`` is True if exactly the topology's parts run."""

    lab: str
    nodes: list[NodeStatus]
    networks: list[Part] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        whole = all(network.ok for network in self.networks)
        return whole and bool(self.nodes) and all(node.ok for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        nodes = [{**asdict(node), "ok": node.ok} for node in self.nodes]
        networks = [asdict(network) for network in self.networks]
        return {"lab": self.lab, "ok": self.ok, "networks": networks, "nodes": nodes}


def status(
    context: Context, stopped: Collection[str] = (), by_hand: Collection[str] = ()
) -> Status:
    """Return the state of a lab.

    All nodes are queried at once, except the stopped ones. ``by_hand`` is what was stopped by hand:
    NODE, NODE/SERVICE or NODE/CONTAINER.
    """
    names = [
        *context.topology.nodes,
        *(n for n in context.nodes if n not in context.topology.nodes),
    ]
    ended = context.provider.ended(context.lab)
    outside = context.provider.differences(context.lab, context.topology)
    with ThreadPoolExecutor(at_once(min(16, len(names)), files=FILES_PER_NODE)) as pool:
        nodes = list(
            pool.map(
                lambda name: (
                    _stopped(context, name)
                    if name in stopped and name in context.topology.nodes
                    else _node(context, name, ended.get(name, ""), outside.get(name, []))
                ),
                names,
            )
        )
    nodes = [_by_hand(node, by_hand) for node in nodes] if by_hand else nodes
    return Status(context.lab, nodes, _networks(context.topology, outside.get("", [])))


def _by_hand(node: NodeStatus, stopped: Collection[str]) -> NodeStatus:
    """Return the state of a node, with what was stopped by hand told as such."""
    if node.state == "missing" and node.name in stopped:
        return replace(node, state=BY_HAND)

    def told(parts: list[Part], runs: Collection[str]) -> list[Part]:
        return [
            replace(part, state=BY_HAND)
            if f"{node.name}/{part.name}" in stopped and not part.ok and part.state not in runs
            else part
            for part in parts
        ]

    return replace(
        node,
        services=told(node.services, ("starting", STOPPED)),
        containers=told(node.containers, ("running", "starting", "unhealthy")),
    )


def _networks(topology: Topology, differences: Sequence[Difference]) -> list[Part]:
    seen = {difference.what: difference.seen for difference in differences}
    return [
        Part(name, seen.get(name, "up"), name not in seen, network.words)
        for name, network in topology.networks.items()
        if network.link < 0 or name in seen
    ]


def _stopped(context: Context, name: str) -> NodeStatus:
    return NodeStatus(name, STOPPED, provider=context.topology.provider_of(name))


def _node(context: Context, name: str, words: str, outside: Sequence[Difference]) -> NodeStatus:
    spec = context.topology.nodes.get(name)
    from testbed.registry import ROLES

    provider = context.topology.provider_of(name) if spec else ""
    node = context.nodes.get(name)
    if node is None or (words and context.topology.attached):
        return NodeStatus(name, "missing", provider=provider, words=words)
    try:
        if spec is None:
            return NodeStatus(name, "stranger")
        seen = wiring.look(context.provider.network_of(context.lab, node))
        differences = [*outside, *wiring.differences(context.topology, name, seen)]
        links = _links(context.topology, name, seen, differences)
        links += _foreign_links(context.topology.foreign, name, seen)
        addresses = [one for link in links for one in _addresses(seen, link.name)]
        for port in spec.ports:
            addresses += _addresses6(seen, port)
        links += [
            Part(difference.what, difference.seen, ok=False)
            for role in spec.roles
            for difference in ROLES[role].differences(context.topology, node)
        ]
        parts: dict[str, list[Part]] = {}
        settled = settings_steps.parts(context, node)
        if ran := program_steps.parts(context.topology, node):
            parts["run"] = ran
        parts |= {kind: settled[kind] for kind in ("rule", "file", "bind") if kind in settled}
        for role in spec.roles:
            for kind, found in ROLES[role].status(context, node).items():
                parts.setdefault(kind, []).extend(found)
        return NodeStatus(
            name,
            "up",
            [one.partition("/")[0] for one in addresses],
            provider,
            _services(context, node),
            parts.pop("container", []),
            links,
            _all_routes(_routes(seen, differences), settled.get("route", [])),
            [*_settings(context.topology, name, seen), *settled.get("sysctl", ())],
            more=parts,
        )
    except LabError:  # it ended during the query
        return NodeStatus(name, "missing", provider=provider)


def _addresses(seen: Seen, link: str) -> tuple[str, ...]:
    return seen.links[link].addresses if link in seen.links else ()


def _addresses6(seen: Seen, port: Port) -> tuple[str, ...]:
    """Return the IPv6 addresses of a port that has some in the topology."""
    link = seen.links.get(port.name)
    return link.addresses6 if link and port.interfaces6 else ()


def _links(
    topology: Topology, node: str, seen: Seen, differences: Sequence[Difference]
) -> list[Part]:
    """Return the state of the links that a node should have."""
    parts = []
    for port in topology.nodes[node].ports:
        name = port.name
        mine = [difference for difference in differences if difference.index == port.index]
        state = seen.links[name].state if name in seen.links else "missing"
        there = (*_addresses(seen, name), *_addresses6(seen, port))
        place = f"to {':'.join(port.peer)}" if port.peer else f"on {port.network}"
        words = [f"{', '.join(there) or 'no address'} {place}", *filter(None, [port.vlans])]
        words += [f"wanted {one}" for one in map(str, port.subnetted) if one not in there]
        words += [
            f"{difference.what} is {difference.seen}"
            for difference in mine
            if difference.kind in ("port", "mtu", "mac", "queue")
        ]
        parts.append(Part(name, state, not mine, ", ".join(words)))
    return parts


def _foreign_links(foreign: Foreign | None, node: str, seen: Seen) -> list[Part]:
    """Return the state of a node's links in a lab that another tool's file describes."""
    if foreign is None:
        return []
    peers = {end.interface: peer for end, peer in foreign.ends_of(node) if end.interface}
    wrong = wiring.foreign_differences(foreign, node, seen)
    parts = []
    for name in [*(name for name in seen.links if name not in peers and name != "lo"), *peers]:
        link = seen.links.get(name)
        there = (*link.addresses, *link.addresses6) if link else ()
        mine = [one.what for one in wrong if one.what in (name, *_on(foreign, node, name))]
        words = [f"to {peers[name]}"] if name in peers else []
        words += [f"wanted {what.partition(' ')[0]}" for what in mine if what != name]
        parts.append(
            Part(name, link.state if link else "missing", not mine, ", ".join([*words, *there]))
        )
    return parts


def _on(foreign: Foreign, node: str, name: str) -> list[str]:
    """Return the addresses of a link as differences name them."""
    ends = (end for end, _ in foreign.ends_of(node) if end.interface == name)
    return [f"{address} on {name}" for end in ends for address in end.addresses]


def _routes(seen: Seen, differences: Sequence[Difference]) -> list[Part]:
    """Return the existing and the missing default routes."""
    gone = [difference for difference in differences if difference.kind == "route"]
    parts = [
        Part("default", "present", not gone, f"via {route.gateway} dev {route.device}")
        for route in seen.routes
        if route.destination == "default"
    ]
    missing = (difference.what.partition(" ")[2] for difference in gone)
    return parts + [Part("default", "missing", ok=False, detail=f"wanted {via}") for via in missing]


def _all_routes(routes: list[Part], own: list[Part]) -> list[Part]:
    """Return the default routes, unless the file has them, and the routes of the file."""
    named = any(part.name.startswith("default ") for part in own)
    return own if named else [*routes, *own]


def _settings(topology: Topology, node: str, seen: Seen) -> list[Part]:
    parts = []
    for name, value in wiring.settings(topology, node).items():
        there = seen.settings.get(name, "missing")
        ok = there == value
        parts.append(Part(name, there, ok, "" if ok else f"wanted {value}"))
    return parts


def expected_services(topology: Topology, node: str) -> list[str]:
    """Return the services of a node: those of its roles, and its own of the file."""
    from testbed.registry import ROLES

    spec = topology.nodes[node]
    of_roles = (name for role in spec.roles for name in ROLES[role].services_on(topology, node))
    return [*of_roles, *spec.services]


def _services(context: Context, node: Node) -> list[Part]:
    found = node.services()
    expected = expected_services(context.topology, node.name)
    if any(one.state == "dead" for name, one in found.items() if name not in expected):
        gone = program_steps.removed(node)  # a service that has been started stays in the list
        found = {name: one for name, one in found.items() if name not in gone}
    parts = []
    for name in [*expected, *(n for n in found if n not in expected)]:
        state = found.get(name)
        if state is None:
            parts.append(Part(name, "missing", ok=False))
        elif state.status is None and _is_stopped(node, state.pid):
            parts.append(Part(name, STOPPED, ok=False, detail=f"pid {state.pid}"))
        else:
            how = f"pid {state.pid}" if state.status is None else _ending(node, state.status)
            parts.append(Part(name, state.state, state.state == "ready", how))
    return parts


def _is_stopped(node: Node, pid: int) -> bool:
    """Tell whether a process exists but is stopped, as after SIGSTOP."""
    from testbed.faults.means import is_stopped

    with contextlib.suppress(OSError):  # the process has just ended
        return is_stopped(node.get(f"/proc/{pid}/stat").decode(errors="replace"))
    return False


def _ending(node: Node, status: int) -> str:
    """Describe the end of a service."""
    if status >= 0:
        return f"exit status {status}"
    killed = killed_for_memory(node) if -status == signal.SIGKILL else 0
    why = f"; the kernel has killed {killed} processes of {node.name} (out of memory)"
    return f"signal {-status}{why if killed else ''}"
