"""The topology as frozen dataclasses, independent of files and machines.

A :class:`Topology` is complete and valid: it has all defaults, every reference exists, and every
address belongs to a network. :mod:`testbed.topology.load` creates one from a file, or raises an
error with all problems of the file.

The dataclasses declare the keys of a file. What software needs in a file is declared by its role,
as a section (:class:`testbed.topology.declare.Section`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from testbed import registry
from testbed.faults.model import RESERVED, Fault, Unreadable, parse
from testbed.topology import keys
from testbed.topology.containers import CONTAINER_NAME, Container
from testbed.topology.declare import (
    Block,
    Draft,
    Listed,
    Named,
    Nested,
    Section,
    Underlay,
    key,
    role_keys,
    role_of,
)
from testbed.topology.foreign import NODE_NAME as FOREIGN_NAME
from testbed.topology.foreign import Foreign
from testbed.topology.iproute import MAIN, Net, Route, RouteText, Rule, RuleText
from testbed.topology.ports import Link, Links, Port, Ports
from testbed.topology.programs import SERVICE_NAME, Command, Commands, OwnService
from testbed.topology.settings import Bind, Binding, File, Files, Sysctls
from testbed.topology.shapes import (
    IMAGE,
    INTERFACE_NAME,
    LAB_NAME,
    MTU_BYTES,
    NETWORK_NAME,
    NODE,
    NODE_NAME,
    SUBNET6,
    Amount,
    Choice,
    Choices,
    Cpus,
    Flag,
    Items,
    Memory,
    Name,
    Paths,
    Pattern,
    Prefixed,
    Reference,
    Shape,
    Subnet,
    Text,
    Variables,
    table,
    whole,
)
from testbed.topology.tree import describe, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: Block of every node's digest.  Increase it when the base of all nodes changes, so that nodes of
#: an earlier version are created again.
NODE_FORM = 2
#: Entries of every node's digest since the first version, where no section has another value.
#: Without them, the nodes of running labs would be created again.
FIRST_DIGEST: Mapping[str, Any] = {"bip": "None"}
#: MTU of the links between nodes, in bytes.
MTU = 1500

#: The key that testbed.topology.include resolves before a topology is built.
INCLUDE = "include"

NAMESPACE_NAME = Name("a namespace", keys.NAMESPACE, keys.LABEL_MAX)
BRIDGE_NAME = replace(INTERFACE_NAME, what="a bridge")
FAULT_NAME = Name("a fault", keys.LABEL, keys.LABEL_MAX)
PACKAGE = Pattern(
    keys.PACKAGE,
    "the name of a Debian package, like tcpdump",
    "a name has lower case letters, digits and +.-; its version is that of the archive",
)
HOST = Pattern(
    keys.HOST_NAME,
    "the name of a machine, like worker-3",
    "write one name, with letters, digits, '-' and '.'",
    253,  # RFC 1123, section 2.1
    "a name",
)
NO_PORTS = (
    "a node has no ports on this machine: `testbed forward NODE:PORT` opens one while it runs; "
    "containers publish ports on their node"
)
PROVIDER = Choice("a provider", lambda: [*registry.PROVIDERS])


@dataclass(frozen=True, slots=True)
class Network(Block):
    """A layer-2 segment that connects nodes, and its subnet if it has one."""

    name: str
    subnet: IPv4Network | None = key(
        # At least two addresses of hosts; both of a /31 are (RFC 3021).
        Subnet(8, 31, "subnet6"),
        "The IPv4 subnet used on the segment: 10.168.0.0/24. Without one its ports need no "
        "address.",
        default=None,
    )
    subnet6: IPv6Network | None = key(
        SUBNET6,
        "The IPv6 subnet: fd00:1::/64. With both, a node's IPv6 address has the host number of "
        "its IPv4 address, unless the file gives one.",
        default=None,
    )
    mtu: int | None = key(
        MTU_BYTES,
        f"The largest packet on the segment, in bytes. Default: {MTU}.",
        default=None,
    )

    rate: Fault | None = key(
        Amount("rate"),
        "Bit rate of what each node sends: 100mbit. Default: no limit.",
        default=None,
    )
    delay: Fault | None = key(Amount("delay"), "Delay of what each node sends: 5ms.", default=None)
    loss: Fault | None = key(
        Amount("loss"),
        "Random frames lost of what each node sends: 1%. Default: none.",
        default=None,
    )
    uplink: bool = key(
        Flag(),
        "Give its nodes a way out by NAT: to all that this machine reaches, and so to the "
        "internet. The first address of the subnet is their gateway and DNS server.",
        default=False,
    )
    #: Position in ``links`` of a link between two nodes, which is a network of two ports; else -1.
    link: int = -1

    @property
    def shaping(self) -> tuple[Fault, ...]:
        """Its rate, delay and loss."""
        return tuple(filter(None, (self.rate, self.delay, self.loss)))

    @property
    def way_out(self) -> IPv4Address | None:
        """The address of its uplink; None without one."""
        return self.subnet[1] if self.uplink and self.subnet else None

    @property
    def subnets(self) -> str:
        """Its subnets in words; empty without one."""
        return ", ".join(map(str, filter(None, (self.subnet, self.subnet6))))

    @property
    def words(self) -> str:
        """Its subnets and its uplink in words."""
        words = self.subnets or "no subnet"
        return f"{words}, uplink (NAT) by {self.way_out}" if self.uplink else words

    def digest(self) -> Any:
        """Return what the digest of a node on the network consists of."""
        plain = self.to_dict()
        # Alone, as before there were other keys.
        return plain["subnet"] if plain.keys() == {"subnet"} else plain


@dataclass(frozen=True, slots=True)
class Node(Block):
    """A node.  ``ports`` has the order of the file: eth0, eth1, ...

    ``cpus`` is a number of CPUs (0.5 is half a CPU), ``memory`` is in bytes; None means no limit.
    A ``gateway`` node is the default gateway of its peers. ``provider`` None means the topology's
    provider (:meth:`Topology.provider_of`). ``sections`` are mappings of roles
    and of the provider, by name.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "address": "write networks: {NETWORK: ADDRESS}",
        "cmd": "write run for commands at the start, services for daemons",
        "command": "write run for commands at the start, services for daemons",
        "environment": "write env",
        "exec": "write run: [COMMAND]",
        "interfaces": "write networks: {NETWORK: {name: NAME}}, or links beside nodes",
        "kind": "write roles; kinds are for other tools' files, which `testbed up` reads, too",
        "links": "write links beside nodes",
        "mgmt-ipv4": "write networks: {NETWORK: ADDRESS}",
        "ports": NO_PORTS,
        "publish": NO_PORTS,
        "startup-config": "write files: {PATH: FILE}, or ROLE: {config: FILE} for a router's role",
        "volumes": "write binds",
    }

    name: str
    ports: tuple[Port, ...] = key(
        Ports(),
        "Networks of the node, in order: eth0, eth1, ...; each with the address of the node there, "
        "or a port or a list of ports.",
        name="networks",
        default=(),
    )
    roles: tuple[str, ...] = key(
        Choices("a list of roles", "role", lambda: [*registry.ROLES]),
        "Software on the node.",
        default=(),
    )
    gateway: bool = key(Flag(), "Make the node the default route of its peers.", default=False)
    forward: bool = key(
        Flag(),
        "Forward packets between its networks. A gateway does so anyway.",
        default=False,
        live=True,
    )
    sysctls: Mapping[str, str] = key(
        Sysctls(),
        "Kernel settings, by name: {net.ipv4.conf.all.rp_filter: 2}.",
        default={},
        live=True,
    )
    routes: tuple[Route, ...] = key(
        Items(RouteText(), "a list of routes", unique=True),
        "Routes, in the words of ip-route(8): 10.2.0.0/16 via 10.1.0.1.",
        default=(),
        live=True,
    )
    ip_rules: tuple[Rule, ...] = key(
        Items(RuleText(), "a list of rules", unique=True),
        "Rules for the choice of a table of routes, in the words of ip-rule(8): from 10.1.0.0/24 "
        "lookup 100.",
        name="rules",
        default=(),
        live=True,
    )
    files: Mapping[str, File] = key(
        Files(),
        "Files on the node, by path: a path beside the topology file, or {content: TEXT}.",
        default={},
        live=True,
    )
    binds: tuple[Bind, ...] = key(
        Items(Binding(), "a list of binds", unique=True),
        "Files and folders of this machine, as in Compose: ./data:/srv/data:ro.",
        default=(),
    )
    env: Mapping[str, str] = key(
        Variables(),
        "Environment variables of its commands, tests, shells and services.",
        default={},
        live=True,
    )
    run: tuple[Command, ...] = key(
        Commands(),
        "Commands at its start, in order, each once.",
        default=(),
        live=True,
    )
    services: Mapping[str, OwnService] = key(
        Named(SERVICE_NAME, OwnService), "Daemons, by name.", default={}, live=True
    )
    cpus: float | None = key(
        Cpus(),
        "Limit of CPUs; 0.5 is half a CPU. Default: no limit.",
        default=None,
    )
    memory: int | None = key(
        Memory(),
        "Limit of memory in bytes, or with K, M, G or T (powers of 1024). Default: no limit.",
        default=None,
    )
    provider: str | None = key(
        PROVIDER, "Provider of this node. Default: that of the lab.", default=None
    )
    packages: tuple[str, ...] = key(
        Items(PACKAGE, "a list of Debian packages", unique=True),
        "Debian packages for this node alone. They are not installed on this machine.",
        default=(),
    )
    image: str = key(
        IMAGE,
        "Container image as its file system: alpine:3.20. Default: that of this machine.",
        default="",
    )
    host: str = key(
        HOST,
        "Machine of its provider on which it runs, such as a cluster's node: worker-3. Default: "
        "the provider's choice.",
        name="on",
        default="",
    )
    compose: tuple[str, ...] = key(
        Paths("the path of a Compose file"),
        "Compose file, or several, that Docker Compose runs on the node.",
        default=(),
        live=True,
    )
    sections: Mapping[str, Block] = role_keys("node_section")

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        return cls(**given, sections=draft.node_sections())

    @property
    def forwards(self) -> bool:
        """True if it forwards packets, by its own keys or by a role."""
        roles = (role_of(name) for name in self.roles)
        return self.gateway or self.forward or any(role and role.forwards for role in roles)

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of its networks, in the file's order, each once."""
        return tuple(dict.fromkeys(port.network for port in self.ports))

    @property
    def addresses(self) -> tuple[IPv4Address, ...]:
        """All its IPv4 addresses, in the order of the ports."""
        return tuple(address for port in self.ports for address in port.addresses)

    @property
    def addresses6(self) -> tuple[IPv6Address, ...]:
        """All its IPv6 addresses, in the order of the ports."""
        return tuple(address for port in self.ports for address in port.addresses6)

    def on(self, network: str) -> tuple[Port, ...]:
        """Return its ports on a network."""
        return tuple(port for port in self.ports if port.network == network)

    def first_on(self, network: str) -> Port:
        """Return its first port on one of its networks."""
        return self.on(network)[0]

    def address_on(self, network: str) -> IPv4Address | None:
        """Return its first address on a network; None without one."""
        return next((port.address for port in self.on(network) if port.address), None)


