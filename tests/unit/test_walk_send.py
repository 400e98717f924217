"""The request of a walk, sent to a server on the loopback, without the options that need root."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.walk import send as sender


class Plain(socket.socket):
    """A socket that ignores the options of TCP_REPAIR."""

    def setsockopt(self, *given: Any) -> None:
        if given[:1] != (socket.IPPROTO_TCP,):
            super().setsockopt(*given)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(socket, "socket", Plain)
        yield listening


def request(server: socket.socket, seconds: float = 60, opened: Any = None) -> dict[str, Any]:
    port = server.getsockname()[1]
    return sender.send({"protocol": "tcp", "family": 4, "address": "127.0.0.1", "port": port,
                        "sport": 0, "number": 1, "size": 0, "http": "/", "host": "web:8080",
                        "seconds": seconds}, opened)  # fmt: skip


@pytest.mark.parametrize(("answer", "text"), [
    (b"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content"),
    (b"", "closes the connection without an answer"),
])  # fmt: skip
def test_the_first_line_of_an_answer_is_kept(
    server: socket.socket, answer: bytes, text: str
) -> None:
    asked = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(1000))
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    found = request(server)
    thread.join()
    assert (found["outcome"], found["text"]) == ("answered", text)
    assert b"\r\nHost: web:8080\r\n" in asked[0]


def test_a_server_that_does_not_answer_has_taken_the_connection(server: socket.socket) -> None:
    found = request(server, 0.2)
    assert (found["outcome"], found["source"]) == ("answered", "127.0.0.1")
    assert "does not answer" in found["text"]


def test_what_looks_at_an_open_connection_takes_no_time_of_the_request(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = []

    def opened(sock: socket.socket) -> None:
        seen.append(sock.getpeername())
        now[0] += 5.0
        server.accept()[0].close()

    found = request(server, opened=opened)
    assert seen == [server.getsockname()]
    assert found["seconds"] == 0.0
    assert "held" not in found
