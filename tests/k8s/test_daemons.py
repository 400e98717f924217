"""Each daemon of a cluster is killed, and stopped, and then commands are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import call, call_each
from labs import by_commands

from testbed.labs.lab import Lab
from testbed.settings import settings
from testbed.testing.provider import until

if TYPE_CHECKING:
    from testbed.nodes.base import Node

LAB = "k8s-two-node"
LINES = (
    "status", "status --json", "ls", "exec node1 true", "exec node1/web-1 true", "logs node1",
    "fault ls", f"kubeconfig {LAB} true",
)  # fmt: skip
VERIFY = "verify -q --claim k8s-pod-smallest-unit"  # its check makes a Pod
KUBECTL = f"kubectl {LAB} --request-timeout=5s get nodes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a cluster."""
    with by_commands(tmp_path_factory.mktemp("daemons"), LAB, LAB) as made:
        yield made


@pytest.fixture
def node(folder: Path) -> Node:
    """The node with the control plane."""
    return Lab(LAB, settings()).node("node1")


@pytest.mark.seconds(15)
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
@pytest.mark.parametrize("daemon", ["kube-apiserver", "etcd", "containerd", "kubelet"])
def test_no_command_fails_in_a_way_of_its_own(
    folder: Path, node: Node, daemon: str, signal: str
) -> None:
    pid = str(node.services()[daemon].pid)
    node.run(["kill", f"-{signal}", pid])
    if signal == "KILL":
        assert until(lambda: node.services()[daemon].state == "dead")
    try:
        said = call_each(folder, [*LINES, *([VERIFY] if daemon == "kube-apiserver" else [])])
        assert said["exec node1 true"].status == 0
        assert said["exec node1/web-1 true"].status == 4  # no container of an engine
        assert said["status"].status == 1
        # Upstream's program says in its own words that nobody answers.
        asked = call(folder, *KUBECTL.split())
        assert (asked.status != 0) == (daemon in {"kube-apiserver", "etcd"}), asked
    finally:
        node.run(["kill", "-CONT", pid], check=False)
        up = call(folder, "up", LAB, "-q")
        assert up.status == 0, up.err
