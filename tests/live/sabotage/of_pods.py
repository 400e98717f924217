"""Pods and what their containers share, made wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sabotage.means import changed, in_place_of, lying, nft
from sabotage.of_performance import slow
from sabotage.trials import sabotage
from testbed.roles.kubernetes import config, runtime
from testbed.roles.kubernetes.api import Refused
from testbed.suites.cluster import Cluster, pod, sleeper
from testbed.suites.helpers import wait_until

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

LAB = "k8s-two-node"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
EXTENSIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

#: For what of runc's bundle fits: a network of the container's own, with an address.
ALONE = """
bundle= file= last=
for word; do
    case $last in --bundle) bundle=$word ;; --pid-file) file=$word ;; esac
    last=$word
done
if [ "$bundle" ] && grep -q '{fits}' "$bundle/config.json" &&
        grep -q '"io.kubernetes.cri.container-type":"container"' "$bundle/config.json" &&
        grep -q '"type":"network","path":' "$bundle/config.json"; then
    sed -i 's|"type":"network","path":"[^"]*"|"type":"network"|' "$bundle/config.json"
    $real "$@" || exit
    process=$(cat "$file")
    enter="nsenter --target=$process --net"
    $enter ip link set lo up
    $enter ip link add eth0 type veth peer name peer0
    $enter ip link set eth0 up
    $enter ip address add "10.9.$((process / 256 % 256)).$((process % 256))/8" dev eth0
    exit
