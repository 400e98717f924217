"""The role ``kubernetes``: a cluster with TLS and RBAC.

The control plane runs on one node; containerd, kubelet, kube-proxy and the network plugin run on
all nodes. The topology assigns each node's range of Pod addresses: the Node object is created
before its kubelet starts, so nothing has to wait for the controller manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import ArtifactError
from testbed.limits import Takes
from testbed.requirement import Feature
from testbed.roles.base import Offer, Role, not_built
from testbed.roles.flannel.role import FAMILIES
from testbed.roles.flannel.section import BACKENDS, ONLY_WITH, SYSCTLS6
from testbed.roles.kubernetes.checks import KubernetesChecks
from testbed.roles.kubernetes.section import (
    ADD_ONS,
    DEFAULT_PLUGIN,
    PLUGINS,
    PROXIES,
    ROLE,
    KubernetesSection,
)
from testbed.topology.variant import Option

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node as Machine
    from testbed.requirement import Requirement
    from testbed.roles.kubernetes.plugins import Plugin
    from testbed.steps.context import Context
    from testbed.steps.step import Step
    from testbed.topology.model import Node, Topology

#: Memory of a node and of a control plane, in bytes: their own use, measured.
MEMORY, CONTROL_MEMORY = 190 << 20, 430 << 20
#: Daemons watch files, each with an inotify instance: the first node needs 14, any other 7.
INOTIFY = 12
TASKS, CONTROL_TASKS = 120, 60  # includes the threads of the first Pods
CONTROL = (
    "etcd", "kube-apiserver", "api-socket", "kube-controller-manager", "kube-scheduler",
)  # fmt: skip
EVERY = ("containerd", "kubelet", "kube-proxy")
#: Programs for users of a node and their tools.
COMMANDS = (
    "kubectl", "kubelet", "kube-proxy", "kube-apiserver", "kube-controller-manager",
    "kube-scheduler", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "etcd", "etcdctl",
)  # fmt: skip


def _plugin(topology: Topology) -> Plugin:
    from testbed.roles.kubernetes.plugins import plugin_of

    return plugin_of(topology)


def _is_control(topology: Topology, node: str) -> bool:
    return node == KubernetesSection.of(topology).control_plane


def _set_plugin(data: dict[str, Any], topology: Topology, plugin: str) -> None:
    del topology
    data[ROLE]["cni"] = plugin
    if plugin != "flannel":
        data[ROLE].pop("backend", None)
        data[ROLE].pop("ipv6", None)


def _set(key: str) -> Callable[[dict[str, Any], Topology, Any], None]:
    """Return the change of a key of the section."""

    def change(data: dict[str, Any], topology: Topology, value: str) -> None:
        del topology
        data[ROLE][key] = value

    return change


def _set_backend(data: dict[str, Any], topology: Topology, backend: str) -> None:
    _set("backend")(data, topology, backend)
    if backend not in ONLY_WITH["ipv6"][0]:
        data[ROLE].pop("ipv6", None)


DUAL = "dual-stack"  #: the word of ``needs`` for a cluster of both IP families
WANTED = "a kubernetes section, like k8s-two-node"
OPTIONS = (
    Option(
        "cni",
        f"Network plugin: {', '.join(PLUGINS)}.",
        _set_plugin,
        "no Kubernetes, so the cni {value} would have no effect",
        WANTED,
        "network plugin",
        PLUGINS,
    ),
    Option(
        "backend",
        f"Backend of flannel: {', '.join(BACKENDS)}.",
        _set_backend,
        "no flannel network, so the backend {value} would have no effect",
        WANTED,
        "backend",
        BACKENDS,
    ),
    Option(
        "proxy",
        f"Mode of kube-proxy: {', '.join(PROXIES)}.",
        _set("proxy"),
        "no Kubernetes, so the proxy {value} would have no effect",
        WANTED,
        "proxy mode",
        PROXIES,
        metavar="MODE",
    ),
)


class Kubernetes(Role):
    name = ROLE
    section = KubernetesSection
    options = OPTIONS
    includes = (*ADD_ONS, *PLUGINS)
    needs: ClassVar[dict[str, str]] = {
        "kubernetes": "a Kubernetes cluster",
        "dns": "a cluster with a DNS of its own",
        "ingress": "a cluster with an Ingress controller",
        "network-policy": "a cluster whose network plugin enforces policies",
        "hairpin": "a cluster whose Pods reach themselves by a Service",
        "pods-by-flannel": "a cluster whose Pods are joined by flannel",
        "pods-by-bgp": "a cluster whose Pods are joined by routes that BGP spreads",
        "pods-by-cilium": "a cluster whose Pods are joined by Cilium",
        "pods-by-calico": "a cluster whose Pods are joined by Calico",
        "pods-by-kube-router": "a cluster whose Pods are joined by Kube-router",
        "pods-by-weave": "a cluster whose Pods are joined by Weave Net",
        "pods-over-vxlan": "a cluster whose flannel has the backend vxlan",
        DUAL: "a cluster of Pods and Services with IPv6, besides IPv4",
    }
    fact_names = ("cni", "proxy", "backend", "families")
    checks = (KubernetesChecks,)
    artifacts = (
        "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
        "kubectl", "containerd", "ctr", "runc", "etcd", "etcdctl", "host-local",
    )  # fmt: skip
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables", "nft": "nftables", "socat": "socat", "nsenter": "util-linux",
        "curl": "curl",
    }  # fmt: skip
    kernel = ("overlay", "iptables nat", "iptables conntrack", "nf_tables")
    optional_kernel: ClassVar[dict[str, str]] = {"br_netfilter": "flanneld"}
    trials = (
        Feature(
            "ipset",
            'iptables -w -A FORWARD -m set --match-set t7 src 2>&1 | grep -q "t7 doesn.t exist"',
            "CONFIG_IP_SET_HASH_IP, CONFIG_IP_SET_HASH_NET and CONFIG_NETFILTER_XT_SET",
        ),
        Feature("dummy", "ip link add t8 type dummy", "CONFIG_DUMMY"),
    )
    on_request = True
    processes = ("containerd", "runc", "etcd", "kubelet", "kube-")
    folders = ("/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni")
    offers = (
        *(Offer(name) for name in COMMANDS),
        Offer("crictl", "/usr/bin/crictl", not_built("crictl", "crictl")),
    )
    #: The settings of this machine's clients for its own clusters.  Programs of network plugins
    #: are hidden only in a cluster with another plugin: a plain node may use BIRD.
    hides = ("/root/.kube",)

    def summary(self, topology: Topology) -> str:
        cluster = KubernetesSection.of(topology)
        return f"with {_plugin(topology).summary(cluster)}, proxy {cluster.proxy}"

    def features(self, topology: Topology) -> AbstractSet[str]:
        cluster = KubernetesSection.of(topology)
        dual = {DUAL} if cluster.ipv6 else set()
        return {ROLE, *cluster.add_ons, *_plugin(topology).features(cluster), *dual}

    def facts(self, context: Context) -> Mapping[str, str]:
        cluster = KubernetesSection.of(context.topology)
        found: dict[str, str] = {"cni": cluster.cni, "proxy": cluster.proxy}
        if cluster.ipv6:
            found["families"] = FAMILIES
        return found | ({"backend": cluster.backend} if cluster.cni == "flannel" else {})

    def described(self, facts: Mapping[str, str]) -> Iterable[str]:
        if facts.get("cni", DEFAULT_PLUGIN) != DEFAULT_PLUGIN:
            yield f"Pods by {facts['cni']}"
        if "proxy" in facts:
            yield f"kube-proxy {facts['proxy']}"

    def drawn(self, lab: LiveLab, node: str) -> Iterable[Mapping[str, Any]]:
        from testbed.roles.kubernetes import drawn

        return drawn.pods(lab.context, node)

    def virtual_services(self, lab: LiveLab) -> Iterable[Mapping[str, Any]]:
        from testbed.roles.kubernetes import drawn

        return drawn.services(lab.context)

    def sysctls(self, topology: Topology, node: str) -> Mapping[str, str]:
        del node
        return SYSCTLS6 if KubernetesSection.of(topology).ipv6 else {}

    def inside(self, lab: str) -> str:
        return f"`testbed kubectl {lab} exec -it POD -- sh` opens a shell in a Pod"

    def kernel_for(self, topology: Topology) -> Iterable[str]:
        return (*self.kernel, *_plugin(topology).kernel(KubernetesSection.of(topology)))

    def kernel_with(self, part: str) -> Iterable[str]:
        from testbed.roles.kubernetes.plugins import PLUGINS as INSTANCES

        for name, plugin in INSTANCES.items():
            if name == part:
                return (*self.kernel, *plugin.kernel(KubernetesSection(cni=name)))
        return ()

    def requirements(self, store: Store) -> Iterable[Requirement]:
        """Check the machine, and the network plugins that can't be built here."""
        from testbed import kernel
        from testbed.requirement import requirement
        from testbed.roles.kubernetes.plugins import PLUGINS as INSTANCES
        from testbed.roles.kubernetes.plugins.manifest import Brought

        yield from kernel.cgroups((ROLE,))
        for plugin in INSTANCES.values():
            if isinstance(plugin, Brought):
                why = plugin.lacking(store)
                images = ", ".join(plugin.images_of(store)) if not why else ""
                yield requirement(
                    plugin.title,
                    why or f"brought: {plugin.manifest}, {images}",
                    (plugin.name,),
                    ok=not why,
                    fix=plugin.how(store) if why else "",
                    required=False,
                )

    def programs_for(self, topology: Topology) -> Mapping[str, str]:
        return {**self.programs, **_plugin(topology).programs}

    def alternative(self, topology: Topology) -> str:
        if KubernetesSection.of(topology).cni == "flannel":
            return "another flannel backend may need less (--backend)"
        return "another network plugin may need less (--cni)"

    def offers_on(self, topology: Topology, node: str) -> tuple[Offer, ...]:  # noqa: ARG002  (all alike)
        return (*self.offers, *(Offer(name) for name in _plugin(topology).offers))

    def versioned(self, topology: Topology) -> tuple[str, ...]:
        from testbed.roles.kubernetes import addons

        # Not containerd and runc: their artifact reports the version of Debian's docker.io.
        return (
            "kube-apiserver", "etcd", "host-local",
            *_plugin(topology).versioned, *addons.versioned(topology),
        )  # fmt: skip

    def lacking(self, store: Store, topology: Topology) -> str:
        return _plugin(topology).lacking(store)

    def fetch_part(self, store: Store, part: str) -> bool:
        from testbed.roles.kubernetes.plugins import PLUGINS as INSTANCES
        from testbed.roles.kubernetes.plugins.manifest import Brought

        known = {entry.name for entry in store.list()}  # an artifact may have the plugin's name
        for plugin in INSTANCES.values():
            if isinstance(plugin, Brought) and part == plugin.manifest:
                if not store.is_users(part):
                    raise ArtifactError(f"{part} cannot be built here", hint=plugin.how(store))
                plugin.wanted(store)
                return True
            if part == plugin.name and part not in known:
                if why := plugin.lacking(store):
                    raise ArtifactError(why, hint=plugin.how(store))
                plugin.fetch(store)
                return True
        return False

    def fetch(self, store: Store, topology: Topology) -> None:
        from testbed.roles.kubernetes import addons, objects, runtime, skew

        objects.read(topology)  # an invalid file ends `up` before it creates anything
        plugin = _plugin(topology)
        if why := plugin.lacking(store):
            raise ArtifactError(why, hint=plugin.how(store))
        super().fetch(store, topology)
        plugin.fetch(store)
        skew.check(store)
        store.bring(runtime.images(topology, store))
        addons.fetch(store, topology)

    def memory(self, topology: Topology, node: str) -> int:
        from testbed.roles.kubernetes import addons

        control = _is_control(topology, node)
        mine = _plugin(topology).memory + addons.memory(topology)
        return MEMORY + CONTROL_MEMORY * control + mine

    def takes(self, topology: Topology, node: str) -> Takes:
        control = _is_control(topology, node)
        return Takes(files=512, tasks=TASKS + CONTROL_TASKS * control, inotify=INOTIFY)

    def noticed(self, machine: Machine, running: AbstractSet[str]) -> str:
        if "kubelet" not in running:
            return ""
        from testbed.roles.kubernetes import noticed

        return noticed.words(machine)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        control = _is_control(topology, node)
        mine = _plugin(topology).services_on(topology, node)
        return (*(CONTROL if control else ()), *EVERY, *mine)

    def service_needs(self, topology: Topology, node: str) -> Mapping[str, tuple[str, ...]]:
        found = {"kubelet": (f"{node}/containerd",)}
        return found | (
            {"kube-apiserver": (f"{node}/etcd",)} if _is_control(topology, node) else {}
        )

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        from testbed.roles.kubernetes import steps

        return steps.steps(topology, node)
