"""The contract of terminals on a node, and a user who sits at one.

Derive a class from :class:`TerminalContract` and give it a fixture ``node``.  The node needs
``stty`` and ``tty``.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import pytest

from testbed.errors import TestbedError

if TYPE_CHECKING:
    from testbed.nodes.base import Node

ENDED = 9  # exit status of a user ended by a signal
SECONDS = 120.0  # against hanging
SIZE = "$1 size; echo $TERM"  # $1 is stty(1), here and below
ASK_SIZE = 'trap "$1 size; exit 5" WINCH; echo ready; while :; do sleep 0.05; done'
ASK_KEY = 'trap "echo caught; exit 3" INT; echo ready; while :; do sleep 0.05; done'
#: A key that was pressed twice stops the job again (148 = 128 + SIGTSTP): it goes on.
JOBS = (
    'set -m; echo ready; sleep 999; jobs; trap "" INT; echo went-on; '
    "fg; while [ $? = 148 ]; do fg; done; echo over; exit 7"
)
NAME = 'test -c "$(tty)" && tty && echo mine > /dev/tty'
RAW = "$1 raw -echo; echo ready; head -c 300000 | wc -c"


class User:
    """A user at a terminal of this machine, on which ``act`` runs in its own process.

    The exit status of the process is the result of ``act``, or 4 if it raises TestbedError;
    the error's message is then on the terminal.  ``rows`` and ``columns`` are the terminal's size.
    """

    def __init__(self, act: Callable[[], int], *, rows: int = 31, columns: int = 97) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(rows, columns)
        self._before = termios.tcgetattr(self._theirs)
        self._status: int | None = None
        self.seen = b""
        self._pid = os.fork()
        if self._pid == 0:
            self._run(act)

    def _run(self, act: Callable[[], int]) -> None:
        status = 70
        try:
            os.setsid()
            fcntl.ioctl(self._theirs, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(self._theirs, fd)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ["TERM"] = "dumb"
            status = act()
        except TestbedError as error:
            print(f"{error}\r")  # noqa: T201  (the test reads the terminal)
            status = 4
        except SystemExit:
            status = ENDED
        except BaseException:  # noqa: BLE001  (a forked child must not continue as pytest)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        view = memoryview(keys)
        while view:
            view = view[os.write(self._ours, view) :]

    def press_until(self, keys: bytes, wanted: bytes) -> None:
        """Press keys repeatedly until the terminal shows ``wanted``."""
        while not self._look(wanted, 0.3):
            self.press(keys)

    def see(self, wanted: bytes) -> bytes:
        """Read until the terminal shows ``wanted``; return all output so far."""
        assert self._look(wanted, SECONDS), f"no {wanted!r} in {self.seen!r}"
        return self.seen

    def _look(self, wanted: bytes, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while wanted not in self.seen and time.monotonic() < deadline:
            gone = self._ended()
            if self._read(0.05):
                continue
            if gone:
                break
        return wanted in self.seen

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if ready:
            self.seen += os.read(self._ours, 1 << 16)
        return bool(ready)

    def _ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is not None

    def kill(self, signum: int) -> None:
        os.kill(self._pid, signum)

    def end(self) -> int:
        """Wait for the end of the process and of its output; return its exit status."""
        deadline = time.monotonic() + SECONDS
        while not self._ended():
            self._read(0.05)
            assert time.monotonic() < deadline, f"still running: {self.seen!r}"
        while self._read(0.05):
            continue
        assert termios.tcgetattr(self._theirs) == self._before, "other settings"
        assert self._status is not None
        return self._status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._ours)
        os.close(self._theirs)


class TerminalContract:
    """Terminals of a node: name, size, keys, job control, and how they end."""

    stty = "stty"  #: name of stty(1) on the node, such as "busybox stty"
    #: Output of tty(1) on the node.
    names = re.compile(rb"^/dev/pts/\d+\r$", re.MULTILINE)

    def attach(self, node: Node, argv: Sequence[str]) -> User:
        return User(lambda: node.attach(argv, tty=True))

    def test_a_terminal_has_a_name_and_is_the_sessions(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", NAME]) as user:
            assert user.end() == 0, user.seen
            assert self.names.search(user.seen), user.seen
            assert b"mine\r\n" in user.seen

    def test_it_has_the_users_size_and_kind_from_the_beginning(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", SIZE, "sh", self.stty]) as user:
            assert user.end() == 0, user.seen
            assert b"31 97\r\ndumb\r\n" in user.seen

    def test_it_is_resized_with_the_users(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", ASK_SIZE, "sh", self.stty]) as user:
            user.see(b"ready")
            user.resize(40, 120)
            assert user.end() == 5, user.seen
            assert b"40 120\r\n" in user.seen

    def test_a_key_that_interrupts_is_the_commands(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", ASK_KEY]) as user:
            user.see(b"ready")
            user.press(b"\x03")
            assert user.end() == 3, user.seen
            assert b"caught" in user.seen

    def test_a_command_that_the_key_ends(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", "echo ready; exec sleep 999"]) as user:
            user.see(b"ready")
            user.press(b"\x03")
            assert user.end() == 128 + signal.SIGINT, user.seen

    def test_jobs_are_stopped_and_go_on(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", JOBS]) as user:
            user.see(b"ready")
            # Pressed before the job has the terminal, neither key has an effect.
            user.press_until(b"\x1a", b"went-on")
            user.press_until(b"\x03", b"over")
            assert user.end() == 7, user.seen
            assert b"topped" in user.seen

    def test_what_is_typed_arrives_and_ends(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", "echo ready; cat; echo end"]) as user:
            user.see(b"ready\r\n")  # with its end: input is echoed at once
            user.press(b"word\r\x04")
            assert user.end() == 0, user.seen
            assert user.seen.endswith(b"word\r\nword\r\nend\r\n"), user.seen

    def test_much_is_typed(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", RAW, "sh", self.stty]) as user:
            user.see(b"ready")
            user.press(b"x" * 300_000)
            assert user.end() == 0, user.seen
            assert b"300000" in user.seen

    def test_much_is_shown_to_the_end(self, node: Node) -> None:
        with self.attach(node, ["seq", "50000"]) as user:
            assert user.end() == 0, user.seen
            assert user.seen.split()[-50_000:] == [str(n).encode() for n in range(1, 50001)]

    def test_a_child_that_stays_does_not_hold_it_up(self, node: Node) -> None:
        with self.attach(node, ["sh", "-c", "sleep 99 & echo begun; exit 4"]) as user:
            assert user.end() == 4, user.seen
            assert b"begun" in user.seen

    def test_a_command_that_is_not_there(self, node: Node) -> None:
        with self.attach(node, ["no-such-program"]) as user:
            assert user.end() == 127, user.seen

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
    def test_whoever_ends_the_user_leaves_the_terminal_as_it_was(
        self, node: Node, signum: int
    ) -> None:
        def end(*_: object) -> None:
            raise SystemExit

        before = signal.signal(signum, end)  # the user's process inherits it
        try:
            user = self.attach(node, ["sh", "-c", "echo ready; sleep 999"])
        finally:
            signal.signal(signum, before)
        with user:
            user.see(b"ready")
            user.kill(signum)
            assert user.end() == ENDED, user.seen
