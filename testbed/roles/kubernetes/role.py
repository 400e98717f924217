"""The role ``kubernetes``: a cluster with TLS and RBAC.

The control plane runs on one node; containerd, kubelet, kube-proxy and the network plugin run on
all nodes. The topology assigns each node's range of Pod addresses: the Node object is created
before its kubelet starts, so nothing has to wait for the controller manager.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import ArtifactError
from testbed.limits import Takes
from testbed.nodes.base import Service
from testbed.roles.base import Offer, Role, not_built, start
from testbed.roles.kubernetes import addons, certificates, config, runtime, skew
from testbed.roles.kubernetes.client import api, until
from testbed.roles.kubernetes.daemons import SERVER, daemon, way
from testbed.roles.kubernetes.plugins import plugin_of
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

ROLE = "kubernetes"
CERTIFICATES = "certificates"
API = "Kubernetes API"
OBJECTS = "cluster objects"
#: Memory of a node and of a control plane, in bytes: their own use, measured.
MEMORY, CONTROL_MEMORY = 190 << 20, 430 << 20
#: Daemons watch files, each with an inotify instance: the first node needs 14, any other 7.
INOTIFY = 12
TASKS, CONTROL_TASKS = 120, 60  # includes the threads of the first Pods
CONTROL = ("etcd", SERVER, "api-socket", "kube-controller-manager", "kube-scheduler")
EVERY = ("containerd", "kubelet", "kube-proxy")


#: Programs for users of a node and their tools.
COMMANDS = (
    "kubectl", "kubelet", "kube-proxy", "kube-apiserver", "kube-controller-manager",
    "kube-scheduler", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "etcd", "etcdctl",
)  # fmt: skip


class Kubernetes(Role):
    name = ROLE
    artifacts = (
        "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
        "kubectl", "containerd", "ctr", "runc", "etcd", "etcdctl", "host-local",
    )  # fmt: skip
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables", "nft": "nftables", "socat": "socat", "nsenter": "util-linux",
        "curl": "curl",
    }  # fmt: skip
    kernel = ("overlay", "iptables nat", "iptables conntrack", "nf_tables")
    offers = (
        *(Offer(name) for name in COMMANDS),
        Offer("crictl", stand_in=not_built("crictl", "crictl")),
    )
    #: The settings of this machine's clients for its own clusters.  Programs of network plugins
    #: are hidden only in a cluster with another plugin: a plain node may use BIRD.
    hides = ("/root/.kube",)

    def offers_on(self, topology: Topology, node: str) -> tuple[Offer, ...]:  # noqa: ARG002  (all alike)
        return (*self.offers, *(Offer(name) for name in plugin_of(topology).offers))

    def versioned(self, topology: Topology) -> tuple[str, ...]:
        # Not containerd and runc: their artifact reports the version of Debian's docker.io.
        return (
            "kube-apiserver", "etcd", "host-local",
            *plugin_of(topology).versioned, *addons.versioned(topology),
        )  # fmt: skip

    def fetch(self, store: Store, topology: Topology) -> None:
        plugin = plugin_of(topology)
        if why := plugin.lacking(store):
            raise ArtifactError(why, hint=plugin.how(store))
        super().fetch(store, topology)
        plugin.fetch(store)
        skew.check(store)
        names = runtime.images(topology, store)
        if lacking := store.lacking_images(names):
            raise lacking
        for name in names:
            store.image(name)
        addons.fetch(store, topology)

    def memory(self, topology: Topology, node: str) -> int:
        control = node == config.cluster_of(topology).control_plane
        mine = plugin_of(topology).memory + addons.memory(topology)
        return MEMORY + CONTROL_MEMORY * control + mine

    def takes(self, topology: Topology, node: str) -> Takes:
        control = node == config.cluster_of(topology).control_plane
        return Takes(files=512, tasks=TASKS + CONTROL_TASKS * control, inotify=INOTIFY)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        control = node == config.cluster_of(topology).control_plane
        mine = plugin_of(topology).services_on(topology, node)
        return (*(CONTROL if control else ()), *EVERY, *mine)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        cluster = config.cluster_of(topology)
        if node.name == cluster.control_plane:
            yield from self._control_plane(topology, node.name)
        yield from self._node(topology, node.name)

    # -- the control plane --------------------------------------------------

    def _control_plane(self, topology: Topology, node: str) -> Iterable[Step]:
        cluster, members = config.cluster_of(topology), topology.with_role(ROLE)
        after = tuple(node_step(member.name) for member in members)
        clients = plugin_of(topology).clients
        yield Step(
            CERTIFICATES, "an authority, and who is who", after,
            act=lambda context: certificates.install(context, clients),
        )  # fmt: skip
        yield daemon(
            "etcd", node, (CERTIFICATES,), lambda _: config.etcd(), notify=True, about="etcd"
        )
        yield daemon(
            SERVER, node, (f"etcd {node}",), config.apiserver, notify=True,
            about=f"the API at {config.server(topology)}",
        )  # fmt: skip
        yield Step(API, "it says itself that it is ready", (f"{SERVER} {node}",), act=_api)
        about = f"{len(members)} nodes with their ranges, and what {cluster.cni} asks for"
        yield Step(OBJECTS, about, (API,), act=_objects)
        yield daemon("kube-controller-manager", node, (API,), config.controller_manager)
        yield daemon("kube-scheduler", node, (API,), lambda _: config.scheduler())
        ready = tuple(f"ready {member.name}" for member in members)
        yield from addons.steps(topology, (OBJECTS,), ready)

    # -- every node ---------------------------------------------------------

    def _node(self, topology: Topology, node: str) -> Iterable[Step]:
        cluster, plugin = config.cluster_of(topology), plugin_of(topology)
        yield Step(
            f"containerd {node}", "containerd with CRI", (node_step(node),), heavy=True,
            act=lambda context: runtime.start_containerd(context, node, plugin),
        )  # fmt: skip
        yield Step(
            f"images {node}", ", ".join(runtime.images(topology)), (f"containerd {node}",),
            heavy=True,
            act=lambda context: runtime.load_images(context, node),
        )  # fmt: skip
        yield daemon(
            "kubelet", node, (OBJECTS, f"images {node}"),
            lambda topology: config.kubelet_words(topology, node),
            notify=True, about="kubelet",
            files=lambda topology: {config.KUBELET_FILE: json.dumps(config.kubelet(topology)),
                                    config.RESOLV_FILE: ""},
        )  # fmt: skip
        yield daemon(
            "kube-proxy", node, (OBJECTS,), lambda _: [f"--config={config.PROXY_FILE}"],
            about=f"Services by {cluster.proxy}",
            files=lambda topology: {config.PROXY_FILE: json.dumps(config.proxy(topology, node))},
        )  # fmt: skip
        yield from plugin.steps(topology, node, (OBJECTS,))
        yield Step(
            f"ready {node}", "the node is Ready",
            (f"kubelet {node}", *plugin.ready_after(node), f"kube-proxy {node}"),
            act=lambda context: _ready(context, node),
        )  # fmt: skip


def _api(context: Context) -> tuple[str, bool]:
    topology = context.topology
    node = config.cluster_of(topology).control_plane
    machine = context.node(node)
    machine.run(["mkdir", "-p", "-m", "700", config.RUN])
    listen = f"UNIX-LISTEN:{config.API_SOCKET},fork,mode=600,unlink-early"
    forward = ("socat", listen, f"TCP:127.0.0.1:{config.API_PORT}")
    changed = start(machine, Service("api-socket", forward, digest="1"), context=context)
    asked = api(context)
    until(context, node, asked.ready, "it says itself that it is ready", service=SERVER)
    return f"{config.server(topology)}, {context.store.version('kubernetes')}", changed


def _objects(context: Context) -> tuple[str, bool]:
    client = api(context)
    objects = [
        *plugin_of(context.topology).objects(context.topology),
        *(("/api/v1/nodes", config.node_object(context.topology, member.name))
          for member in context.topology.with_role(ROLE)),
    ]  # fmt: skip
    made = [client.create(path, body) for path, body in objects]
    return f"{len(objects)} objects", any(made)


def _ready(context: Context, node: str) -> tuple[str, bool]:
    client = api(context)

    def condition() -> dict[str, str]:
        found = client.find(f"/api/v1/nodes/{node}") or {}
        conditions = found.get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Ready"), {})

    return "Ready", until(
        context, node, lambda: condition().get("status") == "True", f"node {node} is Ready",
        service="kubelet", why=lambda: condition().get("message", ""), seen=way(context, node),
    )  # fmt: skip
