"""Comparison of a running lab with its topology, and the fast query of containers."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from testbed.errors import LabError, MachineError, NoAnswer, NoSuchNode
from testbed.labs.status import NodeStatus, Status, status
from testbed.nodes.base import Service
from testbed.nodes.fake import FakeNode, FakeProvider
from testbed.nodes.wiring import Difference
from testbed.registry import ROLES
from testbed.roles.docker import glance
from testbed.roles.docker.glance import Glance
from testbed.roles.part import Part
from testbed.steps.context import Context
from testbed.testing.fakes import FakeStore, be_a_machine
from testbed.testing.provider import spec
from testbed.topology import load

Found = dict[str, Glance] | Exception


# -- glance: a dockerd that says what it is told to ----------------------------------


@contextlib.contextmanager
def daemon(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answers one connection with these octets; gives what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(60)

        def work() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield asked
        finally:
            thread.join(60)
            assert not thread.is_alive()


def answer(body: Any, head: str = "200 OK") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.fixture
def node() -> FakeNode:
    return FakeProvider().create_one("lab", spec("node1"))


@pytest.fixture
def dockerd(tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the node's socket, relative since it must be short."""
    monkeypatch.chdir(tmp_path)

    def where(path: str) -> str:
        assert path == "/run/docker.sock"
        return "docker.sock"

    monkeypatch.setattr(node, "socket", where)
    return Path("docker.sock")


def entry(name: str, state: str = "running", **networks: Any) -> dict[str, Any]:
    return {"Names": [f"/{name}"], "State": state, "NetworkSettings": {"Networks": networks}}


def test_containers(node: FakeNode, dockerd: Path) -> None:
    listed = [
        entry("web", bridge={"IPAddress": "172.17.0.2"}),
        entry("shares", "exited"),
        entry("host", host={"IPAddress": ""}),
        entry("two", a={"IPAddress": "172.18.0.2"}, b={"IPAddress": "172.19.0.2"}),
        {"Names": ["/bare"], "State": "created"},
        {"Names": ["/null"], "State": "dead", "NetworkSettings": None},
        {"Names": ["/none"], "State": "dead", "NetworkSettings": {"Networks": None}},
        {"Names": ["/empty"], "State": "paused", "NetworkSettings": {"Networks": {"x": {}}}},
    ]
    with daemon(dockerd, answer(listed)) as asked:
        found = glance.containers(node)
    assert asked[0].startswith(b"GET /containers/json?all=1 HTTP/1.1\r\n")
    assert found == {
        g.name: g
        for g in (
            Glance("web", "running", "172.17.0.2", networks={"bridge": ("172.17.0.2", "")}),
            Glance("shares", "exited", ""),
            Glance("host", "running", "", networks={"host": ("", "")}),
            Glance(
                "two",
                "running",
                "172.18.0.2",
                networks={"a": ("172.18.0.2", ""), "b": ("172.19.0.2", "")},
            ),
            Glance("bare", "created", ""),
            Glance("null", "dead", ""),
            Glance("none", "dead", ""),
            Glance("empty", "paused", "", networks={"x": ("", "")}),
        )
    }


def test_no_containers(node: FakeNode, dockerd: Path) -> None:
    with daemon(dockerd, answer([])):
        assert glance.containers(node) == {}


@pytest.mark.parametrize("no_names", [None, []])
def test_a_container_that_is_being_removed_has_no_name(
    node: FakeNode, dockerd: Path, no_names: list[str] | None
) -> None:
    with daemon(dockerd, answer([{"Names": no_names, "State": "removing"}, entry("web")])):
        assert list(glance.containers(node)) == ["web"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answer({"message": "starting"}, "500 Internal Server Error"), "answers 500: .*starting"),
        (answer(b"not JSON at all", "500 No"), "answers 500: not JSON at all"),
        (answer(b"\xff\xfe", "503 No"), "answers 503"),
        (answer(b"", "404 Not Found"), "answers 404"),
        (answer(b"[{"), "cannot list containers: .*Expecting"),
        (answer(b"\xff"), "cannot list containers"),
        (answer({"message": "what?"}), "cannot list containers"),
        (answer(None), "cannot list containers"),
        (answer([{"Id": "x"}]), "cannot list containers: .*KeyError.*Names"),
        (answer([{"Names": ["/x"]}]), "cannot list containers: .*KeyError.*State"),
        (answer([{"Names": [7], "State": "running"}]), "cannot list containers"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", "does not answer"),  # cut short
        (b"", "does not answer"),
    ],
)
def test_a_daemon_that_talks_nonsense_is_a_lab_error(
    node: FakeNode, dockerd: Path, said: bytes, words: str
) -> None:
    with daemon(dockerd, said), pytest.raises(LabError, match=rf"^dockerd on node1:? {words}"):
        glance.containers(node)


