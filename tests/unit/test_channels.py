"""Channels to an agent leave no open file behind, however they end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from testbed.errors import LabError, TimeoutExpired
from testbed.nodes.netns.duplex import Duplex
from testbed.nodes.stream.kept import KeptNode
from testbed.nodes.stream.wire import HEADER, Channel, Link

if TYPE_CHECKING:
    from testbed.nodes.netns.agent import Connection


class Pid1:
    """A connection to a pid 1 with these answers, an error or words."""

    def __init__(self, *answers: Exception | str) -> None:
        self.answers = list(answers)
        self.closed = 0

    def send(self, fields: Sequence[str], files: Sequence[int]) -> None:
        del fields, files

    def receive(self, timeout: float) -> tuple[list[str], list[int]]:
        del timeout
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer.split(), []

    def close(self) -> None:
        self.closed += 1


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("answer", [TimeoutExpired("silent"), "error ENOENT", "exit 127"])
def test_a_program_that_cannot_be_started_leaves_nothing_open(answer: Exception | str) -> None:
    pid1 = Pid1(answer)
    before = open_files()
    with pytest.raises(LabError):
        Duplex(cast("Connection", pid1), ["/agent"])
    assert open_files() == before
    assert pid1.closed == 1


def test_without_free_descriptors_the_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("socket.socketpair", none)
    pid1 = Pid1()
    before = open_files()
    with pytest.raises(OSError, match="Too many"):
        Duplex(cast("Connection", pid1), ["/agent"])
    assert open_files() == before
    assert pid1.closed == 1


@pytest.mark.parametrize("ending", ["exit 0", TimeoutExpired("it runs on")])
def test_a_program_is_closed_once(ending: Exception | str) -> None:
    pid1 = Pid1("pid 7", ending)
    before = open_files()
    program = Duplex(cast("Connection", pid1), ["/agent"])
    for _ in range(2):
        program.close()
    assert open_files() == before
    assert pid1.closed == 1
    assert program.errors == ""


class Busy:
    """A channel whose end takes until ``go``; counts the threads that close it at once."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.send = self.ours.send
        self.recv = self.ours.recv
        self.settimeout = self.ours.settimeout
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.closing = self.most = 0

    def close(self) -> None:
        self.closing += 1
        self.most = max(self.most, self.closing)
        self.begun.release()
        self.go.wait()
        self.closing -= 1


def test_threads_that_close_a_link_at_once_take_turns() -> None:
    channel = Busy()
    link = Link(cast("Channel", channel), lambda: True, lambda: LabError("lost"))
    threads = [threading.Thread(target=link.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    channel.begun.acquire()
    assert not channel.begun.acquire(timeout=0.1)  # nobody else has begun
    channel.go.set()
    for thread in threads:
        thread.join()
    assert channel.most == 1
    channel.ours.close()
    channel.theirs.close()


class Brief(KeptNode):
    """A node that ends after some looks at it."""

    def __init__(self, folder: Path, channel: Busy, looks: int) -> None:
        super().__init__("n1", "-", folder=folder, init=lambda: folder)
        self.busy = channel
        self.looks = looks

    def channel(self) -> Channel:
        return cast("Channel", self.busy)

    def alive(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def lost_error(self) -> LabError:
        return LabError("it has ended")


def test_the_channel_to_a_node_that_ends_before_its_agent_greets_is_closed(tmp_path: Path) -> None:
    channel = Busy()
    channel.go.set()
    node = Brief(tmp_path, channel, looks=1)
    with pytest.raises(LabError, match="ended"):
        node.run(["true"])
    assert channel.begun.acquire(blocking=False)
    channel.ours.close()
    channel.theirs.close()


def test_a_node_that_ended_while_it_was_entered_is_not_used(tmp_path: Path) -> None:
    """Another process may have had its pid by then."""
    channel = Busy()
    channel.go.set()
    channel.theirs.sendall(HEADER.pack(0, ord("h"), 0))
    node = Brief(tmp_path, channel, looks=2)
    with pytest.raises(LabError, match="ended"):
        node.run(["true"])
    assert channel.begun.acquire(blocking=False)
    channel.theirs.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing was asked of it
        channel.theirs.recv(1)
    channel.ours.close()
    channel.theirs.close()
