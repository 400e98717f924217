"""Services and terminals at the end of a stream, with an agent in memory at its other end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import (
    LabError,
    NodeNotRunning,
    NoSuchService,
    ReaderGone,
    ServiceError,
    ServiceNotReady,
    TimeoutExpired,
)
from testbed.nodes.base import Service, has_ended
from testbed.nodes.stream.container import ContainerNode
from testbed.nodes.stream.kept import KEEPER, KeptNode
from testbed.nodes.stream.wire import HEADER, NUMBER, Channel
from testbed.polling import until

HANGING = 60.0  # seconds, against hanging
Frame = tuple[int, str, bytes]


class Agent:
    """The far end of a stream: keeps the frames that it gets, and answers as it is taught."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.answers: dict[str, Callable[[Agent, int, bytes], None]] = {}
        self.ours, self._theirs = socket.socketpair()
        self.send(0, "h")
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, number: int, kind: str, data: bytes = b"") -> None:
        self._theirs.sendall(HEADER.pack(number, ord(kind), len(data)) + data)

    def end(self, number: int, status: int) -> None:
        self.send(number, "x", NUMBER.pack(status))

    def of(self, kind: str) -> list[bytes]:
        return [data for _, one, data in self.frames if one == kind]

    def hang_up(self) -> None:
        self._theirs.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        ends = contextlib.suppress(OSError)  # the node hangs up, perhaps before it is answered
        with ends, self._theirs, self._theirs.makefile("rb") as file:
            while len(head := file.read(HEADER.size)) == HEADER.size:
                number, kind, size = HEADER.unpack(head)
                data = file.read(size)
                self.frames.append((number, chr(kind), data))
                if answer := self.answers.get(chr(kind)):
                    answer(self, number, data)