def test_no_socket_at_all(node: FakeNode, dockerd: Path) -> None:
    with pytest.raises(NoAnswer, match="not running") as caught:
        glance.containers(node)
    assert (caught.value.daemon, caught.value.node) == ("dockerd", "node1")


def test_nobody_listens(node: FakeNode, dockerd: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dockerd))
        with pytest.raises(NoAnswer, match="not running"):
            glance.containers(node)


def test_a_daemon_that_is_silent_is_not_waited_for_forever(
    node: FakeNode, dockerd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dockerd))
        server.listen()
        with pytest.raises(NoAnswer, match="hangs"):
            glance.containers(node)


def test_a_path_that_is_too_long_for_a_socket(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "socket", lambda _: "/nowhere/" * 20)
    with pytest.raises(LabError, match="does not answer"):
        glance.containers(node)


def test_without_a_free_descriptor_the_daemon_is_not_blamed(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("testbed.nodes.unix_http.socket.socket", refuse)
    with pytest.raises(MachineError, match="open files"):
        glance.containers(node)


# -- status ---------------------------------------------------------------------------

SERVICES = {
    "node1": ("etcd", "containerd", "dockerd", "flanneld"),
    "node2": ("containerd", "dockerd", "flanneld"),
    "outside": (),
}


class Two:
    """The shipped two-node, all of it running on fake nodes."""

    def __init__(self) -> None:
        self.provider = FakeProvider()
        self.topology = load("two-node")
        for name, services in SERVICES.items():
            made = self.provider.create_one("two-node", spec(name))
            self.provider.connect("two-node", self.topology, made)
            for service in services:
                made.start(Service(service, (service,), notify=True))
        self.found: dict[str, Found] = {
            "node1": {"container-1": Glance("container-1", "running", "100.96.1.2")},
            "node2": {"container-2": Glance("container-2", "running", "100.96.2.2")},
        }

    def node(self, name: str) -> FakeNode:
        return self.provider.machine.nodes["two-node", name]

    def status(self) -> Status:
        nodes = self.provider.nodes("two-node")
        return status(Context(self.topology, self.provider, FakeStore(), nodes))

    def of(self, name: str) -> NodeStatus:
        (found,) = (node for node in self.status().nodes if node.name == name)
        return found

    def containers(self, node: FakeNode) -> dict[str, Glance]:
        found = self.found[node.name]
        if isinstance(found, Exception):
            raise found
        return dict(found)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Two:
    made = Two()
    monkeypatch.setattr(glance, "containers", made.containers)
    return made


def test_a_lab_that_is_whole(two: Two) -> None:
    found = two.status()
    assert found.ok
    assert [node.name for node in found.nodes] == ["node1", "node2", "outside"]
    node1, _, outside = found.nodes
    assert (node1.state, node1.addresses) == ("up", ["10.168.0.2"])
    pids = {name: state.pid for name, state in two.node("node1").services().items()}
    # In the order of the node's roles.
    assert node1.services == [
        Part(name, "ready", ok=True, detail=f"pid {pids[name]}") for name in SERVICES["node1"]
    ]
    assert node1.containers == [Part("container-1", "running", ok=True, detail="100.96.1.2")]
    assert (outside.services, outside.containers, outside.ok) == ([], [], True)


@pytest.mark.parametrize(("letter", "state"), [("T", "stopped"), ("S", "ready"), ("Z", "ready")])
def test_a_service_that_is_stopped(two: Two, letter: str, state: str) -> None:
    node1 = two.node("node1")
    pid = node1.services()["etcd"].pid
    node1.put(f"{pid} (a ) T b) {letter} 1 1".encode(), f"/proc/{pid}/stat")
    found = two.of("node1").services[0]
    assert (found.name, found.state, found.ok) == ("etcd", state, state == "ready")
    assert two.status().ok == found.ok


def test_as_data(two: Two) -> None:
    two.node("node2").end("dockerd", 1)
    found = json.loads(json.dumps(two.status().to_dict()))
    assert (found["lab"], found["ok"]) == ("two-node", False)
    assert [node["ok"] for node in found["nodes"]] == [True, False, True]
    assert found["nodes"][1]["services"][1] == {
        "name": "dockerd",
        "state": "dead",
        "ok": False,
        "detail": "exit status 1",
    }


def test_a_node_that_does_not_run(two: Two) -> None:
    two.provider.destroy("two-node", ["node2"])
    assert two.of("node2") == NodeStatus("node2", "missing", provider="netns")
    assert not two.of("node2").ok
    assert not two.status().ok
    assert two.of("node1").ok


def test_a_stopped_node_is_not_queried(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = two.provider.nodes("two-node")
    monkeypatch.setattr("testbed.labs.status._node", lambda _, name, *__: NodeStatus(name, "up"))
    context = Context(two.topology, two.provider, FakeStore(), nodes)
    found = {node.name: node for node in status(context, {"node2", "node9"}).nodes}
    assert found["node2"] == NodeStatus("node2", "stopped", provider="netns")
    assert {name: node.state for name, node in found.items() if name != "node2"} == {
        "node1": "up",
        "outside": "up",
    }


def test_a_difference_of_a_role_is_a_part_that_is_not_ok(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [Difference("address", "bridge docker0", "missing")]
    role = type(ROLES["docker"])
    monkeypatch.setattr(
        role, "differences", lambda _, __, node: gone if node.name == "node2" else []
    )
    parts = [part for part in two.of("node2").links if part.name == "bridge docker0"]
    assert parts == [Part("bridge docker0", "missing", ok=False)]
    assert parts[0].ok is False
    assert not two.of("node2").ok
    assert two.of("node1").ok


def test_a_node_that_nobody_asked_for(two: Two) -> None:
    two.provider.create_one("two-node", spec("node3")).start(Service("sshd", ("sshd",)))
    found = two.status()
    assert found.nodes[-1] == NodeStatus("node3", "stranger")
    assert not found.ok


def test_a_node_that_ends_while_we_look(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise NoSuchNode("node2 has ended")

    monkeypatch.setattr(two.node("node2"), "services", gone)
    assert two.of("node2").state == "missing"


def test_a_lab_without_nodes_is_not_ok() -> None:
    assert not Status("lab", []).ok


@pytest.mark.parametrize(
    ("ending", "words"), [(0, "exit status 0"), (1, "exit status 1"), (-9, "signal 9")]
)
def test_a_service_that_has_ended_says_how(two: Two, ending: int, words: str) -> None:
    two.node("node1").end("flanneld", ending)
    service = two.of("node1").services[-1]
    assert service == Part("flanneld", "dead", ok=False, detail=words)


#: As the kernel prints them (cgroup-v2.rst, memory.events; cgroup-v1/memory.rst, oom_control).
KILLS = {
    "/sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 8\noom 3\noom_kill 2\n",
    "/sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}


@pytest.mark.parametrize("path", KILLS)
def test_a_service_that_memory_ran_out_for(
    two: Two, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = two.node("node1")
    be_a_machine(monkeypatch, False)
    node.put(KILLS[path].encode(), path)
    node.end("flanneld", -9)
    detail = "signal 9; the kernel has killed 2 processes of node1 (out of memory)"
    assert two.of("node1").services[-1].detail == detail
    node.end("etcd", -15)
    assert "memory" not in two.of("node1").services[0].detail


def test_a_service_that_was_never_started(two: Two) -> None:
    two.node("node2")._services.pop("flanneld")
    assert two.of("node2").services[-1] == Part("flanneld", "missing", ok=False)


def test_a_service_of_nobodys_is_shown_after_the_others(two: Two) -> None:
    two.node("outside").start(Service("other", ("other",)))
    (other,) = two.of("outside").services
    assert (other.name, other.state, other.ok) == ("other", "ready", True)
    two.node("outside").end("other", 1)
    assert not two.of("outside").ok


def test_a_container_that_is_missing(two: Two) -> None:
    two.found["node1"] = {}
    assert two.of("node1").containers == [Part("container-1", "missing", ok=False)]
    assert not two.status().ok


@pytest.mark.parametrize("state", ["created", "paused", "restarting", "dead"])
def test_a_container_that_does_not_run(two: Two, state: str) -> None:
    two.found["node1"] = {"container-1": Glance("container-1", state, "")}
    # Without an address of its own, its network is told.
    wanted = Part("container-1", state, ok=False, detail="bridge")
    assert two.of("node1").containers == [wanted]


@pytest.mark.parametrize(
    ("status", "health", "exit_status"),
    [
        ("Up 2 minutes", "", None),
        ("Up 2 minutes (healthy)", "healthy", None),
        ("Up 2 minutes (unhealthy)", "unhealthy", None),
        ("Up Less than a second (health: starting)", "starting", None),
        ("Up 2 minutes (Paused)", "", None),
        ("Exited (137) 5 seconds ago", "", 137),
        ("Exited (0) About a minute ago", "", 0),
        ("Restarting (3) 1 second ago", "", None),
        ("Created", "", None),
        ("", "", None),
    ],
)
def test_what_the_daemon_says_of_a_container(
    node: FakeNode, dockerd: Path, status: str, health: str, exit_status: int | None
) -> None:
    with daemon(dockerd, answer([{**entry("web"), "Status": status}])):
        (seen,) = glance.containers(node).values()
    assert (seen.health, seen.exit) == (health, exit_status)


def test_a_container_that_has_ended_says_how(two: Two) -> None:
    two.found["node1"] = {"container-1": Glance("container-1", "exited", "", 3)}
    assert two.of("node1").containers == [
        Part("container-1", "exited", ok=False, detail="exit status 3")
    ]


@pytest.mark.parametrize(
    ("seen", "ok"),
    [
        (Glance("container-1", "exited", "", 3), True),
        (Glance("container-1", "exited", "", 0), False),
        (Glance("container-1", "running", "100.96.1.2"), False),
    ],
)
def test_a_container_that_is_expected_to_end(two: Two, seen: Glance, ok: bool) -> None:
    containers = dict(two.topology.containers)
    containers["container-1"] = dataclasses.replace(containers["container-1"], expect=3)
    two.topology = dataclasses.replace(two.topology, containers=containers)
    two.found["node1"] = {"container-1": seen}
    (part,) = two.of("node1").containers
    assert (part.state, part.ok) == (seen.state, ok)


@pytest.mark.parametrize(("health", "ok"), [("healthy", True), ("unhealthy", False)])
def test_a_container_with_a_health_check(two: Two, health: str, ok: bool) -> None:
    two.found["node1"] = {"container-1": Glance("container-1", "running", "1.2.3.4", None, health)}
    (part,) = two.of("node1").containers
    assert (part.name, part.state, part.ok) == ("container-1", "running" if ok else health, ok)


def test_containers_of_the_users_are_welcome_in_any_state(two: Two) -> None:
    there = two.found["node1"]
    assert isinstance(there, dict)
    there["mine"] = Glance("mine", "exited", "")
    node = two.of("node1")
    assert [part.name for part in node.containers] == ["container-1", "mine"]
    assert node.containers[1].ok
    assert node.ok


def test_a_daemon_that_does_not_answer_leaves_containers_unknown(two: Two) -> None:
    two.found["node1"] = LabError("dockerd on node1 does not answer: refused")
    node = two.of("node1")
    (part,) = node.containers
    assert (part.state, part.ok) == ("unknown", False)
    assert part.detail == "dockerd on node1 does not answer: refused"
    assert node.state == "up"
    assert not node.ok


def test_nodes_are_looked_at_all_at_once(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=60)

    def containers(node: FakeNode) -> dict[str, Glance]:
        meeting.wait()  # breaks unless both are here
        return two.containers(node)

    monkeypatch.setattr(glance, "containers", containers)
    assert two.status().ok


Change = Callable[[Two], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda two: two.node("node1").end("etcd", 0),
        lambda two: two.provider.destroy("two-node", ["outside"]),
        lambda two: two.found.update(node2={}),
    ],
)
def test_whatever_is_not_as_asked_for_makes_the_lab_not_ok(two: Two, change: Change) -> None:
    assert two.status().ok
    change(two)
    assert not two.status().ok
