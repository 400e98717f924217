"""Nodes that are Pods of an existing cluster, which is a lab of ours."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import yaml
from crash.means import LONG, SECONDS, TESTBED, Bed

from k8s.conftest import Cluster, gone, left
from testbed.artifacts import Store
from testbed.errors import LabError, MachineError, NodeNotRunning
from testbed.nodes.base import Node, Setup
from testbed.nodes.kubernetes import LAB as LABEL
from testbed.nodes.kubernetes.node import PodNode
from testbed.nodes.kubernetes.provider import PYTHON, KubernetesProvider
from testbed.nodes.kubernetes.remembered import FOLDER, Remembered
from testbed.testing.provider import FleetContract, NodeContract, spec, until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Provider
    from testbed.nodes.kubernetes.channel import ExecChannel

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
#: Prints the number of bytes that arrive at b.
TAKE = """\
import socket
door = socket.create_server(("10.50.0.3", 5000))
print("ready", flush=True)
there, _ = door.accept()
size = 0
while data := there.recv(65536):
    size += len(data)
print(size)
"""
#: Argument: a number of bytes.  Prints the seconds until b has taken them.
SEND = """\
import socket, sys, time
there = socket.create_connection(("10.50.0.3", 5000))
began = time.monotonic()
there.sendall(bytes(int(sys.argv[1])))
there.shutdown(socket.SHUT_WR)
there.recv(1)
print(time.monotonic() - began)
"""
#: Arguments: a number of requests that change something, a command of testbed.  It is killed
#: after the last of these requests.
DYING = """\
import os, signal, sys
from testbed.__main__ import main
from testbed.nodes.kubernetes.cluster import Cluster
left, ask = int(sys.argv.pop(1)), Cluster._try

def dying(self, method, path, body, query, kind):
    global left
    done = ask(self, method, path, body, query, kind)
    if method != "GET" and not query and not path.endswith("reviews"):
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return done