class Kept(KeptNode):
    """A node with that agent."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent = agent
        self.runs = True
        program = folder / "testbed-init"
        program.write_bytes(b"program")
        super().__init__("n1", "-", folder=folder, init=lambda: program, env={"A": "b"})

    def channel(self) -> Channel:
        return self.agent.ours

    def alive(self) -> bool:
        return self.runs

    def lost_error(self) -> LabError:
        return has_ended(self.name, "lab")


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def node(agent: Agent, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(agent, tmp_path)
    yield made
    made.close()


class Keeper:
    """Answers of a ``testbed-init`` that keeps services, once it has been started."""

    def __init__(self, agent: Agent, *, there: bool = True) -> None:
        self.there = there
        self.answers: dict[bytes, list[bytes]] = {}
        self.first = b"sleep\0infinity\0"  # arguments of the node's first process
        agent.answers = {"q": self.ask, "r": self.run, "i": self.put, "g": self.get}
        self.writes: list[int] = []

    def ask(self, agent: Agent, number: int, data: bytes) -> None:
        answers = self.answers.get(data.split(b"\0")[0], [])
        if not self.there:
            agent.end(number, errno.ENOENT)
        elif answers:
            agent.send(number, "o", answers.pop(0))

    def run(self, agent: Agent, number: int, data: bytes) -> None:
        self.there |= KEEPER.encode() in data
        agent.send(number, "p", NUMBER.pack(7))
        agent.end(number, 0)

    def get(self, agent: Agent, number: int, path: bytes) -> None:
        if path != b"/proc/1/cmdline":
            agent.end(number, errno.ENOENT)
            return
        agent.send(number, "o", self.first)
        agent.end(number, 0)

    def put(self, agent: Agent, number: int, data: bytes) -> None:
        if not data:
            agent.end(number, 0)


LISTED = b"ok\netcd ready 41 0 d1 with spaces\nold dead 0 -15 -\n"


def test_services_are_asked_for_and_understood(agent: Agent, node: Kept) -> None:
    Keeper(agent).answers = {b"list": [LISTED]}
    found = node.services()
    assert agent.of("q") == [b"list\0"]
    assert (found["etcd"].state, found["etcd"].pid, found["etcd"].status) == ("ready", 41, None)
    assert found["etcd"].digest == "d1 with spaces"
    assert (found["old"].state, found["old"].status, found["old"].digest) == ("dead", -15, "")


def test_a_service_is_started_by_one_message(agent: Agent, node: Kept) -> None:
    Keeper(agent).answers = {b"start": [b"ready"]}
    node.start(Service("s", ("prog", "a b"), env={"X": "1"}, notify=True, digest="d"))
    fields = agent.of("q")[0].split(b"\0")
    assert fields[:4] == [b"start", b"s", b"d", b"1"]
    assert fields[-3:] == [b"prog", b"a b", b""]
    assert b"X=1" in fields
    assert int(fields[4]) == len(fields) - 8  # variables: all but four fields, count, argv, end


def test_one_with_another_digest_is_stopped_first(agent: Agent, node: Kept) -> None:
    Keeper(agent).answers = {b"start": [b"differs", b"ready"], b"stop": [b"signal 15"]}
    node.start(Service("s", ("prog",)))
    assert [data.split(b"\0")[0] for data in agent.of("q")] == [b"start", b"stop", b"start"]


@pytest.mark.parametrize("answer", [b"exit 1", b"signal 9", b"error malformed start"])
def test_one_that_does_not_start_is_an_error(agent: Agent, node: Kept, answer: bytes) -> None:
    keeper = Keeper(agent)
    keeper.answers = {b"start": [answer]}
    with pytest.raises(ServiceError) as caught:
        node.start(Service("s", ("prog",)))
    assert (caught.value.service, caught.value.node) == ("s", "n1")
    assert not isinstance(caught.value, ServiceNotReady)


def test_one_that_is_not_ready_in_time_is_another_error(agent: Agent, node: Kept) -> None:
    Keeper(agent)  # it never answers
    with pytest.raises(ServiceNotReady):
        node.start(Service("s", ("prog",)), timeout=0.0)
    assert agent.of("q")


def test_without_a_keeper_there_are_no_services(agent: Agent, node: Kept) -> None:
    Keeper(agent, there=False)
    assert node.services() == {}
    node.stop("s")
    with pytest.raises(NoSuchService):
        node.logs("s")
    assert not agent.of("r")


def test_the_first_service_starts_a_keeper(agent: Agent, node: Kept) -> None:
    Keeper(agent, there=False).answers = {b"start": [b"ready", b"ready"]}
    node.start(Service("s", ("prog",)))
    node.start(Service("t", ("prog",)))
    written = agent.of("w")
    assert len(written) == 1
    assert KEEPER.encode() in written[0]
    assert b"program" in agent.of("i")
    began = [data for data in agent.of("r") if data.endswith(f"{KEEPER}\0keep\0".encode())]
    assert len(began) == 1


@pytest.mark.parametrize("first", [b"/x/testbed-init\0machine\0", b"runc\0init\0"])
def test_a_machine_that_boots_is_waited_for(agent: Agent, node: Kept, first: bytes) -> None:
    """Another keeper would take its socket away."""
    keeper = Keeper(agent, there=False)
    keeper.answers = {b"start": [b"ready"]}
    keeper.first = first

    def ask(agent: Agent, number: int, data: bytes) -> None:
        keeper.ask(agent, number, data)
        keeper.there = len(agent.of("q")) == 2

    agent.answers["q"] = ask
    node.start(Service("s", ("prog",)))
    assert len(agent.of("q")) == 3
    assert not agent.of("w")


def test_a_machine_that_never_boots_gets_no_second_keeper(
    agent: Agent, node: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.stream.kept.BOOT", 0.0)
    Keeper(agent, there=False).first = b"/x/testbed-init\0machine\0"
    with pytest.raises(LabError) as caught:
        node.start(Service("s", ("prog",)))
    assert caught.value.hint
    assert not agent.of("w")


def test_a_container_without_proc_can_keep_services(agent: Agent, node: Kept) -> None:
    Keeper(agent, there=False).answers = {b"start": [b"ready"]}
    agent.answers["g"] = lambda agent, number, _: agent.end(number, errno.ENOENT)
    node.start(Service("s", ("prog",)))
    assert len(agent.of("w")) == 1


def test_a_node_that_cannot_be_written_keeps_no_services(agent: Agent, node: Kept) -> None:
    Keeper(agent, there=False)
    agent.answers["w"] = lambda agent, number, _: agent.end(number, errno.EROFS)
    with pytest.raises(LabError) as caught:
        node.start(Service("s", ("prog",)))
    assert caught.value.hint


def test_an_agent_that_refuses_is_an_error(agent: Agent, node: Kept) -> None:
    agent.answers = {"q": lambda agent, number, _: agent.end(number, errno.EACCES)}
    with pytest.raises(PermissionError):
        node.services()


def test_a_silent_keeper_is_not_waited_for_without_end(
    agent: Agent, node: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    Keeper(agent)
    monkeypatch.setattr("testbed.nodes.keeper.LISTING", 0.0)
    with pytest.raises(TimeoutExpired):
        node.services()


def test_commands_have_the_nodes_environment(agent: Agent, node: Kept) -> None:
    Keeper(agent)
    node.run(["env"], env={"C": "d"})
    node.run(["env"], env={"A": "given"})
    first, second = (data.split(b"\0") for data in agent.of("r"))
    assert {b"A=b", b"C=d"} <= set(first)
    assert b"A=given" in second


def test_a_command_on_pipes_has_the_environment_of_the_node(
    agent: Agent, node: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.answers = {"r": lambda agent, number, _: agent.end(number, 3)}
    with Path(os.devnull).open() as nothing, Path(os.devnull).open("w") as out:
        for name, stream in (("stdin", nothing), ("stdout", out), ("stderr", out)):
            monkeypatch.setattr(sys, name, stream)
        assert node.attach(["env"], tty=False) == 3
    assert b"A=b" in agent.of("r")[0].split(b"\0")


def test_what_is_typed_after_a_commands_end_is_not_its_input(
    agent: Agent, node: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.answers = {"r": lambda agent, number, _: agent.end(number, 0)}
    theirs, ours = os.pipe()
    with open(theirs, "rb") as source, Path(os.devnull).open("w") as out:  # noqa: PTH123  of a number
        for name, stream in (("stdin", source), ("stdout", out), ("stderr", out)):
            monkeypatch.setattr(sys, name, stream)
        assert node.attach(["true"], tty=False) == 0
        os.write(ours, b"next")
        os.close(ours)
        assert source.read() == b"next"
    assert agent.of("i") == []


# -- terminals -------------------------------------------------------------------


@pytest.fixture
def user() -> Iterator[int]:
    """The user's side of a terminal, on which :func:`attach` runs a command."""
    ours, theirs = pty.openpty()
    resize(ours, 31, 97)
    with os.fdopen(theirs) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        patch.setenv("TERM", "vt100")
        yield ours
    os.close(ours)