@dataclass(frozen=True, slots=True)
class Namespace(Block):
    """A plain network namespace on a node, as created by ``ip netns add``."""

    name: str
    node: str = key(NODE, "Node that it is on.", required=True, default="")


@dataclass(frozen=True, slots=True)
class Bridge(Block):
    """A Linux bridge on a node, without an address of its own."""

    name: str
    node: str = key(NODE, "Node that it is on.", required=True, default="")


@dataclass(frozen=True, slots=True)
class VethEnd(Block):
    """One end of a veth pair: in a namespace, or a port of a bridge.

    In a namespace it has an address.
    """

    rules: ClassVar[Mapping[str, Any]] = {
        "oneOf": [{"required": ["namespace"]}, {"required": ["bridge"]}],
        "dependentRequired": {"address": ["namespace"]},
    }

    name: str = key(INTERFACE_NAME, "Name of the interface.", required=True, default="")
    namespace: str | None = key(
        Reference(NAMESPACE_NAME, "the name of a namespace"),
        "Namespace that holds this end.",
        default=None,
    )
    bridge: str | None = key(
        Reference(INTERFACE_NAME, "the name of a bridge"),
        "Bridge of which this end is a port.",
        default=None,
    )
    address: IPv4Interface | None = key(
        Prefixed(),
        "Address with its prefix, in a namespace: 192.168.10.200/24.",
        default=None,
    )