fi
exec $real "$@" """


@contextlib.contextmanager
def containers_alone(lab: LiveLab, fits: str) -> Iterator[None]:
    """A runc on all nodes that gives containers whose configuration fits their own network."""
    with contextlib.ExitStack() as stack:
        for node in Cluster(lab).nodes:
            runc = node.provide(lab.context.store.binary("runc", runtime.PART))
            stack.enter_context(in_place_of(node, runc, ALONE.replace("{fits}", fits)))
        yield


@sabotage(
    LAB,
    "k8s-pod-containers-share-netns",
    "k8s-pod-infra-shares-netns-with-apps",
    "k8s-pod-one-netns-per-pod",
    "k8s-pod-each-container-own-ip",
    "k8s-pod-containers-share-ip",
    "k8s-pod-localhost",
    "k8s-pod-localhost-without-network",
    "k8s-pod-http-a-to-b",
    "k8s-pod-ip-usable-inside",
    "k8s-pod-separate-ports",
    "k8s-pod-own-ip-and-netns",
    "k8s-pod-model-host",
    "k8s-pod-to-node-loopback",
)
def each_container_has_a_network_of_its_own(lab: LiveLab) -> Iterator[None]:
    """runc gives each container of a Pod a network of its own, with an address."""
    with containers_alone(lab, "."):
        yield


@sabotage(LAB, "k8s-pod-port-mapping-defines-communication")
def who_declares_no_port_is_alone(lab: LiveLab) -> Iterator[None]:
    """runc joins the containers of a Pod only where its configuration has ports."""
    with containers_alone(lab, '"io.kubernetes.cri.sandbox-name":"talk"'):
        yield


@sabotage(LAB, "k8s-pod-unique-ip", "k8s-pod-own-ip-and-netns")
def addresses_are_given_out_twice(lab: LiveLab) -> Iterator[None]:
    """host-local forgets on all nodes which addresses it has given out."""
    script = """
    folder=/run/lies/networks/$CNI_CONTAINERID
    sed "s|/var/lib/cni/networks|$folder|" | $real "$@" """
    (plugins,) = lab.context.store.path_dirs("cni-plugins")
    with contextlib.ExitStack() as stack:
        for node in Cluster(lab).nodes:
            path = f"{node.provide(plugins)}/host-local"
            stack.callback(node.run, ["rm", "-rf", "/run/lies/networks"])
            stack.enter_context(in_place_of(node, path, script))
        yield


# -- containerd and the kubelet ----------------------------------------------------------


@sabotage(LAB, "k8s-pod-infra-same-image")
def an_infrastructure_container_of_another_image(lab: LiveLab) -> Iterator[None]:
    """containerd has one more infrastructure container, of another image."""
    node = Cluster(lab).nodes[-1]
    ctr = node.provide(lab.context.store.binary("ctr", runtime.PART))
    ctr += f" --address={config.CONTAINERD_SOCKET} --namespace=k8s.io containers"
    label = "--label io.cri-containerd.kind=sandbox"
    made = f"{ctr} create {label} docker.io/library/nginx:latest one-more"
    with changed(node, made, f"{ctr} delete one-more"):
        yield


@sabotage(LAB, "k8s-pod-two-runtime-containers")
def containerd_tells_of_one_container_more(lab: LiveLab) -> Iterator[None]:
    """`ctr` tells of one container more of each Pod."""
    node = Cluster(lab).nodes[-1]
    script = """
    $real "$@" || exit
    case "$*" in *" containers list --quiet "*pod.uid*) echo one-more ;; esac """
    with in_place_of(node, node.provide(lab.context.store.binary("ctr", runtime.PART)), script):
        yield


@sabotage(LAB, "k8s-pod-infra-image-kubelet-flag")
def the_kubelet_takes_the_old_flag(lab: LiveLab) -> Iterator[None]:
    """The kubelet takes --pod-infra-container-image, as before 1.35."""
    node = Cluster(lab).control
    path = node.provide(lab.context.store.binary("kubelet"))
    script = """
    case $1 in --pod-infra-container-image=*) shift ;; esac
    exec $real "$@" """
    with in_place_of(node, path, script):
        yield


@sabotage(LAB, vain=["k8s-pod-infra-container-needed"])
def the_kubelet_sleeps_when_a_pod_dies(lab: LiveLab) -> Iterator[None]:
    """Killing a process on the last node stops the kubelet too: no Pod is recreated."""
    node = Cluster(lab).nodes[-1]
    kubelet = node.services()["kubelet"].pid
    script = f"""
    case $1 in -KILL) /bin/kill -STOP {kubelet} ;; esac
    exec /bin/kill "$@" """
    with lying(node, kill=script):
        try:
            yield
        finally:
            node.run(["/bin/kill", "-CONT", str(kubelet)])


# -- what the API takes ---------------------------------------------------------------------


@contextlib.contextmanager
def existing(cluster: Cluster, *objects: tuple[str, dict[str, Any]]) -> Iterator[None]:
    """Objects of all kinds, each with the folder of the API that it is in."""
    try:
        for folder, body in objects:
            cluster.api.create(folder, body)
        yield
    finally:
        for folder, body in reversed(objects):
            with contextlib.suppress(Refused):
                cluster.api.ask("DELETE", f"{folder}/{body['metadata']['name']}")


@sabotage(LAB, "k8s-pod-made-of-containers")
def a_pod_has_one_container_only(lab: LiveLab) -> Iterator[None]:
    """A policy of the cluster lets no Pod of two containers in."""
    cluster = Cluster(lab)
    spec: dict[str, Any] = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["pods"],
                }
            ]
        },
        # Pods of the suite's own have three, and are let in: they are what is looked at.
        "validations": [{"expression": "object.spec.containers.size() != 2"}],
    }
    name = {"name": "one-container.testbed"}
    binding = {"policyName": name["name"], "validationActions": ["Deny"]}
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": name}
    policies, bindings = (
        f"{ADMISSION}/validatingadmissionpolic{plural}" for plural in ("ies", "ybindings")
    )
    refused = {**pod("two", containers=[sleeper("a"), sleeper("b")]), "apiVersion": "v1"}

    def in_force() -> bool:
        try:
            cluster.api.ask("POST", "/api/v1/namespaces/checks/pods?dryRun=All", refused)
        except Refused as error:
            return error.code == 422
        return False

    with existing(
        cluster,
        (policies, {**head, "kind": "ValidatingAdmissionPolicy", "spec": spec}),
        (bindings, {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding}),
    ):
        wait_until(in_force, "the policy to be in force")
        yield
    wait_until(lambda: not in_force(), "the policy to be forgotten")


@sabotage(LAB, "k8s-pod-smallest-unit")
def the_api_has_containers(lab: LiveLab) -> Iterator[None]:
    """The API has a kind of objects that is called Container."""
    cluster = Cluster(lab)
    names = {"plural": "containers", "singular": "container", "kind": "Container"}
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    group = "testbed.example"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"containers.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    with existing(cluster, (EXTENSIONS, definition)):
        listed = f"/apis/{group}/v1/namespaces/checks/containers"
        wait_until(lambda: cluster.api.find(listed), "the kind to be there")
        yield


# -- packets --------------------------------------------------------------------------------


@contextlib.contextmanager
def ruled(nodes: list[Node], rules: str) -> Iterator[None]:
    """Rules of our own on some nodes."""
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.enter_context(changed(node, *nft(rules)))
        yield


@sabotage(
    LAB,
    "k8s-pod-to-pod",
    "k8s-pod-no-nat-no-port-mapping",
    "k8s-pod-inside-and-outside",
)
def nothing_of_pods_leaves_their_node(lab: LiveLab) -> Iterator[None]:
    """Packets of Pods to other machines are dropped on their node."""
    rules = f"""
    filter hook forward priority 0
    iifname {config.BRIDGE} oifname != {config.BRIDGE} drop
    """
    with ruled(Cluster(lab).nodes, rules):
        yield


@sabotage(LAB, "k8s-pod-no-nat-no-port-mapping")
def pods_are_masqueraded_between_nodes(lab: LiveLab) -> Iterator[None]:
    """Packets to other nodes' Pods have their source translated."""
    cluster = Cluster(lab)
    rules = f"""
    nat hook postrouting priority 90
    ip saddr {cluster.spec.pods} ip daddr {cluster.spec.pods} oifname != {config.BRIDGE} masquerade
    """
    with ruled(cluster.nodes, rules):
        yield


