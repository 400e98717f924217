"""A command on a node, on the user's own terminal or pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import sys
import termios
from collections.abc import Sequence

from testbed.nodes.netns.agent import Connection, environment, status_of
from testbed.nodes.terminal import on_resize, raw, shell_status


def attach(connection: Connection, argv: Sequence[str], *, tty: bool) -> int:
    """Run ``argv`` and return its exit status, 128 + N when signal N ended it.

    With ``tty`` the command gets a terminal of its own that the user's is
    joined to; without, it gets our standard input, output and error as they are.
    """
    with connection:
        if tty:
            return shell_status(_with_terminal(connection, argv))
        files = [sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()]
        connection.send(["run", "/", "0", *environment(None), *argv], files)
        connection.receive()
        words, _ = connection.receive()
        return shell_status(status_of(words))


def _with_terminal(connection: Connection, argv: Sequence[str]) -> int:
    ours, theirs = pty.openpty()
    try:
        _copy_size(ours)
        env = environment({"TERM": os.environ.get("TERM", "dumb")})
        connection.send(["run", "/", "1", *env, *argv], [theirs, theirs, theirs])
        connection.receive()
        os.close(theirs)
        theirs = -1
        with raw(sys.stdin.fileno()), on_resize(lambda: _copy_size(ours)):
            return _copy(connection, ours)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _copy(connection: Connection, ours: int) -> int:
    """Copy bytes both ways until the command ends; return its status."""
    user_in, user_out = sys.stdin.fileno(), sys.stdout.fileno()
    watched = [connection.fileno(), ours, user_in]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if user_in in ready:
            data = os.read(user_in, 4096)
            if data:
                os.write(ours, data)
            else:
                watched.remove(user_in)
                os.write(ours, b"\x04")  # end of file, as a terminal says it
        if ours in ready:
            try:
                os.write(user_out, os.read(ours, 65536))
            except OSError:  # every process on the terminal has closed it
                watched.remove(ours)
        elif connection.fileno() in ready:  # only when the terminal is drained
            words, _ = connection.receive()
            return status_of(words)


def _copy_size(ours: int) -> None:
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        fcntl.ioctl(ours, termios.TIOCSWINSZ, size)
