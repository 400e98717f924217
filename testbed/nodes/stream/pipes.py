"""Run a command on a node, on the standard streams of this process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence

from testbed.errors import LabError, output_error
from testbed.nodes.request import environment, request
from testbed.nodes.stream.wire import Link, Pipe
from testbed.nodes.terminal import Waker, readable, shell_status, write

READING = 1.0  # seconds; a read blocks if another process took the input that was there


def with_pipes(node: str, link: Link, argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run ``argv`` on our standard input, output and error; return its exit status.

    ``env`` adds environment variables.
    Raises ReaderGone or OutputError if writing standard output fails; the command is then killed.
    """
    out, err = sys.stdout.fileno(), sys.stderr.fileno()

    def sink(kind: str, data: bytes) -> None:
        if kind == "o":
            write(out, data)
        elif kind == "e":
            with contextlib.suppress(OSError):  # as for our own messages
                write(err, data)

    stream, waker = Pipe(link, sink), Waker()
    feeding = threading.Thread(target=_feed, args=(stream, sys.stdin.fileno(), waker), daemon=True)
    try:
        stream.send("r", request(node, ["1", *environment(env), *argv]))
        feeding.start()
        try:
            status = stream.wait(None)
        finally:
            stream.poured.wait()
            if stream.failed is not None:
                raise output_error(stream.failed)
    finally:
        stream.forget()
        waker.wake()
        if feeding.ident is not None:
            feeding.join(READING)  # further input is not this command's
        if not feeding.is_alive():
            waker.close()
    return shell_status(status)


def _feed(stream: Pipe, source: int, waker: Waker) -> None:
    """Pass on what ``source`` has, until its end or until ``waker`` is woken."""
    try:
        while waker.fileno() not in readable([waker.fileno(), source]):
            data = os.read(source, 1 << 16)
            if not data:
                stream.send("i")
                return
            stream.feed(data)
    except (OSError, LabError):
        return  # the thread that waits for the command gets the error
