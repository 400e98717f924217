"""The topology as frozen dataclasses, independent of files and machines.

A :class:`Topology` is complete and valid: it has all defaults, every reference exists, and every
address belongs to a network. :mod:`testbed.topology.load` creates one from a file, or raises an
error with all problems of the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from ipaddress import IPv4Address, IPv4Interface, IPv4Network

    from testbed.faults.model import Fault

Backend = Literal["udp", "vxlan", "host-gw"]
BACKENDS: tuple[Backend, ...] = ("udp", "vxlan", "host-gw")
Engine = Literal["20.10", "29"]
ENGINES: tuple[Engine, ...] = ("20.10", "29")
#: Back ends for Docker's packet filter rules.  ``iptables`` is the machine's default variant;
#: ``nftables`` is the engine's native back end, without iptables.
Firewall = Literal["iptables", "iptables-legacy", "iptables-nft", "nftables"]
FIREWALLS: tuple[Firewall, ...] = ("iptables", "iptables-legacy", "iptables-nft", "nftables")
#: Part of every node's digest.  Increase it when the base of all nodes changes, so that nodes of
#: an earlier version are created again.
NODE_FORM = 2
#: Modes of kube-proxy.
Proxy = Literal["nftables", "iptables"]
PROXIES: tuple[Proxy, ...] = ("nftables", "iptables")
#: Network plugins of a cluster.
Plugin = Literal["flannel", "bgp", "cilium", "calico", "kube-router", "weave"]
PLUGINS: tuple[Plugin, ...] = ("flannel", "bgp", "cilium", "calico", "kube-router", "weave")
#: Add-ons of a cluster, which run in Pods.
AddOn = Literal["dns", "ingress"]
ADD_ONS: tuple[AddOn, ...] = ("dns", "ingress")
DEFAULT_ADD_ONS: tuple[AddOn, ...] = ("dns",)


def needed_with(software: str) -> tuple[str, ...]:
    """Return a word of :attr:`Topology.software` with those it requires.

    >>> needed_with("ingress"), needed_with("docker")
    (('ingress', 'kubernetes'), ('docker',))
    """
    return (software, "kubernetes") if software in {*ADD_ONS, *PLUGINS} else (software,)


#: Overhead of each flannel backend, in bytes, within the node's MTU of 1500 octets:
#: udp adds IP+UDP (28) to a packet, vxlan outer IP+UDP+VXLAN+inner Ethernet (50),
#: host-gw nothing (flannel, Documentation/backends.md; RFC 7348 section 5).
OVERHEAD: Mapping[Backend, int] = {"udp": 28, "vxlan": 50, "host-gw": 0}
MTU = 1500
#: A network's name or ethN, for all nodes or by node; empty for the network that they share.
Underlay: TypeAlias = "str | Mapping[str, str]"


@dataclass(frozen=True, slots=True)
class Network:
    """A layer-2 segment that connects nodes, and its subnet."""

    name: str
    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class Node:
    """A node.  ``networks`` has the order of the file: eth0, eth1, ...

    ``cpus`` is a number of CPUs (0.5 is half a CPU), ``memory`` is in bytes; None means no limit.
    A ``gateway`` node is the default gateway of its peers. ``provider`` None means the topology's
    provider (:meth:`Topology.provider_of`).
    """

    name: str
    networks: Mapping[str, IPv4Address] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    gateway: bool = False
    cpus: float | None = None
    memory: int | None = None
    provider: str | None = None


@dataclass(frozen=True, slots=True)
class Docker:
    """Docker's settings.

    ``bip`` is docker0's address with its prefix by node, ``engine`` the engine's release.
    ``firewall`` is the packet filter of every Docker node.
    """

    bip: Mapping[str, IPv4Interface] = field(default_factory=dict)
    engine: Engine = "20.10"
    firewall: Firewall = "iptables"


@dataclass(frozen=True, slots=True)
class Flannel:
    """The overlay: its backend, network, and reserved subnets by node.

    ``port`` is the UDP port of the udp (8285) or vxlan (8472) backend, None for host-gw; ``vni``
    is the VXLAN network identifier (RFC 7348), by default flannel's 1. ``interface`` is the
    file's setting (see :meth:`Topology.network`).
    """

    backend: Backend
    network: IPv4Network
    subnets: Mapping[str, IPv4Network]
    port: int | None = None
    vni: int = 1
    interface: Underlay = ""

    @property
    def mtu(self) -> int:
        """MTU for containers, in bytes.

        It is the node's MTU minus the backend's overhead.
        """
        return MTU - OVERHEAD[self.backend]


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """A cluster of all nodes with the role.

    ``pods`` is the network of all Pods, ``ranges`` the part of each node; ClusterIPs are from
    ``services``. ``backend`` is flannel's and unused by other plugins. ``interface`` is the
    file's setting (see :meth:`Topology.network`).
    """

    control_plane: str
    pods: IPv4Network
    services: IPv4Network
    ranges: Mapping[str, IPv4Network]
    proxy: Proxy = "nftables"
    cni: Plugin = "flannel"
    backend: Backend = "vxlan"
    add_ons: tuple[AddOn, ...] = DEFAULT_ADD_ONS
    interface: Underlay = ""

    @property
    def mtu(self) -> int:
        """MTU for Pods, in bytes: the node's MTU minus the backend's overhead."""
        return MTU - (OVERHEAD[self.backend] if self.cni == "flannel" else 0)

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


@dataclass(frozen=True, slots=True)
class Publish:
    """A published port: ``[address:]host_port:container_port/protocol``."""

    host_port: int
    container_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    address: IPv4Address | None = None

    def __str__(self) -> str:
        where = f"{self.address}:" if self.address else ""
        return f"{where}{self.host_port}:{self.container_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """Docker's health check of a container.

    None and () mean the image's or Docker's default. ``test`` begins with CMD, CMD-SHELL or NONE.
    Times are in seconds.
    """

    test: tuple[str, ...] = ()
    interval: float | None = None
    timeout: float | None = None
    retries: int | None = None
    start_period: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The readiness test of a container.

    It is ready when it listens on ``port`` and ``command`` succeeds. ``port`` is 0 if only the
    command counts; ``timeout`` is in seconds.
    """

    port: int = 0
    protocol: Literal["tcp", "udp"] = "tcp"
    command: tuple[str, ...] | None = None
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """A container on a node.

    ``network`` is ``bridge``, ``host``, ``none`` or ``container:NAME``; ``command`` None means
    the image's default. ``expect`` is the expected exit status of a container that ends, None for
    a container that keeps running.
    """

    name: str
    node: str
    image: str
    network: str = "bridge"
    publish: tuple[Publish, ...] = ()
    command: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    expect: int | None = None
    healthcheck: Healthcheck | None = None
    ready: Ready | None = None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A plain network namespace on a node, as created by ``ip netns add``."""

    name: str
    node: str


@dataclass(frozen=True, slots=True)
class Bridge:
    """A Linux bridge on a node, without an address of its own."""

    name: str
    node: str


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair: in a namespace, or a port of a bridge.

    In a namespace it has an address.
    """

    name: str
    namespace: str | None = None
    bridge: str | None = None
    address: IPv4Interface | None = None


@dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair on a node."""

    node: str
    ends: tuple[VethEnd, VethEnd]


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole topology.

    ``source`` is the file's name as the user gave it, for messages only. ``file`` is its absolute
    path with symbolic links resolved, empty for a topology without a file.
    """

    name: str
    networks: Mapping[str, Network] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    docker: Docker = field(default_factory=Docker)
    flannel: Flannel | None = None
    kubernetes: Kubernetes | None = None
    containers: Mapping[str, Container] = field(default_factory=dict)
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    bridges: Mapping[str, Bridge] = field(default_factory=dict)
    veths: tuple[Veth, ...] = ()
    faults: Mapping[str, Fault] = field(default_factory=dict)
    description: str = ""
    provider: str = "netns"
    source: str = field(default="", compare=False)
    _underlay: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)
    file: str = field(default="", compare=False)

    def provider_of(self, node: str) -> str:
        """Return the provider of a node: its own, or the topology's default."""
        return self.nodes[node].provider or self.provider

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers of the nodes, without duplicates, in the file's order."""
        return tuple(dict.fromkeys(self.provider_of(name) for name in self.nodes))

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
    def software(self) -> frozenset[str]:
        """The software on its nodes: roles, and the parts of a cluster."""
        found = {role for node in self.nodes.values() for role in node.roles}
        if self.kubernetes:
            found |= {*self.kubernetes.add_ons, self.kubernetes.cni}
        return frozenset(found)

    @property
    def images(self) -> tuple[str, ...]:
        """The images of its containers, sorted, without duplicates."""
        return tuple(sorted({c.image for c in self.containers.values()}))

    def with_role(self, role: str) -> tuple[Node, ...]:
        """Return the nodes with a role, in the order of the file."""
        return tuple(n for n in self.nodes.values() if role in n.roles)

    @property
    def etcd(self) -> Node | None:
        """The node that runs etcd, or None."""
        return next(iter(self.with_role("etcd")), None)

    def address(self, node: str) -> IPv4Address:
        """Return the address of a node for its peers.

        It is the one on its :meth:`network`. Raises KeyError for an unknown node, StopIteration for
        one without a network.
        """
        return self.nodes[node].networks[self.network(node)]

    def network(self, node: str) -> str:
        """Return the network for a node's traffic with other nodes.

        For nodes of flannel and etcd, and for those of a cluster, it is the file's ``interface``
        or, by default, the first network that all of them share. For others it is the first one.
        Raises KeyError for an unknown node, StopIteration for one without a network.
        """
        if not self._underlay:
            for interface, members in self.meshes():
                self._underlay.update(_underlay(interface, members))
        return self._underlay.get(node) or next(iter(self.nodes[node].networks))

    def interface(self, node: str) -> str:
        """Return a node's link to its :meth:`network`; raises the same errors."""
        return f"eth{list(self.nodes[node].networks).index(self.network(node))}"

    def meshes(self) -> Iterator[tuple[Underlay, tuple[Node, ...]]]:
        """Yield the groups of nodes that communicate.

        Each has its ``interface`` setting.
        """
        if self.flannel is not None:
            roles = {"flannel", "etcd"}
            members = tuple(node for node in self.nodes.values() if roles & {*node.roles})
            yield self.flannel.interface, members
        if self.kubernetes is not None:
            yield self.kubernetes.interface, self.with_role("kubernetes")

    def address_for(self, node: str, peer: str) -> IPv4Address:
        """Return the address that a node should use for a peer.

        Raises the same errors as :meth:`address`. It is the peer's :meth:`address`, unless the node
        is not on that network and both share another network.
        """
        mine, theirs = self.nodes[node].networks, self.nodes[peer].networks
        if self.network(peer) not in mine:
            for network in mine:
                if network in theirs:
                    return theirs[network]
        return self.address(peer)

    def gateway_of(self, node: str) -> IPv4Address | None:
        """Return a node's default gateway: the first one on its networks.

        It is the address of a node with ``gateway``.
        """
        found = self.gateway_node(node)
        return found and self.nodes[found[0]].networks[found[1]]

    def gateway_node(self, node: str) -> tuple[str, str] | None:
        """Return a node's default gateway node, and their common network."""
        for network in self.nodes[node].networks:
            for peer in self.nodes.values():
                if peer.gateway and peer.name != node and network in peer.networks:
                    return peer.name, network
        return None

    def reaches(self, node: str, peer: str) -> bool:
        """Tell whether packets from a node reach a peer's :meth:`address`.

        A node sends directly to addresses on its own networks, and all else to its gateway.
        """
        address, here = self.address(peer), node
        for _ in self.nodes:
            me = self.nodes[here]
            connected = [name for name in me.networks if address in self.networks[name].subnet]
            if connected:
                # The longest prefix wins, the first one among equals (Linux, FIB lookup).
                network = max(connected, key=lambda name: self.networks[name].subnet.prefixlen)
                return here == peer or self.nodes[peer].networks.get(network) == address
            gateway = self.gateway_node(here)
            if gateway is None:
                return False
            here = gateway[0]
        return False

    def containers_on(self, node: str) -> tuple[Container, ...]:
        return tuple(c for c in self.containers.values() if c.node == node)

    def running_on(self, node: str) -> tuple[Container, ...]:
        """Return the containers of a node that keep running."""
        return tuple(c for c in self.containers_on(node) if c.expect is None)

    def to_dict(self) -> dict[str, Any]:
        """Return the topology in the form of a file, with all defaults."""
        return _plain(self)

    def node_digest(self, node: str) -> str:
        """Return a digest of everything about a node except its containers.

        If two topologies have the same digest for a node, they can share the running node.
        """
        me = self.nodes[node]
        parts: dict[str, Any] = {
            "form": NODE_FORM,
            "provider": self.provider_of(node),
            # The provider counts, whether the node or the topology sets it.
            "node": _node(replace(me, provider=None)),
            "networks": {n: str(self.networks[n].subnet) for n in me.networks},
            "gateway": str(self.gateway_of(node)),
            "bip": str(self.docker.bip.get(node)),
            "namespaces": [n.name for n in self.namespaces.values() if n.node == node],
            "bridges": [b.name for b in self.bridges.values() if b.node == node],
            "veths": [_veth(v) for v in self.veths if v.node == node],
        }
        if "docker" in me.roles:
            parts["docker"] = [self.docker.engine, self.docker.firewall]
        if self.flannel and "flannel" in me.roles:
            flannel = _flannel(self.flannel)
            flannel["subnets"] = flannel["subnets"].get(node)
            flannel.pop("interface", None)
            parts["flannel"] = flannel
            etcd = self.etcd
            parts["etcd"] = etcd and str(self.address(etcd.name))
        if self.kubernetes and "kubernetes" in me.roles:
            cluster = self.kubernetes
            parts["kubernetes"] = _kubernetes(cluster) | {
                "ranges": str(cluster.ranges.get(node)),
                "api": str(self.address(cluster.control_plane)),
            }
            parts["kubernetes"].pop("interface", None)
        if me.networks and self.interface(node) != "eth0":
            parts["interface"] = self.interface(node)
        return _digest(parts)

    def container_digest(self, container: str) -> str:
        """Return a digest of a container's settings."""
        return _digest(_container(self.containers[container]))


