"""The wiring of a node: read, compare and restore links, addresses, routes and settings.

The expected wiring follows from the topology; the actual wiring is read from the node
with one command.  This works with every provider.  Each provider checks the networks
between the nodes itself (:meth:`testbed.nodes.base.Provider.differences`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.place import Runs
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

FORWARDING = "net.ipv4.ip_forward"
#: Prints links with their addresses, the routes, whether packets are forwarded, and the routes of
#: IPv6 as the kernel has them (no program for them, as most nodes have none).
LOOK = (
    "sh",
    "-c",
    "ip -j address; printf '\\0'; ip -j route; printf '\\0'; "
    "cat /proc/sys/net/ipv4/ip_forward /proc/net/ipv6_route 2>/dev/null || :",
)

IPV6_ROUTE = 10  # words of a line of /proc/net/ipv6_route

Kind = Literal[
    "network", "port", "link", "mtu", "mac", "queue", "address", "route", "rule", "setting"
]  # fmt: skip
State = Literal["up", "down", "no carrier"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One part of the wiring that differs from the topology.

    ``what`` names the part, ``seen`` is its actual state, ``index`` the number of its link.
    """

    kind: Kind
    what: str
    seen: str
    index: int = -1

    def __str__(self) -> str:
        return f"{self.what} ({self.seen})"


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a node; its addresses include the prefix length.

    ``addresses6`` are those of IPv6 without link-local ones, ``addresses`` those of IPv4.
    ``mtu`` is in bytes, ``mac`` the MAC address, ``queue`` the kind of its first queue (tc(8)).
    """

    name: str
    state: State
    addresses: tuple[str, ...] = ()
    addresses6: tuple[str, ...] = ()
    mtu: int = 0
    mac: str = ""
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route of a node's main table; without a gateway it is directly connected."""

    destination: str
    gateway: str
    device: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The actual wiring of a node."""

    links: Mapping[str, Link] = field(default_factory=dict)
    routes: Sequence[Route] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    gateways6: Sequence[str] = ()  #: the gateways of the default routes of IPv6

    @property
    def gateways(self) -> list[str]:
        """The gateways of the default routes."""
        return [r.gateway for r in self.routes if r.destination == "default" and r.gateway]


def look(node: Runs) -> Seen:
    """Read the wiring of a node.  Raises CommandError, NoSuchNode."""
    return read(node.run(LOOK).out)


def read(printed: bytes) -> Seen:
    """Parse the output of :data:`LOOK`."""
    links, routes, rest = (part.strip() for part in printed.split(b"\0"))
    forwarding, *lines = rest.decode().splitlines() or [""]
    return Seen(
        {entry["ifname"]: _link(entry) for entry in json.loads(links or b"[]") if entry},
        [
            Route(entry["dst"], entry.get("gateway", ""), entry.get("dev", ""))
            for entry in json.loads(routes or b"[]")
        ],
        {FORWARDING: forwarding},
        tuple(gateway for line in lines if (gateway := _default_of(line.split()))),
    )


def _default_of(words: Sequence[str]) -> str:
    """Return the gateway of a line of /proc/net/ipv6_route; empty if it is no default route."""
    # Destination and length, source and length, next hop, in hexadecimal digits (net/ipv6/route.c).
    if len(words) < IPV6_ROUTE or words[1] != "00" or not int(words[4], 16):
        return ""
    return str(IPv6Address(int(words[4], 16)))


def _link(entry: Mapping[str, Any]) -> Link:
    state, six = state_of(entry["flags"]), addresses_of(entry, "inet6")
    more = entry.get("mtu", 0), entry.get("address", ""), entry.get("qdisc", "")
    return Link(entry["ifname"], state, addresses_of(entry), six, *more)


def addresses_of(entry: Mapping[str, Any], family: str = "inet") -> tuple[str, ...]:
    """Return a link's addresses with prefix lengths, from its ``ip -j address`` entry.

    ``family`` is ``inet`` or ``inet6``; link-local addresses of IPv6 are left out.
    """
    return tuple(
        f"{one['local']}/{one['prefixlen']}"
        for one in entry.get("addr_info", ())
        if one.get("family") == family and (family == "inet" or one.get("scope") != "link")
    )


def state_of(flags: Sequence[str]) -> State:
    """Return the state of a link from the flags that ip(8) shows."""
    if "UP" not in flags:
        return "down"
    return "no carrier" if "NO-CARRIER" in flags else "up"


def addresses(topology: Topology, node: str) -> dict[str, tuple[str, ...]]:
    """Return the expected addresses, with prefix lengths, of each link of a node."""
    return {port.name: _texts(port) for port in topology.nodes[node].ports}


def _texts(port: Port) -> tuple[str, ...]:
    return tuple(map(str, port.subnetted))


def settings(topology: Topology, node: str) -> dict[str, str]:
    """Return the expected kernel settings (sysctls) of a node."""
    return {FORWARDING: "1"} if topology.nodes[node].forwards else {}


def differences(topology: Topology, node: str, seen: Seen) -> list[Difference]:
    """Return all parts of a node's wiring that differ from the topology."""
    found = []
    for port in topology.nodes[node].ports:
        name, index = port.name, port.index
        link = seen.links.get(name)
        if link is None:
            found.append(Difference("link", name, "missing", index))
            continue
        if link.state == "down":
            found.append(Difference("link", name, "down", index))
        there = (*link.addresses, *link.addresses6)
        found += [
            Difference("address", f"{address} on {name}", "missing", index)
            for address in _texts(port)
            if address not in there
        ]
        if port.mtu is not None and link.mtu != port.mtu:
            found.append(Difference("mtu", f"MTU {port.mtu} of {name}", str(link.mtu), index))
        queue = queue_of(port)
        if queue and link.queue != queue:
            words = " ".join(f"{one.kind} {one.amount}" for one in port.shaping)
            found.append(Difference("queue", f"{words} of {name}", link.queue or "missing", index))
        if port.mac and link.mac != port.mac:
            found.append(Difference("mac", f"MAC {port.mac} of {name}", link.mac, index))
    gateway = topology.gateway_of(node)
    if gateway is not None and str(gateway) not in seen.gateways:
        other = f"via {seen.gateways[0]}" if seen.gateways else "missing"
        found.append(Difference("route", f"default via {gateway}", other))
    six = topology.gateway6_of(node)
    if six is not None and str(six[0]) not in seen.gateways6:
        other = f"via {seen.gateways6[0]}" if seen.gateways6 else "missing"
        found.append(Difference("route", f"default via {six[0]}", other))
    for name, value in settings(topology, node).items():
        if seen.settings.get(name) != value:
            found.append(
                Difference("setting", f"{name}={value}", seen.settings.get(name) or "missing")
            )
    return found


