"""The cluster's section of a topology file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.roles.flannel.section import (
    BACKEND,
    DEFAULT_BACKEND,
    DEFAULT_NETWORK,
    DEFAULT_NETWORK6,
    OVERHEAD,
    Backend,
    assigned,
)
from testbed.topology import tree
from testbed.topology.declare import Block, Draft, Nested, Section, Underlay, key
from testbed.topology.shapes import (
    IMAGE,
    NODE,
    UNDERLAY,
    Choice,
    Choices,
    Data,
    Items,
    Paths,
    Shape,
    Subnet,
    Subnet6,
    by_node,
    table,
    whole,
)
from testbed.topology.tree import describe, quote

if TYPE_CHECKING:
    from testbed.topology.model import Node, Topology
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

ROLE = "kubernetes"
#: Modes of kube-proxy.
Proxy = Literal["nftables", "iptables"]
PROXIES: tuple[Proxy, ...] = ("nftables", "iptables")
DEFAULT_PROXY: Proxy = "nftables"
#: Network plugins of a cluster.
Plugin = Literal["flannel", "bgp", "cilium", "calico", "kube-router", "weave"]
PLUGINS: tuple[Plugin, ...] = ("flannel", "bgp", "cilium", "calico", "kube-router", "weave")
DEFAULT_PLUGIN: Plugin = "flannel"
#: Add-ons of a cluster, which run in Pods.
AddOn = Literal["dns", "ingress"]
ADD_ONS: tuple[AddOn, ...] = ("dns", "ingress")
DEFAULT_ADD_ONS: tuple[AddOn, ...] = ("dns",)
#: Default networks of Pods and Services; they do not overlap with the shipped topologies' networks.
DEFAULT_PODS = DEFAULT_NETWORK
DEFAULT_SERVICES = IPv4Network("10.97.0.0/16")
#: Those of IPv6: local addresses (RFC 4193) with the same digits.
DEFAULT_SERVICES6 = IPv6Network("fd00:10:97::/112")
#: Prefix length of each node's range of IPv6 (--node-cidr-mask-size-ipv6). The controller manager
#: has room for 65536 ranges (kubernetes, pkg/controller/nodeipam/ipam/cidrset).
RANGE6 = 64


#: A flag of Kubernetes' programs, without hyphens before it.
FLAG = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"


class Flags(Shape[Mapping[str, str]]):
    """Flags of a program, with their values as text."""

    def schema(self) -> dict[str, Any]:
        return table(whole(FLAG), {"type": ["string", "number", "boolean"]})

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        found = read.table(at, "a mapping of flags")
        out = {}
        for entry in found.entries.values() if found else ():
            name, value = entry.key.text, entry.value
            if not re.fullmatch(FLAG, name):
                hint = f"write {name.lstrip('-')}" if name.startswith("-") else "write its name"
                read.problems.add(entry.key, "a flag, like max-pods", quote(name), hint)
            elif isinstance(value, tree.Scalar) and value.value is not None and not value.surprise:
                out[name] = value.text
            elif not isinstance(value, tree.Broken):
                hint = "write a list as text: a,b"
                if isinstance(value, tree.Scalar):
                    hint = f'quote it: "{value.text}"' if value.surprise else "write its value"
                read.problems.add(value, "text, a number, true or false", describe(value), hint)
        return out if found else None

    def plain(self, value: Mapping[str, str]) -> dict[str, str]:
        return dict(value)


FLAGS = Flags()


@dataclass(frozen=True, slots=True)
class Arguments(Block):
    """Flags of the cluster's programs, by program."""

    apiserver: Mapping[str, str] = key(
        FLAGS, "Flags of kube-apiserver.", name="kube-apiserver", default={}
    )
    controller_manager: Mapping[str, str] = key(
        FLAGS, "Flags of kube-controller-manager.", name="kube-controller-manager", default={}
    )
    scheduler: Mapping[str, str] = key(
        FLAGS, "Flags of kube-scheduler.", name="kube-scheduler", default={}
    )
    kubelet: Mapping[str, str] = key(FLAGS, "Flags of kubelet, on all nodes.", default={})

    def of(self, program: str) -> Mapping[str, str]:
        """Return the flags of a program; none for one without this key."""
        found: Mapping[str, str] = self.to_dict().get(program, {})
        return found


