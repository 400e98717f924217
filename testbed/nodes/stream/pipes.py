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
from testbed.nodes.terminal import shell_status, write


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

    stream = Pipe(link, sink)
    try:
        stream.send("r", request(node, ["1", *environment(env), *argv]))
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
