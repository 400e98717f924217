"""flannel's section of a topology file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.etcd import member
from testbed.topology import keys
from testbed.topology.declare import Block, Draft, Named, Section, Underlay, key
from testbed.topology.shapes import (
    UNDERLAY,
    Address,
    Choice,
    Flag,
    Integer,
    Name,
    Subnet,
    by_node,
    next_free,
)

if TYPE_CHECKING:
    from testbed.topology.model import Node, Topology
    from testbed.topology.tree import Tree

ROLE = "flannel"
Backend = Literal["udp", "vxlan", "host-gw"]
BACKENDS: tuple[Backend, ...] = ("udp", "vxlan", "host-gw")
BACKEND = Choice("a backend", BACKENDS)
DEFAULT_BACKEND: Backend = "vxlan"
#: Overhead of each flannel backend, in bytes, within the node's MTU of 1500 octets:
#: udp adds IP+UDP (28) to a packet, vxlan outer IP+UDP+VXLAN+inner Ethernet (50),
#: host-gw nothing (flannel, Documentation/backends.md; RFC 7348 section 5).
OVERHEAD: Mapping[Backend, int] = {"udp": 28, "vxlan": 50, "host-gw": 0}
#: The default network of the overlay, as in the catalogue's documents.
DEFAULT_NETWORK = IPv4Network("100.96.0.0/16")
#: UDP ports of flannel's backends (flannel, Documentation/backends.md).
#: 8472 is the Linux kernel's default; IANA's port for VXLAN is 4789 (RFC 7348, section 8).
DEFAULT_PORT: Mapping[str, int] = {"udp": 8285, "vxlan": 8472}
UDP_DEVICE = "flannel0"  #: of the udp backend (flannel, Documentation/backends.md)
DEFAULT_VNI = 1
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
            )
            for name, one in self.networks.items()
        }  # fmt: skip

    def mtu(self, topology: Topology, node: str) -> int:
        """Return the MTU for containers of a node, in bytes.

        It is that of the packets between nodes minus the backend's overhead. flanneld uses the
        MTU of the link, as here, if its configuration has none (pkg/backend/vxlan/vxlan.go).
        """
        return (self.outer_mtu or topology.link_mtu(node)) - OVERHEAD[self.backend]

    @property
    def device(self) -> str:
        """The overlay's device on its nodes; empty if there is none (host-gw)."""
        return {"vxlan": f"flannel.{self.vni}", "udp": UDP_DEVICE}.get(self.backend, "")

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

    def is_direct(self, topology: Topology, node: str, peer: str) -> bool:
        """Tell whether packets between two nodes need no tunnel."""
        if self.backend == "host-gw":
            return True
        return self.direct_routing and topology.network(node) == topology.network(peer)

    @property
    def is_usual(self) -> bool:
        """Tell whether packets travel as flannel's documents have it.

        They pass the tunnel, with its default port and VNI, from node address to node address,
        and Docker's rules.
        """
        return (
            self.port == DEFAULT_PORT.get(self.backend)
            and self.vni == DEFAULT_VNI
            and not self.direct_routing
            and not self.public_ip
            and self.allow_direct_routing
        )

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:
        roles = {ROLE, ETCD}
        members = (node for node in topology.nodes.values() if roles & {*node.roles})
        yield self.interface, tuple(members)

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        found = self.to_dict()
        for one in (found, *found.get("networks", {}).values()):
            one["subnets"] = one["subnets"].get(node)
        if node in self.public_ip:
            found["public-ip"] = found["public-ip"][node]
        else:
            found.pop("public-ip", None)
        found.pop("interface", None)
        etcd = member(topology)
        return {ROLE: found, "etcd": etcd and str(topology.address(etcd.name))}


def subnet_length(network: IPv4Network, given: Iterable[IPv4Network] = ()) -> int:
    """Return the prefix length of a node's subnet if the file sets none.

    It is that of the given subnets. The default is flannel's: 24 bits, or a quarter of a network
    that is smaller than a /22 (flannel, pkg/subnet/config.go).
    """
    for subnet in given:
        return subnet.prefixlen
    return 24 if network.prefixlen <= 22 else network.prefixlen + 2


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


def _subnets(flannel: FlannelSection | FlannelNetwork, draft: Draft) -> Mapping[str, IPv4Network]:
    """Return every flannel node's subnet: the file's, or the next free one."""
    members, network, given = draft.with_role(ROLE), flannel.network, flannel.subnets
    length = flannel.subnet_len or subnet_length(network, given.values())
    # After a problem with a given subnet, computed subnets would only cause more messages.
    if draft.read.problems.touched(ROLE) or length < network.prefixlen + 2:
        return given
    wanted = f"a subnet for each of {len(members)} flannel nodes"
    at = draft.body.get("network") or draft.body
    return assigned(draft, members, network, given, length=length, at=at, wanted=wanted)


def assigned(
    draft: Draft,
    members: Iterable[str],
    network: IPv4Network,
    given: Mapping[str, IPv4Network],
    *,
    length: int,
    at: Tree,
    wanted: str,
) -> dict[str, IPv4Network]:
    """Return all members' subnets; add a problem at ``at`` if there is no room for all."""
    names = list(members)
    found = next_free(names, network, given, length=length)
    if any(name not in found for name in names):
        room = (1 << (length - network.prefixlen)) - 1
        seen = f"{network} with room for {room} of /{length}"
        hint = "use a larger network" + (", or fewer nodes" if room else "")
        draft.read.problems.add(at, wanted, seen, hint)
    return found
