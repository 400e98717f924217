"""`testbed forward` and `proxy NODE:PORT`: what is meant, and how a connection is carried."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from hands import Hands, runs

from testbed.errors import UsageError
from testbed.labs import forward
from testbed.labs.forward import CONNECT, Forwarder, Way, local, target
from testbed.nodes.fake import Answer, FakeNode

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench


@pytest.mark.parametrize(
    ("text", "place", "host", "port"),
    [
        ("node1:80", "node1", "", 80),
        ("node1/web:8080", "node1/web", "", 8080),
        ("pc:10.2.0.9:80", "pc", "10.2.0.9", 80),
        ("pc:[fd00::1]:80", "pc", "fd00::1", 80),
        ("pc:server:65535", "pc", "server", 65535),
    ],
)
def test_targets(text: str, place: str, host: str, port: int) -> None:
    found = target(text)
    assert (found.place, found.host, found.port) == (place, host, port)


@pytest.mark.parametrize(
    "text", ["node1", "node1:", ":80", "node1:0", "node1:65536", "node1:http", "a:fd00::1:80", ""]
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError):
        target(text)


def test_the_local_port() -> None:
    assert local(None, 80) == ("127.0.0.1", 80)
    assert local("8080", 80) == ("127.0.0.1", 8080)
    assert local("0", 80) == ("127.0.0.1", 0)
    assert local("0.0.0.0:8080", 80) == ("0.0.0.0", 8080)
    assert local("[::1]:8080", 80) == ("::1", 8080)
    for wrong in ("", "x", "70000", "::1:80", "a:b:1"):
        with pytest.raises(UsageError):
            local(wrong, 80)


class Here(FakeNode):
    """A node whose commands are programs of this machine."""

    def pipe(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: object = None,
    ) -> int:
        del env
        return subprocess.run(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, check=False
        ).returncode


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers once it has read everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, client.makefile("rb") as file:
                    client.sendall(b"got " + file.read())

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def way_here(port: int, *hosts: str) -> Way:
    node = Here.__new__(Here)
    argv = (sys.executable, "-S", "-c", CONNECT, str(port), *hosts)
    return Way(target(f"n:{port}"), node, argv)


def test_a_connection_ends_one_way_before_the_other(echo: int) -> None:
    told: list[str] = []
    server = Forwarder(way_here(echo, "127.0.0.9", "127.0.0.1"), "127.0.0.1", 0, told.append)
    threading.Thread(target=server.serve, daemon=True).start()
    big = os.urandom(1 << 20)
    with socket.create_connection((server.address, server.port)) as client:
        client.sendall(big)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            assert file.read() == b"got " + big
    assert told == []


def test_a_port_that_nothing_listens_on(echo: int) -> None:
    told: list[str] = []
    came = threading.Event()

    def tell(words: str) -> None:
        told.append(words)
        came.set()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and does not listen
        closed = free.getsockname()[1]
        server = Forwarder(way_here(closed, "127.0.0.1"), "127.0.0.1", 0, tell)
        threading.Thread(target=server.serve, daemon=True).start()
        with socket.create_connection((server.address, server.port)) as client:
            assert client.recv(1) == b""
        assert came.wait(60)
    assert told == [f"n:{closed}: Connection refused"]
    with pytest.raises(UsageError) as caught:
        Forwarder(way_here(echo), "127.0.0.1", echo, told.append)
    assert "n:" in str(caught.value.hint)


def test_with_all_file_descriptors_in_use_clients_wait(
    echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    server = Forwarder(way_here(echo, "127.0.0.1"), "127.0.0.1", 0, told.append)
    here, there = socket.socketpair()
    results: list[OSError | tuple[socket.socket, str]] = [
        OSError(errno.EMFILE, "Too many open files"), (there, ""), OSError(errno.EBADF, "closed"),
    ]  # fmt: skip

    class Listener:
        def accept(self) -> tuple[socket.socket, str]:
            found = results.pop(0)
            if isinstance(found, OSError):
                raise found
            return found

    server.close()
    monkeypatch.setattr(server, "_listener", Listener())
    monkeypatch.setattr(forward, "PAUSE", 0)
    with here:
        with pytest.raises(OSError, match="closed"):
            server.serve()
        here.sendall(b"x")
        here.shutdown(socket.SHUT_WR)
        assert here.makefile("rb").read() == b"got x"
    assert told == [f"n:{echo}: clients wait: Too many open files"]


def test_a_client_that_cannot_be_served_is_let_go(
    echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    server = Forwarder(way_here(echo, "127.0.0.1"), "127.0.0.1", 0, told.append)

    def none(_: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none)
    here, there = socket.socketpair()
    with here:
        server._join(there)
        assert here.recv(1) == b""
    assert "Too many open files" in told[0]
    server.close()


@pytest.fixture
def hands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hands:
    made = Hands(bench, monkeypatch, capsys)
    made.up()
    return made


def test_a_node_is_tried_on_loopback_and_on_its_own_addresses(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [{"addr_info": [{"local": "10.168.0.3"}, {"local": "fd00::3"}]}, {}]
    hands.bench.provider.script(["ip", "-j"], Answer(out=json.dumps(shown).encode()))
    assert hands("proxy", "b:80").status == 0
    assert hands.ran("b")[-1] == (
        "python3", "-c", CONNECT, "80", "127.0.0.1", "10.168.0.3", "fd00::3",
    )  # fmt: skip
    assert hands("proxy", "b:10.9.0.1:80").status == 0
    assert hands.ran("b")[-1][-2:] == ("80", "10.9.0.1")
    runs(monkeypatch, "web")
    hands.bench.provider.script(["nsenter"], Answer())
    assert hands("proxy", "a/web:80").status == 0
    assert hands.ran("a")[-1][:4] == ("nsenter", "--target=4711", "--net", "python3")


def test_wrong_use(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["b"], ["b:0"], ["b:80", "x"], ["b:80", "192.0.2.1:80"]):
        assert hands("forward", *words).status == 2, words
    assert hands("forward", "nosuch:80", "0").status == 4
    assert hands("proxy", "a/nosuch:80").status == 4
    hands.bench.provider.script(["sh", "-c", "command -v python3"], Answer(127))
    assert hands("forward", "b:80", "0").status == 3
    hands.bench.provider.script(["sh", "-c", "command -v python3"], Answer())
    monkeypatch.setattr(forward.Forwarder, "serve", lambda _: None)
    said = hands("forward", "b:80", "0", "--json")
    assert said.status == 0
    assert json.loads(said.out)["address"] == "127.0.0.1"
    assert hands("forward", "b:80", "0.0.0.0:0").err, "told to be open to others"
