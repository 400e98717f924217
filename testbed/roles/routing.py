"""Settings of routers in a file: a configuration, or a few lines on OSPF and BGP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import LabError, ServiceError
from testbed.roles.base import dead
from testbed.steps.wait import Wait
from testbed.topology import keys, tree
from testbed.topology.check.look import Look
from testbed.topology.declare import Block, Nested, key
from testbed.topology.shapes import (
    Address,
    Choice,
    Integer,
    Items,
    Pattern,
    Shape,
    Subnet,
    block,
    whole,
)
from testbed.topology.tree import describe, nearest, quote

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology
    from testbed.topology.ports import Port
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

MAX_CONFIG = 1 << 20  # bytes
AS_MAX = (1 << 32) - 1  # RFC 6793; areas of OSPF are as large
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration as text, and the name of its file for messages."""

    content: str
    file: str = ""


class ConfigShape(Shape[Config]):
    """The path of a file beside the topology, or the text itself.

    The file is read with the topology, so the record of a lab has its text.
    """

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "minLength": 1}
        both = {
            "content": text | {"description": "The configuration itself."},
            "file": text | {"description": "A file beside the topology."},
        }
        return {"anyOf": [text, block(both, minProperties=1)]}

    def read(self, read: Reader, at: Tree | None) -> Config | None:
        if at is None:
            return None
        if isinstance(at, tree.Mapping):
            read.known_only(at, ("content", "file"))
            content, name = read.text(at.get("content")), read.text(at.get("file"))
            if content is not None:  # also of a record, where the file is a name for messages
                return Config(content, name or "")
            if name is not None:
                return self._file(read, at, name)
            if not at.entries:
                hint = "write config: FILE, or config: {content: TEXT}"
                read.problems.add(at, "the key 'content' or 'file'", "none", hint)
            return None
        name = read.text(at, "the path of a file, or {content: TEXT}")
        return None if name is None else self._file(read, at, name)

    @staticmethod
    def _file(read: Reader, at: Tree, name: str) -> Config | None:
        path = Path(read.problems.folder_of(at), name)
        try:
            if path.stat().st_size <= MAX_CONFIG:
                return Config(path.read_text(encoding="utf-8"), name)
            seen = f"more than {MAX_CONFIG >> 20} MiB"
        except (OSError, ValueError) as error:
            seen = getattr(error, "strerror", None) or str(error)
        hint = "the path is relative to the topology's folder"
        read.problems.add(at, f"a readable text file {quote(name)}", seen, hint)
        return None

    def plain(self, value: Config) -> dict[str, str]:
        return {"content": value.content} | ({"file": value.file} if value.file else {})


