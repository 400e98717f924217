"""Ports of nodes: their links to the networks of a lab.

A node has one port or several on each of its networks. In a file, ``networks`` of a node gives each
by its address, or by a mapping (:class:`Form`). The value is a tuple of :class:`Port`, in the order
of the file. A whole topology completes them with what their networks say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from testbed.topology import keys, reserved, tree
from testbed.topology.declare import Block, Composed, Nested, key, read_block, schema_of
from testbed.topology.families import Mac
from testbed.topology.shapes import (
    INTERFACE_NAME,
    MTU_BYTES,
    NETWORK_NAME,
    SUBNET6,
    Amount,
    Integer,
    Items,
    Shape,
    Subnet,
    table,
    whole,
)

if TYPE_CHECKING:
    from testbed.faults.model import Fault
    from testbed.topology.declare import Draft
    from testbed.topology.model import Network
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: 0 and 4095 have other meanings (IEEE 802.1Q).
VLAN = Integer("a VLAN", 1, 4094)
NO_ADDRESS = "{NETWORK: {}} for a port without an address"
PAIR = range(2)  # the numbers of both ends of a link
#: An address in a file: with a prefix length of its own, or with that of its network.
Given: TypeAlias = "IPv4Address | IPv4Interface | IPv6Address | IPv6Interface"


class PortAddress(Shape[Given]):
    """An address of a port; a prefix is for one that differs from the network's."""

    def schema(self) -> dict[str, Any]:
        return whole(f"{keys.ADDRESS}(/[0-9]{{1,2}})?|{keys.ADDRESS6}(/[0-9]{{1,3}})?")

    def read(self, read: Reader, at: Tree | None) -> Given | None:
        text = at.value if isinstance(at, tree.Scalar) and isinstance(at.value, str) else ""
        if ":" in text:
            return read.address6(at)
        if "/" in text:
            return read.interface(at)
        return read.address(at)

    def plain(self, value: Given) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Form(Block):
    """A port as a mapping of a file."""

    address: Given | None = key(PortAddress(), "Address of the port.", default=None)
    addresses: tuple[Given, ...] = key(
        Items(PortAddress(), "a list of addresses"),
        "Several addresses; a prefix is for one that differs from the network's: 10.1.0.3/32.",
        default=(),
    )
    name: str = key(
        INTERFACE_NAME,
        "Name of the interface. Default: ethN, with the number after the highest so far.",
        default="",
    )
    mac: str = key(Mac(), "MAC address. Default: one that follows from the address.", default="")
    mtu: int | None = key(
        MTU_BYTES, "Largest packet in bytes. Default: that of the network.", default=None
    )
    vlan: int | None = key(
        VLAN,
        "VLAN of what the node sends and receives here without a tag. Default: 1 on a network "
        "with VLANs; none for a port with a trunk.",
        default=None,
    )
    trunk: tuple[int, ...] = key(
        Items(VLAN, "a list of VLANs", unique=True),
        "VLANs whose frames have a tag here (IEEE 802.1Q).",
        default=(),
    )


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a node on a network.

    ``name`` is that of the interface on the node. ``given`` are the addresses of the file,
    ``interfaces`` and ``interfaces6`` the IPv4 and IPv6 ones of the port, with prefix lengths.
    ``mac`` is empty and ``mtu``, in bytes, is None where neither the port nor its network says one.
    ``item`` is the position in the file's list of ports on this network, -1 without a list; of an
    end of a link that of the end.
    """

    network: str
    name: str
    given: tuple[Given, ...] = ()
    mac: str = ""
    mtu: int | None = None
    own_mtu: int | None = None  #: the port's, not its network's
    interfaces: tuple[IPv4Interface, ...] = ()
    interfaces6: tuple[IPv6Interface, ...] = ()
    node: str = ""
    index: int = 0  #: among all ports of the node
    item: int = field(default=-1, compare=False)
    peer: tuple[str, str] | None = None  #: node and name of the other end of a link
    vlan: int | None = None  #: of frames without a tag; None where the file gives none
    trunk: tuple[int, ...] = ()  #: VLANs of frames with a tag
    shaping: tuple[Fault, ...] = ()  #: rate, delay and loss of what it sends, by its network

    @property
    def addresses(self) -> tuple[IPv4Address, ...]:
        """Its IPv4 addresses without prefix lengths."""
        return tuple(one.ip for one in self.interfaces)

    @property
    def addresses6(self) -> tuple[IPv6Address, ...]:
        """Its IPv6 addresses without prefix lengths."""
        return tuple(one.ip for one in self.interfaces6)

    @property
    def subnetted(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Its addresses of both families, with their prefix lengths."""
        return (*self.interfaces, *self.interfaces6)

    @property
    def vlans(self) -> str:
        """Its VLANs in words; empty if the file gives none."""
        words = [f"VLAN {self.vlan}"] if self.vlan else []
        words += [f"VLAN {vlan} (tagged)" for vlan in self.trunk]
        return ", ".join(words)

    @property
    def follows(self) -> bool:
        """True if its IPv6 address follows from its IPv4 address."""
        return bool(self.interfaces6) and all(isinstance(one, IPv4Address) for one in self.given)

    @property
    def address(self) -> IPv4Address | None:
        """The first IPv4 address; None for a port without one."""
        return next(iter(self.addresses), None)

    @property
    def hardware(self) -> str:
        """The MAC address: the file's, or one that a recreated node keeps.

        It is locally administered (RFC 9542). With a new address, the ARP caches of its peers would
        be wrong for half a minute.
        """
        if self.mac:
            return self.mac
        if self.address is not None:
            return hardware_of(self.address)
        return (b"\x02\x55" + sha256(f"{self.node}.{self.index}".encode()).digest()[:4]).hex(":")

    def completed(self, node: str, index: int, network: Network | None) -> Port:
        """Return the port of a node, with what its network says; it may be unknown.

        On a network with both subnets, a port with an IPv4 address alone has the IPv6 address of
        the same host number, if the subnet is large enough.
        """
        subnet, subnet6 = (network.subnet, network.subnet6) if network else (None, None)
        four, six = [], []
        for one in self.given:
            if isinstance(one, IPv4Address):
                length = subnet.prefixlen if subnet else one.max_prefixlen
                four.append(one if isinstance(one, IPv4Interface) else IPv4Interface((one, length)))
            else:
                length = subnet6.prefixlen if subnet6 else one.max_prefixlen
                six.append(one if isinstance(one, IPv6Interface) else IPv6Interface((one, length)))
        if subnet and subnet6 and four and not six and four[0].ip in subnet:
            number = int(four[0].ip) - int(subnet.network_address)
            if number < subnet6.num_addresses:
                six.append(IPv6Interface((subnet6[number], subnet6.prefixlen)))
        mtu = network.mtu if network and self.own_mtu is None else self.own_mtu
        return replace(
            self,
            node=node,
            index=index,
            interfaces=tuple(four),
            interfaces6=tuple(six),
            mtu=mtu,
            shaping=network.shaping if network else (),
        )


