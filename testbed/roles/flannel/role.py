"""The role ``flannel``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.limits import Takes
from testbed.nodes.footprint import Footprint
from testbed.requirement import Feature
from testbed.roles.base import Offer, OwnLink, Role
from testbed.roles.flannel.checks import FlannelChecks
from testbed.roles.flannel.section import (
    BACKENDS,
    ONLY_WITH,
    ROLE,
    SYSCTLS6,
    UDP_DEVICE,
    FlannelSection,
)
from testbed.topology.variant import Option

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.faults.means import Breakage
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.steps.step import Step
    from testbed.topology.model import Node, Topology

SERVICE = "flanneld"


def service_of(network: str) -> str:
    """Return the name of the flanneld of a further network; that of the main one for ``""``."""
    return f"{SERVICE}-{network}" if network else SERVICE


#: Kernel features that a backend needs, by their names in :mod:`testbed.kernel`, which are also
#: those of the kernel's modules.
BACKEND_KERNEL: Mapping[str, tuple[str, ...]] = {"vxlan": ("vxlan",), "udp": ("tun",)}
NAT6 = "ip6tables nat"
FAMILIES = "IPv4, IPv6"  #: the fact ``families`` of a lab with both


#: Words of ``break``, and the effect of each.
BREAKABLE: Mapping[str, str] = {
    "route": "remove the routes to the containers of other nodes",
    "neighbour": "remove the permanent ARP entries of other nodes' VTEPs",
    "fdb": "remove the VTEP's forwarding entries (FDB)",
    "forward": "drop everything with the first rule of FORWARD",
    "port": "drop packets to flannel's UDP port",
}
#: Those that add a rule; the others remove entries.
RULES = ("forward", "port")
#: Words of ``break`` that require one of these back ends; the others work with all.
OF_BACKENDS: Mapping[str, tuple[str, ...]] = {
    "neighbour": ("vxlan",),
    "fdb": ("vxlan",),
    "port": ("vxlan", "udp"),
}
IPV6 = "flannel-ipv6"  #: the word of ``needs`` for an overlay of IPv4 and IPv6
USUAL = "flannel-defaults"  #: the word of ``needs`` for an overlay with its usual way of packets


def _set_backend(data: dict[str, Any], topology: Topology, backend: str) -> None:
    if (flannel := FlannelSection.find(topology)) is not None and backend != flannel.backend:
        # A port or VNI is valid only for its original backend, as some other keys are.
        for name, (backends, _) in ONLY_WITH.items():
            if name == "port" or backend not in backends:
                data[ROLE].pop(name, None)
    data[ROLE]["backend"] = backend


def _set_nodes(data: dict[str, Any], topology: Topology, count: int) -> None:
    from testbed.roles.flannel.nodes import set_nodes

    set_nodes(data, topology, count)


OPTIONS = (
    Option(
        "backend",
        f"Backend of flannel: {', '.join(BACKENDS)}.",
        _set_backend,
        "no flannel network, so the backend {value} would have no effect",
        "a flannel section, like two-node",
        "backend",
        BACKENDS,
    ),
    Option(
        "nodes",
        "Number of flannel nodes, all like the topology's first ones.",
        _set_nodes,
        "no flannel nodes, so the number {value} would have no effect",
        "a flannel section, like two-node",
        metavar="N",
        type=int,
    ),
)


class Flannel(Role):
    name = ROLE
    section = FlannelSection
    options = OPTIONS
    checks = (FlannelChecks,)
    needs: ClassVar[dict[str, str]] = {
        "flannel": "flannel, whatever its backend",
        **{f"{ROLE}-{backend}": f"flannel with the backend {backend}" for backend in BACKENDS},
        IPV6: "flannel with IPv6, besides IPv4",
        USUAL: "flannel with its default port and VNI, between the nodes' own addresses, without "
        "direct routing and IPv6, and with Docker's rules open to it",
    }
    fact_names = ("backend", "families")
    breakable = BREAKABLE
    artifacts = ("flanneld", "etcdctl")
    programs: ClassVar[dict[str, str]] = {"iptables": "iptables"}
    kernel = ("iptables nat",)
    optional_kernel: ClassVar[dict[str, str]] = (
        {"br_netfilter": SERVICE}
        | {
            feature: f"{ROLE} {backend}"
            for backend, features in BACKEND_KERNEL.items()
            for feature in features
        }
        | {NAT6: f"{ROLE} with ipv6"}
    )
    trials = (
        Feature(
            NAT6,
            "ip6tables -w -t nat -A POSTROUTING -j MASQUERADE",
            "CONFIG_IPV6, CONFIG_NF_NAT and CONFIG_NETFILTER_XT_TARGET_MASQUERADE",
        ),
    )
    seen = True
    services = (SERVICE,)
    processes = (SERVICE,)
    offers = (Offer("flanneld"),)

    def noticed(self, machine: Machine, running: AbstractSet[str]) -> str:
        there = ["flanneld"] if SERVICE in running else []
        found = machine.run(["sh", "-c", "cd /sys/class/net && ls -d flannel*"], check=False)
        return ", ".join([*there, *found.stdout.split()])

    def summary(self, topology: Topology) -> str:
        flannel = FlannelSection.of(topology)
        return flannel.backend + (" with IPv6" if flannel.ipv6 else "")

    def features(self, topology: Topology) -> AbstractSet[str]:
        flannel = FlannelSection.of(topology)
        more = {USUAL: flannel.is_usual, IPV6: flannel.ipv6 is not None}
        words = {word for word, has in more.items() if has}
        return {ROLE, f"{ROLE}-{flannel.backend}"} | words

    def facts(self, context: Context) -> Mapping[str, str]:
        flannel = FlannelSection.of(context.topology)
        return {"backend": flannel.backend, **({"families": FAMILIES} if flannel.ipv6 else {})}

    def kernel_for(self, topology: Topology) -> Iterable[str]:
        flannel = FlannelSection.of(topology)
        six = (NAT6,) if flannel.ipv6 else ()
        return (*self.kernel, *BACKEND_KERNEL.get(flannel.backend, ()), *six)

    def alternative(self, topology: Topology) -> str:
        del topology
        return "another flannel backend may need less (--backend)"

    def overlay(self, topology: Topology) -> Mapping[str, Any] | None:
        flannel = FlannelSection.of(topology)
        found: dict[str, Any] = {
            "name": ROLE,
            "backend": flannel.backend,
            "network": str(flannel.network),
            "device": flannel.device,
        }
        if flannel.ipv6:
            found["network6"] = str(flannel.ipv6.network)
            found["device6"] = flannel.device6
        if flannel.port is not None:
            found["port"] = flannel.port
        if flannel.backend == "vxlan":
            found["vni"] = flannel.vni
        return found

    def described(self, facts: Mapping[str, str]) -> Iterable[str]:
        if "backend" in facts:
            yield f"flannel {facts['backend']}" + (" with IPv6" if facts.get("families") else "")

    def unbreakable(self, topology: Topology, node: str, what: str) -> tuple[str, str, str] | None:
        flannel = FlannelSection.of(topology)
        backends = OF_BACKENDS.get(what, (flannel.backend,))
        if flannel.backend in backends:
            tunnelled = any(
                not flannel.is_direct(topology, node, peer)
                for peer in flannel.subnets
                if peer != node
            )
            if what not in OF_BACKENDS or tunnelled or len(flannel.subnets) < 2:
                return None
            return (
                f"a node to which {node} sends through the tunnel, for {what!r}",
                "direct-routing, and all other nodes on its network",
                f"use `break {node} route`, or remove direct-routing",
            )
        wanted = f"the back end {' or '.join(backends)} for {what!r}"
        hint = (
            f"use `--backend {backends[0]}`, or `break {node} route`, which "
            "works with every back end"
        )
        return wanted, flannel.backend, hint

    def breakage(self, topology: Topology, nodes: Callable[[], Sequence[Machine]]) -> Breakage:
        from testbed.roles.flannel.breakage import Overlay

        return Overlay(topology, nodes)

    def links(self, topology: Topology, node: str) -> Iterable[OwnLink]:
        del node
        if (flannel := FlannelSection.find(topology)) is not None:
            # The name is reserved with host-gw, too: a variant may need it.
            names = list(flannel.devices or (UDP_DEVICE,))
            for other in flannel.further().values():
                names += other.devices
            for name in names:
                yield OwnLink(name, "flannel's own")

    def sysctls(self, topology: Topology, node: str) -> Mapping[str, str]:
        del node
        networks = (FlannelSection.of(topology), *FlannelSection.of(topology).further().values())
        return SYSCTLS6 if any(one.ipv6 for one in networks) else {}

    def footprint(self, topology: Topology, node: str) -> Footprint:
        main = FlannelSection.of(topology)
        networks = [main, *main.further().values()]
        sixes = [one.ipv6.network for one in networks if one.ipv6]
        modules = (name for one in networks for name in BACKEND_KERNEL.get(one.backend, ()))
        usual = Footprint(
            daemons=(SERVICE,),
            ports=tuple(f"udp/{one.port}" for one in networks if one.port is not None),
            chains=("FLANNEL-.*",),
            rules=("FLANNEL-", "flanneld"),
            # With host-gw and direct routing they pass links that are not flannel's.
            routes=tuple(str(one) for one in (*(one.network for one in networks), *sixes)),
            sysctls=("net.ipv4.ip_forward",),
            modules=("br_netfilter", *modules),
            filters=("br_netfilter",),
        )
        return Footprint.of_all((super().footprint(topology, node), usual))

    def takes(self, topology: Topology, node: str) -> Takes:
        del node
        count = 1 + len(FlannelSection.of(topology).networks)
        return Takes(files=64 * count, tasks=9 * count)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        del node
        return tuple(map(service_of, ("", *FlannelSection.of(topology).networks)))

    def service_needs(self, topology: Topology, node: str) -> Mapping[str, tuple[str, ...]]:
        from testbed.roles.etcd import SERVICE as ETCD
        from testbed.roles.etcd import store_of

        store = f"{store_of(topology).name}/{ETCD}"
        return dict.fromkeys(self.services_on(topology, node), (store,))

    def ahead(self, store: Store, topology: Topology, node: str) -> list[str]:
        import json

        from testbed.roles.flannel import daemon

        reserved = json.dumps(daemon.reservations(topology))
        return [reserved, *super().ahead(store, topology, node)]

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        from testbed.roles.flannel import daemon

        return daemon.steps(topology, node)
