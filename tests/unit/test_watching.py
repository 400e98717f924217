"""Watches of the API of a cluster, and their faults."""

from __future__ import annotations

import functools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import MachineError
from testbed.nodes.kubernetes import watching
from testbed.nodes.kubernetes.cluster import Cluster, Refused
from testbed.nodes.kubernetes.watching import Change, Wanted, changes

Events = list[dict[str, Any]]


def item(name: str, version: int = 1) -> dict[str, Any]:
    return {"metadata": {"uid": name, "resourceVersion": str(version)}}


def event(kind: str, name: str, version: int) -> dict[str, Any]:
    return {"type": kind, "object": item(name, version)}


class Server(Cluster):
    """A cluster that answers what it is told to: lists, and watches or their errors."""

    def __init__(self, lists: list[list[str]], watches: list[Events | Exception]) -> None:
        super().__init__("", "")
        self.lists = iter(lists)
        self.watches = iter(watches)
        self.asked: list[str] = []  # "list", or the version of a watch

    def ask(self, *_: object, **__: object) -> dict[str, Any]:
        self.asked.append("list")
        names = next(self.lists)
        return {"items": [item(name) for name in names], "metadata": {"resourceVersion": "10"}}

    def stream(self, what: str, path: str, query: Any, seconds: float) -> Iterator[dict[str, Any]]:
        assert (what, path) == ("list Pods", "/pods")
        assert query["labelSelector"] == "a=b"
        assert int(query["timeoutSeconds"]) == seconds
        self.asked.append(query["resourceVersion"])
        told = next(self.watches)
        if isinstance(told, Exception):
            raise told
        for one in told:
            if one.get("cut"):
                raise ConnectionError("reset")
            yield one


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the module has slept."""
    found: list[float] = []
    monkeypatch.setattr("testbed.nodes.kubernetes.watching.time.sleep", found.append)
    return found


def told(server: Server, *, ticks: int, seconds: float = 60) -> list[tuple[str, bool]]:
    """The UIDs that are told until a number of ticks, with whether each is there."""
    found: list[tuple[str, bool]] = []
    for change in changes(Wanted(server, "list Pods", "/pods", {"a": "b"}), seconds):
        if change is None:
            ticks -= 1
            if not ticks:
                return found
        else:
            found.append((change[0], change[1] is not None))
    return found


def test_changes_after_a_list() -> None:
    server = Server([["a"]], [[event("ADDED", "b", 11), event("MODIFIED", "a", 12),
                               event("DELETED", "a", 13)]])  # fmt: skip
    assert told(server, ticks=2) == [("a", True), ("b", True), ("a", True), ("a", False)]
    assert server.asked == ["list", "10"]


def test_a_watch_that_ends_goes_on_from_its_last_version() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    server = Server([["a"]], [[event("ADDED", "b", 11)], [bookmark], []])
    assert told(server, ticks=4) == [("a", True), ("b", True)]
    assert server.asked == ["list", "10", "11", "20"]


@pytest.mark.parametrize(
    "fault",
    [
        [{"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}],
        Refused("list Pods", 410, {"reason": "Expired"}),
        ConnectionError("refused"),
        [event("MODIFIED", "a", 11), {"cut": True}],
    ],
    ids=["410 in the stream", "410", "no answer", "cut"],
)
def test_what_a_watch_cannot_tell_is_listed(fault: Events | Exception) -> None:
    server = Server([["a", "b"], ["b", "c"]], [fault, []])
    found = told(server, ticks=4)
    assert server.asked == ["list", "10", "list", "10"]
    assert [change for change in found if change[0] != "b"][-2:] == [("a", False), ("c", True)]


@pytest.mark.parametrize("status", [403, 405])
def test_who_may_not_watch_lists_the_slower_the_more_there_is(
    slept: list[float], status: int
) -> None:
    waits = []
    for size in (1, 1000):
        names = [f"n{number}" for number in range(size)]
        no = Refused("list Pods", status, {})
        told(Server([names, names], [no, no]), ticks=3)
        waits.append(max(slept))
        slept.clear()
    assert 0.1 <= waits[0] < 0.2
    assert 2 < waits[1] < 3


def test_other_refusals_are_raised() -> None:
    with pytest.raises(Refused):
        told(Server([["a"]], [Refused("list Pods", 401, {})]), ticks=9)


def test_the_time_ends_but_never_before_one_list() -> None:
    server = Server([["a"]], [])
    assert told(server, ticks=9, seconds=0) == [("a", True)]
    assert server.asked == ["list"]


def test_a_server_that_ends_watches_at_once_is_not_flooded(slept: list[float]) -> None:
    told(Server([["a"]], [[], [], [], []]), ticks=5)
    assert len(slept) == 3
    assert all(seconds > watching.PAUSE / 2 for seconds in slept)


# -- streams -----------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = json.dumps(event("ADDED", "a", 1)).encode() + b"\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """A function that returns a cluster whose server sends bytes, and ends or falls silent."""
    doors: list[socket.socket] = []
    held: list[socket.socket] = []

    def accept(door: socket.socket, data: bytes, *, silent: bool) -> None:
        there, _ = door.accept()
        there.recv(65536)
        there.sendall(data)
        if silent:
            held.append(there)
        else:
            there.close()

    def start(data: bytes, *, silent: bool = False) -> Cluster:
        door = socket.create_server(("127.0.0.1", 0))
        doors.append(door)
        threading.Thread(
            target=functools.partial(accept, door, data, silent=silent), daemon=True
        ).start()
        path = tmp_path / "config"
        server = {"server": f"http://127.0.0.1:{door.getsockname()[1]}"}
        path.write_text(
            json.dumps(
                {
                    "current-context": "a", "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": server}],
                }
            )
        )  # fmt: skip
        return Cluster(str(path), "", patience=0)

    yield start
    for one in (*doors, *held):
        one.close()


def streamed(cluster: Cluster) -> list[dict[str, Any]]:
    return [*cluster.stream("list Pods", "/pods", {"watch": "1"}, 0)]


def test_objects_come_line_by_line_however_they_are_cut(serve: Callable[..., Cluster]) -> None:
    pieces = [LINE[:9], LINE[9:] + LINE + LINE[:20], LINE[20:], LINE[:30]]
    data = HEAD + b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
    assert streamed(serve(data)) == [event("ADDED", "a", 1)] * 3


def test_a_stream_that_is_cut_is_a_lost_connection(serve: Callable[..., Cluster]) -> None:
    cluster = serve(HEAD + chunk(LINE) + b"400\r\nhalf")
    with pytest.raises(ConnectionError):
        streamed(cluster)


def test_a_stream_that_falls_silent_is_a_lost_connection(
    serve: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.LATE", 0.01)
    found: list[Change | dict[str, Any]] = []
    with pytest.raises(ConnectionError):
        found.extend(serve(HEAD + chunk(LINE), silent=True).stream("x", "/pods", {}, 0.01))
    assert found == [event("ADDED", "a", 1)]


def test_a_refused_stream_says_why(serve: Callable[..., Cluster]) -> None:
    body = json.dumps({"reason": "Forbidden", "message": "no watch"}).encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(Refused) as caught:
        streamed(serve(head + body))
    assert (caught.value.status, caught.value.words) == (403, "no watch")


def test_a_busy_server_and_one_that_is_gone_lose_the_connection(
    serve: Callable[..., Cluster],
) -> None:
    for answer in (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n", b""):
        with pytest.raises(ConnectionError):
            streamed(serve(answer))


def test_credentials_that_cannot_be_used_are_no_lost_connection(tmp_path: Path) -> None:
    with pytest.raises(MachineError):
        streamed(Cluster(str(tmp_path / "none"), ""))
