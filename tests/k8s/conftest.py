"""One cluster for all tests of a file; each leaves it as it was."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crash.means import SECONDS, TESTBED, Bed, Watch

from testbed.artifacts import Store
from testbed.artifacts.inventory import NODE_IMAGE
from testbed.artifacts.node_image import IMAGE, PART
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.kubernetes import LAB as LABEL
from testbed.settings import settings
from testbed.testing.provider import until

LAB = "k8s-two-node"
CTR = ["ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "images", "import"]
#: A Pod on each node, behind one Service, and a Pod that asks.
PODS = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: nginx, imagePullPolicy: IfNotPresent}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, labels: {app: web}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: nginx, imagePullPolicy: IfNotPresent}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: nginx, imagePullPolicy: IfNotPresent}]
"""


@dataclass
class Cluster:
    """A lab with Kubernetes, and ways to ask it."""

    bed: Bed
    lab: str = LAB

    def kubectl(self, *words: str, input: str = "") -> str:
        done = subprocess.run(
            [*TESTBED, "kubectl", self.lab, "--", *words],
            env=self.bed.environment(), input=input, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def address(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"]["podIP"])

    def fetch(self, pod: str, url: str) -> Any:
        """Return a Pod's answer: the server's name, and the client that it saw."""
        return json.loads(self.kubectl("exec", pod, "--", "curl", "-s", "-m", "5", url))

    @contextlib.contextmanager
    def live(self) -> Iterator[LiveLab]:
        with LiveLab(Lab(self.lab, settings(state_folder=self.bed.state)).context()) as lab:
            yield lab

    def on(self, node: str, *argv: str) -> str:
        return self.bed.must("exec", "-l", self.lab, node, "--", *argv).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("k8s")
    watch, bed = Watch(folder), Bed(folder / "state")
    try:
        bed.must("up", LAB, "-q")
        made = Cluster(bed)
        made.kubectl("apply", "-f", "-", input=PODS)
        made.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
        yield made
    finally:
        bed.must("down", "--all")
    assert bed.leftovers() == []
    watch.check()


@contextlib.contextmanager
def reached(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """The kubeconfig of a cluster, whose API is at a port of this machine.

    Its nodes have the image of nodes that are Pods.
    """
    archive = Store().keep(PART, NODE_IMAGE) / IMAGE
    with cluster.live() as lab:
        for node in lab.topology.with_role("kubernetes"):
            with archive.open("rb") as file:
                assert lab.node(node.name).pipe([*CTR, "-"], stdin=file.fileno()) == 0
    path = folder / "config"
    argv = [*TESTBED, "kubeconfig", cluster.lab, "-o", str(path)]
    serving = subprocess.Popen(argv, env=cluster.bed.environment(), stderr=subprocess.PIPE)
    assert serving.stderr
    assert str(path).encode() in serving.stderr.readline()
    try:
        yield path
    finally:
        serving.terminate()
        serving.communicate()


@pytest.fixture(scope="module")
def kubeconfig(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with reached(cluster, tmp_path_factory.mktemp("kubeconfig")) as path:
        yield path


def left(cluster: Cluster, lab: str) -> list[str]:
    """Objects of a lab of Pods in a cluster."""
    kinds = "namespaces,pods,jobs,roles,rolebindings,serviceaccounts"
    argv = ["get", kinds, "-A", "-l", f"{LABEL}={lab}", "-o", "name"]
    return cluster.kubectl(*argv).split()


def gone(cluster: Cluster, lab: str) -> bool:
    """Wait until a cluster has nothing of a lab of Pods."""
    return until(lambda: not left(cluster, lab), 120)
