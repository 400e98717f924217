"""flannel's section of a topology file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.etcd import member
from testbed.topology.declare import Draft, Section, Underlay, key
from testbed.topology.shapes import (
    UNDERLAY,
    Address,
    Choice,
    Flag,
    Integer,
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
    backend: Backend = key(BACKEND, "Transport of packets between nodes.", default=DEFAULT_BACKEND)
    network: IPv4Network = key(
        # Flannel requires room for four subnets of four addresses (pkg/subnet/config.go).
        Subnet(8, 28), "Network of all containers.", default=DEFAULT_NETWORK
    )  # fmt: skip
    subnets: Mapping[str, IPv4Network] = key(
        by_node(Subnet(8, 30), "a mapping of node to subnet"),
        "Subnet reserved for each node. Default: the next free one.",
        default={},
        always=True,
    )
    port: int | None = key(
        Integer("a UDP port", 1, 65535),
        "UDP port of the backend udp (default 8285) or vxlan (default 8472).",
        default=None,
    )
    vni: int = key(
        Integer("a VXLAN network identifier", 1, MAX_VNI),
        "VXLAN network identifier (RFC 7348); the device is flannel.VNI.",
        default=DEFAULT_VNI,
    )
    outer_mtu: int | None = key(
        Integer("an MTU", LEAST_MTU, 65535),
        "MTU of the VXLAN packets between nodes, in bytes; containers have 50 less. "
        "Default: that of the link.",
        name="mtu",
        default=None,
    )
    direct_routing: bool = key(
        Flag(),
        "With vxlan: send packets to nodes on the same network without the tunnel, by a route to "
        "the node (flannel's DirectRouting).",
        name="direct-routing",
        default=False,
    )
    public_ip: Mapping[str, IPv4Address] = key(
        by_node(Address(), "a mapping of node to address"),
        "Address of each node for the others' tunnels (flanneld's --public-ip). "
        "Default: that of the link.",
        name="public-ip",
        default={},
    )
    subnet_len: int | None = key(
        Integer("a prefix length", 10, 30),
        "Prefix length of each node's subnet (flannel's SubnetLen). Default: 24, or two bits more "
        "than that of a network smaller than a /22.",
        name="subnet-len",
        default=None,
    )
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

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        one = cls(**given)
        port = one.port or DEFAULT_PORT.get(one.backend)
        return cls(**{**given, "port": port, "subnets": _subnets(one, draft)})

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
        found["subnets"] = found["subnets"].get(node)
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


def _subnets(flannel: FlannelSection, draft: Draft) -> Mapping[str, IPv4Network]:
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