Cluster._try = dying
sys.exit(main())
"""
SIZE, BURST = 500_000, 32 << 10  # bytes


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


def sent(lab: KubernetesProvider, size: int) -> float:
    """Send ``size`` bytes from a to b of the lab ``routed``; return the seconds it took."""
    nodes = lab.nodes("routed")
    with nodes["b"].spawn([PYTHON, "-S", "-c", TAKE]) as taking:
        assert until(lambda: b"ready" in taking.out, 60), taking.err
        took = nodes["a"].run([PYTHON, "-S", "-c", SEND, str(size)]).stdout
        assert int(taking.wait(60).stdout.split()[-1]) == size
    return float(took)


def answered(bed: Bed, node: str, address: str, count: int = 3) -> int:
    """The number of echo requests that are answered."""
    ping = ["ping", "-q", "-c", str(count), "-i", "0.02", "-W", "1", address]
    (got,) = re.findall(r"(\d+) received", bed.run("exec", "-l", "routed", node, *ping).stdout)
    return int(got)


def test_links_have_faults_that_are_undone(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    """A privileged Pod (b) and others, whose tunnels pass in different networks."""
    bed.must("up", write(tmp_path, ROUTED))
    provider = make(bed.state)
    nodes = provider.nodes("routed")

    def rules() -> str:
        place = provider.tunnels(nodes).outside
        look = ["sh", "-c", "nft list tables; ip -br link show type ifb"]
        return "".join(place[name].run(look).stdout for name in ("a", "b", "c"))

    clean = rules()
    for fault, cut, whole in (
        ("a:b", ("a", "10.50.0.3"), ("b", "10.51.0.4")),
        ("b:c", ("c", "10.51.0.3"), ("a", "10.50.0.3")),
        ("c", ("b", "10.51.0.4"), ("b", "10.50.0.2")),
    ):
        bed.must("fault", "partition", fault, "-l", "routed")
        assert answered(bed, *cut) == 0
        assert answered(bed, *whole) == 3
        assert fault in bed.must("fault", "ls", "-l", "routed").stdout
        bed.must("fault", "heal", "-l", "routed")
        assert answered(bed, *cut) == 3
    bed.must("fault", "loss", "a:b", "30%", "-l", "routed")
    assert 20 < answered(bed, "a", "10.50.0.3", 200) < 180
    bed.must("fault", "heal", "-l", "routed")

    quick = sent(provider, SIZE)
    bed.must("fault", "rate", "b", "1mbit", "-l", "routed")
    limited = sent(provider, SIZE)
    assert limited > (SIZE - BURST) * 8 / 1e6
    assert limited > 5 * quick
    bed.must("fault", "heal", "-l", "routed")
    assert sent(provider, SIZE) < limited / 5
    assert rules() == clean


def test_a_peer_that_is_created_again_is_still_cut_off(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    bed.must("up", write(tmp_path, ROUTED))
    bed.must("fault", "partition", "a:b", "-l", "routed")
    namespace, name = pod(cluster, "routed", "b")
    cluster.kubectl("delete", "pod", "-n", namespace, name, "--grace-period=0", "--force")
    bed.must("up", "-l", "routed")
    assert answered(bed, "c", "10.51.0.3") == 3
    assert answered(bed, "a", "10.50.0.3") == 0
    bed.must("fault", "heal", "-l", "routed")
    assert answered(bed, "a", "10.50.0.3") == 3


def test_a_network_has_a_rate(bed: Bed, tmp_path: Path) -> None:
    slow = ROUTED.replace("10.50.0.0/24}", "10.50.0.0/24, rate: 1mbit}")
    bed.must("up", write(tmp_path, slow))
    assert sent(make(bed.state), SIZE) > (SIZE - BURST) * 8 / 1e6
    assert bed.status("routed")["ok"]
    bed.must("exec", "-l", "routed", "a", "tc", "qdisc", "del", "dev", "eth0", "root")
    assert not bed.status("routed")["ok"]
    bed.must("up", "-l", "routed")
    assert bed.status("routed")["ok"]


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


@pytest.mark.parametrize("command", ["up", pytest.param("down", marks=pytest.mark.long)])
def test_whenever_the_client_dies_another_machine_removes_the_lab(
    cluster: Cluster, bed: Bed, tmp_path: Path, command: str
) -> None:
    """It is killed right after each request that changes something in the cluster."""
    text = WIRED.replace("name: wired", "name: dies")
    file = write(tmp_path, text.replace("  c: {networks: {back: 10.51.0.4}}\n", ""))
    # The first request makes the namespace, the fifth the janitor.
    for number in itertools.count(1) if LONG else (1, 5):
        mine, there = Bed(tmp_path / f"mine-{number}"), Bed(tmp_path / f"there-{number}")
        there.env["TESTBED_KUBE_CONTEXT"] = ""
        words = ["up", file] if command == "up" else ["down", "dies"]
        if command == "down":
            mine.must("up", file)
        done = subprocess.run(
            [sys.executable, "-c", DYING, str(number), *words],
            env=mine.environment(), capture_output=True, check=False, timeout=SECONDS,
        )  # fmt: skip
        if done.returncode != -signal.SIGKILL:
            break
        if command == "up":
            assert left(cluster, "dies"), number
            assert "dies" in [one["lab"] for one in json.loads(there.must("ls", "--json").stdout)]
            there.must("down", "dies")
        assert gone(cluster, "dies"), number
        mine.must("down", "--all")
        assert mine.leftovers() == there.leftovers() == [], number
    assert number > 2, "it has been killed"
    if LONG:
        assert done.returncode == 0, done
        mine.must("down", "--all")


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


def test_a_channel_that_is_cut_ends_its_commands_and_the_next_one_is_another(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    bed.must("up", write(tmp_path, WIRED))
    node = make(bed.state).nodes("wired")["a"]
    assert isinstance(node, PodNode)
    opened: list[ExecChannel] = []
    real = node.channel

    def channel() -> ExecChannel:
        opened.append(real())
        return opened[-1]

    node.channel = channel  # type: ignore[method-assign]
    running = node.spawn(["sh", "-c", "yes | head -c 100000000; exec sleep 4711"])
    assert until(lambda: bool(running.out), 60)
    socket.socket.shutdown(opened[0]._socket, socket.SHUT_RDWR)
    with pytest.raises(LabError) as caught:
        running.wait(SECONDS)
    assert not isinstance(caught.value, NodeNotRunning)
    programs = ["sh", "-c", "cat /proc/[0-9]*/comm"]

    def ended() -> bool:
        return {"yes", "head", "sleep"}.isdisjoint(node.run(programs, check=False).stdout.split())

    assert until(ended, 60)
    assert len(opened) == 2
    assert bed.status("wired")["ok"]


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


# -- what a cluster does to a lab ---------------------------------------------------------


def mended(bed: Bed, file: str, node: str) -> None:
    """The state is told, `up` creates the node again, and its peers reach it."""
    assert until(lambda: not bed.status("wired")["ok"], 60)
    assert f"node {node}" in json.loads(bed.must("up", file, "--json").stdout)["changed"]
    assert bed.status("wired")["ok"]
    bed.must("exec", "-l", "wired", "a", "ping", "-c1", "-W5", "10.50.0.3")
    bed.must("exec", "-l", "wired", "c", "ping", "-c1", "-W5", "10.51.0.3")


def test_a_pod_that_is_evicted_is_created_again(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    """By the API, which deletes the Pod, and by the kubelet, which leaves it as Failed."""
    file = write(tmp_path, WIRED)
    bed.must("up", file)
    namespace, name = pod(cluster, "wired", "b")
    meta = {"name": name, "namespace": namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body))
    mended(bed, file, "b")
    namespace, name = pod(cluster, "wired", "a")
    deadline = json.dumps({"spec": {"activeDeadlineSeconds": 1}})
    cluster.kubectl("patch", "pod", "-n", namespace, name, "-p", deadline)
    assert until(lambda: "DeadlineExceeded" in make(bed.state).ended("wired").get("a", ""), 60)
    mended(bed, file, "a")
    bed.must("down", "wired")
    assert gone(cluster, "wired")


@pytest.mark.long  # the cluster takes a minute until it knows that a node is lost
def test_the_clusters_node_dies(cluster: Cluster, bed: Bed, tmp_path: Path) -> None:
    text = WIRED.replace("10.50.0.2}", "10.50.0.2}, on: node1").replace(
        "10.51.0.4}", "10.51.0.4}, on: node2"
    )
    file = write(tmp_path, text)
    bed.must("up", file)
    write(tmp_path, text.replace("on: node2", "on: node1"))
    cluster.bed.must("fault", "stop", "node2", "-l", cluster.lab)
    try:
        known = ["wait", "--for=condition=Ready=Unknown", "node/node2", "--timeout=180s"]
        cluster.kubectl(*known)
        assert until(lambda: "c" in make(bed.state).ended("wired"), 60)
        assert "node2" in make(bed.state).ended("wired")["c"]
        mended(bed, file, "c")
        namespace, _ = pod(cluster, "wired", "c")
        bed.must("down", "wired")
        assert gone(cluster, "wired")
    finally:
        cluster.bed.must("fault", "heal", "-l", cluster.lab)
    cluster.kubectl("wait", "--for=condition=Ready", "node/node2", "--timeout=180s")
    there = ["crictl", "pods", "-q", "--namespace", namespace]
    assert until(lambda: not cluster.on("node2", *there).strip(), 120), "its containers end, too"
    assert left(cluster, "wired") == []


# -- what a cluster allows ----------------------------------------------------------------

LIMITS = """
apiVersion: v1
kind: LimitRange
metadata: {name: limits}
spec:
  limits:
  - type: Container
    default: {cpu: 500m, memory: 256Mi}
    defaultRequest: {cpu: 50m, memory: 64Mi}
    max: {memory: 512Mi}
    min: {cpu: 10m}
    maxLimitRequestRatio: {cpu: "10"}