#: A network's name, or that of a link of the node.
LINK = Pattern(
    keys.INTERFACE,
    "the name of a network, or of a link such as eth0",
    "write a network of the node",
    keys.INTERFACE_MAX,
    "a name",
)
LINKS = Items(LINK, "a list of networks or links", unique=True)


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A BGP neighbour: a link or an address, with its AS number.

    A link without a number has the one router at its other end (unnumbered, RFC 8950).
    """

    peer: str
    asn: int | None = None

    @property
    def is_address(self) -> bool:
        return re.fullmatch(keys.ADDRESS, self.peer) is not None


class Neighbors(Shape[tuple[Neighbor, ...]]):
    """A list of links, and of mappings of one address or link to its AS number."""

    ASN = Integer("an AS number", 1, AS_MAX)

    def schema(self) -> dict[str, Any]:
        peer = whole(rf"{keys.ADDRESS}|{keys.INTERFACE}")
        one = {"type": "object", "minProperties": 1, "maxProperties": 1}
        pair = one | {"propertyNames": peer, "additionalProperties": self.ASN.schema()}
        return {"type": "array", "items": {"anyOf": [peer, pair]}}

    def read(self, read: Reader, at: Tree | None) -> tuple[Neighbor, ...] | None:
        if at is None:
            return None
        found: list[Neighbor] = []
        for item in read.items(at, "a list of neighbours"):
            one = self._one(read, item)
            if one is None:
                continue
            if any(one.peer == other.peer for other in found):
                read.problems.add(
                    item, "each neighbour once", f"{quote(one.peer)} again", "remove one"
                )
            else:
                found.append(one)
        return tuple(found)

    def _one(self, read: Reader, at: Tree) -> Neighbor | None:
        wanted, hint = "a link, or an address with its AS number", "write eth1, or 10.0.0.2: 65002"
        if isinstance(at, tree.Mapping):
            if len(at.entries) != 1:
                read.problems.add(at, wanted, f"{len(at.entries)} entries", hint)
                return None
            entry = next(iter(at.entries.values()))
            asn = self.ASN.read(read, entry.value)
            peer = self._peer(read, entry.key)
            return None if asn is None or peer is None else Neighbor(peer, asn)
        peer = self._peer(read, at)
        if peer is not None and Neighbor(peer).is_address:
            read.problems.add(at, "the AS number of this address", "none", f"write {peer}: 65002")
            return None
        return None if peer is None else Neighbor(peer)

    @staticmethod
    def _peer(read: Reader, at: Tree) -> str | None:
        if isinstance(at, tree.Scalar) and re.fullmatch(keys.ADDRESS, at.text):
            address = read.address(at)
            return None if address is None else str(address)
        return LINK.read(read, at)

    def plain(self, value: tuple[Neighbor, ...]) -> list[Any]:
        return [one.peer if one.asn is None else {one.peer: one.asn} for one in value]


class Announced(Shape[str]):
    """A prefix, or the name of a network of the lab."""

    def schema(self) -> dict[str, Any]:
        return whole(rf"{keys.PREFIXED}|{keys.LABEL}")

    def read(self, read: Reader, at: Tree | None) -> str | None:
        if isinstance(at, tree.Scalar) and "/" in at.text:
            found = read.network(at, 0, 32)
            return None if found is None else str(found)
        hint = "write a prefix such as 10.1.0.0/24, or a network's name"
        return read.matching(at, keys.LABEL, "a prefix, or the name of a network", hint)


class Area(Shape[str]):
    """An area: a number, or an address (RFC 2328, appendix C.2)."""

    def schema(self) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 0, "maximum": AS_MAX}
        return {"anyOf": [number, whole(rf"[0-9]{{1,10}}|{keys.ADDRESS}")]}

    def read(self, read: Reader, at: Tree | None) -> str | None:
        if isinstance(at, tree.Scalar) and re.fullmatch(r"[0-9]{1,10}", at.text):
            return at.text if int(at.text) <= AS_MAX else self._refuse(read, at)
        if isinstance(at, tree.Scalar) and re.fullmatch(keys.ADDRESS, at.text):
            parts = at.text.split(".")
            return at.text if all(int(part) < 256 for part in parts) else self._refuse(read, at)
        return None if at is None else self._refuse(read, at)

    @staticmethod
    def _refuse(read: Reader, at: Tree) -> None:
        read.problems.add(at, "an area, such as 0 or 0.0.0.1", describe(at), "write its number")


#: Network types (RFC 2328, section 1.2). A point-to-point link has no designated router, so it does
#: not wait for the choice of one, as long as the dead interval (section 9.1).
BROADCAST, POINT_TO_POINT = TYPES = ("broadcast", "point-to-point")
PAIR = 2  # routers on a point-to-point link
PAIR_PREFIX = (
    30  # shortest prefix of a subnet for two routers; a /31 has no other address (RFC 3021)
)
SECONDS = Integer("a time in seconds", 1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ospf(Block):
    """OSPF version 2 (RFC 2328) on some links of a router."""

    area: str = key(Area(), "Area, as a number or an address.", default="0")
    interfaces: tuple[str, ...] = key(
        LINKS, "Networks or links that take part. Default: all of the node.", default=()
    )
    networks: tuple[IPv4Network, ...] = key(
        Items(Subnet(0, 32), "a list of prefixes", unique=True),
        "Prefixes: links with an address in one of them take part, instead of `interfaces`.",
        default=(),
    )
    passive: tuple[str, ...] = key(
        LINKS,
        "Networks or links that are announced, but have no neighbours.",
        default=(),
    )
    type: str | None = key(
        Choice("a network type", TYPES),
        "Network type of its links, equal on all routers of a link. Default: point-to-point on "
        "`links` and on networks of two ports with a /30 or /31, else broadcast.",
        default=None,
    )
    hello: int | None = key(
        SECONDS,
        "Seconds between hellos; equal on all routers of a link. Default: 10.",
        default=None,
    )
    dead: int | None = key(
        SECONDS,
        "Seconds without a hello after which a neighbour is down. Default: 40.",
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bgp(Block):
    """BGP (RFC 4271) of a router."""

    asn: int = key(Integer("an AS number", 1, AS_MAX), "AS number of the node.", required=True)
    neighbors: tuple[Neighbor, ...] = key(
        Neighbors(),
        "Neighbours: `10.0.0.2: 65002`, or a link without addresses of its own (eth1).",
        default=(),
    )
    networks: tuple[str, ...] = key(
        Items(Announced(), "a list of prefixes or networks", unique=True),
        "Prefixes that the node announces, or names of its networks. It must have routes to them.",
        default=(),
    )
    keepalive: int | None = key(SECONDS, "Seconds between keepalives. Default: 60.", default=None)
    hold: int | None = key(
        Integer("a time in seconds", 3, 65535),
        "Seconds without a message after which a session is down. Default: 180.",
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterOfNode(Block):
    """The configuration of a router: as text, or a few lines from which it is written."""

    about: ClassVar[str] = "Routing on this node: a configuration, or OSPF and BGP in a few lines."

    config: Config | None = key(
        ConfigShape(),
        "Configuration: a file beside the topology, or {content: TEXT}.",
        default=None,
    )
    router_id: IPv4Address | None = key(
        Address(), "Router ID. Default: the first address of the node.", default=None
    )
    ospf: Ospf | None = key(Nested(Ospf), "OSPF on links of the node.", default=None)
    bgp: Bgp | None = key(Nested(Bgp), "BGP with neighbours of the node.", default=None)

    def fixed(self) -> dict[str, Any]:
        return {}  # daemons of a running node start again with another configuration


def router_of(role: str, node: Node) -> RouterOfNode:
    """Return the settings of a router; all defaults for one without any."""
    found = node.sections.get(role)
    return found if isinstance(found, RouterOfNode) else RouterOfNode()


def ports_of(node: Node, words: tuple[str, ...]) -> list[Port]:
    """Return the ports with these names, or on networks with these names, in order."""
    return [port for port in node.ports if port.name in words or port.network in words]


def ospf_ports(ospf: Ospf, node: Node) -> list[Port]:
    """Return the ports with OSPF: those that are named, or with addresses in its prefixes."""
    if ospf.interfaces:
        return ports_of(node, (*ospf.interfaces, *ospf.passive))
    if ospf.networks:
        return [
            port
            for port in node.ports
            if any(address in prefix for address in port.addresses for prefix in ospf.networks)
        ]
    return [port for port in node.ports if port.addresses]


def network_type(ospf: Ospf, topology: Topology, port: Port) -> str:
    """Return the network type of a port: that of the file, or one that its link stands for.

    A link of two ends is point-to-point, unless the other router has another type in the file, or
    a configuration of its own: daemons take every Ethernet link as broadcast by default.
    """
    if ospf.type is not None:
        return ospf.type
    ports = [
        one for node in topology.nodes.values() for one in node.ports if one.network == port.network
    ]
    network = topology.networks.get(port.network)
    subnet = network.subnet if network else None
    small = subnet is not None and subnet.prefixlen >= PAIR_PREFIX
    if port.peer is None and not (small and len(ports) == PAIR):
        return BROADCAST
    others = [
        section
        for one in ports
        if one.node != port.node
        for section in topology.nodes[one.node].sections.values()
        if isinstance(section, RouterOfNode)
    ]
    said = {one.ospf.type for one in others if one.ospf is not None}
    return BROADCAST if BROADCAST in said or any(one.config for one in others) else POINT_TO_POINT


def router_id(router: RouterOfNode, node: Node) -> str:
    """Return the router ID of a node; empty without one and without an address."""
    return str(router.router_id or next(iter(node.addresses), ""))


def prefixes(bgp: Bgp, topology: Topology) -> list[str]:
    """Return the prefixes that a router announces."""
    named = topology.networks
    return [str(named[one].subnet) if one in named else one for one in bgp.networks]


def neighbor_name(node: Node, neighbor: Neighbor) -> str:
    """Return the address of a neighbour, or the link on which it is."""
    if neighbor.is_address:
        return neighbor.peer
    found = ports_of(node, (neighbor.peer,))
    return found[0].name if found else neighbor.peer


def in_words(router: RouterOfNode, topology: Topology, node: Node) -> str:
    """Return the settings of a router in a few words, for `plan`."""
    if router.config is not None:
        return f"configuration {router.config.file or 'of the topology'}"
    words = []
    if router.ospf:
        passive = ports_of(node, router.ospf.passive)
        pairs = [
            port.name
            for port in ospf_ports(router.ospf, node)
            if port not in passive and network_type(router.ospf, topology, port) == POINT_TO_POINT
        ]
        more = f", {POINT_TO_POINT} on {', '.join(pairs)}" if pairs else ""
        words.append(f"OSPF area {router.ospf.area}{more}")
    if router.bgp:
        peers = ", ".join(neighbor_name(node, one) for one in router.bgp.neighbors) or "none"
        words.append(f"BGP AS {router.bgp.asn}, neighbours {peers}")
    return "; ".join(words) or "no routing protocol"


class RoutingChecks(Look):
    """Rules for the settings of routers."""

    role_name: ClassVar[str]

    def rules(self) -> tuple[Callable[[], None], ...]:
        return (
            self.one_router_a_node,
            self.one_way_to_say_it,
            self.links_are_the_nodes,
            self.networks_exist,
            self.timers_are_in_order,
            self.router_ids_are_known,
            self.neighbors_are_others,
        )

    def routers(self) -> Iterator[tuple[Node, RouterOfNode]]:
        for node in self.t.nodes.values():
            if self.role_name in node.roles:
                yield node, router_of(self.role_name, node)

    def one_router_a_node(self) -> None:
        every = {one.role_name for one in RoutingChecks.__subclasses__()}
        for node, _ in self.routers():
            first, *others = [role for role in node.roles if role in every]
            if self.role_name in others:
                wanted = f"one router on {node.name}: each takes the protocols' ports, and sets "
                wanted += "and removes routes in the kernel"
                hint = f"remove {first} or {self.role_name}, or give each a node of its own"
                at = self.role(node, self.role_name)
                self.add(at, wanted, f"{first} and {self.role_name}", hint)

    def one_way_to_say_it(self) -> None:
        for node, router in self.routers():
            others = [
                f.name for f in fields(router) if f.name != "config" and getattr(router, f.name)
            ]
            if router.config is not None and others:
                at = self.key("nodes", node.name, self.role_name, others[0])
                self.add(at, "either `config` or lines of settings", "both", "remove one of them")
            if router.ospf and router.ospf.interfaces and router.ospf.networks:
                at = self.key("nodes", node.name, self.role_name, "ospf", "networks")
                self.add(at, "either `interfaces` or `networks`", "both", "remove one of them")

    def links_are_the_nodes(self) -> None:
        for node, router in self.routers():
            if self.unsure(node.name, "networks"):
                continue
            known = [name for port in node.ports for name in (port.network, port.name)]
            for path, word in _link_words(router):
                at = self.value("nodes", node.name, self.role_name, *path)
                if word not in known:
                    wanted = f"a network or a link of {node.name}"
                    self.add(at, wanted, quote(word), nearest(word, known))

    def networks_exist(self) -> None:
        known = tree.keys_at(self.root, "networks")
        for node, router in self.routers():
            for index, one in enumerate(router.bgp.networks if router.bgp else ()):
                network = self.t.networks.get(one)
                at = self.value("nodes", node.name, self.role_name, "bgp", "networks", index)
                if "/" not in one and one not in known:
                    wanted, hint = "a prefix, or a network of the lab", nearest(one, known)
                    self.add(at, wanted, quote(one), hint)
                elif network is not None and network.subnet is None:
                    wanted, hint = "a network with a subnet", "write a prefix such as 10.1.0.0/24"
                    self.add(at, wanted, f"{one} without one", hint)

    def timers_are_in_order(self) -> None:
        for node, router in self.routers():
            ospf, bgp = router.ospf, router.bgp
            for protocol, low, high, short, long in (
                ("ospf", ospf and ospf.hello, ospf and ospf.dead, 10, 40),
                ("bgp", bgp and bgp.keepalive, bgp and bgp.hold, 60, 180),
            ):
                if (low or high) and (low or short) >= (high or long):
                    names = ("hello", "dead") if protocol == "ospf" else ("keepalive", "hold")
                    at = self.key("nodes", node.name, self.role_name, protocol)
                    wanted = f"a `{names[0]}` shorter than `{names[1]}`"
                    seen = f"{low or short} and {high or long} s"
                    self.add(at, wanted, seen, "set both; usual is a third")

    def router_ids_are_known(self) -> None:
        for node, router in self.routers():
            if (router.ospf or router.bgp) and not router_id(router, node):
                if self.unsure(node.name, "networks"):
                    continue
                hint = "add router_id: 10.0.0.1, a number of the router's own"
                at = self.key("nodes", node.name, self.role_name)
                self.add(at, "a router ID for a node without an address", "none", hint)

    def neighbors_are_others(self) -> None:
        for node, router in self.routers():
            mine = {*map(str, node.addresses)}
            for index, one in enumerate(router.bgp.neighbors if router.bgp else ()):
                if one.peer in mine:
                    path = ("nodes", node.name, self.role_name, "bgp", "neighbors", index)
                    seen = f"{one.peer}, of {node.name} itself"
                    hint = "write the address of the router at the other end"
                    self.add(self.value(*path), "an address of another router", seen, hint)


def _link_words(router: RouterOfNode) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the words of the settings that name links, each with its place."""
    ospf, bgp = router.ospf, router.bgp
    for name in ("interfaces", "passive"):
        for index, word in enumerate(getattr(ospf, name) if ospf else ()):
            yield ("ospf", name, index), word
    for index, one in enumerate(bgp.neighbors if bgp else ()):
        if not one.is_address:
            yield ("bgp", "neighbors", index), one.peer


