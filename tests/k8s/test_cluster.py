"""A cluster: it comes up as asked for, carries traffic, trusts nobody, heals, and goes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import archives
import pytest
from crash.means import SECONDS, TESTBED

from k8s.conftest import LAB
from k8s.walked import services_walked
from testbed.settings import settings
from testbed.topology.load import names

if TYPE_CHECKING:
    from pathlib import Path

    from k8s.conftest import Cluster

SERVICE = "web.default.svc.cluster.local"
#: Takes one connection, and writes down whom it has seen.
ANSWER = """
import socket
with socket.create_server(("10.168.0.3", 8000)) as server:
    server.settimeout(60)
    connection, client = server.accept()
    open("/run/asked", "w").write(client[0])
    connection.recv(4096)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
    connection.close()
"""
#: A Pod of an image that the kubelet must not pull.
BROUGHT = """
apiVersion: v1
kind: Pod
metadata: {{name: {}}}
spec:
  nodeName: {}
  terminationGracePeriodSeconds: 0
  containers: [{{name: web, image: "{}", imagePullPolicy: Never}}]
"""
#: A namespace, a kind of its own, and an object of this kind there.
FILE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {size: {type: integer}}}}
---
apiVersion: example.org/v1
kind: Widget
metadata: {name: one, namespace: shop}
size: 3
"""
CURL = ("curl", "-s", "-k", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}")


def test_nodes_are_ready_and_have_the_ranges_of_the_topology(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.get("nodes")["items"]}
    ranges = {name: node["spec"]["podCIDR"] for name, node in nodes.items()}
    assert ranges == {"node1": "100.96.1.0/24", "node2": "100.96.2.0/24"}
    for node in nodes.values():
        (ready,) = [c for c in node["status"]["conditions"] if c["type"] == "Ready"]
        assert ready["status"] == "True"
        assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3"


def test_nodes_are_known_by_names_of_their_own(cluster: Cluster) -> None:
    """As the kubelet tells them, who has them from the machine (cAdvisor's MachineInfo)."""
    told = [node["status"]["nodeInfo"] for node in cluster.get("nodes")["items"]]
    for key in ("machineID", "bootID", "systemUUID"):
        assert len({info[key] for info in told}) == len(told), key
        assert all(info[key] for info in told)


def test_crictl_asks_the_containerd_of_its_node(cluster: Cluster) -> None:
    """By /etc/crictl.yaml; or it names the command that builds it."""
    built = settings().store.made("crictl") is not None
    for node in ("node1", "node2"):
        done = cluster.bed.run("exec", "-l", LAB, node, "crictl", "pods", "-o", "json")
        if not built:
            assert done.returncode == 127
            assert "testbed artifacts build crictl" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        told = {pod["metadata"]["name"] for pod in json.loads(done.stdout)["items"]}
        pods = cluster.get("pods", "--all-namespaces")["items"]
        there = {p["metadata"]["name"] for p in pods if p["spec"].get("nodeName") == node}
        assert there <= told, "those that have ended may still be told of"


def test_pods_reach_each_other_and_nobody_translates(cluster: Cluster) -> None:
    client = cluster.address("client")
    for pod in ("web-1", "web-2"):
        page = cluster.fetch("client", f"http://{cluster.address(pod)}/")
        assert page["name"] == pod
        assert page["client"].rpartition(":")[0] == client


def test_a_pod_reaches_a_node_under_its_own_address(cluster: Cluster) -> None:
    """Without NAT between Pods and nodes (kubernetes.io, "The Kubernetes network model")."""
    client = cluster.address("client")
    server = cluster.bed.start("exec", "-l", LAB, "node2", "--", "python3", "-c", ANSWER)
    try:
        cluster.kubectl(
            "exec", "client", "--", "curl", "-s", "--retry", "50", "--retry-delay", "0",
            "--retry-max-time", "20", "--retry-connrefused", "http://10.168.0.3:8000/",
        )  # fmt: skip
        assert cluster.on("node2", "cat", "/run/asked").strip() == client
    finally:
        server.wait(SECONDS)


def test_a_service_has_a_name_and_spreads(cluster: Cluster) -> None:
    seen = {cluster.fetch("client", f"http://{SERVICE}/")["name"] for _ in range(20)}
    # By chance alone one of two would be missed twice in a million times.
    assert seen == {"web-1", "web-2"}


def test_nobody_unknown_is_answered(cluster: Cluster) -> None:
    for url in ("https://10.168.0.2:6443/api", "https://10.168.0.2:6443/readyz",
                "https://10.168.0.3:10250/pods"):  # fmt: skip
        assert cluster.on("node2", *CURL, url) == "401"
    asked = cluster.bed.run(
        "exec", "-l", LAB, "node1", "--", *CURL, "https://127.0.0.1:2379/health"
    )
    assert asked.returncode != 0, "etcd ends the handshake of who shows no certificate"


