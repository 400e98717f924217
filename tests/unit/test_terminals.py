"""Terminals of all kinds of nodes follow the size of the user's terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import pytest

from testbed.nodes import terminal
from testbed.nodes.netns import terminal as of_netns
from testbed.nodes.ssh import terminal as of_ssh
from testbed.polling import until

if TYPE_CHECKING:
    import paramiko

    from testbed.nodes.netns.agent import Connection

HANGING = 60.0  # seconds, against hanging


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def told_elsewhere(fd: int) -> None:
    """Resize a terminal; another thread takes the signal, so the waiting one is not interrupted."""
    resize(fd, 40, 120)
    signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)


@pytest.fixture
def user() -> Iterator[int]:
    """The user's side of a terminal, which is standard input and output."""
    ours, theirs = pty.openpty()
    resize(ours, 31, 97)
    with os.fdopen(theirs, "r+b", buffering=0) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        patch.setattr("sys.stdout", file)
        yield ours
    os.close(ours)


class Far:
    """The far end of a command; ``act`` runs in its own thread once the command has begun."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.ours, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(act,))

    def _run(self, act: Callable[[], None]) -> None:
        act()
        self.theirs.close()  # the command has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self.ours.close()

    def fileno(self) -> int:
        return self.ours.fileno()


class Pid1(Far):
    """A connection to a pid 1 that runs a command."""

    def send(self, *_: object) -> None:
        return

    def receive(self, *_: object) -> tuple[list[str], list[int]]:
        if not self._thread.ident:
            self._thread.start()
            return ["pid", "7"], []
        return ["exit", "3"], []


class Machine(Far):
    """A channel to a machine."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(act)
        self.sizes: list[tuple[int, int]] = []

    def get_pty(self, _: str, columns: int, rows: int) -> None:
        self.sizes.append((rows, columns))

    def resize_pty(self, columns: int, rows: int) -> None:
        self.sizes.append((rows, columns))

    def exec_command(self, _: bytes) -> None:
        self._thread.start()

    def recv(self, size: int) -> bytes:
        return self.ours.recv(size)

    def recv_exit_status(self) -> int:
        return 3


def test_one_of_a_namespace_node_is_resized(user: int) -> None:
    master, slave = pty.openpty()
    seen: list[os.terminal_size] = []

    def act() -> None:
        seen.append(os.get_terminal_size(slave))
        told_elsewhere(user)
        until(lambda: os.get_terminal_size(slave).lines == 40, HANGING)
        seen.append(os.get_terminal_size(slave))

    connection = cast("Connection", Pid1(act))
    assert of_netns.with_terminal(connection, master, ["sh"]) == 3
    assert [(size.lines, size.columns) for size in seen] == [(31, 97), (40, 120)]
    os.close(slave)


def test_one_of_a_machine_is_resized(user: int) -> None:
    def act() -> None:
        told_elsewhere(user)
        until(lambda: len(machine.sizes) > 1, HANGING)

    machine = Machine(act)
    assert of_ssh.with_terminal(cast("paramiko.Channel", machine), ["sh"]) == 3
    assert machine.sizes == [(31, 97), (40, 120)]


def test_a_size_that_changes_before_the_command_begins_is_not_lost(user: int) -> None:
    class Slow(Machine):
        def exec_command(self, command: bytes) -> None:
            told_elsewhere(user)
            super().exec_command(command)

    def act() -> None:
        until(lambda: len(machine.sizes) > 1, HANGING)

    machine = Slow(act)
    assert of_ssh.with_terminal(cast("paramiko.Channel", machine), ["sh"]) == 3
    assert machine.sizes == [(31, 97), (40, 120)]


def test_a_new_size_after_the_end_of_a_command_is_no_error(user: int) -> None:
    class Closed(Machine):
        def resize_pty(self, columns: int, rows: int) -> None:
            from paramiko import SSHException

            super().resize_pty(columns, rows)
            raise SSHException("Channel is not open")

    def act() -> None:
        told_elsewhere(user)
        until(lambda: len(machine.sizes) > 1, HANGING)

    machine = Closed(act)
    assert of_ssh.with_terminal(cast("paramiko.Channel", machine), ["sh"]) == 3


def test_signals_and_files_are_as_before_afterwards() -> None:
    handler = signal.getsignal(signal.SIGWINCH)
    files = len(list(Path("/proc/self/fd").iterdir()))
    with terminal.resizes() as waker:
        for _ in range(1 << 17):  # more than a pipe takes
            waker.wake()
        assert waker.fileno() in terminal.readable([waker.fileno()])
        waker.clear()
    assert signal.getsignal(signal.SIGWINCH) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert len(list(Path("/proc/self/fd").iterdir())) == files
