"""flannel's section of a topology file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.etcd import member
from testbed.topology.declare import Draft, Section, Underlay, key
from testbed.topology.model import MTU
from testbed.topology.shapes import UNDERLAY, Choice, Integer, Subnet, by_node, next_free

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
#: A VXLAN network identifier has 24 bits (RFC 7348, section 5).
MAX_VNI = (1 << 24) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FlannelSection(Section):
    """The overlay: its backend, network, and reserved subnets by node.

    ``port`` is the UDP port of the udp (8285) or vxlan (8472) backend, None for host-gw; ``vni``
    is the VXLAN network identifier (RFC 7348), by default flannel's 1. ``interface`` is the
    file's setting (see :meth:`Topology.network`).
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
        "VXLAN network identifier (RFC 7348).",
        default=1,
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        one = cls(**given)
        port = one.port or DEFAULT_PORT.get(one.backend)
        return cls(**{**given, "port": port, "subnets": _subnets(one, draft)})

    @property
    def mtu(self) -> int:
        """MTU for containers, in bytes.

        It is the node's MTU minus the backend's overhead.
        """
        return MTU - OVERHEAD[self.backend]

    @property
    def device(self) -> str:
        """The overlay's device on its nodes; empty if there is none (host-gw)."""
        return {"vxlan": f"flannel.{self.vni}", "udp": UDP_DEVICE}.get(self.backend, "")

    def to_dict(self) -> dict[str, Any]:
        found = Section.to_dict(self)
        if self.backend != "vxlan":
            del found["vni"]
        return found

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:
        roles = {ROLE, ETCD}
        members = (node for node in topology.nodes.values() if roles & {*node.roles})
        yield self.interface, tuple(members)

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        found = self.to_dict()
        found["subnets"] = found["subnets"].get(node)
        found.pop("interface", None)
        etcd = member(topology)
        return {ROLE: found, "etcd": etcd and str(topology.address(etcd.name))}


def subnet_length(network: IPv4Network, given: Iterable[IPv4Network] = ()) -> int:
    """Return the prefix length of a node's subnet.

    It is that of the given subnets. The default is flannel's: 24 bits, or a quarter of a network
    that is smaller than a /22 (flannel, pkg/subnet/config.go).
    """
    for subnet in given:
        return subnet.prefixlen
    return 24 if network.prefixlen <= 22 else network.prefixlen + 2


def _subnets(flannel: FlannelSection, draft: Draft) -> Mapping[str, IPv4Network]:
    """Return every flannel node's subnet: the file's, or the next free one."""
    members, network, given = draft.with_role(ROLE), flannel.network, flannel.subnets
    length = subnet_length(network, given.values())
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