def foreign_differences(foreign: Foreign, node: str, seen: Seen) -> list[Difference]:
    """Return the links and addresses of a node that differ from another tool's file."""
    found = []
    for end, _ in foreign.ends_of(node):
        link = seen.links.get(end.interface)
        if not end.interface or (link is not None and link.state != "down"):
            there = (*link.addresses, *link.addresses6) if link else ()
            found += [
                Difference("address", f"{one} on {end.interface}", "missing")
                for one in end.addresses
                if one not in there
            ]
        else:
            found.append(Difference("link", end.interface, link.state if link else "missing"))
    return found


def set_up(topology: Topology, node: Node, first: Iterable[str] = ()) -> None:
    """Set addresses, routes, settings and host name of a node with new links.

    ``first`` are lines for ``ip -batch`` to run before the others.
    """
    lines = list(first)
    if six := settings6(topology, node.name):  # before the links are up
        _batch(node, lines)
        _set(node, six)
        lines = []
    for port in topology.nodes[node.name].ports:
        lines += lines_of(port)
    gateway = topology.gateway_of(node.name)
    if gateway is not None:
        lines.append(f"route add default via {gateway}")
    _batch(node, [*lines, *_default6(topology, node.name)])
    _shape(node, topology.nodes[node.name].ports)
    _set(node, settings(topology, node.name))
    node.put(f"{node.name}\n".encode(), "/etc/hostname")
    if resolver := topology.resolver(node.name):
        node.put(f"nameserver {resolver}\n".encode(), "/etc/resolv.conf")


