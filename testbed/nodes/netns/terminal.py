"""Run a command on a node, on the user's own terminal or on open files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import termios
from collections.abc import Mapping, Sequence

from testbed.errors import LabError
from testbed.nodes.netns.agent import Connection, status_of
from testbed.nodes.request import environment
from testbed.nodes.terminal import END_OF_FILE, Waker, raw, resizes, shell_status, typed, write

AHEAD = 1 << 16  # maximum bytes typed ahead that the command has not read yet


def with_files(
    connection: Connection,
    argv: Sequence[str],
    files: Sequence[int],
    env: Mapping[str, str] | None = None,
) -> int:
    """Run ``argv`` on an input and two outputs of this process, and return its exit status."""
    with connection:
        _begin(connection, ["0", *environment(env), *argv], files)
        words, _ = connection.receive()
        return shell_status(status_of(words))


def with_terminal(
    connection: Connection, master: int, argv: Sequence[str], env: Mapping[str, str] | None = None
) -> int:
    """Run ``argv`` on a terminal of the node, joined to the user's; return its exit status.

    ``master`` is the file descriptor of the terminal's master, opened on the node; it is
    closed at the end.
    """
    try:
        with connection, resizes() as waker:
            _copy_size(master)
            variables = environment({**(env or {}), "TERM": os.environ.get("TERM", "dumb")})
            _begin(connection, ["1", *variables, *argv], [master])
            with raw(sys.stdin.fileno()):
                return shell_status(_copy(connection, master, waker))
    finally:
        os.close(master)


def _begin(connection: Connection, fields: Sequence[str], files: Sequence[int]) -> None:
    connection.send(["run", "/", *fields], files)
    words, _ = connection.receive()
    if words[0] != "pid":
        raise LabError(f"the command could not be started: {' '.join(words)}")


def _copy(connection: Connection, master: int, waker: Waker) -> int:
    """Copy bytes both ways, and each new size, until the command ends; return its status."""
    os.set_blocking(master, False)
    user = sys.stdin.fileno()
    waiting = b""  # typed, and not yet taken by the terminal
    watched = dict.fromkeys([connection.fileno(), master, user, waker.fileno()], select.POLLIN)
    while True:
        poller = select.poll()
        for fd, events in watched.items():
            if fd == user and len(waiting) >= AHEAD:
                continue
            # The terminal may be full while the command waits for us to read from it.
            poller.register(fd, events | (select.POLLOUT if fd == master and waiting else 0))
        ready = dict(poller.poll())
        if waker.fileno() in ready:
            waker.clear()
            _copy_size(master)
        if user in ready:
            data = typed(user)
            waiting += data or END_OF_FILE
            if not data:
                del watched[user]
        if waiting and master in watched:
            with contextlib.suppress(OSError):  # full, or closed by its last user
                waiting = waiting[os.write(master, waiting) :]
        if master in ready and not _show(master):
            del watched[master]
        elif connection.fileno() in ready:
            words, _ = connection.receive()
            while master in watched and _show(master, last=True):
                continue
            return status_of(words)


def _show(master: int, *, last: bool = False) -> bool:
    """Show new output of the command; return False when no more will come.

    ``last``: the command has ended, so do not wait for more output.
    """
    try:
        data = os.read(master, 1 << 16)
    except BlockingIOError:
        return not last
    except OSError:  # EIO: every process on the terminal has closed it
        return False
    write(sys.stdout.fileno(), data)
    return bool(data)


def _copy_size(master: int) -> None:
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
