"""Run a command on a machine, on the user's own terminal or pipes."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.errors import LabError, output_error
from testbed.nodes.netns.agent import ENVIRONMENT, environment
from testbed.nodes.ssh.wire import Link, Pipe, request
from testbed.nodes.terminal import END_OF_FILE, on_resize, raw, readable, shell_status, typed, write

if TYPE_CHECKING:
    import paramiko

NO_STATUS = -1  # paramiko's status of a channel that ended without sending one


def with_terminal(channel: paramiko.Channel, argv: Sequence[str]) -> int:
    """Run ``argv`` on a new terminal, joined to the user's, and return its exit status.

    Raises EOFError when the connection ends before the command does.
    """
    kind = os.environ.get("TERM", "dumb")
    size = _size()
    channel.get_pty(kind, size.columns, size.lines)
    env = {**ENVIRONMENT, "TERM": kind}
    words = ["env", "-i", *(f"{key}={value}" for key, value in env.items()), *argv]
    # Not the shell's last command, so that the shell stays and reports a signal as 128 + N.
    # An interrupt key reaches the shell as well, so the shell has to survive it.
    command = f"cd /; trap : INT QUIT; {shlex.join(words)}; exit $?"
    channel.exec_command(command.encode("utf-8", "surrogateescape"))

    def resized() -> None:
        now = _size()
        channel.resize_pty(now.columns, now.lines)

    with channel, raw(sys.stdin.fileno()), on_resize(resized):
        _copy(channel)
        status = channel.recv_exit_status()
    if status == NO_STATUS:
        raise EOFError("the connection ended before the command did")
    return status


def _size() -> os.terminal_size:
    """Return the size of the user's terminal, regardless of COLUMNS and LINES."""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return os.terminal_size((80, 24))


def _copy(channel: paramiko.Channel) -> None:
    """Copy bytes both ways until the machine's output ends."""
    user_in, user_out = sys.stdin.fileno(), sys.stdout.fileno()
    watched = [channel.fileno(), user_in]
    while True:
        ready = readable(watched)
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


def with_pipes(node: str, link: Link, argv: Sequence[str]) -> int:
    """Run ``argv`` on our standard input, output and error; return its exit status.

    Raises ReaderGone or OutputError if writing standard output fails; the command is then killed.
    """
    out, err = sys.stdout.fileno(), sys.stderr.fileno()

    def sink(kind: str, data: bytes) -> None:
        if kind == "o":
            write(out, data)
        elif kind == "e":
            with contextlib.suppress(OSError):  # as for our own messages
                write(err, data)

    stream = Pipe(link, sink)
    try:
        stream.send("r", request(node, ["1", *environment(None), *argv]))
        threading.Thread(target=_feed, args=(stream,), daemon=True).start()
        try:
            status = stream.wait(None)
        finally:
            stream.poured.wait()
            if stream.failed is not None:
                raise output_error(stream.failed)
    finally:
        stream.forget()
    return shell_status(status)


def _feed(stream: Pipe) -> None:
    try:
        while data := os.read(sys.stdin.fileno(), 1 << 16):
            stream.feed(data)
        stream.send("i")
    except (OSError, LabError):
        return  # the thread that waits for the command gets the error
