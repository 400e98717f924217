"""flannel's section of a topology file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.etcd import member
from testbed.topology import keys
from testbed.topology.declare import Block, Draft, Named, Nested, Section, Underlay, key
from testbed.topology.families import Address6
from testbed.topology.shapes import (
    UNDERLAY,
    Address,
    Choice,
    Flag,
    Integer,
    N,
    Name,
    Subnet,
    Subnet6,
    by_node,
    next_free,
)

if TYPE_CHECKING:
    from testbed.topology.model import Node, Topology
    from testbed.topology.tree import Tree

#: A network of either IP family.
N_co = TypeVar("N_co", IPv4Network, IPv6Network, covariant=True)

ROLE = "flannel"
Backend = Literal["udp", "vxlan", "host-gw"]
BACKENDS: tuple[Backend, ...] = ("udp", "vxlan", "host-gw")
BACKEND = Choice("a backend", BACKENDS)
DEFAULT_BACKEND: Backend = "vxlan"
#: Overhead of each flannel backend, in bytes, within the node's MTU of 1500 octets:
#: udp adds IP+UDP (28) to a packet, vxlan outer IP+UDP+VXLAN+inner Ethernet (50),
#: host-gw nothing (flannel, Documentation/backends.md; RFC 7348 section 5).
OVERHEAD: Mapping[Backend, int] = {"udp": 28, "vxlan": 50, "host-gw": 0}
#: Overhead of VXLAN over IPv6, whose header has 40 bytes instead of 20 (RFC 8200, section 3).
VTEP6 = 70
#: The default network of the overlay, as in the catalogue's documents.
DEFAULT_NETWORK = IPv4Network("100.96.0.0/16")
#: Its default network of IPv6: local addresses (RFC 4193) with the same digits.
DEFAULT_NETWORK6 = IPv6Network("fd00:100:96::/48")
#: UDP ports of flannel's backends (flannel, Documentation/backends.md).
#: 8472 is the Linux kernel's default; IANA's port for VXLAN is 4789 (RFC 7348, section 8).
DEFAULT_PORT: Mapping[str, int] = {"udp": 8285, "vxlan": 8472}
UDP_DEVICE = "flannel0"  #: of the udp backend (flannel, Documentation/backends.md)
DEFAULT_VNI = 1
#: Settings of a node whose overlay carries IPv6. New links, such as docker0 and flannel-v6.1, use
#: their addresses at once, without a second of looking for duplicates (RFC 4862, section 5.4).
SYSCTLS6 = {"net.ipv6.conf.default.accept_dad": "0", "net.ipv6.conf.all.forwarding": "1"}
FORWARDING6 = ("sysctl", "-q", "-w", *(f"{name}={value}" for name, value in SYSCTLS6.items()))
#: A VXLAN network identifier has 24 bits (RFC 7348, section 5).
MAX_VNI = (1 << 24) - 1
#: Least MTU of the outer packets: 68 octets for the inner one, the least that IPv4 permits
#: (RFC 791), and VXLAN's overhead.
LEAST_MTU = 68 + OVERHEAD["vxlan"]
#: Keys of the section that only some backends have (flannel, Documentation/backends.md), and why
#: the others have none.
ONLY_WITH: Mapping[str, tuple[tuple[Backend, ...], str]] = {
    "port": (("udp", "vxlan"), "host-gw sends packets as they are"),
    "vni": (("vxlan",), "only vxlan has one"),
    "mtu": (("vxlan",), "other backends use that of the link; set mtu of the network"),
    "direct-routing": (("vxlan",), "only vxlan can do without its tunnel"),
    "public-ip": (("udp", "vxlan"), "host-gw needs the address of the link itself"),
    "ipv6": (("vxlan", "host-gw"), "udp carries IPv4 alone"),
}


NETWORK_NAME = Name("a flannel network", keys.LABEL, keys.NETWORK_MAX)
#: Backends of further networks: those that can exist several times on a node.
FURTHER: tuple[Backend, ...] = ("vxlan", "host-gw")
_BACKEND = "Transport of packets between nodes."
_SUBNETS = "Subnet reserved for each node. Default: the next free one."
_MTU = (
    "MTU of the VXLAN packets between nodes, in bytes; containers have 50 less. "
    "Default: that of the link."
)
_DIRECT = (
    "With vxlan: send packets to nodes on the same network without the tunnel, by a route to "
    "the node (flannel's DirectRouting)."
)
_LENGTH = (
    "Prefix length of each node's subnet (flannel's SubnetLen). Default: 24, or two bits more "
    "than that of a network smaller than a /22."
)
PORT = Integer("a UDP port", 1, 65535)
VNI = Integer("a VXLAN network identifier", 1, MAX_VNI)
OUTER_MTU = Integer("an MTU", LEAST_MTU, 65535)
SUBNET_LEN = Integer("a prefix length", 10, 30)
SUBNETS = by_node(Subnet(8, 30), "a mapping of node to subnet")
# Flannel requires room for four subnets of four addresses (pkg/subnet/config.go).
WHOLE = Subnet(8, 28)
WHOLE6 = Subnet6(16, 124)
_LENGTH6 = (
    "Prefix length of each node's IPv6 subnet (flannel's IPv6SubnetLen). Default: 64, or two bits "
    "more than that of a network smaller than a /62."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherIPv6(Block):
    """IPv6 of a network of flannel, besides IPv4."""

    network: IPv6Network = key(
        WHOLE6, "IPv6 network of all containers (flannel's IPv6Network).", required=True
    )
    subnets: Mapping[str, IPv6Network] = key(
        by_node(Subnet6(18, 126), "a mapping of node to subnet"), _SUBNETS, default={}, always=True
    )
    subnet_len: int | None = key(
        Integer("a prefix length", 18, 126), _LENGTH6, name="subnet-len", default=None
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        if cls is FurtherIPv6 and "network" not in given:
            return None
        one = cls(**given)
        return replace(one, subnets=_subnets(one, draft, 64))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlannelIPv6(FurtherIPv6):
    """IPv6 of the overlay, besides IPv4 (flannel's EnableIPv6)."""

    network: IPv6Network = key(
        WHOLE6, "IPv6 network of all containers (flannel's IPv6Network).", default=DEFAULT_NETWORK6
    )
    public_ip: Mapping[str, IPv6Address] = key(
        by_node(Address6(), "a mapping of node to address"),
        "IPv6 address of each node for the others' tunnels (flanneld's --public-ipv6). "
        "Default: that of the link.",
        name="public-ip",
        default={},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlannelNetwork(Block):
    """A further network of flannel, with a flanneld of its own on each node.

    ``vni`` None is for a network without VXLAN.
    """

    name: str
    backend: Backend = key(Choice("a backend", FURTHER), _BACKEND, default=DEFAULT_BACKEND)
    network: IPv4Network = key(WHOLE, "Network of all containers on it.", required=True)
    subnets: Mapping[str, IPv4Network] = key(SUBNETS, _SUBNETS, default={}, always=True)
    port: int | None = key(PORT, "UDP port of vxlan. Default: 8472.", default=None)
    vni: int | None = key(
        VNI, "VXLAN network identifier. Default: the next one that is free.", default=None
    )
    outer_mtu: int | None = key(OUTER_MTU, _MTU, name="mtu", default=None)
    direct_routing: bool = key(Flag(), _DIRECT, name="direct-routing", default=False)
    subnet_len: int | None = key(SUBNET_LEN, _LENGTH, name="subnet-len", default=None)
    ipv6: FurtherIPv6 | None = key(
        Nested(FurtherIPv6), "IPv6 for the containers on it, besides IPv4.", default=None
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        if "network" not in given:
            return None
        one = cls(**given)
        port = one.port or DEFAULT_PORT.get(one.backend)
        return replace(one, port=port, subnets=_subnets(one, draft))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlannelSection(Section):
    """The overlay: its backend, network, and reserved subnets by node.

    ``port`` is the UDP port of the udp (8285) or vxlan (8472) backend, None for host-gw; ``vni``
    is the VXLAN network identifier (RFC 7348), by default flannel's 1. ``outer_mtu`` is that of
    the packets between nodes in bytes, None for the link's. ``interface`` is the file's setting
    (see :meth:`Topology.network`).
    """

    role: ClassVar[str] = ROLE
    about: ClassVar[str] = "The overlay network; required if a node has the role flannel."
    implied: ClassVar[bool] = False

    interface: Underlay = key(
        UNDERLAY,
        "Network, or ethN, with the addresses that flannel and etcd use: one for all, or "
        "one for each "
        "node. Default: the first network that all of these nodes share.",
        default="",
    )
    backend: Backend = key(BACKEND, _BACKEND, default=DEFAULT_BACKEND)
    network: IPv4Network = key(WHOLE, "Network of all containers.", default=DEFAULT_NETWORK)
    subnets: Mapping[str, IPv4Network] = key(SUBNETS, _SUBNETS, default={}, always=True)
    port: int | None = key(
        PORT,
        "UDP port of the backend udp (default 8285) or vxlan (default 8472).",
        default=None,
    )
    vni: int = key(
        VNI,
        "VXLAN network identifier (RFC 7348); the device is flannel.VNI.",
        default=DEFAULT_VNI,
    )
    outer_mtu: int | None = key(OUTER_MTU, _MTU, name="mtu", default=None)
    direct_routing: bool = key(Flag(), _DIRECT, name="direct-routing", default=False)
    public_ip: Mapping[str, IPv4Address] = key(
        by_node(Address(), "a mapping of node to address"),
        "Address of each node for the others' tunnels (flanneld's --public-ip). "
        "Default: that of the link.",
        name="public-ip",
        default={},
    )
    subnet_len: int | None = key(SUBNET_LEN, _LENGTH, name="subnet-len", default=None)
    renew_margin: int | None = key(
        Integer("a number of minutes", 1, 1439),
        "Minutes before the end of its lease of 24 hours at which flanneld renews it. Default: 60.",
        name="subnet-lease-renew-margin",
        default=None,
    )
    allow_direct_routing: bool = key(
        Flag(),
        "Let packets of the overlay pass to containers that publish no ports. Docker 28 and later "
        "drop them if it is false.",
        name="allow-direct-routing",
        default=True,
    )
    ipv6: FlannelIPv6 | None = key(
        Nested(FlannelIPv6),
        "IPv6 for the containers, besides IPv4: {} for the default network. The nodes need IPv6 "
        "addresses on the network that flannel uses.",
        default=None,
    )

    networks: Mapping[str, FlannelNetwork] = key(
        Named(NETWORK_NAME, FlannelNetwork),
        "Further networks of flannel, by name. Each has a flanneld of its own on the nodes, and "
        "its keys in etcd below /NAME/network.",
        default={},
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        one = cls(**given)
        port = one.port or DEFAULT_PORT.get(one.backend)
        more = _with_vnis(one.networks, one.vni if one.backend == "vxlan" else None)
        return replace(one, port=port, subnets=_subnets(one, draft), networks=more)

    def further(self) -> dict[str, FlannelSection]:
        """Return the section as it would be with each of its further networks alone."""
        return {
            name: replace(
                self, backend=one.backend, network=one.network, subnets=one.subnets,
                port=one.port, vni=one.vni or DEFAULT_VNI, outer_mtu=one.outer_mtu,
                direct_routing=one.direct_routing, subnet_len=one.subnet_len, networks={},
                ipv6=self._like_mine(one.ipv6),
            )
            for name, one in self.networks.items()
        }  # fmt: skip

    def _like_mine(self, other: FurtherIPv6 | None) -> FlannelIPv6 | None:
        """Return the IPv6 of a further network, with the public addresses of this one."""
        if other is None:
            return None
        public = self.ipv6.public_ip if self.ipv6 else {}
        return FlannelIPv6(
            network=other.network, subnets=other.subnets, subnet_len=other.subnet_len,
            public_ip=public,
        )  # fmt: skip

    def mtu(self, topology: Topology, node: str, usual: int | None = None) -> int:
        """Return the MTU for containers of a node, in bytes.

        It is that of the packets between nodes minus the backend's overhead. flanneld uses the
        MTU of the link, as here, if its configuration has none (pkg/backend/vxlan/vxlan.go).
        ``usual`` is as in :meth:`Topology.link_mtu`.
        """
        return (self.outer_mtu or topology.link_mtu(node, usual)) - OVERHEAD[self.backend]

    @property
    def device(self) -> str:
        """The overlay's device on its nodes; empty if there is none (host-gw)."""
        return {"vxlan": f"flannel.{self.vni}", "udp": UDP_DEVICE}.get(self.backend, "")

    @property
    def device6(self) -> str:
        """The overlay's device for IPv6 on its nodes, which vxlan alone has; or an empty text."""
        return f"flannel-v6.{self.vni}" if self.ipv6 and self.backend == "vxlan" else ""

    @property
    def devices(self) -> tuple[str, ...]:
        """The overlay's devices on its nodes, for both IP families."""
        return tuple(filter(None, (self.device, self.device6)))

    def to_dict(self) -> dict[str, Any]:
        found = Section.to_dict(self)
        if self.backend != "vxlan":
            del found["vni"]
        # Only a closed door is a setting: without it, nodes of running labs have no such key.
        found.pop("allow-direct-routing", None)
        return found if self.allow_direct_routing else found | {"allow-direct-routing": False}

    def address(self, topology: Topology, node: str) -> IPv4Address:
        """Return the address to which other nodes send a node's packets."""
        return self.public_ip.get(node) or topology.address(node)

    def address6(self, topology: Topology, node: str) -> IPv6Address | None:
        """Return the IPv6 address of a node for the overlay; None if it carries IPv4 alone."""
        if self.ipv6 is None:
            return None
        return self.ipv6.public_ip.get(node) or topology.address6(node)

    def is_direct(self, topology: Topology, node: str, peer: str) -> bool:
        """Tell whether packets between two nodes need no tunnel."""
        if self.backend == "host-gw":
            return True
        return self.direct_routing and topology.network(node) == topology.network(peer)

    @property
    def is_usual(self) -> bool:
        """Tell whether packets travel as flannel's documents have it.

        They are of IPv4, and pass the tunnel, with its default port and VNI, from node address to
        node address, and Docker's rules.
        """
        return (
            self.port == DEFAULT_PORT.get(self.backend)
            and self.vni == DEFAULT_VNI
            and not self.direct_routing
            and not self.public_ip
            and self.allow_direct_routing
            and self.ipv6 is None
        )

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:
        roles = {ROLE, ETCD}
        members = (node for node in topology.nodes.values() if roles & {*node.roles})
        yield self.interface, tuple(members)

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        found = self.to_dict()
        for one in (found, *found.get("networks", {}).values()):
            for part in (one, one.get("ipv6", {})):
                if "subnets" in part:
                    part["subnets"] = part["subnets"].get(node)
                if "public-ip" in part:
                    part["public-ip"] = part["public-ip"].get(node)
                if part.get("public-ip", "") is None:
                    del part["public-ip"]
        found.pop("interface", None)
        etcd = member(topology)
        return {ROLE: found, "etcd": etcd and str(topology.address(etcd.name))}


class _Network(Protocol[N_co]):
    """The keys of a network of flannel that decide its subnets, of either IP family."""

    @property
    def network(self) -> N_co: ...
    @property
    def subnets(self) -> Mapping[str, N_co]: ...
    @property
    def subnet_len(self) -> int | None: ...


def subnet_length(network: N, given: Iterable[N] = (), usual: int = 24) -> int:
    """Return the prefix length of a node's subnet if the file sets none.

    It is that of the given subnets. The default is flannel's: the ``usual`` 24 bits, 64 with IPv6,
    or a quarter of a network without room for four of them (flannel, pkg/subnet/config.go).
    """
    for subnet in given:
        return subnet.prefixlen
    return usual if network.prefixlen <= usual - 2 else network.prefixlen + 2


def _with_vnis(
    networks: Mapping[str, FlannelNetwork], first: int | None
) -> dict[str, FlannelNetwork]:
    """Return the networks, with the next free VNI for those of vxlan without one."""
    taken = {first, *(one.vni for one in networks.values())}
    free = (number for number in itertools.count(DEFAULT_VNI) if number not in taken)
    return {
        name: one if one.vni is not None or one.backend != "vxlan" else replace(one, vni=next(free))
        for name, one in networks.items()
    }


def _subnets(part: _Network[N], draft: Draft, usual: int = 24) -> Mapping[str, N]:
    """Return every flannel node's subnet: the file's, or the next free one."""
    members, network, given = draft.with_role(ROLE), part.network, part.subnets
    length = part.subnet_len or subnet_length(network, given.values(), usual)
    # After a problem with a given subnet, computed subnets would only cause more messages.
    if draft.read.problems.touched(ROLE) or length < network.prefixlen + 2:
        return given
    wanted = f"a subnet for each of {len(members)} flannel nodes"
    at = draft.body.get("network") or draft.body
    return assigned(draft, members, network, given, length=length, at=at, wanted=wanted)


def assigned(
    draft: Draft,
    members: Iterable[str],
    network: N,
    given: Mapping[str, N],
    *,
    length: int,
    at: Tree,
    wanted: str,
) -> dict[str, N]:
    """Return all members' subnets; add a problem at ``at`` if there is no room for all."""
    names = list(members)
    found = next_free(names, network, given, length=length)
    if any(name not in found for name in names):
        room = (1 << (length - network.prefixlen)) - 1
        seen = f"{network} with room for {room} of /{length}"
        hint = "use a larger network" + (", or fewer nodes" if room else "")
        draft.read.problems.add(at, wanted, seen, hint)
    return found