def attach(node: Kept, argv: Sequence[str], *, inside: int = 1) -> int:
    """Run a command on the user's terminal; pytest gives each phase a standard output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", sys.stdin)
        return node.attach(argv, tty=True, inside=inside)


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def begins(agent: Agent, number: int, data: bytes) -> None:
    del data
    agent.send(number, "p", NUMBER.pack(7))
    agent.send(number, "o", b"ready\r\n")


def test_a_terminal_has_the_users_size_and_keys(agent: Agent, node: Kept, user: int) -> None:
    def types(agent: Agent, number: int, data: bytes) -> None:
        begins(agent, number, data)
        os.write(user, b"keys")

    def typed(agent: Agent, number: int, data: bytes) -> None:
        agent.send(number, "o", data.upper())
        agent.end(number, 7)

    agent.answers = {"t": types, "i": typed}
    assert attach(node, ["sh", "-c", "x"]) == 7
    shown = b""
    while len(shown) < len(b"ready\r\nKEYS"):
        shown += os.read(user, 100)
    assert shown == b"ready\r\nKEYS"
    fields = agent.of("t")[0].split(b"\0")
    assert fields[0] == b"31 97 1"
    assert {b"TERM=vt100", b"A=b"} <= set(fields)
    assert fields[-4:] == [b"sh", b"-c", b"x", b""]


def test_a_terminal_is_resized_with_the_users(agent: Agent, node: Kept, user: int) -> None:
    main = threading.get_ident()

    def larger(agent: Agent, number: int, data: bytes) -> None:
        begins(agent, number, data)
        resize(user, 40, 120)
        signal.pthread_kill(main, signal.SIGWINCH)

    agent.answers = {"t": larger, "z": lambda agent, number, _: agent.end(number, -2)}
    assert attach(node, ["sh"]) == 128 + 2
    assert set(agent.of("z")) == {b"40 120"}


def test_a_terminal_is_made_where_a_process_sees_it(agent: Agent, node: Kept, user: int) -> None:
    del user

    def ends(agent: Agent, number: int, data: bytes) -> None:
        begins(agent, number, data)
        agent.end(number, 0)

    agent.answers = {"t": ends}
    assert attach(node, ["sh"], inside=77) == 0
    assert agent.of("t")[0].startswith(b"31 97 77\0")


def test_a_node_without_terminals_is_an_error(agent: Agent, node: Kept, user: int) -> None:
    del user
    agent.answers = {"t": lambda agent, number, _: agent.end(number, errno.ENOENT)}
    with pytest.raises(LabError):
        attach(node, ["sh"])


def test_a_node_that_ends_under_a_terminal_is_an_error(agent: Agent, node: Kept, user: int) -> None:
    def ends(agent: Agent, number: int, data: bytes) -> None:
        begins(agent, number, data)
        agent.hang_up()

    before = termios.tcgetattr(user)
    agent.answers = {"t": ends}
    with pytest.raises(NodeNotRunning):
        attach(node, ["sh"])
    assert termios.tcgetattr(user) == before


def test_a_user_who_has_gone_ends_the_command(
    agent: Agent, node: Kept, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    del user
    gone, reader = os.pipe()[::-1]
    os.close(reader)
    with os.fdopen(gone, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        agent.answers = {"t": begins}
        with pytest.raises(ReaderGone):
            node.attach(["sh"], tty=True)
    assert until(lambda: agent.of("k"), HANGING)


# -- containers ------------------------------------------------------------------


def container(folder: Path, **more: Any) -> tuple[ContainerNode, list[Sequence[str]]]:
    """A container's node, and the commands that enter it; each gets an agent of its own."""
    begun: list[Sequence[str]] = []

    def start(argv: Sequence[str]) -> Channel:
        begun.append(argv)
        agent = Agent()
        Keeper(agent)
        return agent.ours

    given: dict[str, Any] = {"alive": lambda: True, "place": str, **more}
    made = ContainerNode(
        "n1", "-", lab="lab", pid=42, start=start, agent=lambda: "/there/agent",
        init=lambda: folder, **given,
    )  # fmt: skip
    return made, begun


