"""Kube-router and what its makers publish, made wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sabotage.means import changed, in_place_of, lying, nft
from sabotage.trials import KUBE_ROUTER, sabotage
from testbed.catalogues.shipped.test_plugins import CONFLIST, sessions
from testbed.claims.observation import Observation
from testbed.roles.kubernetes.plugins import PLUGINS
from testbed.roles.kubernetes.plugins.manifest import NAMESPACE
from testbed.suites.cluster import Cluster
from testbed.suites.helpers import wait_until

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/kube-router"
IMAGE, STANDS_IN = "docker.io/cloudnativelabs/kube-router:latest", "docker.io/testbed/pause:1"


@sabotage(KUBE_ROUTER, "cni-kube-router-bgp-routes")
def a_pod_has_a_route_of_its_own(lab: LiveLab) -> Iterator[None]:
    """The first node has a route, by the protocol of BGP's, to the Pod web-2 alone."""
    cluster = Cluster(lab)
    tenant = cluster.pod("web-2")
    route = f"{tenant.address}/32 via {cluster.address(tenant.node)} proto 17"
    with changed(cluster.control, f"ip route add {route}", f"ip route delete {route}"):
        yield


@sabotage(KUBE_ROUTER, vain=["cni-kube-router-bgp"])
def the_neighbours_do_not_speak(lab: LiveLab) -> Iterator[None]:
    """The first node's kube-router has ended its session with each other, as told by gobgp."""
    cluster, quiet = Cluster(lab), Observation()
    name = next(
        pod["metadata"]["name"]
        for pod in cluster.api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        if pod["metadata"]["name"].startswith("kube-router-")
        and pod["spec"]["nodeName"] == cluster.control.name
    )
    others = [cluster.address(node) for node in cluster.nodes[1:]]

    def tell(word: str) -> None:
        for other in others:
            argv = ("exec", f"--namespace={NAMESPACE}", name, "--", "gobgp", "neighbor", other)
            cluster.kubectl(quiet, *argv, word)

    def joined() -> bool:
        return bool(sessions(quiet, cluster.control))

    try:
        tell("disable")
        wait_until(lambda: not joined(), "the end of the sessions")
        yield
    finally:
        tell("enable")
        wait_until(joined, "the sessions")


@sabotage(KUBE_ROUTER, "cni-kube-router-virtual-network")
def the_node_translates(lab: LiveLab) -> Iterator[None]:
    """The first node lets its Pods speak to Pods of other nodes under its own address."""
    cluster = Cluster(lab)
    pods = cluster.spec.pods
    rule = f"nat hook postrouting priority 50\nip saddr {pods} ip daddr {pods} oif eth0 masquerade"
    with changed(cluster.control, *nft(rule)):
        yield


@sabotage(KUBE_ROUTER, "cni-kube-router-unique-ip")
def containers_of_a_pod_are_apart(lab: LiveLab) -> Iterator[None]:
    """No two processes are in one network namespace, as readlink tells."""
    with lying(Cluster(lab).control, readlink='echo "net:[$$]"'):
        yield


@contextlib.contextmanager
def published(cluster: Cluster, *changes: dict[str, Any]) -> Iterator[None]:
    """The makers' DaemonSet, changed for the time of the block; Pods of it that run stay."""
    before = cluster.api.ask("GET", SETS)["spec"]
    kept = [
        {"op": "replace", "path": "/spec/template", "value": before["template"]},
        {"op": "replace", "path": "/spec/updateStrategy", "value": before["updateStrategy"]},
    ]
    stay = {"op": "replace", "path": "/spec/updateStrategy", "value": {"type": "OnDelete"}}
    try:
        _patch(cluster, [stay])
        _patch(cluster, changes)
        yield
    finally:
        _patch(cluster, kept)


def _patch(cluster: Cluster, changes: Sequence[dict[str, Any]]) -> None:
    words = ("patch", "daemonset", "kube-router", f"--namespace={NAMESPACE}", "--type=json")
    cluster.kubectl(Observation(), *words, f"--patch={json.dumps(list(changes))}")


@sabotage(KUBE_ROUTER, "cni-kube-router-image")
def the_image_is_the_documents(lab: LiveLab) -> Iterator[None]:
    """The DaemonSet has the image that the document prints."""
    path = "/spec/template/spec/containers/0/image"
    change = {"op": "replace", "path": path, "value": "kube-router/kube-router:v1.3"}
    with published(Cluster(lab), change):
        yield


@sabotage(KUBE_ROUTER, "cni-kube-router-hostpath")
def its_files_are_elsewhere(lab: LiveLab) -> Iterator[None]:
    """The DaemonSet's volumes are of other folders of the node."""
    cluster = Cluster(lab)
    volumes = cluster.api.ask("GET", SETS)["spec"]["template"]["spec"]["volumes"]
    for one in volumes:
        if "hostPath" in one:
            one["hostPath"]["path"] = f"/elsewhere{one['hostPath']['path']}"
    change = {"op": "replace", "path": "/spec/template/spec/volumes", "value": volumes}
    with published(cluster, change):
        yield


@contextlib.contextmanager
def kubectl_says(lab: LiveLab, script: str) -> Iterator[None]:
    """The output of kubectl is altered; ``$real`` is the real program."""
    node = Cluster(lab).control
    with in_place_of(node, node.provide(lab.context.store.binary("kubectl")), script):
        yield


@sabotage(KUBE_ROUTER, "cni-kube-router-switches")
def a_switch_has_another_name(lab: LiveLab) -> Iterator[None]:
    """kube-router's help has --firewall for --run-firewall."""
    with kubectl_says(lab, '$real "$@" 2>&1 | sed s/--run-firewall/--firewall/'):
        yield


@sabotage(KUBE_ROUTER, "cni-kube-router-other-flags")
def it_knows_the_documents_flags(lab: LiveLab) -> Iterator[None]:
    """kube-router's help has the flags of the document."""
    script = """
    $real "$@"
    case "$*" in *--help*)
      echo "--run-egress --cni-bin-dir --cni-conf-dir --cni-network-config " ;;
    esac"""
    with kubectl_says(lab, script):
        yield


@sabotage(KUBE_ROUTER, "cni-kube-router-cni-type")
def its_configuration_is_the_documents(lab: LiveLab) -> Iterator[None]:
    """A node's CNI configuration is of version 0.3.1, its first plugin's type kube-router."""
    node = Cluster(lab).control
    before = node.get(CONFLIST)
    said = json.loads(before)
    said["cniVersion"], said["plugins"][0]["type"] = "0.3.1", "kube-router"
    try:
        node.put(json.dumps(said).encode(), CONFLIST)
        yield
    finally:
        node.put(before, CONFLIST)


@sabotage(KUBE_ROUTER, "cni-kube-router-pod-manages-network")
def the_image_runs_whatever_it_is_told(lab: LiveLab) -> Iterator[None]:
    """On every node another image has the name of Kube-router's, whose program runs for ever."""
    cluster = Cluster(lab)
    kept = "docker.io/testbed/kept:1"

    def tag(old: str, new: str) -> None:
        for node in cluster.nodes:
            cluster.ctr(Observation(), node, "images", "tag", "--force", old, new)

    assert PLUGINS["kube-router"].images[0] in IMAGE
    tag(IMAGE, kept)
    try:
        tag(STANDS_IN, IMAGE)
        yield
    finally:
        tag(kept, IMAGE)
