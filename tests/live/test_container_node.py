"""Nodes that are containers, entered by their process, on a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.artifacts import Store
from testbed.errors import LabError, NodeNotRunning
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.base import Service
from testbed.nodes.inside import Process
from testbed.nodes.stream.container import ContainerNode
from testbed.settings import settings
from testbed.testing.provider import until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.netns.node import NetnsNode

LAB = "engines"
TEXT = """
name: engines
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {host: {networks: {lan: 10.168.0.2}, roles: [docker]}}
docker: {engine: "29"}
containers:
  web: {node: host}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        lab = Lab(LAB, settings())
        try:
            lab.up(load_text(TEXT, "engines.yaml"))
            found = LiveLab(lab.context())
            yield found
            found.close()
        finally:
            lab.down()


def host_of(live: LiveLab) -> NetnsNode:
    found: NetnsNode = live.node("host")  # type: ignore[assignment]  # of this provider
    return found


def node_of(live: LiveLab, container: str, folder: Path) -> ContainerNode:
    """The node that a container of the host is."""
    host, store = host_of(live), Store()
    about = live.engine("host").api.inspect_container(container)
    pid = about["State"]["Pid"]
    return ContainerNode(
        "node1",
        "digest-1",
        lab=LAB,
        pid=pid,
        start=host.duplex,
        agent=lambda: host.provide(store.binary("testbed-agent")),
        alive=Process(host.init.pid, pid).alive,
        init=lambda: store.binary("testbed-init"),
        folder=folder,
        env=dict(word.split("=", 1) for word in about["Config"]["Env"]),
    )


@pytest.fixture(scope="module")
def web(live: LiveLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerNode]:
    """A container of an image that knows nothing of us, and is not privileged."""
    made = node_of(live, "web", tmp_path_factory.mktemp("sockets"))
    yield made
    made.close()


class TestTerminal(TerminalContract):
    stty = "busybox stty"

    @pytest.fixture
    def node(self, web: ContainerNode) -> Node:
        return web


def test_it_is_in_the_container_and_its_cgroup(live: LiveLab, web: ContainerNode) -> None:
    web.run(["mkdir", "/run/mine"])
    place = f"/proc/{web.pid}/root/run/mine"
    assert host_of(live).run(["test", "-d", place]).ok
    assert web.get("/proc/self/cgroup") == web.get("/proc/1/cgroup")
    assert web.run(["ip", "-br", "link", "show", "eth0"]).stdout.startswith("eth0@")
    assert web.run(["sh", "-c", "echo $NAME"]).stdout == "web\n"  # of the container's own


def test_services_beside_another_first_process(web: ContainerNode) -> None:
    assert web.services() == {}
    web.stop("none")
    web.start(Service("one", ("sh", "-c", "echo begun; exec sleep 300"), digest="d"))
    web.close()  # services outlive whoever started them
    state = web.services()["one"]
    assert (state.state, state.digest) == ("ready", "d")
    assert until(lambda: web.logs("one") == "begun\n")
    assert web.host.service("one").is_running
    assert web.run(["systemctl", "is-active", "one"]).stdout == "active\n"
    keeper = web.run(["sh", "-c", f"ps -o ppid= -p {state.pid}"]).stdout.strip()
    web.run(["kill", "-9", keeper])  # another one is started by the next service
    assert until(lambda: web.services() == {})
    web.start(Service("two", ("sleep", "300")))
    assert list(web.services()) == ["two"]
    web.stop("two")
    web.run(["kill", "-9", str(state.pid)])


def test_a_file_that_the_engine_mounts_is_written_in_place(web: ContainerNode) -> None:
    text = web.get("/etc/hosts")
    web.put(text + b"10.0.0.9 nine\n", "/etc/hosts")
    assert web.get("/etc/hosts") == text + b"10.0.0.9 nine\n"
    web.put(text, "/etc/hosts")
    assert web.get("/etc/hosts") == text
    assert b"testbed" not in web.run(["ls", "/etc"]).out


def test_what_runs_ends_with_its_caller(live: LiveLab, web: ContainerNode, tmp_path: Path) -> None:
    other = node_of(live, "web", tmp_path)
    running = other.spawn(["sleep", "7117"])
    place = f"/proc/{running.pid}/cmdline"
    assert b"7117" in web.get(place)
    other.close()
    with pytest.raises(LabError):
        running.wait(60)

    def gone() -> bool:
        try:
            return b"7117" not in web.get(place)
        except FileNotFoundError:
            return True

    assert until(gone)


def test_a_container_that_has_ended_says_so(live: LiveLab, tmp_path: Path) -> None:
    engine = live.engine("host").api
    made = engine.create_container("nginx", command=["sleep", "600"], name="brief")
    engine.start(made)
    brief = node_of(live, "brief", tmp_path)
    with brief.spawn(["sleep", "600"]) as running:
        engine.kill("brief")
        with pytest.raises(NodeNotRunning):
            running.wait(60)
    with pytest.raises(NodeNotRunning):
        brief.run(["true"])
    engine.remove_container("brief")
    brief.close()
