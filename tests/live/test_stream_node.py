"""A node that is reached through the pipes of a program, as with ``docker exec -i``."""

from __future__ import annotations

import fcntl
import inspect
import os
import re
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import pytest

from testbed.artifacts import Store
from testbed.errors import CommandError, LabError, NoSuchNode
from testbed.nodes.base import Service, ServiceState, has_ended
from testbed.nodes.netns.provider import NetnsProvider
from testbed.nodes.stream.node import ChannelNode
from testbed.nodes.stream.wire import HEADER, NUMBER
from testbed.process import Duplex
from testbed.testing.provider import NodeContract, spec, until

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.netns.node import NetnsNode

LAB = "stream"
ENTER = ("nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--target")


class PipeNode(ChannelNode):
    """A namespace node without its pid 1: only the agent is asked."""

    shares_kernel = True
    has_system = False

    def __init__(self, inner: NetnsNode, agent: Path, folder: Path) -> None:
        super().__init__(inner.name, inner.digest, folder=folder)
        self.inner = inner
        self.argv = [*ENTER, str(inner.init.pid), inner.provide(agent)]

    def channel(self) -> Duplex:
        return Duplex(self.argv)

    def alive(self) -> bool:
        return self.inner.init.alive()

    def lost_error(self) -> LabError:
        return has_ended(self.name, LAB)

    def _no_services(self) -> NoReturn:
        raise NotImplementedError

    def attach_terminal(self, argv: Sequence[str], inside: int) -> int:
        del argv, inside
        self._no_services()

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        del service, timeout
        self._no_services()

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        del service, grace
        self._no_services()

    def services(self) -> dict[str, ServiceState]:
        self._no_services()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipeNode]:
    store, folder = Store(), tmp_path_factory.mktemp("stream")
    provider = NetnsProvider(folder, lambda: store.binary("testbed-init"), lambda: store.folders)
    inner = provider.create_one(LAB, spec("node1"))
    inner.run(["mount", "-t", "tmpfs", "tmpfs", "/usr/local/bin"])  # a machine of its own can write
    made = PipeNode(inner, store.binary("testbed-agent"), folder / "sockets")
    yield made
    provider.destroy(LAB)
    with pytest.raises(NoSuchNode):  # who uses a node that has ended is told
        made.run(["true"])
    made.close()


def _about_services() -> dict[str, str]:
    words = re.compile(r"node\.(start|services|stop|logs)\b")
    return {
        name: "the agent keeps no services: a provider of such nodes does"
        for name, test in inspect.getmembers(NodeContract, inspect.isfunction)
        if name.startswith("test_") and words.search(inspect.getsource(test))
    }


class TestContract(NodeContract):
    skips: ClassVar[Mapping[str, str]] = _about_services()

    @pytest.fixture
    def node(self, shared: PipeNode) -> Iterator[Node]:
        """The node, left as it was found."""
        yield shared
        shared.run(["sh", "-c", "rm -rf /run/deep /run/folder /run/file /run/testing"])


@pytest.mark.parametrize("far", [False, True])
def test_a_folder_is_copied_with_its_modes(
    shared: PipeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, far: bool
) -> None:
    monkeypatch.setattr(PipeNode, "is_far", far)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "tool").write_text(f"#!/bin/sh\necho {far}\n")
    (tmp_path / "tools" / "tool").chmod(0o755)
    place = shared.provide(tmp_path / "tools")
    assert shared.run([f"{place}/tool"]).stdout == f"{far}\n"


def test_a_socket_of_the_node_is_reached(shared: PipeNode) -> None:
    serve = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/echo.sock'); s.listen();"
        "print('listens', flush=True); c, _ = s.accept(); c.sendall(c.recv(9)[::-1])"
    )
    with shared.spawn(["/usr/bin/python3", "-S", "-c", serve]) as running:
        assert until(lambda: running.out == b"listens\n", 60), running.err
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(shared.socket("/run/echo.sock"))
            door.sendall(b"abc")
            assert door.recv(9) == b"cba"
        assert running.wait(60).ok


def test_the_program_ends_with_its_link(shared: PipeNode) -> None:
    shared.run(["true"])
    link = shared.link()
    pid = shared.run(["sh", "-c", "echo $PPID"]).stdout.strip()
    program = Path(f"/proc/{shared.inner.init.pid}/root/proc/{pid}/comm")
    assert program.exists()
    link.close()
    assert until(lambda: not program.exists())  # pid 1 of the node reaps it
    assert shared.run(["true"]).ok  # by a new one


def test_what_a_program_says_that_does_not_start_is_known() -> None:
    program = Duplex(["sh", "-c", "echo no such container >&2; exit 1"])
    assert program.recv(1) == b""
    assert program.errors == "no such container\n"
    program.close()
    assert program.errors == ""
    with pytest.raises(CommandError) as caught:
        Duplex(["/no/such/program"])
    assert caught.value.status == 127


def test_a_forked_child_has_a_stream_of_its_own(shared: PipeNode) -> None:
    mine = shared.run(["sh", "-c", "echo $PPID"]).stdout
    child = os.fork()
    if child == 0:
        status = 1
        try:
            other = shared.run(["sh", "-c", "echo $PPID"]).stdout
            status = 0 if other != mine else 2
            shared.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared.run(["sh", "-c", "echo $PPID"]).stdout == mine


def test_an_agent_that_does_not_start_is_an_error(shared: PipeNode, tmp_path: Path) -> None:
    broken = PipeNode(shared.inner, Path("/bin/true"), tmp_path)
    with pytest.raises(LabError) as caught:
        broken.run(["true"])
    assert caught.value.hint


def test_who_is_gone_ends_what_floods_a_channel_that_nobody_reads() -> None:
    """An engine keeps the output of a program in a container open when its client is cut off."""
    agent = Store().binary("testbed-agent")
    with subprocess.Popen([agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin
        assert running.stdout
        out = running.stdout
        fields = ["0", "0", "sh", "-c", "yes & wait"]
        data = b"".join(field.encode() + b"\0" for field in fields)
        running.stdin.write(HEADER.pack(1, ord("r"), len(data)) + data)
        running.stdin.flush()
        _, kind, size = HEADER.unpack(out.read(HEADER.size))  # the greeting
        assert (chr(kind), size) == ("h", 0)
        _, kind, size = HEADER.unpack(out.read(HEADER.size))
        assert (chr(kind), size) == ("p", NUMBER.size)
        (pid,) = NUMBER.unpack(out.read(size))

        def arrived() -> int:
            return int.from_bytes(fcntl.ioctl(out, termios.FIONREAD, bytes(4)), sys.byteorder)

        capacity = fcntl.fcntl(out, fcntl.F_GETPIPE_SZ)
        assert until(lambda: arrived() > capacity / 2, 60)
        running.stdin.close()
        running.wait(60)
        assert until(lambda: not Path(f"/proc/{pid}").exists(), 60)
