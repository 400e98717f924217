"""CNI's plugins, what a runtime does with them, and flannel's Pod of document 004, made wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sabotage.means import changed, in_place_of, lying, nft
from sabotage.trials import sabotage
from testbed.catalogues.shipped.test_cni import MASTER, MODULES, containerd, lan, plugins
from testbed.catalogues.shipped.test_flannel_pod import (
    ANNOTATIONS,
    AS_PRINTED,
    CONFIG_MAP,
    IMAGE_PRINTED,
    MENDED,
    PROGRAM,
    VNI,
    flanneld,
)
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins import flannel
from testbed.suites.cluster import NAMESPACE, Cluster
from testbed.suites.helpers import outside_node

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

LAB = "k8s-two-node"


# -- plugins ---------------------------------------------------------------------------


@sabotage(
    LAB,
    "cni-independent-plugins",
    "cni-assigns-ip",
    "cni-creates-interface",
    "cni-configures-environment",
)
def the_bridge_plugin_does_nothing(lab: LiveLab) -> Iterator[None]:
    """The plugin bridge answers well, and does nothing."""
    node = Cluster(lab).other
    answer = """echo '{"cniVersion": "0.4.0"}'"""
    with in_place_of(node, f"{plugins(lab, node)}/bridge", answer):
        yield


@sabotage(LAB, "cni-independent-plugins")
def the_bridge_plugin_wants_a_cluster(lab: LiveLab) -> Iterator[None]:
    """The plugin bridge refuses whoever does not say which Pod it is for."""
    node = Cluster(lab).other
    refuse = """
    [ "$CNI_ARGS" ] && exec $real "$@"
    echo '{"cniVersion": "0.4.0", "code": 7, "msg": "no Pod"}'
    exit 1"""
    with in_place_of(node, f"{plugins(lab, node)}/bridge", refuse):
        yield


@sabotage(LAB, "cni-independent-plugins")
def the_kubelet_has_options_of_cni(lab: LiveLab) -> Iterator[None]:
    """Among the kubelet's options there is --cni-bin-dir, as there was before 1.24."""
    script = """
    case "$*" in *cni*) echo "      --cni-bin-dir string" ;; esac
    exec /usr/bin/grep "$@" """
    with lying(Cluster(lab).control, grep=script):
        yield


@sabotage(LAB, "cni-assigns-ip", "cni-configures-environment")
def a_pod_has_another_address(lab: LiveLab) -> Iterator[None]:
    """The Pod web-2 has, by hand, another address and no default route."""
    tenant = Cluster(lab).pod("web-2")
    length = Cluster(lab).spec.ranges[tenant.node.name].prefixlen
    gateway = Cluster(lab).spec.ranges[tenant.node.name][1]
    own = f"{tenant.address}/{length} brd + dev eth0"
    with changed(
        tenant,
        f"ip addr del {tenant.address}/{length} dev eth0\nip addr add 192.0.2.9/24 dev eth0",
        f"""
        ip addr del 192.0.2.9/24 dev eth0
        ip addr add {own}
        ip route add default via {gateway} dev eth0
        """,
    ):
        yield


@sabotage(LAB, "cni-creates-interface")
def a_pod_has_one_interface_more(lab: LiveLab) -> Iterator[None]:
    """The Pod web-2 has an interface that no plugin has made."""
    tenant = Cluster(lab).pod("web-2")
    with changed(tenant, "ip link add more0 type bridge", "ip link delete more0"):
        yield


@sabotage(LAB, "cni-layer-docker-to-docker", "cni-plugin-choices")
def pods_of_two_nodes_are_apart(lab: LiveLab) -> Iterator[None]:
    """A node drops what Pods of other nodes send."""
    cluster = Cluster(lab)
    tenant = cluster.pod("web-2")
    rule = f"filter hook forward priority -10\nip daddr {tenant.address} drop"
    with changed(tenant.node, *nft(rule)):
        yield


@sabotage(LAB, "cni-directories")
def the_runtime_has_other_defaults(lab: LiveLab) -> Iterator[None]:
    """containerd's default for the plugins' programs is /usr/lib/cni."""
    node = Cluster(lab).other
    with in_place_of(node, containerd(lab, node), '$real "$@" | sed s:/opt/cni/bin:/usr/lib/cni:'):
        yield


@sabotage(LAB, "cni-plugin-list")
def kubernetes_has_all_plugins_in_it(lab: LiveLab) -> Iterator[None]:
    """The kubelet's program says that it is made of all five plugins."""
    lines = "\\n".join(f"dep\\t{module}\\tv1.0.0" for module in MODULES.values())
    kubelet = Cluster(lab).control.services()["kubelet"].pid
    script = f"""
    case "$*" in *"/proc/{kubelet}/exe") printf '{lines}\\n'; exit 0 ;; esac
    exec /usr/bin/grep "$@" """
    with lying(Cluster(lab).control, grep=script):
        yield


@sabotage(LAB, "cni-pluggable", "k8s-pod-model-macvlan", "cni-default-plugin")
def the_runtime_sees_no_change(lab: LiveLab) -> Iterator[None]:
    """Another folder lies over that of CNI's configuration, which containerd does not look at."""
    node = Cluster(lab).other
    with changed(
        node,
        f"""
        mkdir -p /run/another
        cp -a {config.CNI}/. /run/another/
        mount --bind /run/another {config.CNI}
        """,
        f"""
        umount {config.CNI}
        rm -r /run/another
        """,
    ):
        yield


