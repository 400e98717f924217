"""Nodes that are Pods of an existing cluster, which is a lab of ours."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from crash.means import SECONDS, TESTBED, Bed

from k8s.conftest import Cluster, gone, left
from testbed.artifacts import Store
from testbed.errors import MachineError, NodeNotRunning
from testbed.nodes.base import Node, Setup
from testbed.nodes.kubernetes import LAB as LABEL
from testbed.nodes.kubernetes.provider import KubernetesProvider
from testbed.nodes.kubernetes.remembered import FOLDER, Remembered
from testbed.testing.provider import FleetContract, NodeContract, spec, until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Provider

WIRED = """\
name: wired
provider: kubernetes
networks: {lan: {subnet: 10.50.0.0/24}, back: {subnet: 10.51.0.0/24}}
nodes:
  a: {networks: {lan: 10.50.0.2}}
  b: {networks: {lan: 10.50.0.3, back: 10.51.0.3}}
  c: {networks: {back: 10.51.0.4}}
"""
ROUTED = """\
name: routed
provider: kubernetes
networks: {lan: {subnet: 10.50.0.0/24}, back: {subnet: 10.51.0.0/24, mtu: 1500}}
nodes:
  a: {networks: {lan: 10.50.0.2}, routes: [default via 10.50.0.3]}
  b: {networks: {lan: 10.50.0.3, back: 10.51.0.3}, forward: true}
  c: {networks: {back: 10.51.0.4}, routes: [default via 10.51.0.3]}
"""


@pytest.fixture(autouse=True)
def environment(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))


@pytest.fixture(scope="module")
def lasting(
    kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KubernetesProvider]:
    """A provider with a lab that many tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        provider = make(tmp_path_factory.mktemp("lasting") / "state")
        provider.create_fabric("lasting", load_text(WIRED, "wired.yaml"))
        yield provider
        provider.destroy("lasting")


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """A state folder, from which nothing may be left at the end."""
    made = Bed(tmp_path / "state")
    yield made
    made.must("down", "--all")
    assert made.leftovers() == []


def make(state: Path) -> KubernetesProvider:
    return KubernetesProvider.of(Setup(state, Store()))


def write(folder: Path, text: str) -> str:
    path = folder / "lab.yaml"
    path.write_text(text)
    return str(path)


def pod(cluster: Cluster, lab: str, node: str) -> tuple[str, str]:
    """The namespace and the name of a node's Pod."""
    argv = ["pods", "-A", "-l", f"{LABEL}={lab},testbed.node={node}"]
    (one,) = cluster.get(*argv)["items"]
    return one["metadata"]["namespace"], one["metadata"]["name"]


@pytest.mark.parametrize(
    "privileged",
    [pytest.param(False, id="wired", marks=pytest.mark.long), pytest.param(True, id="privileged")],
)
class TestNode(NodeContract):
    """A Pod with few capabilities, and one that may do all: its machine has another network."""

    @pytest.fixture
    def node(self, lasting: KubernetesProvider, privileged: bool) -> Iterator[Node]:
        name = "b" if privileged else "a"
        topology = load_text(ROUTED if privileged else WIRED, "lab.yaml")
        lasting._topologies["lasting"] = topology
        found = lasting.nodes("lasting").get(name)
        one = found or lasting.create_one("lasting", spec(name))
        one.name = "node1"  # as the contract has it
        yield one
        if one.services():  # the next test is to find none
            lasting.destroy("lasting", [name])


class TestTerminal(TerminalContract):
    @pytest.fixture
    def node(self, lasting: KubernetesProvider) -> Node:
        lasting._topologies["lasting"] = load_text(ROUTED, "lab.yaml")
        found = lasting.nodes("lasting").get("c")
        return found or lasting.create_one("lasting", spec("c"))


class TestFleet(FleetContract):
    skips: ClassVar[dict[str, str]] = {
        "test_the_fabric_is_made_once": "a lab begins with its janitor, which is no fabric",
    }

    def again(self, provider: Provider) -> Provider:
        assert isinstance(provider, KubernetesProvider)
        return make(provider._remembered._folder.parent)

    @pytest.fixture
    def provider(self, tmp_path: Path) -> Iterator[Provider]:
        provider = make(tmp_path / "state")
        yield provider
        for lab in provider.labs():
            provider.destroy(lab)