def hardware_of(address: IPv4Address) -> str:
    """Return the MAC address that follows from an IPv4 address."""
    return (b"\x02\x54" + address.packed).hex(":")


class EndText(Shape[tuple[str, str]]):
    """An end of a link: a node and an interface."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.END)

    def read(self, read: Reader, at: Tree | None) -> tuple[str, str] | None:
        wanted = "an end of a link: NODE:INTERFACE"
        found = read.matching(at, keys.END, wanted, "write the node and its interface: r1:eth1")
        if at is None or found is None:
            return None
        node, _, name = found.partition(":")
        if len(name) > keys.INTERFACE_MAX:
            wanted = f"an interface's name of at most {keys.INTERFACE_MAX} characters"
            read.problems.add(at, wanted, f"{name!r} with {len(name)}", "shorten it")
        elif why := reserved.why(name, reserved.LINKS):
            wanted = "a name for an interface that has no other meaning"
            read.problems.add(at, wanted, f"{name!r}, {why}", "choose another")
        else:
            return node, name
        return None

    def plain(self, value: tuple[str, str]) -> str:
        return ":".join(value)


class EndAddresses(Shape[tuple[Given, ...]]):
    """The addresses of an end of a link: one, or a list of any number."""

    several: ClassVar = Items(PortAddress(), "a list of addresses")

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [PortAddress().schema(), self.several.schema()]}

    def read(self, read: Reader, at: Tree | None) -> tuple[Given, ...] | None:
        if isinstance(at, tree.Sequence):
            return self.several.read(read, at)
        one = PortAddress().read(read, at)
        return None if one is None else (one,)

    def plain(self, value: tuple[Given, ...]) -> str | list[str]:
        return str(value[0]) if len(value) == 1 else [*map(str, value)]


#: The shape of both ends.
ENDS = Items(EndText(), "a list of two ends: [r1:eth1, r2:eth1]")


@dataclass(frozen=True, slots=True)
class Link(Block):
    """A link between two nodes, as if a cable joined two of their ports."""

    rules: ClassVar[Mapping[str, Any]] = {
        "not": {
            "required": ["addresses"],
            "anyOf": [{"required": ["subnet"]}, {"required": ["subnet6"]}],
        },
    }
    elsewhere: ClassVar[Mapping[str, str]] = {"endpoints": "write ends: [r1:eth1, r2:eth1]"}

    ends: tuple[tuple[str, str], ...] = key(
        ENDS, "Both ends: [r1:eth1, r2:eth1].", required=True, default=()
    )
    subnet: IPv4Network | None = key(
        # Both addresses of a /31 are of hosts (RFC 3021).
        Subnet(8, 31, "subnet6"),
        "The subnet: its first two addresses are those of the ends, in order.",
        default=None,
    )
    subnet6: IPv6Network | None = key(SUBNET6, "The IPv6 subnet, with the same rule.", default=None)
    addresses: tuple[tuple[Given, ...], ...] = key(
        Items(EndAddresses(), "a list of two addresses"),
        "The addresses of both ends, each with its prefix, instead of a subnet. An end can have a "
        "list of them.",
        default=(),
    )
    mtu: int | None = key(
        MTU_BYTES, "The largest packet on the link, in bytes. Default: 1500.", default=None
    )

    rate: Fault | None = key(Amount("rate"), "Bit rate of each direction: 10mbit.", default=None)
    delay: Fault | None = key(Amount("delay"), "Delay of each direction: 5ms.", default=None)
    loss: Fault | None = key(Amount("loss"), "Lost frames of each direction: 1%.", default=None)

    @property
    def name(self) -> str:
        """Its name, as that of a network with two ports."""
        return "--".join(":".join(end) for end in self.ends)

    def ports(self) -> Iterator[tuple[str, Port]]:
        """Yield both ends: the name of a node, and its port."""
        subnets: tuple[IPv4Network | IPv6Network | None, ...] = (self.subnet, self.subnet6)
        for number, (node, name) in enumerate(self.ends):
            given: tuple[Given, ...] = ()
            if not any(subnets) and number < len(self.addresses):
                given = self.addresses[number]
            for subnet in subnets:
                if subnet is None:
                    continue
                # Both addresses of a /31 and a /127 are of hosts (RFC 3021, RFC 6164).
                first = 0 if subnet.prefixlen == subnet.max_prefixlen - 1 else 1
                given = (*given, subnet[first + number])
            yield node, Port(self.name, name, given, item=number, peer=self.ends[1 - number])


class Links(Composed):
    """Links between two nodes."""

    def schema(self) -> dict[str, Any]:
        pair = {**ENDS.schema(), "minItems": 2, "maxItems": 2}
        return {"type": "array", "items": {"anyOf": [pair, schema_of(Link)]}}

    def read_in(self, draft: Draft, at: Tree) -> tuple[Link, ...]:
        found = []
        link: Link | None
        ends: Tree
        hint = "write a list of links: [[r1:eth1, r2:eth1]]"
        for item in draft.read.items(at, "a list of links", hint):
            if isinstance(item, tree.Scalar):
                hint = "write both ends: [r1:eth1, r2:eth1]"
                draft.read.problems.add(item, "a link", tree.describe(item), hint)
                link, ends = None, item
            elif isinstance(item, tree.Sequence):
                link = Link(ENDS.read(draft.read, item) or ())
                ends = item
            else:
                link = Nested(Link).read_in(draft, item)
                ends = item.get("ends") or item if isinstance(item, tree.Mapping) else item
            link = link or Link()
            problems = draft.read.problems
            if len(link.ends) != len(PAIR) and not problems.touched(*item.path):
                hint = "a link has two ends: [r1:eth1, r2:eth1]"
                problems.add(ends, "two ends", str(len(link.ends)), hint)
            # Positions stay, for the places of problems.
            found.append(link if len(link.ends) == len(PAIR) else Link())
        return tuple(found)

    def plain(self, value: tuple[Link, ...]) -> list[Any]:
        bodies = [link.to_dict() for link in value]
        return [body["ends"] if body.keys() == {"ends"} else body for body in bodies]


def numbered(names: Iterable[str]) -> str:
    """Return the name of the next port without one, after ports of these names.

    >>> numbered([]), numbered(["eth0"]), numbered(["eth1", "wan"])
    ('eth0', 'eth1', 'eth2')
    """
    found = (re.fullmatch("eth([0-9]{1,6})", name) for name in names)
    return f"eth{max((int(one[1]) for one in found if one), default=-1) + 1}"


class Ports(Composed):
    """The ports of a node, by network."""

    def schema(self) -> dict[str, Any]:
        one = {"anyOf": [PortAddress().schema(), schema_of(Form)]}
        several = {"type": "array", "items": one, "minItems": 1}
        return table(NETWORK_NAME.schema(), {"anyOf": [*one["anyOf"], several]})

    def read_in(self, draft: Draft, at: Tree) -> tuple[Port, ...] | None:
        hint = f"write {{NETWORK: ADDRESS}}, or {NO_ADDRESS}"
        found = draft.read.table(at, "a mapping of network to address", hint=hint)
        if found is None:
            return None
        ports: list[Port] = []
        for network, entry in found.entries.items():
            for item, body in self._bodies(draft, entry.value):
                form = self._form(draft, body)
                if form is not None:
                    name = form.name or numbered(port.name for port in ports)
                    given = form.addresses or ((form.address,) if form.address else ())
                    port = Port(network, name, given, form.mac, own_mtu=form.mtu, item=item)
                    ports.append(replace(port, vlan=form.vlan, trunk=form.trunk))
        return tuple(ports)

    @staticmethod
    def _bodies(draft: Draft, at: Tree) -> Iterator[tuple[int, Tree]]:
        if not isinstance(at, tree.Sequence):
            yield -1, at
        elif at.items:
            yield from enumerate(at.items)
        else:
            draft.read.problems.add(
                at, "at least one port", "none", "remove the network, or add one"
            )

    @staticmethod
    def _form(draft: Draft, at: Tree) -> Form | None:
        if isinstance(at, tree.Scalar) and at.value is None:
            wanted, hint = "an address or a port", f"write {NO_ADDRESS}"
            draft.read.problems.add(at, wanted, tree.describe(at), hint)
            return None
        if not isinstance(at, tree.Mapping):
            address = PortAddress().read(draft.read, at)
            return None if address is None else Form(address)
        form = read_block(draft, Form, at)
        if form is not None and "address" in at.entries and "addresses" in at.entries:
            hint = "write all of them in 'addresses'"
            draft.read.problems.add(at, "either address or addresses", "both", hint)
        return form

    def plain(self, value: tuple[Port, ...]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {}
        names: list[str] = []
        for port in value:
            if port.peer is not None:  # in ``links``
                continue
            one = len(port.given) == 1
            form = Form(
                port.given[0] if one else None,
                () if one else port.given,
                "" if port.name == numbered(names) else port.name,
                port.mac,
                port.own_mtu,
                port.vlan,
                port.trunk,
            )
            names.append(port.name)
            body = form.to_dict()
            found.setdefault(port.network, []).append(
                body["address"] if body.keys() == {"address"} else body
            )
        return {name: bodies[0] if len(bodies) == 1 else bodies for name, bodies in found.items()}