@sabotage(LAB, "k8s-pod-model-macvlan")
def the_node_and_services_are_on_the_lan(lab: LiveLab) -> Iterator[None]:
    """The node reaches the Pod by a macvlan device of its own, the LAN's gateway the Services."""
    cluster = Cluster(lab)
    subnet = lan(lab, cluster.other)
    *_, last = subnet.subnets(new_prefix=28)  # where the Pod's address is from
    services = f"{cluster.spec.services} via {cluster.address(cluster.control)}"
    with (
        changed(
            cluster.other,
            f"""
            ip link add lan0 link {MASTER} type macvlan mode bridge
            ip link set lan0 up
            ip route add {last} dev lan0
            """,
            "ip link delete lan0",
        ),
        changed(outside_node(lab), f"ip route add {services}", f"ip route del {services}"),
    ):
        yield


# -- flannel's Pod -----------------------------------------------------------------------


@contextlib.contextmanager
def asked_for(alter: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Whoever asks the API for an object gets another: ``alter`` changes what is asked."""
    real = Cluster.create

    def create(self: Cluster, body: Any, namespace: str = NAMESPACE) -> Any:
        alter(body)
        return real(self, body, namespace)

    Cluster.create = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        Cluster.create = real  # type: ignore[method-assign]


def containers(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a Pod of the example, [] of anything else."""
    if body["kind"] != "Pod" or not body["metadata"]["name"].startswith("flannel-"):
        return []
    return list(body["spec"]["containers"])


@sabotage(LAB, "flannel-example-image")
def flannel_is_of_2021(lab: LiveLab) -> Iterator[None]:
    """flanneld says that it is v0.14.0."""
    node = Cluster(lab).other
    says = f"echo {IMAGE_PRINTED.rpartition(':')[2]} >&2"
    with in_place_of(node, flanneld(lab, node), says):
        yield


@sabotage(LAB, "flannel-example-binary")
def the_program_is_elsewhere(lab: LiveLab) -> Iterator[None]:
    """The example's container has flanneld in /srv."""

    def alter(body: dict[str, Any]) -> None:
        for container in containers(body):
            place = "/srv/flanneld"
            container["command"] = [place]
            for mount in container["volumeMounts"]:
                if mount["mountPath"] == PROGRAM:
                    mount["mountPath"] = place

    with asked_for(alter):
        yield


@sabotage(LAB, "flannel-example-kube-subnet-mgr")
def a_node_has_a_subnet_of_nobodys(lab: LiveLab) -> Iterator[None]:
    """subnet.env of a node has a subnet that the API has not given it."""
    node = Cluster(lab).other
    own = node.get(flannel.SUBNET_FILE)
    lines = [
        b"FLANNEL_SUBNET=198.18.0.1/24" if line.startswith(b"FLANNEL_SUBNET=") else line
        for line in own.splitlines()
    ]
    node.put(b"\n".join(lines) + b"\n", flannel.SUBNET_FILE)
    try:
        yield
    finally:
        node.put(own, flannel.SUBNET_FILE)


@sabotage(LAB, "flannel-example-privileged")
def the_container_has_no_capabilities(lab: LiveLab) -> Iterator[None]:
    """The example's containers have no capability beyond the usual."""

    def alter(body: dict[str, Any]) -> None:
        for container in containers(body):
            container["securityContext"].pop("capabilities", None)

    with asked_for(alter):
        yield


@sabotage(LAB, "flannel-example-configmap")
def flannel_reads_another_file(lab: LiveLab) -> Iterator[None]:
    """The example's flanneld has the configuration of another ConfigMap."""

    def alter(body: dict[str, Any]) -> None:
        if body["kind"] == "ConfigMap" and body["metadata"]["name"] == CONFIG_MAP:
            data = body["data"]
            data["net-conf.json"] = data["net-conf.json"].replace(str(VNI), str(VNI + 1))

    with asked_for(alter):
        yield


@sabotage(LAB, "flannel-example-pod-manages-network")
def every_node_has_the_examples_network(lab: LiveLab) -> Iterator[None]:
    """The Pod as printed knows its node, and all nodes have a lease and a device of its network."""
    cluster = Cluster(lab)

    def alter(body: dict[str, Any]) -> None:
        if body["metadata"]["name"] == AS_PRINTED:
            (container,) = body["spec"]["containers"]
            container["env"].append({"name": "NODE_NAME", "value": cluster.other.name})
            container["args"] += [
                f"--kubeconfig-file={config.FOLDER}/flannel.conf",
                f"--kube-annotation-prefix={AS_PRINTED}.{ANNOTATIONS}",
            ]

    key = f"{MENDED}.{ANNOTATIONS}/backend-type"
    with asked_for(alter), contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            add = f"ip link add flannel.{VNI} type vxlan id {VNI} dstport 8477"
            stack.enter_context(changed(node, add, f"ip link delete flannel.{VNI}"))
            stack.callback(annotate, cluster, node.name, {key: None})
            annotate(cluster, node.name, {key: "vxlan"})
        yield


def annotate(cluster: Cluster, node: str, notes: dict[str, Any]) -> None:
    """Set annotations of a node, or remove those that are None."""
    cluster.api.ask(
        "PATCH", f"/api/v1/nodes/{node}", {"metadata": {"annotations": notes}},
        kind="application/merge-patch+json",
    )  # fmt: skip