def _underlay(interface: Underlay, members: Iterable[Node]) -> dict[str, str]:
    """Return the network of each of these nodes.

    Nodes without a network are left out.
    """
    nodes = [node for node in members if node.networks]
    shared = [name for node in nodes[:1] for name in node.networks]
    for node in nodes:
        shared = [name for name in shared if name in node.networks]
    found = {}
    for node in nodes:
        given = interface if isinstance(interface, str) else interface.get(node.name, "")
        names = {f"eth{index}": name for index, name in enumerate(node.networks)}
        given = given if given in node.networks else names.get(given, "")
        found[node.name] = given or next(iter([*shared, *node.networks]))
    return found


def _digest(value: Any) -> str:
    data = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(data.encode()).hexdigest()[:12]


def _node(node: Node) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if node.networks:
        out["networks"] = {k: str(v) for k, v in node.networks.items()}
    if node.roles:
        out["roles"] = list(node.roles)
    if node.gateway:
        out["gateway"] = True
    if node.cpus is not None:
        out["cpus"] = node.cpus
    if node.memory is not None:
        out["memory"] = node.memory
    if node.provider is not None:
        out["provider"] = node.provider
    return out


def _flannel(flannel: Flannel) -> dict[str, Any]:
    out: dict[str, Any] = {
        "backend": flannel.backend,
        "network": str(flannel.network),
        "subnets": {k: str(v) for k, v in flannel.subnets.items()},
    }
    if flannel.port is not None:
        out["port"] = flannel.port
    if flannel.backend == "vxlan":
        out["vni"] = flannel.vni
    if flannel.interface:
        out["interface"] = _interface(flannel.interface)
    return out


