"""Each daemon of a lab is killed, and stopped, and then every command is called; terminals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from commands import Said, call, call_each
from labs import by_commands

from testbed.labs import live
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.base import Node
from testbed.roles.docker import glance
from testbed.settings import settings
from testbed.testing.provider import until
from testbed.testing.terminal import TerminalContract, User

LAB = "daemons"
CLAIM = "bridge-docker0-is-linux-bridge"  # its check asks the engine's API


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a lab with etcd, flannel, Docker and a container on each node."""
    with by_commands(tmp_path_factory.mktemp("daemons"), "two-node", LAB) as made:
        yield made


@pytest.fixture
def node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The node with all daemons; commands do not wait for one that hangs as long as they would."""
    monkeypatch.setattr(live, "PATIENCE", 2.0)
    monkeypatch.setattr(glance, "TIMEOUT", 2.0)
    return Lab(LAB, settings()).node("node1")


class TestContainerTerminal(TerminalContract):
    """In a container, whose /dev/pts is its own."""

    stty = "busybox stty"

    def attach(self, node: Node, argv: Sequence[str]) -> User:
        inside = LiveLab(Lab(LAB, settings()).context()).container("container-1")
        assert inside.node.name == node.name
        return User(lambda: inside.attach(argv, tty=True))

    def test_the_terminal_is_none_of_the_nodes(self, node: Node) -> None:
        count = ["sh", "-c", "ls /dev/pts"]
        before = node.run(count).stdout
        with self.attach(node, ["sh", "-c", "tty; read -r line"]) as user:
            user.see(b"/dev/pts/")
            assert node.run(count).stdout == before
            user.press(b"\r")
            assert user.end() == 0


def every_command(folder: Path) -> dict[str, Said]:
    """The output of each command on a lab other than `up` and `down`."""
    run = folder / "run.json"
    lines = (
        "status", "status --json", "ls", "ls --json", "exec node1 true",
        "exec node1/container-1 hostname", "exec node1/no-such true", "exec outside/no true",
        "shell node1", "shell node1/container-1", "logs node1", "logs node1 dockerd",
        "fault ls", "fault ls --json", f"kubectl {LAB} get pods", f"kubeconfig {LAB}",
        f"conformance {LAB}", "plan two-node", f"verify -q --json {run} --claim {CLAIM}",
        f"report {run} --html {folder / 'report.html'}",
    )  # fmt: skip
    said = call_each(folder, lines)
    # A container is there as long as its processes are, whatever has become of its daemon.
    inside = said["exec node1/container-1 hostname"]
    assert (inside.status, inside.out) == (0, "container-1\n"), inside.err
    assert said["shell node1/container-1"].status == 0
    assert said["exec node1/no-such true"].status == said["exec outside/no true"].status == 4
    assert json.loads(run.read_text())
    return said


def killed(node: Node, daemon: str) -> None:
    node.run(["pkill", "-KILL", "-x", daemon])
    known = node.services()
    assert until(lambda: daemon not in known or node.services()[daemon].state == "dead")


def stopped(node: Node, daemon: str) -> None:
    node.run(["pkill", "-STOP", "-x", daemon])


Breaks = Callable[[Node, str], None]


@pytest.mark.parametrize("broken", [killed, stopped])
@pytest.mark.parametrize("daemon", ["dockerd", "containerd", "etcd", "flanneld"])
def test_no_command_fails_in_a_way_of_its_own(
    folder: Path, node: Node, daemon: str, broken: Breaks
) -> None:
    broken(node, daemon)
    try:
        said = every_command(folder)
        services = {
            service["name"]: service["state"]
            for one in json.loads(said["status --json"].out)["nodes"]
            for service in one["services"]
            if one["name"] == "node1"
        }
        if daemon in services:
            state = "dead" if broken is killed else "stopped"
            assert (said["status"].status, services[daemon]) == (1, state)
        if daemon == "dockerd":
            assert said["status"].status == 1
            assert "dockerd on node1 does not answer" in said["status"].out
    finally:
        node.run(["pkill", "-CONT", "-x", daemon], check=False)
        up = call(folder, "up", "two-node", "--name", LAB, "-q")
        assert up.status == 0, up.err
    # A busy machine's daemon may take longer than the patience of this test.
    assert until(lambda: call(folder, "status").status == 0)