@dataclass(frozen=True, slots=True)
class Veth(Block):
    """A veth pair on a node."""

    node: str = key(NODE, "Node that it is on.", required=True, default="")
    ends: tuple[VethEnd, VethEnd] = key(
        Listed(
            VethEnd,
            "a list of two ends",
            VethEnd(),
            2,
            "two ends",
            "a veth pair has two ends, each with a name",
        ),
        "Both ends of the pair.",
        required=True,
        default=(VethEnd(), VethEnd()),
        shown=None,
    )


class _Networks(Named[Network]):
    """Networks by name, without links."""

    def plain(self, value: Mapping[str, Network]) -> dict[str, Any]:
        return Named.plain(self, {name: one for name, one in value.items() if one.link < 0})


class _Faults(Shape[Mapping[str, Fault]]):
    """Faults in words, by name."""

    def schema(self) -> dict[str, Any]:
        names = FAULT_NAME.schema() | {"not": {"enum": list(RESERVED)}}
        return table(names, whole(keys.FAULT))

    def read(self, read: Reader, at: Tree | None) -> dict[str, Fault]:
        out = {}
        section = read.table(at)
        for entry in section.entries.values() if section else ():
            name = FAULT_NAME.read(read, entry.key)
            if name in RESERVED:
                wanted = "a name for a fault that is no word of `testbed fault` itself"
                hint = f"{', '.join(RESERVED)} are taken; choose another"
                read.problems.add(entry.key, wanted, quote(name), hint)
            words = read.text(entry.value, "a fault in words, like 'loss node1:node2 20%'")
            if words is None:
                continue
            try:
                out[entry.key.text] = parse(words.split())
            except Unreadable as error:
                read.problems.add(entry.value, error.wanted, error.seen, error.hint)
        return out

    def plain(self, value: Mapping[str, Fault]) -> dict[str, str]:
        return {name: fault.words for name, fault in value.items()}