NO_ARGUMENTS = Arguments()


@dataclass(frozen=True, slots=True)
class Configuration(Block):
    """Fields of configuration files of the cluster's programs, by program."""

    kubelet: Mapping[str, Any] = key(
        Data(), "Fields of KubeletConfiguration, on all nodes. null removes one.", default={}
    )
    proxy: Mapping[str, Any] = key(
        Data(),
        "Fields of KubeProxyConfiguration, on all nodes. null removes one.",
        name="kube-proxy",
        default={},
    )

    def of(self, program: str) -> Mapping[str, Any]:
        """Return the fields of a program; none for one without this key."""
        found: Mapping[str, Any] = self.to_dict().get(program, {})
        return found


NO_CONFIGURATION = Configuration()


@dataclass(frozen=True, slots=True)
class KubernetesIPv6(Block):
    """IPv6 of a cluster, besides IPv4."""

    pods: IPv6Network = key(
        Subnet6(RANGE6 - 16, RANGE6 - 2), "IPv6 network of all Pods.", default=DEFAULT_NETWORK6
    )
    ranges: Mapping[str, IPv6Network] = key(
        by_node(Subnet6(RANGE6, RANGE6), "a mapping of node to subnet"),
        "Range of IPv6 addresses of each node's Pods, a /64. Default: the next free one.",
        default={},
        always=True,
    )
    # The API server accepts no more than 20 bits (kubernetes, cmd/kube-apiserver/app/options).
    services: IPv6Network = key(
        Subnet6(108, 120), "IPv6 network of ClusterIPs.", default=DEFAULT_SERVICES6
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        members, one = draft.with_role(ROLE), cls(**given)
        wanted = f"a range for each of {len(members)} nodes"
        at = draft.body.get("pods") or draft.body
        ranges = assigned(draft, members, one.pods, one.ranges, length=RANGE6, at=at, wanted=wanted)
        return cls(**{**given, "ranges": ranges})


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSection(Section):
    """A cluster of all nodes with the role.

    ``pods`` is the network of all Pods, ``ranges`` the part of each node; ClusterIPs are from
    ``services``. ``backend`` is flannel's and unused by other plugins. ``interface`` is the
    file's setting (see :meth:`Topology.network`).
    """

    role: ClassVar[str] = ROLE
    about: ClassVar[str] = "The cluster of the nodes with the role kubernetes."

    interface: Underlay = key(
        UNDERLAY,
        "Network, or ethN, with the addresses that the cluster's nodes use: one for all, "
        "or one for "
        "each node. Default: the first network that all of these nodes share.",
        default="",
    )
    control_plane: str = key(
        NODE,
        "Node with etcd, the API server, the controllers and the scheduler. "
        "Default: the first node with the role.",
        name="control-plane",
        default="",
    )
    pods: IPv4Network = key(Subnet(8, 24), "Network of all Pods.", default=DEFAULT_PODS)
    ranges: Mapping[str, IPv4Network] = key(
        by_node(Subnet(8, 30), "a mapping of node to subnet"),
        "Range of Pod addresses of each node. Default: the next free one.",
        default={},
        always=True,
    )
    services: IPv4Network = key(Subnet(12, 24), "Network of ClusterIPs.", default=DEFAULT_SERVICES)
    proxy: Proxy = key(
        Choice("a proxy mode", PROXIES),
        "Packet filter of kube-proxy.",
        default=DEFAULT_PROXY,
    )
    cni: Plugin = key(
        Choice("a network plugin", PLUGINS), "Network plugin.", default=DEFAULT_PLUGIN
    )
    backend: Backend = key(
        BACKEND, "Transport of flannel's packets between nodes.", default=DEFAULT_BACKEND
    )
    add_ons: tuple[AddOn, ...] = key(
        Choices("a list of add-ons", "add-on", ADD_ONS),
        "Add-ons that run in Pods. Default: dns.",
        name="add-ons",
        default=DEFAULT_ADD_ONS,
        always=True,
        shown=None,
    )
    images: tuple[str, ...] = key(
        Items(IMAGE, "a list of images", unique=True),
        "Images to load into containerd of each node, for Pods. They are found as those of "
        "containers.",
        default=(),
    )
    arguments: Arguments = key(
        Nested(Arguments),
        "Flags of the cluster's programs, in addition to those of the lab, or instead of them.",
        default=NO_ARGUMENTS,
    )
    configuration: Configuration = key(
        Nested(Configuration),
        "Fields of the configuration files of kubelet and kube-proxy, in addition to those of the "
        "lab, or instead of them.",
        default=NO_CONFIGURATION,
    )
    ipv6: KubernetesIPv6 | None = key(
        Nested(KubernetesIPv6),
        "IPv6 for Pods and Services, besides IPv4 (dual stack): {} for the default networks. Nodes "
        "need IPv6 addresses on the network that the cluster uses.",
        default=None,
    )
    apply: tuple[str, ...] = key(
        Paths("the path of a file with objects of the API"),
        "File, or several, with objects of the API, beside this file. `up` applies them in this "
        "order, changes them with the files, and deletes those that the files no longer have.",
        default=(),
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        members, one = draft.with_role(ROLE), cls(**given)
        # A /24 per node is the controller manager's default (--node-cidr-mask-size).
        length = max(24, one.pods.prefixlen)
        wanted = f"a range for each of {len(members)} nodes"
        at = draft.body.get("pods") or draft.body
        ranges = assigned(draft, members, one.pods, one.ranges, length=length, at=at, wanted=wanted)
        control = one.control_plane or next(iter(members), "")
        return cls(**{**given, "control_plane": control, "ranges": ranges})

    def mtu(self, topology: Topology, node: str) -> int:
        """Return the MTU for Pods of a node, in bytes.

        It is that of the node's link minus the backend's overhead.
        """
        return topology.link_mtu(node) - (OVERHEAD[self.backend] if self.cni == "flannel" else 0)

    @property
    def api(self) -> IPv4Address:
        """The ClusterIP of the API: the first of ``services``.

        This is kube-apiserver's own rule.
        """
        return self.services[1]

    @property
    def dns(self) -> IPv4Address:
        """The ClusterIP of DNS: the tenth of ``services``, as with kubeadm."""
        return self.services[10]

    @property
    def contour(self) -> IPv4Address:
        """The ClusterIP of Contour for Envoys: the one after the DNS."""
        return self.services[11]

    def pod_networks(self) -> list[str]:
        """Return the networks of all Pods, one for each IP family."""
        return [str(self.pods), *([str(self.ipv6.pods)] if self.ipv6 else [])]

    def service_networks(self) -> list[str]:
        """Return the networks of ClusterIPs, one for each IP family."""
        return [str(self.services), *([str(self.ipv6.services)] if self.ipv6 else [])]

    def ranges_of(self, node: str) -> list[str]:
        """Return the ranges of a node's Pods, one for each IP family."""
        return [str(self.ranges[node]), *([str(self.ipv6.ranges[node])] if self.ipv6 else [])]

    def to_dict(self) -> dict[str, Any]:
        found = Section.to_dict(self)
        if self.cni != "flannel":
            del found["backend"]
        if self.arguments == NO_ARGUMENTS:
            del found["arguments"]
        if self.configuration == NO_CONFIGURATION:
            del found["configuration"]
        return found

    def image_names(self) -> tuple[str, ...]:
        return self.images

    def software(self) -> frozenset[str]:
        return frozenset({*self.add_ons, self.cni})

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:
        yield self.interface, topology.with_role(ROLE)

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        found = self.to_dict()
        # These change on nodes that run.
        for word in ("interface", "images", "arguments", "configuration", "apply"):
            found.pop(word, None)
        api = str(topology.address(self.control_plane))
        if self.ipv6:
            found["ipv6"]["ranges"] = str(self.ipv6.ranges.get(node))
        return {ROLE: found | {"ranges": str(self.ranges.get(node)), "api": api}}