def test_a_container_is_entered_by_its_process(tmp_path: Path) -> None:
    node, begun = container(tmp_path)
    node.run(["true"])
    node.run(["true"])
    assert begun == [["/there/agent", "42"]]
    node.close()


def test_a_container_that_has_ended_is_not_entered(tmp_path: Path) -> None:
    node, begun = container(tmp_path, alive=lambda: False, last_words=lambda: "killed")
    with pytest.raises(NodeNotRunning) as caught:
        node.run(["true"])
    assert caught.value.output == "killed"
    assert begun == []


def test_a_lost_connection_is_the_end_of_the_container_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent ends with the container, before the kernel has ended its first process."""
    looks = iter([True, True, False])
    node, _ = container(tmp_path, alive=lambda: next(looks, False))
    assert isinstance(node.lost_error(), NodeNotRunning)
    monkeypatch.setattr("testbed.nodes.stream.container.ENDING", 0)
    node, _ = container(tmp_path)
    assert not isinstance(node.lost_error(), NodeNotRunning)


def test_a_socket_of_a_container_is_reached_through_its_root(tmp_path: Path) -> None:
    here, _ = container(tmp_path)
    assert here.socket("/run/x.sock") == "/proc/42/root/run/x.sock"
    there, begun = container(tmp_path, place=lambda path: f"/proc/7/root{path}")
    assert there.socket("/run/x.sock") == "/proc/7/root/proc/42/root/run/x.sock"
    assert begun == []


def test_what_is_mounted_need_not_be_copied(tmp_path: Path) -> None:
    node, begun = container(tmp_path, mounts={tmp_path.resolve(): "/cache"})
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "program"
    program.touch()
    (tmp_path / "link").symlink_to(program)
    assert node.provide(program) == "/cache/bin/program"
    assert node.provide(tmp_path / "link") == "/cache/bin/program"
    assert node.provide(tmp_path) == "/cache"
    assert begun == []