def _interface(interface: Underlay) -> str | dict[str, str]:
    return interface if isinstance(interface, str) else dict(interface)


def _kubernetes(cluster: Kubernetes) -> dict[str, Any]:
    out: dict[str, Any] = {
        "control-plane": cluster.control_plane,
        "pods": str(cluster.pods),
        "ranges": {k: str(v) for k, v in cluster.ranges.items()},
        "services": str(cluster.services),
        "proxy": cluster.proxy,
        "cni": cluster.cni,
        "add-ons": list(cluster.add_ons),
    }
    if cluster.cni == "flannel":
        out["backend"] = cluster.backend
    if cluster.interface:
        out["interface"] = _interface(cluster.interface)
    return out


def _container(container: Container) -> dict[str, Any]:
    out: dict[str, Any] = {
        "node": container.node,
        "image": container.image,
        "network": container.network,
    }
    if container.publish:
        out["publish"] = [str(p) for p in container.publish]
    if container.command is not None:
        out["command"] = list(container.command)
    if container.env:
        out["env"] = dict(container.env)
    if container.expect is not None:
        out["expect"] = f"exit {container.expect}"
    if container.healthcheck is not None:
        out["healthcheck"] = _healthcheck(container.healthcheck)
    if container.ready is not None:
        out["ready"] = _ready(container.ready)
    return out