def restore(
    topology: Topology, node: Node, differing: Sequence[Difference], anew: Collection[int] = ()
) -> None:
    """Restore missing addresses, routes and settings of a node whose links exist.

    ``anew`` are the numbers of links that were just recreated, so have no addresses.
    """
    seen = look(node.network)
    lines = []
    indexes = {*anew, *(one.index for one in differing if one.index >= 0)}
    for port in (topology.nodes[node.name].ports[index] for index in sorted(indexes)):
        name, link = port.name, seen.links.get(port.name)
        if port.mac and (link is None or link.mac != port.mac):
            lines.append(f"link set dev {name} address {port.mac}")
        lines.append(_up(port))
        there = (*link.addresses, *link.addresses6) if link else ()
        for address in _texts(port):
            if address not in there:
                ip = address.partition("/")[0]
                lines += [
                    f"address del {one} dev {name}" for one in there if one.partition("/")[0] == ip
                ]
                lines.append(_add(address, name))
    if differing:  # the route is lost with its link, even while restoring it
        lines += default_route(topology, node.name)
    six = settings6(topology, node.name)
    _set(node, six, where_known=True)  # before the links are up
    _batch(node, lines)
    ports = topology.nodes[node.name].ports
    _shape(node, [ports[index] for index in sorted(indexes)])
    _set(node, {**settings(topology, node.name), **six})  # a link has none with an MTU below 1280


def queue_of(port: Port) -> str:
    """Return the kind of a port's first queue, by the shaping of its network; empty for none."""
    kinds = {one.kind for one in port.shaping}
    return "netem" if kinds & {"delay", "loss"} else "tbf" if kinds else ""


def _shape(node: Node, ports: Iterable[Port]) -> None:
    """Give links the rate, delay and loss of their networks."""
    shaped = [port for port in ports if port.shaping]
    if shaped:
        from testbed.faults.means import shaping_lines

        lines = [line for port in shaped for line in shaping_lines(port.name, port.shaping)]
        node.network.run(["tc", "-batch", "-"], input="\n".join(lines).encode())


def lines_of(port: Port) -> list[str]:
    """Return the ``ip -batch`` lines that set up a new link."""
    return [_up(port), *(_add(address, port.name) for address in _texts(port))]


def default_route(topology: Topology, node: str) -> list[str]:
    """Return the ``ip -batch`` line that restores the default route of a node, if it has one."""
    gateway = topology.gateway_of(node)
    lines = [f"route replace default via {gateway}"] if gateway is not None else []
    return lines + _default6(topology, node)


def _default6(topology: Topology, node: str) -> list[str]:
    gateway = topology.gateway6_of(node)
    return [] if gateway is None else ["route replace default via {} dev {}".format(*gateway)]


def settings6(topology: Topology, node: str) -> dict[str, str]:
    """Return the settings of a node with IPv6 addresses: they are the file's alone.

    Without a look for duplicates (RFC 4862, section 5.4) a link-local address is usable at once:
    a router asks for neighbours with it, and could forward nothing for up to two seconds.
    """
    ports = [port for port in topology.nodes[node].ports if port.interfaces6]
    off = ("accept_ra", "accept_dad")
    found = {f"net/ipv6/conf/{port.name}/{name}": "0" for port in ports for name in off}
    if ports and topology.nodes[node].gateway:
        found["net/ipv6/conf/all/forwarding"] = "1"
    return found


def _up(port: Port) -> str:
    """Return the ``ip -batch`` line that sets a link up, with its MTU if the file gives one."""
    size = "" if port.mtu is None else f"mtu {port.mtu} "
    return f"link set dev {port.name} {size}up"


def _add(address: str, name: str) -> str:
    if ":" in address:  # usable at once, without a look for duplicates
        return f"address add {address} dev {name} nodad"
    return f"address add {address} broadcast + dev {name}"


def _batch(node: Node, lines: Sequence[str]) -> None:
    if lines:
        node.network.run(["ip", "-batch", "-"], input="\n".join(lines).encode())


def _set(node: Node, values: Mapping[str, str], *, where_known: bool = False) -> None:
    """Set kernel settings; with ``where_known`` pass over those that are not there."""
    if values:
        pairs = [f"{name}={value}" for name, value in values.items()]
        node.network.run(["sysctl", *(["-e"] if where_known else []), "-q", "-w", *pairs])
