"""Run a command on a machine, on a terminal that is joined to the user's."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.nodes.request import ENVIRONMENT
from testbed.nodes.terminal import END_OF_FILE, Waker, raw, readable, resizes, size, typed, write

if TYPE_CHECKING:
    import paramiko

NO_STATUS = -1  # paramiko's status of a channel that ended without sending one


def with_terminal(channel: paramiko.Channel, argv: Sequence[str]) -> int:
    """Run ``argv`` on a new terminal, joined to the user's, and return its exit status.

    Raises EOFError when the connection ends before the command does.
    """
    kind = os.environ.get("TERM", "dumb")
    env = {**ENVIRONMENT, "TERM": kind}
    words = ["env", "-i", *(f"{key}={value}" for key, value in env.items()), *argv]
    # Not the shell's last command, so that the shell stays and reports a signal as 128 + N.
    # An interrupt key reaches the shell as well, so the shell has to survive it.
    command = f"cd /; trap : INT QUIT; {shlex.join(words)}; exit $?"
    with channel, resizes() as waker:
        begun = size(sys.stdin.fileno())
        channel.get_pty(kind, begun.columns, begun.lines)
        channel.exec_command(command.encode("utf-8", "surrogateescape"))
        with raw(sys.stdin.fileno()):
            _copy(channel, waker)
            status = channel.recv_exit_status()
    if status == NO_STATUS:
        raise EOFError("the connection ended before the command did")
    return status


def _copy(channel: paramiko.Channel, waker: Waker) -> None:
    """Copy bytes both ways, and each new size, until the machine's output ends."""
    user_in, user_out = sys.stdin.fileno(), sys.stdout.fileno()
    watched = [channel.fileno(), user_in, waker.fileno()]
    while True:
        ready = readable(watched)
        if waker.fileno() in ready:
            waker.clear()
            _resize(channel)
        if channel.fileno() in ready:
            data = channel.recv(65536)
            if not data:
                return
            write(user_out, data)
        if user_in in ready:
            data = typed(user_in)
            if not data:
                watched.remove(user_in)
            try:
                channel.sendall(data or END_OF_FILE)
            except OSError:  # closed: read its remaining output first, then its end
                watched = [channel.fileno()]


def _resize(channel: paramiko.Channel) -> None:
    """Give the terminal the size of the user's, unless the command has ended."""
    from paramiko import SSHException

    now = size(sys.stdin.fileno())
    with contextlib.suppress(OSError, SSHException):  # closed: its remaining output follows
        channel.resize_pty(now.columns, now.lines)