class _Files(Shape[tuple[str, ...]]):
    """Files to include: one, or a list.  A topology that is read has them included."""

    def schema(self) -> dict[str, Any]:
        one = {"type": "string", "minLength": 1}
        return {"anyOf": [one, {"type": "array", "items": one}]}

    def read(self, read: Reader, at: Tree | None) -> None:
        if at is not None:
            hint = "include them before"
            read.problems.add(at, "a topology without files to include", describe(at), hint)


@dataclass(frozen=True, slots=True)
class Topology(Block):
    """A whole topology.

    ``sections`` are those of roles and providers, by name (see :meth:`Section.of`). ``source`` is
    the file's name as the user gave it, for messages only. ``file`` is its absolute path with
    symbolic links resolved, empty for a topology without a file. ``variables`` are the values of
    the variables that were filled in.
    """

    name: str = key(LAB_NAME, "Name of the lab.", required=True, default="")
    description: str = key(Text(), "Purpose of the lab, in a sentence or two.", default="")
    provider: str = key(
        PROVIDER,
        "Default provider for nodes that don't set one.",
        default=keys.DEFAULT_PROVIDER,
    )
    networks: Mapping[str, Network] = key(
        _Networks(NETWORK_NAME, Network, hollow=True),
        "Layer-2 segments that join nodes, by name.",
        default={},
    )
    links: tuple[Link, ...] = key(
        Links(), "Links between two nodes, without a segment: [r1:eth1, r2:eth1].", default=()
    )
    nodes: Mapping[str, Node] = key(
        Named(
            NODE_NAME,
            Node,
            hollow=True,
            one="at least one node",
            hint="add one: 'node1: {}'",
            foreign=FOREIGN_NAME,
        ),
        "Nodes, by name.",
        required=True,
        default={},
    )
    sections: Mapping[str, Section] = role_keys("section")
    containers: Mapping[str, Container] = key(
        Named(CONTAINER_NAME, Container), "Containers, by name.", default={}
    )
    namespaces: Mapping[str, Namespace] = key(
        Named(NAMESPACE_NAME, Namespace, hollow=True),
        "Plain network namespaces, by name.",
        default={},
    )
    bridges: Mapping[str, Bridge] = key(
        Named(BRIDGE_NAME, Bridge, hollow=True), "Linux bridges, by name.", default={}
    )
    faults: Mapping[str, Fault] = key(
        _Faults(),
        "Faults, by name: `testbed fault apply NAME` causes one.",
        default={},
    )
    veths: tuple[Veth, ...] = key(
        Listed(Veth, "a list of pairs", Veth()),
        "Pairs of virtual Ethernet interfaces.",
        default=(),
    )
    include: tuple[str, ...] = key(
        _Files(),
        "Files whose keys are used where this file does not have them, relative to its folder.",
        name=INCLUDE,
        default=(),
    )
    foreign: Foreign | None = key(
        Nested(Foreign), "The file of another tool that it was read from.", default=None, own=True
    )
    source: str = field(default="", compare=False)
    _underlay: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)
    _names: dict[Hashable, tuple[str, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    file: str = field(default="", compare=False)
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        networks, nodes = given.get("networks", {}), given.get("nodes", {})
        if "links" in given:
            networks, nodes = _linked(given["links"], networks, nodes)
            given["networks"] = networks
        nodes = {name: _completed(node, networks) for name, node in nodes.items()}
        draft.nodes = given["nodes"] = nodes
        return cls(**given, sections=draft.sections())

    @property
    def folder(self) -> Path:
        """The folder of the file, which relative paths in it begin at.

        It is the working folder for a topology without a file.
        """
        return Path(self.file).parent if self.file else Path.cwd()

    @property
    def attached(self) -> str:
        """The place where the lab exists already; empty for a lab that testbed creates."""
        return self.foreign.attached if self.foreign else registry.existing(self.providers)

    @property
    def existing(self) -> bool:
        """True if the file itself names machines that exist already, by its provider."""
        return self.foreign is None and bool(self.attached)

    @property
    def installs(self) -> Mapping[str, str]:
        """The nodes on whose existing machines roles are installed, each with its folder there."""
        return registry.PROVIDERS[self.provider].installs(self) if self.existing else {}

    def provider_of(self, node: str) -> str:
        """Return the provider of a node: its own, or the topology's default."""
        return self.nodes[node].provider or self.provider

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers of the nodes, without duplicates, in the file's order."""
        return tuple(dict.fromkeys(self.provider_of(name) for name in self.nodes))

    def segments_of(self, node: str) -> frozenset[str]:
        """Return names of everything that joins a node to others."""
        if self.foreign is not None:
            return self.foreign.segments_of(node)
        return frozenset(self.nodes[node].networks)

    @property
    def maker(self) -> str:
        """The provider of all nodes with a role; ``mixed`` for several.

        A node without a role, such as one that stands in for the internet, is not under test. If
        no node has a role, all nodes count.
        """
        meant = [node for node in self.nodes.values() if node.roles] or list(self.nodes.values())
        makers = {self.provider_of(node.name) for node in meant}
        return makers.pop() if len(makers) == 1 else "mixed"

    @property
    def uplinks(self) -> tuple[Network, ...]:
        """The networks with a way out of the lab."""
        return tuple(network for network in self.networks.values() if network.uplink)

    def resolver(self, node: str) -> IPv4Address | None:
        """Return the DNS server of a node: the uplink on its way out; None without one."""
        here: str | None = node if self.uplinks else None
        for _ in self.nodes:
            if here is None:
                break
            found = (self.networks[name].way_out for name in self.nodes[here].networks)
            if resolver := next(filter(None, found), None):
                return resolver
            here, _network = self.gateway_node(here) or (None, "")
        return None

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the nodes, without duplicates, in the file's order."""
        return tuple(dict.fromkeys(role for node in self.nodes.values() for role in node.roles))

    @property
    def software(self) -> frozenset[str]:
        """The software on its nodes: roles, and the parts that they have here."""
        return frozenset(self.roles).union(*(one.software() for one in self.sections.values()))

    @property
    def images(self) -> tuple[str, ...]:
        """The images of its containers, nodes and roles, sorted, without duplicates."""
        of_nodes = self.foreign.images if self.foreign else set()
        of_nodes = of_nodes | {node.image for node in self.nodes.values() if node.image}
        of_roles = {name for one in self.sections.values() for name in one.image_names()}
        return tuple(sorted({c.image for c in self.containers.values()} | of_nodes | of_roles))

    def with_role(self, role: str) -> tuple[Node, ...]:
        """Return the nodes with a role, in the order of the file."""
        return tuple(n for n in self.nodes.values() if role in n.roles)

    def address(self, node: str) -> IPv4Address:
        """Return the address of a node for its peers.

        It is the one on its :meth:`network`. Raises KeyError for an unknown node, StopIteration for
        one without a network.
        """
        return _address_on(self.nodes[node], self.network(node))

    def address6(self, node: str) -> IPv6Address | None:
        """Return the IPv6 address of a node for its peers; None without one.

        It is on the :meth:`interface` of the node. Raises the same errors as :meth:`address`.
        """
        return next(iter(self.port(node).addresses6), None)

    def network(self, node: str) -> str:
        """Return the network for a node's traffic with other nodes.

        For nodes that communicate with each other (:meth:`meshes`) it is the file's ``interface``
        or, by default, the first network that all of them share. For others it is the first one.
        Raises KeyError for an unknown node, StopIteration for one without a network.
        """
        if not self._underlay:
            for interface, members in self.meshes():
                self._underlay.update(_underlay(interface, members))
        return self._underlay.get(node) or _first(self.nodes[node])

    def interface(self, node: str) -> str:
        """Return a node's link to its :meth:`network`; raises the same errors."""
        return self.port(node).name

    def link_mtu(self, node: str, usual: int | None = None) -> int:
        """Return the MTU of a node's :meth:`interface`, in bytes; raises the same errors.

        ``usual`` is that of the node's links to networks that set none, by default 1500.
        """
        return self.port(node).mtu or usual or MTU

    def port(self, node: str) -> Port:
        """Return a node's port on its :meth:`network`; raises the same errors."""
        network = self.network(node)
        return next(port for port in self.nodes[node].on(network) if port.addresses)

    def meshes(self) -> Iterator[tuple[Underlay, tuple[Node, ...]]]:
        """Yield the groups of nodes that communicate.

        Each has its ``interface`` setting.
        """
        for section in self.sections.values():
            yield from section.meshes(self)

    def address_for(self, node: str, peer: str) -> IPv4Address:
        """Return the address that a node should use for a peer.

        Raises the same errors as :meth:`address`. It is the peer's :meth:`address`, unless the node
        is not on that network and both share another network.
        """
        mine, other = self.nodes[node].networks, self.nodes[peer]
        if self.network(peer) not in mine:
            for network in mine:
                if (address := other.address_on(network)) is not None:
                    return address
        return self.address(peer)

    def names_for(self, node: str) -> tuple[str, ...]:
        """Return the lines of a node's hosts(5) for all nodes, itself among them: ``10.0.0.2 n2``.

        Addresses are those of :meth:`address_for` and :meth:`address6_for`. Raises the same errors.
        """
        # Nodes on the same subnets have the same lines: each node's own would take the square of
        # the number of nodes.
        mine = self.nodes[node]
        place = (
            tuple((port.network, _subnets(port), bool(port.interfaces6)) for port in mine.ports),
            self.gateway6_of(node) is None,
        )
        if place not in self._names:
            self._names[place] = tuple(self._lines_for(mine))
        return self._names[place]

    def _lines_for(self, mine: Node) -> Iterator[str]:
        alone = bool(mine.addresses6) and not mine.addresses  # with IPv6 alone
        for peer in self.nodes.values() if not alone else ():
            if peer.addresses:
                address = self.address_for(mine.name, peer.name)
                if not _is_anothers(address, mine, peer):
                    yield f"{address} {peer.name}"
        for name in self.nodes:
            if (six := self.address6_for(mine.name, name)) is not None:
                yield f"{six} {name}"

    def gateway_of(self, node: str) -> IPv4Address | None:
        """Return a node's default gateway: the first one on its networks.

        It is the address of an uplink, or of a node with ``gateway``. A node with a default route
        of its own has no other.
        """
        if any(route.to is None for route in self._main_routes(node, 4)):
            return None
        return self.offered_gateway(node)

    def offered_gateway(self, node: str) -> IPv4Address | None:
        """Return the :meth:`gateway_of` a node, if it had no default route of its own."""
        return next(
            (one for _, _, one in self._gateways(node) if isinstance(one, IPv4Address)), None
        )

    def far(self, port: Port) -> Port | None:
        """Return the other end of a link; None for a port on a network."""
        if port.peer is None:
            return None
        node, name = port.peer
        return next((one for one in self.nodes[node].ports if one.name == name), None)

    def gateway6_of(self, node: str) -> tuple[IPv6Address, str] | None:
        """Return a node's default gateway for IPv6, and the port to it.

        A node with a default route of its own has no other.
        """
        if any(route.to is None for route in self._main_routes(node, 6)):
            return None
        found = ((one, mine) for _, mine, one in self._gateways(node))
        return next(((one, mine.name) for one, mine in found if isinstance(one, IPv6Address)), None)

    def address6_for(self, node: str, peer: str) -> IPv6Address | None:
        """Return the IPv6 address that a node should use for a peer; None without a way to one."""
        ports = [port for port in self.nodes[peer].ports if port.addresses6]
        mine = [port.network for port in self.nodes[node].ports if port.interfaces6]
        near = [port for port in ports if port.network in mine]
        if not near and self.gateway6_of(node) is None:
            return None
        return next((port.addresses6[0] for port in near or ports), None)

    def connected(self, node: str) -> tuple[Net, ...]:
        """Return the subnets of a node's networks."""
        ports = self.nodes[node].ports
        return tuple(dict.fromkeys(one.network for port in ports for one in port.subnetted))

    def _main_routes(self, node: str, family: int) -> list[Route]:
        """Return the node's own routes in the main table."""
        routes = self.nodes[node].routes
        return [one for one in routes if one.table == MAIN and one.family == family]

    def gateway_node(self, node: str) -> tuple[str, str] | None:
        """Return a node's default gateway node for IPv4, and their common network.

        There is none if its default gateway is an uplink.
        """
        found = (one for one in self._gateways(node) if isinstance(one[2], IPv4Address))
        peer, port, _ = next(found, ("", None, None))
        return (peer, port.network) if peer and port else None

    def _gateways(self, node: str) -> Iterator[tuple[str, Port, IPv4Address | IPv6Address]]:
        """Yield the gateways that a node reaches on its networks, with its port to each.

        An address counts that is on a subnet of this port: as a next hop the kernel accepts no
        other. An uplink, whose name is empty, is the only one for IPv4 on its network.
        """
        gateways = [peer for peer in self.nodes.values() if peer.gateway and peer.name != node]
        uplinks = {network.name: network.way_out for network in self.uplinks}
        for port in self.nodes[node].ports if gateways or uplinks else ():
            way_out = uplinks.get(port.network)
            if way_out and any(way_out in one.network for one in port.interfaces):
                yield "", port, way_out
            for peer in gateways:
                for other in peer.on(port.network):
                    found: tuple[IPv4Address | IPv6Address, ...] = (
                        () if port.network in uplinks else other.addresses
                    )
                    for address in (*found, *other.addresses6):
                        if any(address in one.network for one in port.subnetted):
                            yield peer.name, port, address

    def reaches(self, node: str, peer: str) -> bool:
        """Tell whether packets from a node reach a peer's :meth:`address`.

        A node sends directly to addresses on its own networks, and all else by its routes, or to
        its gateway. What is beyond a next hop that is no node is taken for reached.
        """
        address, here = self.address(peer), node
        for _ in self.nodes:
            connected = [
                (one.network.prefixlen, port.network)
                for port in self.nodes[here].ports
                for one in port.interfaces
                if address in one.network
            ]
            if connected:
                # The longest prefix wins, the first one among equals (Linux, FIB lookup).
                _, network = max(connected, key=lambda found: found[0])
                return here == peer or any(
                    address in port.addresses for port in self.nodes[peer].on(network)
                )
            fitting = [
                route
                for route in self._main_routes(here, address.version)
                if route.to is None or address in route.to
            ]
            if fitting:
                route = max(fitting, key=lambda one: one.to.prefixlen if one.to else 0)
                if route.kind != "unicast":
                    return False
                at = [self._holder(here, via) for via in route.gateways]
                if not at or at[0] is None:
                    return True
                here = at[0]
                continue
            gateway = self.gateway_node(here)
            if gateway is None:
                return False
            here = gateway[0]
        return False

    def _holder(self, node: str, address: Any) -> str | None:
        """Return the node with an address on one of a node's networks."""
        for network in self.nodes[node].networks:
            for peer in self.nodes.values():
                if any(address in port.addresses for port in peer.on(network)):
                    return peer.name
        return None

    def containers_on(self, node: str) -> tuple[Container, ...]:
        return tuple(c for c in self.containers.values() if c.node == node)

    def running_on(self, node: str) -> tuple[Container, ...]:
        """Return the containers of a node that keep running."""
        return tuple(c for c in self.containers_on(node) if c.expect is None)

    def node_digest(self, node: str) -> str:
        """Return a digest of everything about a node except its containers and ``live`` keys.

        If two topologies have the same digest for a node, they can share the running node.
        """
        return _digest(self.node_parts(node))

    def node_parts(self, node: str) -> dict[str, Any]:
        """Return the settings of a node that :meth:`node_digest` is made of, by name.

        A node is created again when one of them changes.
        """
        me = self.nodes[node]
        found = next((one for _, _, one in self._gateways(node) if one.version == 4), None)
        parts: dict[str, Any] = {
            **FIRST_DIGEST,
            "form": NODE_FORM,
            "provider": self.provider_of(node),
            # The provider counts, whether the node or the topology sets it.
            "node": replace(me, provider=None, sections={}).fixed(),
            "networks": {n: self.networks[n].digest() for n in me.networks},
            "gateway": str(found),
            "namespaces": [n.name for n in self.namespaces.values() if n.node == node],
            "bridges": [b.name for b in self.bridges.values() if b.node == node],
            "veths": [v.to_dict() for v in self.veths if v.node == node],
        }
        parts["node"] |= {
            name: fixed for name, part in me.sections.items() if (fixed := part.fixed())
        }
        if ends := [port for port in me.ports if port.peer]:
            parts["links"] = [[port.name, *map(str, port.subnetted)] for port in ends]
        if self.foreign:
            parts["foreign"] = self.foreign.nodes[node].digest
        for role, section in self.sections.items():
            if role in (*me.roles, self.provider_of(node)):
                parts |= section.digest(self, node)
        if me.addresses and self.interface(node) != "eth0":
            parts["interface"] = self.interface(node)
        return parts

    def container_digest(self, container: str) -> str:
        """Return a digest of a container's settings."""
        return _digest(self.containers[container].to_dict())


def _linked(
    links: Iterable[Link], networks: Mapping[str, Network], nodes: Mapping[str, Node]
) -> tuple[dict[str, Network], dict[str, Node]]:
    """Return networks and nodes with the links: each is a network of two ports."""
    networks, ports = dict(networks), {name: [*node.ports] for name, node in nodes.items()}
    for index, link in enumerate(links):
        if link.ends:
            given = (link.subnet, link.subnet6, link.mtu, link.rate, link.delay, link.loss)
            networks[link.name] = Network(link.name, *given, link=index)
        for node, port in link.ports():
            if node in ports:
                ports[node].append(port)
    return networks, {name: replace(node, ports=tuple(ports[name])) for name, node in nodes.items()}


def _completed(node: Node, networks: Mapping[str, Network]) -> Node:
    """Return a node whose ports have what their networks say."""
    if not node.ports:
        return node
    ports = [
        port.completed(node.name, index, networks.get(port.network))
        for index, port in enumerate(node.ports)
    ]
    return replace(node, ports=tuple(ports))


def _underlay(interface: Underlay, members: Iterable[Node]) -> dict[str, str]:
    """Return the network of each of these nodes.

    Nodes without a network are left out.
    """
    nodes = [node for node in members if node.addresses]
    shared = [name for node in nodes[:1] for name in node.networks]
    for node in nodes:
        shared = [name for name in shared if node.address_on(name)]
    found = {}
    for node in nodes:
        given = interface if isinstance(interface, str) else interface.get(node.name, "")
        names = {port.name: port.network for port in node.ports}
        given = given if given in node.networks else names.get(given, "")
        given = given if node.address_on(given) else ""
        found[node.name] = given or next(iter([*shared, _first(node)]))
    return found


def _subnets(port: Port) -> tuple[IPv4Network, ...]:
    return tuple(one.network for one in port.interfaces)


def _is_anothers(address: IPv4Address, me: Node, peer: Node) -> bool:
    """Tell whether a peer's address belongs to another, nearer machine.

    That is a machine on one of the node's own networks. Separate networks may have the same subnet.
    """
    ports = (port for port in me.ports if any(address in subnet for subnet in _subnets(port)))
    near = [port.network for port in ports]
    theirs = [port for name in near for port in peer.on(name)]
    return bool(near) and all(address not in port.addresses for port in theirs)


def _first(node: Node) -> str:
    """Return the first network on which a node has an address.

    Raises StopIteration without one.
    """
    return next(port.network for port in node.ports if port.address)


def _address_on(node: Node, network: str) -> IPv4Address:
    """Return a node's first address on a network.  Raises StopIteration without one."""
    return next(port.address for port in node.on(network) if port.address)


def _digest(value: Any) -> str:
    data = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(data.encode()).hexdigest()[:12]
