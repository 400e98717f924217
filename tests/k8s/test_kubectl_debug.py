"""Machines that are the nodes of a cluster, which is a lab of ours.

Its nodes have namespaces of their own, and one kernel. The Pods on them are in those namespaces.
"""

from __future__ import annotations

import functools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crash.means import Bed

from k8s.conftest import gone
from testbed.nodes.kubectl_debug.provider import FOLDER
from testbed.nodes.kubernetes import NODE
from testbed.testing.provider import until
from testbed.topology import load

if TYPE_CHECKING:
    from k8s.conftest import Cluster

LAB = "machines"
LABEL = "testbed.lab"
SUITE = """\
import pytest

def test_looks(lab, host):
    assert host.check_output("hostname") in lab.topology.nodes

@pytest.mark.testbed_changes
def test_changes(lab):
    lab.node("node2").run(["touch", "/tmp/changed"])

def test_breaks(fault):
    raise AssertionError
"""
#: Prints processes, and files that a visit could leave.
LOOK = "ps -e -o args=; ls -d /dev/shm/.* /run/.* /tmp/.* /var/tmp/.* /root/.* /var/lib/testbed"
#: Those of a visit.
VISIT = re.compile(r"^/proc/\d+/fd/9|nsenter --target|sleep 999|/\.testbed-|^/var/lib/testbed")


