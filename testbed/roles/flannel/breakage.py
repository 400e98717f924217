"""Entries and rules of an overlay's node that the fault ``break`` removes or blocks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.faults import means
from testbed.roles.flannel.role import OF_BACKENDS, RULES
from testbed.roles.flannel.section import FlannelSection

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the overlay, as in a node's entries.

    ``mac`` is that of its VTEP. ``direct`` tells that packets to it need no tunnel.
    """

    name: str
    address: str
    subnet: str
    mac: str = ""
    direct: bool = False

    @property
    def vtep(self) -> str:
        """The address of its flannel.N, which is the first one of its subnet."""
        return self.subnet.partition("/")[0]


class Overlay(means.Breakage):
    """The overlay of a running lab; ``nodes`` returns the nodes that answer."""

    hint = "two nodes with a running flanneld are required"

    def __init__(self, topology: Topology, nodes: Callable[[], Sequence[Node]]) -> None:
        self._topology = topology
        self._flannel = FlannelSection.of(topology)
        self._nodes = nodes

    def look(self, node: Node, what: str) -> means.Look | None:
        backend = self._flannel.backend
        if backend not in OF_BACKENDS.get(what, (backend,)):
            return None
        # Without the device, as with udp when flanneld dies, missing entries are not a fault.
        if what not in RULES and not self._has_device(node):
            return None
        six = self._peers(node.name, six=True) if self._flannel.ipv6 else ()
        found = look(self._topology, what, self._peers(node.name), six)
        return found if found.entries else None

    @functools.cached_property
    def _macs(self) -> dict[str, dict[str, str]]:
        """The MAC addresses of the existing VTEPs, by node, by device."""
        found: dict[str, dict[str, str]] = {name: {} for name in self._flannel.devices}
        for node in self._nodes():
            if self._flannel.backend == "vxlan" and node.name in self._flannel.subnets:
                for device, macs in found.items():
                    with contextlib.suppress(FileNotFoundError):
                        path = f"/sys/class/net/{device}/address"
                        macs[node.name] = node.get(path).decode().strip()
        return found

    def _peers(self, node: str, *, six: bool = False) -> list[Peer]:
        """Return the other nodes of the overlay; ``six`` is for its IPv6.

        With vxlan, only nodes that have a VTEP are included.
        """
        flannel, topology = self._flannel, self._topology
        subnets = flannel.ipv6.subnets if six and flannel.ipv6 else flannel.subnets
        address = flannel.address6 if six else flannel.address
        macs = self._macs.get(flannel.device6 if six else flannel.device, {})
        return [
            Peer(
                name,
                str(address(topology, name)),
                str(subnet),
                macs.get(name, ""),
                flannel.is_direct(topology, node, name),
            )
            for name, subnet in subnets.items()
            if name != node and (flannel.backend != "vxlan" or name in macs)
        ]

    def _has_device(self, node: Node) -> bool:
        name = self._flannel.device
        return not name or node.run(["test", "-e", f"/sys/class/net/{name}"], check=False).ok


def look(
    topology: Topology, what: str, peers: Sequence[Peer], six: Sequence[Peer] = ()
) -> means.Look:
    """Return the commands for a word of ``break``.

    See :attr:`testbed.roles.base.Role.breakable`. ``six`` are the peers of an overlay with IPv6.
    """
    flannel = FlannelSection.of(topology)
    found = _look(flannel, what, peers, flannel.device, "4")
    if flannel.ipv6 is None:
        return found
    return means.joined(found, _look(flannel, what, six, flannel.device6, "6"))


def _look(
    flannel: FlannelSection, what: str, peers: Sequence[Peer], name: str, family: str
) -> means.Look:
    """Return the commands for one IP family; ``name`` is the device of its tunnel."""
    tables, ip = ("ip6tables", ("ip", "-6")) if family == "6" else ("iptables", ("ip",))
    if what == "forward":
        return means.rule("FORWARD", program=tables)
    if what == "port":
        match = ("-p", "udp", "-m", "udp", "--dport", str(flannel.port))
        return means.rule("INPUT", *match, program=tables)
    tunnelled = [peer for peer in peers if not peer.direct]
    if what == "neighbour":
        entries = [(f"{p.vtep} lladdr {p.mac}", p.vtep, p.mac) for p in tunnelled]
        return means.Look(
            (*ip, "neigh", "show", "dev", name, "nud", "permanent"),
            tuple(shown for shown, *_ in entries),
            tuple((*ip, "neigh", "del", vtep, "dev", name) for _, vtep, _ in entries),
            tuple(
                (*ip, "neigh", "replace", vtep, "lladdr", mac, "dev", name, "nud", "permanent")
                for _, vtep, mac in entries
            ),
        )
    if what == "fdb":
        words = [(p.mac, "dev", name, "dst", p.address) for p in tunnelled]
        return means.Look(
            ("bridge", "fdb", "show", "dev", name),
            tuple(f"{p.mac} dst {p.address}" for p in tunnelled),
            tuple(("bridge", "fdb", "del", *entry) for entry in words),
            tuple(("bridge", "fdb", "append", *entry) for entry in words),
        )
    routes = _routes(flannel, peers, name)
    return means.Look(
        (*ip, "route", "show"),
        tuple(shown for shown, _ in routes),
        tuple((*ip, "route", "del", shown.split()[0]) for shown, _ in routes),
        tuple((*ip, "route", "replace", *shown.split(), *more) for shown, more in routes),
    )


def _routes(
    flannel: FlannelSection, peers: Sequence[Peer], name: str
) -> list[tuple[str, tuple[str, ...]]]:
    """Return flannel's routes to other nodes, which pass a device of this name without host-gw.

    Each is given as listed, with the options that are not listed.
    """
    if flannel.backend == "udp":
        return [(f"{flannel.network} dev {name}", ())]
    return [
        (f"{p.subnet} via {p.address}", ())
        if p.direct or flannel.backend == "host-gw"
        else (f"{p.subnet} via {p.vtep} dev {name}", ("onlink",))
        for p in peers
    ]
