"""Any answer of an engine, or none, ends in an error of the tool, never another one."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.errors import LabError, NoAnswer, NoSuchContainer
from testbed.labs import live
from testbed.labs.live import LiveLab
from testbed.nodes.base import NodeSpec
from testbed.nodes.engine import CONFIG
from testbed.nodes.fake import Answer, FakeProvider
from testbed.roles.docker import daemon as dockerd
from testbed.roles.docker import drawn, processes
from testbed.roles.docker.engine import PATIENCE, Engine
from testbed.topology import Topology, load, load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context


def http(body: bytes, status: str = "200 OK", *, missing: int = 0) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) + missing}\r\n\r\n".encode() + body


VERSION = http(b'{"ApiVersion": "1.41", "Version": "20.10.24"}')
NONSENSE = {
    "nothing": b"",
    "not HTTP": b"220 mail.example ESMTP\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "a page": http(b"<html>It works!</html>"),
    "a cut body": http(b'[{"Names"', missing=100),
    "no UTF-8": http(b"\xff\xfe"),
    "deep": http(b"[" * 100_000),
    "null": http(b"null"),
    "a number": http(b"7"),
    "a text": http(b'"text"'),
    "an object": http(b"{}"),
    "a list": http(b"[]"),
    "odd entries": http(b'[7, null, {"Names": 7}, {"Names": null}, {"Names": [7]}]'),
    "odd fields": http(b'{"Id": 7, "Name": 7, "State": [], "NetworkSettings": 3, "ApiVersion": 1}'),
    "half a container": http(b'{"Id": "1", "Name": "/c", "State": {}, "NetworkSettings": {}}'),
    "an error": http(b'{"message": "it is on fire"}', "500 Internal Server Error"),
    "an odd error": http(b"[1]", "500 Internal Server Error"),
    "a page of errors": http(b"<html>", "502 Bad Gateway"),
    "not there": http(b'{"message": "no such container"}', "404 Not Found"),
    "a redirect": http(b"", "301 Moved\r\nLocation: http://localhost/elsewhere"),
}


class Daemon:
    """Answers each request with the next of some texts, and the last one for ever."""

    def __init__(self, path: Path, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if answer is None:  # it hangs
                continue
            with contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._open:
            connection.close()


Listen = Callable[..., "Node"]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """A node with a daemon that answers so."""
    path, made = tmp_path / "docker.sock", []

    def node(*answers: bytes | None) -> Node:
        if answers:
            made.append(Daemon(path, *answers))
        return cast("Node", SimpleNamespace(name="node1", socket=lambda _: str(path)))

    yield node
    for daemon in made:
        daemon.close()


ASKED: dict[str, Callable[[Engine], Any]] = {
    "version": lambda engine: engine.version["Version"],
    "has_image": lambda engine: engine.has_image("nginx"),
    "names": lambda engine: engine.names(label="a=b"),
    "containers": lambda engine: engine.containers(),
    "find": lambda engine: engine.find("c"),
    "inspect": lambda engine: engine.inspect("c"),
    "inspect_raw": lambda engine: engine.inspect_raw("c"),
    "logs": lambda engine: engine.logs("c"),
    "remove": lambda engine: engine.remove("c"),
    "start": lambda engine: engine.start("lab", load("docker-single").containers["web"], "-"),
    "load": lambda engine: engine.load(Path("/dev/null"), "nginx"),
}


def ask(listen: Listen, *answers: bytes | None, patience: float = 20.0) -> Engine:
    return Engine(listen(*answers), patience=patience, limit=patience)


@pytest.mark.parametrize("name", NONSENSE)
def test_a_first_answer_that_makes_no_sense(listen: Listen, name: str) -> None:
    with pytest.raises(LabError, match="dockerd on node1") as caught:
        ask(listen, NONSENSE[name])
    assert type(caught.value) is NoAnswer
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("asked", ASKED)
def test_any_answer_that_makes_no_sense(listen: Listen, name: str, asked: str) -> None:
    engine = ask(listen, VERSION, NONSENSE[name])
    with engine, contextlib.suppress(LabError):
        ASKED[asked](engine)


LISTED = http(b'[{"Names": ["/c"], "State": "running", "Status": "Up"}]')


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize("before", [(), (LISTED,)])
def test_containers_of_a_picture_that_make_no_sense(
    listen: Listen, before: tuple[bytes, ...], name: str
) -> None:
    with contextlib.suppress(LabError):
        drawn.containers(listen(*before, NONSENSE[name]))


def test_a_container_that_is_removed_while_a_picture_is_made(listen: Listen) -> None:
    assert drawn.containers(listen(LISTED, http(b"{}", "404 Not Found"))) == []


def test_a_daemon_that_is_not_there(listen: Listen, tmp_path: Path) -> None:
    node = listen()
    with socket.socket(socket.AF_UNIX) as left:
        for _ in range(2):
            with pytest.raises(LabError, match="not running") as caught:
                Engine(node)
            assert "logs node1 dockerd" in str(caught.value.hint)
            with contextlib.suppress(OSError):
                left.bind(str(tmp_path / "docker.sock"))  # nobody listens there


def test_a_daemon_that_hangs(listen: Listen) -> None:
    with pytest.raises(LabError, match="hangs") as caught:
        Engine(listen(None), patience=0.05)
    assert "fault heal" in str(caught.value.hint)


def test_a_daemon_that_hangs_later(listen: Listen) -> None:
    engine = ask(listen, VERSION, None)
    engine.api.timeout = 0.05
    for asked in ASKED.values():
        with pytest.raises(LabError, match="hangs"):
            asked(engine)
    engine.close()


def test_of_one_that_does_not_answer_no_check_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def never(_: object, *, patience: float, limit: float) -> Engine:
        waited.append(patience)
        raise LabError("hangs")

    monkeypatch.setattr(live, "Engine", never)
    lab = LiveLab(cast("Context", SimpleNamespace(node=lambda name: name, give_env=lambda: None)))
    for _ in range(3):
        with pytest.raises(LabError, match="hangs"):
            lab.engine("node1")
    assert waited == [PATIENCE, live.AGAIN, live.AGAIN]
    lab.close()  # what was broken has been put right
    with pytest.raises(LabError, match="hangs"):
        lab.engine("node1")
    assert waited[-1] == PATIENCE


@pytest.mark.parametrize("text", [None, b"", b"{", b"7", b"\xff"])
def test_a_daemon_json_that_cannot_be_read(text: bytes | None) -> None:
    node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    if text is not None:
        node.put(text, CONFIG)
    with pytest.raises(LabError, match="node1"):
        dockerd.told(node)


# -- containers by their processes ------------------------------------------------------

PLAIN = """
name: plain
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [docker]}
  b: {networks: {lan: 10.168.0.3}, roles: [docker]}
  c: {networks: {lan: 10.168.0.4}}