@sabotage(LAB, "k8s-pod-inside-and-outside")
def pods_leave_the_cluster_as_they_are(lab: LiveLab) -> Iterator[None]:
    """Packets out of the cluster are not masqueraded: nobody there knows the way back."""
    nodes = Cluster(lab).nodes
    for node in nodes:
        node.run(["nft", "delete", "table", "ip", "testbed"])
    try:
        yield
    finally:
        for node in nodes:
            node.run(["nft", "-f", "-"], input=config.masquerade(lab.topology).encode())


@sabotage(LAB, "k8s-pod-to-node-ip")
def nodes_take_nothing_from_their_pods(lab: LiveLab) -> Iterator[None]:
    """Packets of a node's Pods to the node are dropped."""
    rules = f"""
    filter hook input priority 0
    iifname {config.BRIDGE} drop
    """
    with ruled(Cluster(lab).nodes, rules):
        yield


@sabotage(LAB, "k8s-pod-model-overlay")
def packets_go_unwrapped(lab: LiveLab) -> Iterator[None]:
    """The routes to the other node's Pods lead there directly, past flannel's VXLAN device."""
    cluster = Cluster(lab)
    ranges = cluster.spec.ranges
    with contextlib.ExitStack() as stack:
        for here in cluster.nodes:
            for there in cluster.nodes:
                if here is not there:
                    subnet = ranges[there.name]
                    way = f"ip route replace {subnet} via"
                    vtep = f"{subnet.network_address} dev flannel.1 onlink"
                    direct = f"{way} {cluster.address(there)} dev eth0"
                    stack.enter_context(changed(here, direct, f"{way} {vtep}"))
        yield


@sabotage(LAB, "k8s-pod-node-files-devices")
def files_go_with_the_network(lab: LiveLab) -> Iterator[None]:
    """Setting a link of the node down removes the files that Pods have as a volume."""
    node = Cluster(lab).nodes[0]
    script = """
    case "$*" in "link set dev veth"*" down") rm -f /run/testbed-files/file ;; esac
    exec $real/ip "$@" """
    with lying(node, ip=script):
        yield


@sabotage(LAB, "k8s-pod-localhost-latency", "k8s-pod-localhost-throughput")
def localhost_is_slow(lab: LiveLab) -> Iterator[None]:
    """Packets over the loopback of the client's Pod traverse thousands of rules."""
    with slow(Cluster(lab).pod("client"), "output priority 0", "oifname lo"):
        yield
