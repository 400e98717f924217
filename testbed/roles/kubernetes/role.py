"""A Kubernetes cluster: upstream's own programs, with TLS and RBAC throughout.

The control plane runs on one node, containerd, kubelet, kube-proxy and the network plugin on
all.  A node's range of Pod addresses is the topology's: the node is told to the API before its
kubelet is there, so nothing has to wait for the controller manager.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.lab.marks import mark, marked
from testbed.lab.step import Step, node_step
from testbed.nodes.base import Service
from testbed.roles.base import Role, start
from testbed.roles.kubernetes import addons, certificates, config
from testbed.roles.kubernetes.client import SECONDS, api, until

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.nodes.base import Node as Machine
    from testbed.topology.model import Node, Topology

ROLE = "kubernetes"
CERTIFICATES = "certificates"
API = "kube-apiserver"
OBJECTS = "cluster objects"
CONTROL = ("etcd", "kube-apiserver", "api-socket", "kube-controller-manager", "kube-scheduler")
EVERY = ("containerd", "kubelet", "kube-proxy", "flanneld")
PART = "docker"  # whose Debian packages bring containerd and runc

IMAGES = (config.PAUSE, "nginx")  # on every node, beside those of the add-ons
#: Readable by the kubelet, which asks for these values and would else write them; they are
#: the machine's, not a namespace's (kubelet, --protect-kernel-defaults).
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
#: Arguments: the folder of sockets; then sysctls, each with its value.
PREPARE = """
set -eu
mkdir -p -m 700 "$1"
mkdir -p /etc/cni/net.d /run/flannel /run/testbed/sys /var/lib/kubelet /var/log/pods
sysctl -q -w net.ipv4.ip_forward=1
shift
if [ "$1" = shares ]; then
  # The kubelet asks for a kernel log: of the machine's it is told nothing.
  ln -sf null /dev/kmsg
  # What it mounts for one container is to be seen by another that asks for it.
  mount --make-rshared /run
  mount --make-rshared /var/lib
fi
while [ $# -gt 2 ]; do
  file=/proc/sys/$2
  if [ "$1" = shares ]; then
    file=/run/testbed/sys/$(echo "$2" | tr / _)
    : > "$file"
    mount --bind "$file" "/proc/sys/$2"
  fi
  echo "$3" > "$file"
  kind=$1; shift 3; set -- "$kind" "$@"
done
"""


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
        images = (*IMAGES, *addons.images(topology))
        yield Step(
            f"containerd {node}", "containerd with CRI", (node_step(node),), heavy=True,
            act=lambda context: _containerd(context, node),
        )  # fmt: skip
        yield Step(
            f"images {node}", ", ".join(images), (f"containerd {node}",), heavy=True,
            act=lambda context: _images(context, node, images),
        )  # fmt: skip
        yield self._daemon(
            "kubelet", node, (OBJECTS, f"containerd {node}"),
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
            f"ready {node}", "the node is Ready", (f"kubelet {node}", f"images {node}",
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
                env=_path(context, machine) | (env or {}),
                notify=notify,
                digest=_digest(context, node),
            )
            return about or name, start(machine, service, timeout=SECONDS)

        return Step(f"{name} {node}", about or name, needs, heavy=True, act=act)


def _path(context: Context, machine: Machine) -> dict[str, str]:
    folders = [machine.provide(path) for path in context.store.path_dirs(PART)]
    return {"PATH": ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])}


def _digest(context: Context, node: str) -> str:
    """The node's settings, and the life of the cluster: of a new authority nobody has heard."""
    return f"{context.topology.node_digest(node)} {marked(context.node(node), certificates.MARK)}"


def _containerd(context: Context, node: str) -> tuple[str, bool]:
    machine = context.node(node)
    words = [word for item in SYSCTLS.items() for word in item]
    if marked(machine, "prepared") is None:
        kind = "shares" if machine.shares else "own"
        machine.run(["sh", "-c", PREPARE, "sh", config.RUN, kind, *words])
        mark(machine, "prepared")
    rules = config.masquerade(context.topology, node)
    machine.run(["nft", "-f", "-"], input=rules.encode())
    machine.put(json.dumps(config.network(config.cluster_of(context.topology), node)).encode(),
                f"{config.CNI}/10-pods.conflist")  # fmt: skip
    (plugins,) = context.store.path_dirs("cni-plugins")
    text = config.containerd(machine.provide(plugins))
    machine.put(text.encode(), config.CONTAINERD_FILE)
    service = Service(
        "containerd",
        (machine.provide(context.store.binary("containerd", PART)),
         f"--config={config.CONTAINERD_FILE}", "--log-level=warn"),
        env=_path(context, machine), notify=True, digest=context.topology.node_digest(node),
    )  # fmt: skip
    changed = start(machine, service, timeout=SECONDS)
    return f"containerd {context.store.version(PART)}", changed


def _images(context: Context, node: str, names: tuple[str, ...]) -> tuple[str, bool]:
    machine = context.node(node)
    files = [context.store.image(name) for name in names]
    wanted = " ".join(f"{path} {path.stat().st_mtime_ns}" for path in files)
    if marked(machine, "images") == wanted:
        return ", ".join(names), False
    ctr = machine.provide(context.store.binary("ctr", PART))
    for path in files:
        machine.run(
            [ctr, f"--address={config.CONTAINERD_SOCKET}", "--namespace=k8s.io", "images",
             "import", machine.provide(path)], timeout=SECONDS,
        )  # fmt: skip
    mark(machine, "images", wanted)
    return ", ".join(names), True


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
    until(context, node, asked.ready, "the API server says that it is ready")
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

    def is_ready() -> bool:
        found = client.find(f"/api/v1/nodes/{node}") or {}
        conditions = found.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    was = is_ready()
    if not was:
        until(context, node, is_ready, f"node {node} is Ready")
    return "Ready", not was
