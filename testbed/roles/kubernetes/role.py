"""A Kubernetes cluster: upstream's own programs, with TLS and RBAC throughout.

The control plane runs on one node, containerd, kubelet, kube-proxy and the network plugin on
all.  A node's range of Pod addresses is the topology's: the node is told to the API before its
kubelet is there, so nothing has to wait for the controller manager.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.lab.marks import marked
from testbed.lab.step import Step, node_step
from testbed.nodes.base import Service
from testbed.roles.base import Role, start
from testbed.roles.kubernetes import addons, certificates, config, runtime, skew
from testbed.roles.kubernetes.client import SECONDS, api, until

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.lab.context import Context
    from testbed.topology.model import Node, Topology

ROLE = "kubernetes"
CERTIFICATES = "certificates"
API = "kube-apiserver"
OBJECTS = "cluster objects"
#: Bytes that a node and its control plane take: what they had for themselves, measured.
MEMORY, CONTROL_MEMORY = 190 << 20, 430 << 20
CONTROL = ("etcd", "kube-apiserver", "api-socket", "kube-controller-manager", "kube-scheduler")
EVERY = ("containerd", "kubelet", "kube-proxy", "flanneld")


class Kubernetes(Role):
    name = ROLE
    artifacts = (
        "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
        "kubectl", "containerd", "ctr", "runc", "etcd", "etcdctl", "flanneld", "host-local",
    )  # fmt: skip
    programs: ClassVar[dict[str, str]] = {
        "iptables": "iptables", "nft": "nftables", "socat": "socat", "nsenter": "util-linux",
        "curl": "curl",
    }  # fmt: skip
    kernel = ("overlay", "iptables nat", "iptables conntrack", "nf_tables")

    def fetch(self, store: Store, topology: Topology) -> None:
        super().fetch(store, topology)
        skew.check(store)
        for name in runtime.images(topology):
            store.image(name)
        addons.fetch(store, topology)

    def memory(self, topology: Topology, node: str) -> int:
        control = node == config.cluster_of(topology).control_plane
        return MEMORY + CONTROL_MEMORY * control + addons.memory(topology)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        control = node == config.cluster_of(topology).control_plane
        return (*(CONTROL if control else ()), *EVERY)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        cluster = config.cluster_of(topology)
        if node.name == cluster.control_plane:
            yield from self._control_plane(topology, node.name)
        yield from self._node(topology, node.name)

    # -- the control plane --------------------------------------------------

    def _control_plane(self, topology: Topology, node: str) -> Iterable[Step]:
        members = topology.with_role(ROLE)
        after = tuple(node_step(member.name) for member in members)
        yield Step(CERTIFICATES, "an authority, and who is who", after, act=certificates.install)
        yield self._daemon(
            "etcd", node, (CERTIFICATES,), lambda _: config.etcd(), notify=True, about="etcd"
        )
        yield Step(
            API, f"the API at {config.server(topology)}", (f"etcd {node}",), heavy=True, act=_api
        )
        about = f"{len(members)} nodes with their ranges, flannel's rights"
        yield Step(OBJECTS, about, (API,), act=_objects)
        yield self._daemon("kube-controller-manager", node, (API,), config.controller_manager)
        yield self._daemon("kube-scheduler", node, (API,), lambda _: config.scheduler())
        ready = tuple(f"ready {member.name}" for member in members)
        yield from addons.steps(topology, (OBJECTS,), ready)

    # -- every node ---------------------------------------------------------

    def _node(self, topology: Topology, node: str) -> Iterable[Step]:
        cluster = config.cluster_of(topology)
        yield Step(
            f"containerd {node}", "containerd with CRI", (node_step(node),), heavy=True,
            act=lambda context: runtime.start_containerd(context, node),
        )  # fmt: skip
        yield Step(
            f"images {node}", ", ".join(runtime.images(topology)), (f"containerd {node}",),
            heavy=True,
            act=lambda context: runtime.load_images(context, node),
        )  # fmt: skip
        yield self._daemon(
            "kubelet", node, (OBJECTS, f"images {node}"),
            lambda topology: config.kubelet_words(topology, node),
            notify=True, about="kubelet",
            files=lambda topology: {config.KUBELET_FILE: json.dumps(config.kubelet(topology)),
                                    config.RESOLV_FILE: ""},
        )  # fmt: skip
        yield self._daemon(
            "kube-proxy", node, (OBJECTS,), lambda _: [f"--config={config.PROXY_FILE}"],
            about=f"Services by {cluster.proxy}",
            files=lambda topology: {config.PROXY_FILE: json.dumps(config.proxy(topology, node))},
        )  # fmt: skip
        yield self._daemon(
            "flanneld", node, (OBJECTS,), lambda _: [
                "-kube-subnet-mgr", f"-kubeconfig-file={config.FOLDER}/flannel.conf",
                f"-net-config-path={config.FLANNEL_FILE}", "-iface=eth0",
                f"-subnet-file={config.SUBNET_FILE}",
            ],
            about=f"{cluster.backend} with {cluster.ranges[node]}", notify=True,
            env={"NODE_NAME": node},
            files=lambda _: {config.FLANNEL_FILE: json.dumps(config.flannel(cluster))},
        )  # fmt: skip
        yield Step(
            f"ready {node}", "the node is Ready", (f"kubelet {node}",
            f"flanneld {node}", f"kube-proxy {node}"), act=lambda context: _ready(context, node),
        )  # fmt: skip

    @staticmethod
    def _daemon(
        name: str,
        node: str,
        needs: tuple[str, ...],
        words: Callable[[Topology], list[str]],
        *,
        about: str = "",
        notify: bool = False,
        env: dict[str, str] | None = None,
        files: Callable[[Topology], dict[str, str]] = lambda _: {},
    ) -> Step:
        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node)
            for path, text in files(context.topology).items():
                machine.put(text.encode(), path, mode=0o600)
            program = machine.provide(context.store.binary(name))
            service = Service(
                name,
                (program, *words(context.topology)),
                env=runtime.path(context, machine) | (env or {}),
                notify=notify,
                digest=_digest(context, node),
            )
            return about or name, start(machine, service, timeout=SECONDS)

        return Step(f"{name} {node}", about or name, needs, heavy=True, act=act)


def _digest(context: Context, node: str) -> str:
    """The node's settings, and the life of the cluster: of a new authority nobody has heard."""
    return f"{context.topology.node_digest(node)} {marked(context.node(node), certificates.MARK)}"


def _api(context: Context) -> tuple[str, bool]:
    topology = context.topology
    node = config.cluster_of(topology).control_plane
    machine = context.node(node)
    digest = _digest(context, node)
    argv = (machine.provide(context.store.binary("kube-apiserver")), *config.apiserver(topology))
    changed = start(machine, Service("kube-apiserver", argv, notify=True, digest=digest),
                    timeout=SECONDS)  # fmt: skip
    machine.run(["mkdir", "-p", "-m", "700", config.RUN])
    listen = f"UNIX-LISTEN:{config.API_SOCKET},fork,mode=600,unlink-early"
    forward = ("socat", listen, f"TCP:127.0.0.1:{config.API_PORT}")
    changed |= start(machine, Service("api-socket", forward, digest="1"))
    asked = api(context)
    until(context, node, asked.ready, "it says itself that it is ready", service=API)
    return f"{config.server(topology)}, {context.store.version('kubernetes')}", changed


def _objects(context: Context) -> tuple[str, bool]:
    client = api(context)
    objects = [
        *config.FLANNEL_RIGHTS,
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
        service="kubelet", why=lambda: condition().get("message", ""),
    )  # fmt: skip