class FrrChecks(RoutingChecks):
    """Rules for FRR."""

    role_name = "frr"


class BirdChecks(RoutingChecks):
    """Rules for BIRD."""

    role_name = "bird"

    def rules(self) -> tuple[Callable[[], None], ...]:
        return (*super().rules(), self.neighbors_have_addresses)

    def neighbors_have_addresses(self) -> None:
        for node, router in self.routers():
            for index, one in enumerate(router.bgp.neighbors if router.bgp else ()):
                if not one.is_address:
                    path = ("nodes", node.name, self.role_name, "bgp", "neighbors", index)
                    wanted = "an address with its AS number: BIRD has no unnumbered sessions"
                    hint = "write 10.0.0.2: 65002, or use the role frr"
                    self.add(self.value(*path), wanted, one.peer, hint)


def refuse_config(
    role: str, node: Node, text: str, problems: Mapping[int, str], program: str
) -> None:
    """Raise LabError with the file, line and text of each problem of a configuration."""
    if not problems:
        return
    config = router_of(role, node).config
    name = (config and config.file) or f"{role} configuration of {node.name}"
    lines = text.splitlines()
    said = [
        f"    {name}:{number}: {what.strip()}"
        + (f": {quote(lines[number - 1].strip())}" if 0 < number <= len(lines) else "")
        for number, what in sorted(problems.items())
    ]
    raise LabError(
        f"{program} refuses the configuration of {node.name}\n" + "\n".join(said),
        hint=f"correct it, then repeat the `up`; `testbed plan` shows it with its {role} step",
    )


def wait_until(
    context: Context, machine: Machine, name: str, look: Callable[[], str | None]
) -> str:
    """Wait until ``look`` returns a text about a daemon, and return it.

    Raises ServiceError if the daemon dies, TimeoutExpired after a minute.
    """
    wait = Wait(context, f"{name} on {machine.name} to be ready", READY_SECONDS * machine.slowness)
    while (seen := look()) is None:
        if name in dead(machine):
            words = "died before it was ready"
            raise ServiceError(name, machine.name, words, machine.logs(name))
        wait.pause()
    return seen
