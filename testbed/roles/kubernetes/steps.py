"""The steps that start a cluster: the control plane, and every node."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from testbed.nodes.base import Service
from testbed.roles.base import start
from testbed.roles.kubernetes import addons, certificates, config, runtime
from testbed.roles.kubernetes import objects as files
from testbed.roles.kubernetes.client import api, until
from testbed.roles.kubernetes.daemons import SERVER, daemon, way
from testbed.roles.kubernetes.plugins import plugin_of
from testbed.roles.kubernetes.section import ROLE, KubernetesSection
from testbed.spelling import counted
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

CERTIFICATES = "certificates"
API = "Kubernetes API"
OBJECTS = "cluster objects"


def steps(topology: Topology, node: Node) -> Iterable[Step]:
    """Return the steps for one node; those of the control plane are on its node."""
    cluster = KubernetesSection.of(topology)
    if node.name == cluster.control_plane:
        yield from _control_plane(topology, node.name)
    yield from _node(topology, node.name)


def _control_plane(topology: Topology, node: str) -> Iterable[Step]:
    cluster, members = KubernetesSection.of(topology), topology.with_role(ROLE)
    after = tuple(node_step(member.name) for member in members)
    clients = plugin_of(topology).clients
    yield Step(
        CERTIFICATES, "certificate authority and certificates", after,
        act=lambda context: certificates.install(context, clients),
    )  # fmt: skip
    yield daemon("etcd", node, (CERTIFICATES,), lambda _: config.etcd(), notify=True, about="etcd")
    yield daemon(
        SERVER, node, (f"etcd {node}",), config.apiserver, notify=True,
        about=f"the API at {config.server(topology)}",
    )  # fmt: skip
    yield Step(API, "it reports itself ready", (f"{SERVER} {node}",), act=_api)
    about = f"{counted(len(members), 'node')} with their ranges, and objects of {cluster.cni}"
    yield Step(OBJECTS, about, (API,), act=_objects)
    yield daemon("kube-controller-manager", node, (API,), config.controller_manager)
    yield daemon("kube-scheduler", node, (API,), lambda _: config.scheduler())
    ready = tuple(f"ready {member.name}" for member in members)
    yield from addons.steps(topology, (OBJECTS,), ready)
    yield from files.steps(topology, (OBJECTS, *(f"add-on {name}" for name in cluster.add_ons)))


def _node(topology: Topology, node: str) -> Iterable[Step]:
    cluster, plugin = KubernetesSection.of(topology), plugin_of(topology)
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
    node = KubernetesSection.of(topology).control_plane
    machine = context.node(node)
    machine.run(["mkdir", "-p", "-m", "700", config.RUN])
    listen = f"UNIX-LISTEN:{config.API_SOCKET},fork,mode=600,unlink-early"
    forward = ("socat", listen, f"TCP:127.0.0.1:{config.API_PORT}")
    changed = start(machine, Service("api-socket", forward, digest="1"), context=context)
    asked = api(context)
    until(context, node, asked.ready, "it reports itself ready", service=SERVER)
    return f"{config.server(topology)}, {context.store.version('kubernetes')}", changed


def _objects(context: Context) -> tuple[str, bool]:
    client = api(context)
    objects = [
        *plugin_of(context.topology).objects(context.topology),
        *(("/api/v1/nodes", config.node_object(context.topology, member.name))
          for member in context.topology.with_role(ROLE)),
    ]  # fmt: skip
    made = [client.create(path, body) for path, body in objects]
    gone = files.forget(context)
    words = counted(len(objects), "object") + (f", {gone} of files deleted" if gone else "")
    return words, any(made) or bool(gone)


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