def test_a_kubelet_has_no_more_rights_than_its_node(cluster: Cluster) -> None:
    asked = cluster.bed.run(
        "exec", "-l", LAB, "node1", "--", "kubectl", "--kubeconfig=/etc/kubernetes/kubelet.conf",
        "auth", "can-i", "create", "clusterroles",
    )  # fmt: skip
    assert asked.stdout.strip() == "no"


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_keys_are_for_their_owner_alone(cluster: Cluster, node: str) -> None:
    others = cluster.on(
        node, "find", "/etc/kubernetes", "-type", "f", "-perm", "/077", "(", "-name", "*.key",
        "-o", "-name", "*.conf", ")",
    )  # fmt: skip
    assert others == ""
    assert "/etc/kubernetes/kubelet.conf" in cluster.on(node, "find", "/etc/kubernetes")
    assert cluster.on(node, "stat", "-c", "%a", "/run/kubernetes").strip() == "700"


def test_tools_of_this_machine_ask_by_a_port_of_their_own(cluster: Cluster) -> None:
    script = (
        "import json, os, ssl, sys, base64\n"
        "said = json.load(open(os.environ['KUBECONFIG']))\n"
        "assert os.stat(os.environ['KUBECONFIG']).st_mode & 0o77 == 0\n"
        "print(said['clusters'][0]['cluster']['server'])\n"
        "sys.exit(7)"
    )
    done = subprocess.run(
        [*TESTBED, "kubeconfig", LAB, "--", TESTBED[0], "-c", script],
        env=cluster.bed.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("https://127.0.0.1:")


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    said = json.loads(cluster.bed.must("up", LAB, "--json").stdout)
    assert said["changed"] == []


#: Daemons that are killed at the same moment: each by itself, those that lean on one another, all.
WORKER = ("containerd", "flanneld", "kube-proxy", "kubelet")
CONTROL = ("api-socket", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
VICTIMS: tuple[tuple[str, ...], ...] = (
    *((f"node2 {name}",) for name in WORKER),
    *((f"node1 {name}",) for name in CONTROL),
    ("node1 etcd", "node1 kube-apiserver"),
    ("node1 kube-apiserver", "node2 kubelet"),
    ("node2 containerd", "node2 kubelet"),
    ("node2 flanneld", "node2 kube-proxy"),
    ("node1 flanneld", "node2 flanneld"),
    tuple(f"node2 {name}" for name in WORKER),
    tuple(f"node1 {name}" for name in CONTROL),
    (
        *(f"node1 {name}" for name in (*WORKER, *CONTROL)),
        *(f"node2 {name}" for name in WORKER),
    ),
)


@pytest.mark.seconds(6)
@pytest.mark.parametrize("victims", VICTIMS, ids=" and ".join)
def test_what_has_died_is_told_and_made_anew(cluster: Cluster, victims: tuple[str, ...]) -> None:
    def container() -> str:
        status = cluster.get("pod", "web-2")["status"]["containerStatuses"][0]
        return str(status["containerID"])

    def parts() -> dict[str, dict[str, Any]]:
        return {
            f"{one['name']} {each['name']}": each
            for one in cluster.bed.status(LAB)["nodes"]
            for each in one["services"]
        }

    before, running = container(), parts()
    for node in ("node1", "node2"):
        mine = [name for name in victims if name.startswith(node)]
        pids = [running[name]["detail"].removeprefix("pid ") for name in mine]
        if pids:
            cluster.on(node, "kill", "-KILL", *pids)
    dead = {name for name, part in parts().items() if not part["ok"]}
    assert dead == set(victims)
    cluster.bed.must("up", LAB, "-q")
    assert cluster.bed.status(LAB)["ok"]
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
    assert cluster.fetch("client", f"http://{cluster.address('web-2')}/")["name"] == "web-2"
    assert container() == before, "the Pod's container was left alone"


def test_kubectl_says_so_where_there_is_no_cluster(cluster: Cluster) -> None:
    cluster.bed.must("up", "netns-experiments", "-q")
    done = subprocess.run(
        [*TESTBED, "kubectl", "netns-experiments", "--", "get", "pods"],
        env=cluster.bed.environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    cluster.bed.must("down", "netns-experiments")
    assert done.returncode == 2
    assert "has no Kubernetes" in done.stderr


def test_images_of_the_file_are_on_each_node(cluster: Cluster, tmp_path: Path) -> None:
    """A running cluster gets them, too; a Pod asks for one of them by its digest.

    Its nodes have a /tmp of their own, so they don't see the files of the configuration.
    """
    tag, pinned = "registry.example/team/web:1", f"registry.example/tools@sha256:{'ab' * 32}"
    archives.write(tmp_path / "web.tar", tag)
    archives.write(tmp_path / "tools.tar", "tools:latest")
    config = tmp_path / "config.toml"
    config.write_text(f'[images]\n"{tag}".path = "web.tar"\n"{pinned}".path = "tools.tar"\n')
    file = tmp_path / "lab.yaml"
    shipped = names()[LAB].read_text(encoding="utf-8")
    images = f"kubernetes:\n  images: ['{tag}', '{pinned}']\n"
    file.write_text(shipped.replace("\nkubernetes:\n", f"\n{images}"))
    bed = replace(cluster.bed, env={**cluster.bed.env, "TESTBED_CONFIG": str(config)})
    pods = {"brought-1": ("node1", pinned), "brought-2": ("node2", tag)}
    try:
        done = json.loads(bed.must("up", str(file), "--replace", "--json").stdout)
        assert done["removed"] == []
        assert {"images node1", "images node2"} <= set(done["changed"])
        assert json.loads(bed.must("up", str(file), "--json").stdout)["changed"] == []
        made = [BROUGHT.format(name, node, image) for name, (node, image) in pods.items()]
        cluster.kubectl("apply", "-f", "-", input="---".join(made))
        cluster.kubectl("wait", "--for=condition=Ready", "pod", *pods, "--timeout=120s")
    finally:
        cluster.kubectl("delete", "pod", "--now", "--ignore-not-found", *pods)
        cluster.bed.must("up", LAB, "--replace", "-q")


def test_objects_and_flags_of_the_file_change_on_a_running_cluster(
    cluster: Cluster, tmp_path: Path
) -> None:
    """No node is created again; what the file no longer has goes."""
    file, objects = tmp_path / "lab.yaml", tmp_path / "shop.yaml"
    more = "kubernetes:\n  arguments: {kubelet: {max-pods: 20}}\n  apply: [shop.yaml]\n"
    shipped = names()[LAB].read_text(encoding="utf-8")
    file.write_text(shipped.replace("\nkubernetes:\n", f"\n{more}"))
    objects.write_text(FILE)
    bed = cluster.bed
    try:
        done = json.loads(bed.must("up", str(file), "--replace", "--json").stdout)
        assert done["removed"] == []
        assert {"apply objects", "kubelet node1", "kubelet node2"} == set(done["changed"])
        assert json.loads(bed.must("up", str(file), "--json").stdout)["changed"] == []
        assert cluster.get("node", "node2")["status"]["capacity"]["pods"] == "20"
        assert cluster.get("widget", "one", "-n", "shop")["size"] == 3
        objects.write_text(FILE.replace("size: 3", "size: big"))
        refused = bed.run("up", str(file), "--keep")
        assert refused.returncode == 4
        assert "shop.yaml, document 3" in refused.stderr
        objects.write_text(FILE.partition("---")[0])
        bed.must("up", str(file))
        assert "widgets.example.org" not in cluster.kubectl("get", "crd", "-o", "name")
    finally:
        bed.must("up", LAB, "--replace", "-q")
    cluster.kubectl("wait", "--for=delete", "namespace/shop", "--timeout=120s")


def test_the_graph_has_pods_with_their_namespaces_and_services(cluster: Cluster) -> None:
    found = json.loads(cluster.bed.must("graph", LAB, "--json").stdout)
    pods = {
        space["name"]: (machine["name"], space)
        for machine in found["machines"]
        for space in machine["spaces"]
        if space["kind"] == "pod"
    }
    for name, node in (("web-1", "node1"), ("web-2", "node2"), ("client", "node1")):
        machine, space = pods[f"default/{name}"]
        assert machine == node
        (eth0,) = [link for link in space["links"] if link["name"] == "eth0"]
        assert cluster.address(name) in [one.partition("/")[0] for one in eth0["addresses"]]
        assert eth0["peer"]["machine"] == node
        shown = cluster.on(node, "nsenter", f"--net={space['path']}", "ip", "addr", "show", "eth0")
        assert cluster.address(name) in shown
    (web,) = [one for one in found["services"] if one["name"] == "default/web"]
    assert web["addresses"] == cluster.get("service", "web")["spec"]["clusterIPs"]
    assert web["ports"] == ["80/tcp"]
    assert web["backends"] == sorted(f"{cluster.address(pod)}:80" for pod in ("web-1", "web-2"))


def test_walks_between_pods_to_a_service_and_from_outside(cluster: Cluster) -> None:
    services_walked(
        cluster, "vxlan",
        # flanneld writes by iptables.
        lambda rule: "nftables" if rule.table == "kube-proxy" else "iptables-nft",
        nat="dnat ip to", masquerade="masquerade fully-random",
    )  # fmt: skip