def test_a_lab_is_created_used_and_removed(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    file = write(tmp_path, WIRED)
    said = bed.must("up", file).stdout
    assert "MTU 1400" in said  # flannel's 1450, less VXLAN's 50
    workers = {word.rstrip(",") for word in said.split() if word.startswith("node")}
    assert workers >= {"node1", "node2"}  # of the cluster
    for node, address in (("a", "10.50.0.3"), ("c", "10.51.0.3")):
        ping = ["ping", "-c1", "-W5", "-M", "do", "-s", "1372", address]
        bed.must("exec", "-l", "wired", node, *ping)
    assert bed.run("exec", "-l", "wired", "a", "ping", "-c1", "-W1", "10.51.0.4").returncode != 0
    assert json.loads(bed.must("up", file, "--json").stdout)["changed"] == []
    assert bed.status("wired")["ok"]
    assert [one["nodes"] for one in json.loads(bed.must("ls", "--json").stdout)] == [3]
    began = time.monotonic()
    bed.must("down", "wired")
    assert time.monotonic() - began < SECONDS
    assert gone(cluster, "wired")
    assert not (bed.state / FOLDER).exists()


def test_nodes_run_on_the_clusters_nodes_that_the_file_names(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    pinned = WIRED.replace("}}\n  ", "}, on: node2}\n  ").replace(
        "10.51.0.4}", "10.51.0.4}, on: node1"
    )
    file = write(tmp_path, pinned)
    image = "docker.io/testbed/node:1"
    bed.must("up", file, "--image", image, "--keep-alive", "8h")

    def workers() -> dict[str, str]:
        pods = cluster.get("pods", "-A", "-l", f"{LABEL}=wired,testbed.node")["items"]
        assert {one["spec"]["containers"][0]["image"] for one in pods} == {image}
        return {one["metadata"]["labels"]["testbed.node"]: one["spec"]["nodeName"] for one in pods}

    assert workers() == {"a": "node2", "b": "node2", "c": "node1"}
    assert bed.run("up", file, "--keep-alive", "7h").returncode == 2
    write(tmp_path, pinned.replace("node1", "node2"))
    assert "node c" in json.loads(bed.must("up", file, "--json").stdout)["changed"]
    assert {*workers().values()} == {"node2"}
    write(tmp_path, pinned.replace("node1", "node9"))
    assert bed.run("up", file).returncode == 2
    bed.must("down", "wired")


def test_a_privileged_node_forwards_in_a_network_of_its_own(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    file = write(tmp_path, ROUTED)
    bed.must("up", file)
    bed.must("exec", "-l", "routed", "a", "ping", "-c1", "-W5", "10.51.0.4")
    links = json.loads(bed.must("exec", "-l", "routed", "b", "ip", "-j", "link").stdout)
    assert {link["ifname"]: link["mtu"] for link in links if link["ifname"] != "lo"} == {
        "eth0": 1400,
        "eth1": 1500,  # as the file has it: larger packets are fragmented on the way
    }
    whole = ["ping", "-c1", "-W5", "-M", "do", "-s", "1472", "10.51.0.4"]
    bed.must("exec", "-l", "routed", "b", *whole)
    bed.must("exec", "-l", "routed", "b", "ip", "link", "delete", "eth0")
    bed.must("up", "-l", "routed")
    bed.must("exec", "-l", "routed", "a", "ping", "-c1", "-W5", "10.51.0.4")
    bed.must("down", "routed")
    assert gone(cluster, "routed")


def test_a_pod_that_was_deleted_is_created_again_and_its_peers_learn_it(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    file = write(tmp_path, WIRED)
    bed.must("up", file)
    namespace, name = pod(cluster, "wired", "b")
    cluster.kubectl("delete", "pod", "-n", namespace, name, "--grace-period=0", "--force")
    assert not bed.status("wired")["ok"]
    assert "node b" in json.loads(bed.must("up", file, "--json").stdout)["changed"]
    bed.must("exec", "-l", "wired", "a", "ping", "-c1", "-W5", "10.50.0.3")
    bed.must("exec", "-l", "wired", "c", "ping", "-c1", "-W5", "10.51.0.3")


def test_a_lab_whose_client_died_is_removed_by_the_cluster(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    bed.env["TESTBED_KUBE_KEEP_ALIVE"] = "20s"
    file = write(tmp_path, WIRED)
    process = bed.start("up", file)
    assert until(lambda: left(cluster, "wired"), 120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert gone(cluster, "wired")
    bed.must("up", file)  # it is no trouble for the next one
    bed.must("exec", "-l", "wired", "a", "true")


def test_a_lab_in_use_stays(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    bed.env["TESTBED_KUBE_KEEP_ALIVE"] = "20s"
    bed.must("up", write(tmp_path, WIRED))
    bed.must("exec", "-l", "wired", "a", "sleep", "45")
    bed.must("exec", "-l", "wired", "a", "true")
    assert gone(cluster, "wired")


def test_podsecurity_refuses_before_anything_is_made(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = "pod-security.kubernetes.io/enforce"
    cluster.kubectl("create", "namespace", "strict")
    cluster.kubectl("label", "namespace", "strict", f"{label}=restricted")
    monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "strict")
    provider = make(tmp_path / "state")
    try:
        with pytest.raises(MachineError) as caught:
            provider.create_fabric("strict", load_text(WIRED, "wired.yaml"))
        assert caught.value.hint == f"kubectl label namespace strict {label}=privileged"
        assert left(cluster, "strict") == []
        assert provider.labs() == []
    finally:
        cluster.kubectl("delete", "namespace", "strict")


def test_a_namespace_that_exists_stays_and_its_quota_counts(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    cluster.kubectl("create", "namespace", "shared")
    cluster.kubectl("create", "quota", "few", "-n", "shared", "--hard=pods=3")
    bed.env["TESTBED_KUBE_NAMESPACE"] = "shared"
    file = write(tmp_path, WIRED)
    try:
        done = bed.run("up", file)  # three nodes and the janitor
        assert done.returncode == 3, done
        assert "exceeded quota" in done.stderr
        assert gone(cluster, "wired")
        cluster.kubectl("delete", "quota", "few", "-n", "shared")
        bed.must("up", file)
        bed.must("exec", "-l", "wired", "a", "ping", "-c1", "-W5", "10.50.0.3")
        bed.must("down", "wired")
        assert gone(cluster, "wired")
        cluster.get("namespace", "shared")
    finally:
        cluster.kubectl("delete", "namespace", "shared")


def test_another_machine_finds_the_lab_by_what_is_in_the_cluster(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    file = write(tmp_path, WIRED)
    bed.must("up", file)
    there = Bed(tmp_path / "elsewhere")
    assert there.labs() == []
    done = there.run("up", file)
    assert done.returncode != 0
    assert "another state folder" in done.stderr
    there.env["TESTBED_KUBE_CONTEXT"] = ""
    assert "wired" in [one["lab"] for one in json.loads(there.must("ls", "--json").stdout)]
    there.must("down", "wired")
    assert gone(cluster, "wired")
    assert Remembered(there.state).labs() == []


@pytest.mark.long  # the API server ends its streams for a minute
def test_the_api_server_restarts(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    file = write(tmp_path, WIRED)
    bed.must("up", file)
    provider = make(bed.state)
    node = provider.nodes("wired")["a"]
    assert node.run(["true"]).ok
    cluster.on("node1", "systemctl", "restart", "kube-apiserver")
    assert until(lambda: node.run(["true"], check=False).ok, 60)
    assert sorted(provider.nodes("wired")) == ["a", "b", "c"]


def test_a_node_whose_pod_ends_says_so(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    bed.must("up", write(tmp_path, WIRED))
    provider = make(bed.state)
    node = provider.nodes("wired")["a"]
    running = node.spawn(["sleep", "600"])
    namespace, name = pod(cluster, "wired", "a")
    os_kill = ["exec", "-n", namespace, name, "--", "sh", "-c", "kill -KILL -1; kill -TERM 1"]
    subprocess.run(
        [*TESTBED, "kubectl", cluster.lab, "--", *os_kill],
        env=cluster.bed.environment(), capture_output=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    with pytest.raises(NodeNotRunning):
        running.wait(SECONDS)
    assert until(lambda: "a" in provider.ended("wired"), 60)
    assert sorted(provider.nodes("wired")) == ["b", "c"]