"""


def test_a_limitrange_is_told_before_anything_is_made(
    cluster: Cluster, bed: Bed, tmp_path: Path
) -> None:
    bed.env["TESTBED_KUBE_NAMESPACE"] = "limited"
    cluster.kubectl("create", "namespace", "limited")
    try:
        cluster.kubectl("apply", "-n", "limited", "-f", "-", input=LIMITS)
        large = WIRED.replace("10.50.0.2}}", "10.50.0.2}, memory: 1G}")
        done = bed.run("up", write(tmp_path, large))
        assert done.returncode == 3, done
        assert "maximum memory usage per Container is 512Mi" in done.stderr
        assert left(cluster, "wired") == []
        said = bed.must("up", write(tmp_path, WIRED.replace("10.50.0.2}}", "10.50.0.2}, cpus: 1}")))
        assert "memory 256Mi by the namespace's defaults" in said.stdout
        assert bed.status("wired")["ok"]
        pods = cluster.get("pods", "-n", "limited", "-l", f"{LABEL}=wired")["items"]
        assert len(pods) == 4, "three nodes, and the janitor with other resources"
        bed.must("down", "wired")
        assert gone(cluster, "wired")
    finally:
        cluster.kubectl("delete", "namespace", "limited")


def as_user(cluster: Cluster, folder: Path, name: str, kubeconfig: Path) -> Bed:
    """A user with rights in a namespace of the same name alone."""
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("create", "serviceaccount", name, "-n", name)
    account = f"--serviceaccount={name}:{name}"
    cluster.kubectl("create", "rolebinding", name, "-n", name, "--clusterrole=admin", account)
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": cluster.kubectl("create", "token", name, "-n", name)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    made = Bed(folder / name)
    made.env |= {"KUBECONFIG": str(path), "TESTBED_KUBE_NAMESPACE": name}
    return made


def test_two_users_of_a_cluster_do_not_meet(
    cluster: Cluster, kubeconfig: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, WIRED)
    try:
        ann = as_user(cluster, tmp_path, "ann", kubeconfig)
        bob = as_user(cluster, tmp_path, "bob", kubeconfig)
        for user in (ann, bob):
            user.must("up", file)
        for user in (ann, bob):
            user.env["TESTBED_KUBE_CONTEXT"] = ""
            assert user.status("wired")["ok"]
            user.must("exec", "-l", "wired", "a", "ping", "-c1", "-W5", "10.50.0.3")
        intruder = Bed(tmp_path / "intruder")
        intruder.env |= {**bob.env, "TESTBED_KUBE_NAMESPACE": "ann"}
        assert json.loads(intruder.run("ls", "--json").stdout or "[]") == []
        intruder.run("down", "wired")
        assert intruder.run("up", file).returncode == 3
        bob.must("down", "--all")
        assert ann.status("wired")["ok"]
        assert {path.split("/")[0] for path in left(cluster, "wired")} == {"pod", "job.batch"}
        ann.must("down", "wired")
        assert gone(cluster, "wired")
    finally:
        for name in ("ann", "bob"):
            cluster.kubectl("delete", "namespace", name, "--ignore-not-found")