class Machines:
    """The file that `attach` has written of the cluster, and a state folder to use it with."""

    def __init__(self, cluster: Cluster, bed: Bed, folder: Path) -> None:
        self.cluster = cluster
        self.bed = bed
        self.file = folder / "machines.yaml"
        self.suite = folder / "test_own.py"
        self.suite.write_text(SUITE)

    def visits(self, node: str) -> list[str]:
        """Return what a visit has left on a node: processes and files."""
        seen = self.cluster.on(node, "sh", "-c", f"{LOOK} 2> /dev/null; :")
        return [line for line in seen.splitlines() if VISIT.search(line)]

    def is_clean(self, node: str) -> bool:
        return not self.visits(node)

    def pods(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.cluster.get(
            "pods", "-A", "-l", f"{LABEL}={LAB},{NODE}"
        )["items"]
        return found


@pytest.fixture(scope="module")
def machines(
    cluster: Cluster, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    bed = Bed(folder / "state")
    made = Machines(cluster, bed, folder)
    said = bed.must("attach", str(kubeconfig), "-o", str(made.file), "--name", LAB).stderr
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    for node, address in (("node1", "10.168.0.2/24"), ("node2", "10.168.0.3/24")):
        for word in ("kernel", "containerd", "kubelet v1.", "CNI bridge", address):
            assert word in lines[node], said
    assert until(lambda: not left_of_all(cluster)), left_of_all(cluster)
    yield made
    bed.must("down", "--all")
    assert bed.leftovers() == []
    assert until(lambda: not left_of_all(cluster)), left_of_all(cluster)


def left_of_all(cluster: Cluster) -> list[str]:
    """Return what labs have in a cluster, which removes a namespace some time after its Pods."""
    return cluster.kubectl("get", "namespaces,pods,jobs", "-A", "-l", LABEL, "-o", "name").split()


@pytest.fixture
def up(machines: Machines) -> Machines:
    machines.bed.must("up", str(machines.file))
    return machines


def test_the_file_has_the_machines_of_the_cluster(machines: Machines, kubeconfig: Path) -> None:
    topology = load(machines.file)
    assert topology.provider == "kubectl-debug"
    assert [*topology.nodes] == ["node1", "node2"]
    assert topology.to_dict()["kubectl-debug"]["kubeconfig"] == str(kubeconfig)
    assert [*map(str, topology.nodes["node2"].addresses)] == ["10.168.0.3"]


def test_machines_are_looked_at_and_forgotten(machines: Machines) -> None:
    bed = machines.bed
    bed.must("up", str(machines.file))
    assert json.loads(bed.must("up", str(machines.file), "--json").stdout)["changed"] == []
    assert bed.status(LAB)["ok"]
    workers = {str(pod["spec"]["nodeName"]) for pod in machines.pods()}  # type: ignore[index]
    assert workers == {"node1", "node2"}
    for node in ("node1", "node2"):
        assert bed.must("exec", "-l", LAB, node, "hostname").stdout == f"{node}\n"
        own = machines.cluster.on(node, "readlink", "/proc/1/ns/mnt")
        assert bed.must("exec", "-l", LAB, node, "readlink", "/proc/self/ns/mnt").stdout == own
    drawn = bed.must("graph", LAB).stdout
    assert "10.168.0.3/24" in drawn
    assert "cni0" in drawn
    bed.must("walk", "-l", LAB, "node1", "10.168.0.3")
    bed.must("down", LAB)
    assert gone(machines.cluster, LAB)
    assert not (bed.state / FOLDER).exists()
    assert bed.run("status", LAB).returncode == 4
    for node in ("node1", "node2"):
        assert until(functools.partial(machines.is_clean, node)), machines.visits(node)


def test_packets_between_machines_are_captured(up: Machines) -> None:
    capture = up.bed.start("capture", "-l", LAB, "node2", "-c", "1", "-f", "icmp")
    ping = ["exec", "-l", LAB, "node1", "ping", "-c1", "-W1", "10.168.0.3"]
    try:
        assert until(lambda: up.bed.must(*ping) and capture.poll() is not None)
    finally:
        capture.kill()
        _, said = capture.communicate()
    assert capture.returncode == 0, said


def test_a_suite_of_ones_own_looks_and_changes_only_where_allowed(up: Machines) -> None:
    suite = str(up.suite)
    up.bed.must("verify", LAB, suite)
    assert up.cluster.on("node2", "ls", "/tmp").split().count("changed") == 0
    up.bed.must("verify", LAB, suite, "-k", "test_changes", "--allow-changes")
    up.cluster.on("node2", "rm", "/tmp/changed")


def test_changes_are_refused_by_name(up: Machines) -> None:
    for words in (("stop", "-l", LAB, "node1"), ("fault", "kill", "-l", LAB, "node1/kubelet")):
        said = up.bed.run(*words)
        assert said.returncode == 2, said
        assert LAB in said.stderr


def test_nothing_is_left_of_a_client_that_is_killed(up: Machines) -> None:
    client = up.bed.start("exec", "-l", LAB, "node2", "--", "sleep", "999")
    try:
        assert until(lambda: "sleep 999" in up.visits("node2"))
    finally:
        client.send_signal(signal.SIGKILL)
        client.communicate()
    assert until(lambda: up.is_clean("node2")), up.visits("node2")


def test_a_pod_that_was_deleted_is_created_again(up: Machines) -> None:
    up.bed.must("exec", "-l", LAB, "node1", "true")
    up.cluster.kubectl("delete", "pods", "-A", "-l", f"{LABEL}={LAB},{NODE}", "--wait=true")
    assert up.pods() == []
    assert up.bed.must("exec", "-l", LAB, "node1", "hostname").stdout == "node1\n"
    assert len(up.pods()) == 1
    assert up.bed.status(LAB)["ok"]


def test_podsecurity_refuses_before_anything_is_made(
    machines: Machines, kubeconfig: Path, tmp_path: Path
) -> None:
    cluster, label = machines.cluster, "pod-security.kubernetes.io/enforce"
    cluster.kubectl("create", "namespace", "strict")
    cluster.kubectl("label", "namespace", "strict", f"{label}=restricted")
    bed = Bed(tmp_path / "state", {"TESTBED_KUBE_NAMESPACE": "strict"})
    try:
        done = bed.run("attach", str(kubeconfig))
        assert done.returncode == 3, done
        assert f"kubectl label namespace strict {label}=privileged" in done.stderr
        assert cluster.kubectl("get", "pods,jobs", "-n", "strict", "-o", "name") == ""
        assert bed.labs() == []
    finally:
        cluster.kubectl("delete", "namespace", "strict")