containers:
  web: {node: a, image: nginx}
  dead: {node: a, image: nginx}
"""
WEB, OTHER = "ab" * 32, "cd" * 32


def written(name: str, identity: str, pid: int, address: str = "") -> bytes:
    networks = {"bridge": {"IPAddress": address}}
    return json.dumps(
        {
            "Name": f"/{name}", "ID": identity, "State": {"Running": True, "Pid": pid},
            "NetworkSettings": {"Networks": networks},
        }
    ).encode()  # fmt: skip


@pytest.fixture
def lab() -> LiveLab:
    """One whose daemons are all dead, with the containers that they have left."""
    provider = FakeProvider()
    topology = load_text(PLAIN, "plain.yaml")
    nodes = {name: provider.create_one("plain", NodeSpec(name, "-")) for name in topology.nodes}
    files = [
        written("web", WEB, 77, "172.17.0.2"), written("dead", OTHER, 78),
        written("gone", "ef" * 32, 79), written("ended", "01" * 32, 0), *NONSENSE.values(), b"",
    ]  # fmt: skip
    provider.script(list(processes.LIST), Answer(1, err=b"No such file or directory"))
    provider.script(list(processes.LIST), Answer(out=b"\0".join(files)), node="a")
    nodes["a"].put(f"4:pids:/docker/{WEB}\n".encode(), "/proc/77/cgroup")
    nodes["a"].put(b"4:pids:/elsewhere\n", "/proc/78/cgroup")  # the number is another's now
    context = SimpleNamespace(
        give_env=lambda: None,
        lab="plain", topology=topology, nodes=nodes, node=nodes.__getitem__
    )  # fmt: skip
    return LiveLab(cast("Context", context))


def test_a_container_is_found_by_its_process(lab: LiveLab) -> None:
    for place in (lab.container("web"), lab.container("web", node="a"),
                  lab.container(WEB, node="a"), lab.container(WEB[:12], node="a")):  # fmt: skip
        assert (place.name, place.pid, place.address) == ("web", 77, "172.17.0.2")
        assert place.state.id == WEB


@pytest.mark.parametrize(
    ("node", "name", "hint"),
    [
        ("a", "dead", "testbed up -l plain"),
        ("a", "gone", "web"),
        ("a", "ended", "web"),
        ("a", WEB[:3], "web"),
        ("b", "web", "a/web"),
        ("b", "other", "no container"),
        ("c", "web", "a/web"),
        ("c", "other", "a, b"),
    ],
)
def test_one_that_does_not_run_is_told_with_a_way_on(
    lab: LiveLab, node: str, name: str, hint: str
) -> None:
    with pytest.raises(NoSuchContainer, match=node) as caught:
        lab.container(name, node=node)
    assert caught.value.name == name
    assert hint in str(caught.value.hint)


def test_an_unknown_one_without_a_node(lab: LiveLab) -> None:
    with pytest.raises(NoSuchContainer) as caught:
        lab.container("nope")
    assert (caught.value.name, caught.value.known) == ("nope", ("web", "dead"))


def test_a_pod_is_entered_by_kubectl() -> None:
    topology: Topology = load("k8s-two-node")
    provider = FakeProvider()
    provider.script(list(processes.LIST), Answer(1))
    node = provider.create_one("k8s-two-node", NodeSpec("node1", "-"))
    context = SimpleNamespace(
        lab="k8s-two-node", topology=topology, node=lambda _: node, give_env=lambda: None
    )
    with pytest.raises(NoSuchContainer) as caught:
        LiveLab(cast("Context", context)).container("pod", node="node1")
    assert "testbed kubectl k8s-two-node exec" in str(caught.value.hint)