def _healthcheck(check: Healthcheck) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if check.test:
        out["test"] = list(check.test)
    if check.retries is not None:
        out["retries"] = check.retries
    for name in ("interval", "timeout", "start_period"):
        seconds = getattr(check, name)
        if seconds is not None:
            out[name] = duration(seconds)
    return out


def _ready(ready: Ready) -> dict[str, Any]:
    out: dict[str, Any] = {"timeout": duration(ready.timeout)}
    if ready.port:
        out["port"] = f"{ready.port}/{ready.protocol}"
    if ready.command is not None:
        out["command"] = list(ready.command)
    return out


def duration(seconds: float) -> str:
    """Return a duration as in a topology file, rounded to milliseconds.

    >>> duration(90), duration(0.5)
    ('90s', '500ms')
    """
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


def _veth(veth: Veth) -> dict[str, Any]:
    ends = []
    for end in veth.ends:
        one: dict[str, Any] = {"name": end.name}
        for key in ("namespace", "bridge", "address"):
            value = getattr(end, key)
            if value is not None:
                one[key] = str(value)
        ends.append(one)
    return {"node": veth.node, "ends": ends}


def _plain(topology: Topology) -> dict[str, Any]:
    out: dict[str, Any] = {"name": topology.name}
    if topology.description:
        out["description"] = topology.description
    out["provider"] = topology.provider
    if topology.networks:
        out["networks"] = {n.name: {"subnet": str(n.subnet)} for n in topology.networks.values()}
    out["nodes"] = {n.name: _node(n) for n in topology.nodes.values()}
    if topology.docker.bip:
        out["docker"] = {
            "bip": {k: str(v) for k, v in topology.docker.bip.items()},
            "engine": topology.docker.engine,
            "firewall": topology.docker.firewall,
        }
    if topology.flannel:
        out["flannel"] = _flannel(topology.flannel)
    if topology.kubernetes:
        out["kubernetes"] = _kubernetes(topology.kubernetes)
    if topology.containers:
        out["containers"] = {c.name: _container(c) for c in topology.containers.values()}
    if topology.namespaces:
        out["namespaces"] = {n.name: {"node": n.node} for n in topology.namespaces.values()}
    if topology.bridges:
        out["bridges"] = {b.name: {"node": b.node} for b in topology.bridges.values()}
    if topology.veths:
        out["veths"] = [_veth(v) for v in topology.veths]
    if topology.faults:
        out["faults"] = {name: fault.words for name, fault in topology.faults.items()}
    return out
