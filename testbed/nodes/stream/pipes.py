"""Run a command on a node, on open files of this process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping, Sequence

from testbed.errors import LabError, output_error
from testbed.nodes.request import environment, request
from testbed.nodes.stream.wire import Link, Pipe
from testbed.nodes.terminal import Waker, readable, shell_status, write

READING = 1.0  # seconds; a read blocks if another process took the input that was there


def with_files(
    node: str,
    link: Link,
    argv: Sequence[str],
    env: Mapping[str, str],
    files: Sequence[int | None],
) -> int:
    """Run ``argv`` on an input and two outputs; return its exit status.

    ``files`` are file descriptors; None is an empty input, or an output that is ignored.
    ``env`` adds environment variables.
    Raises ReaderGone or OutputError if writing the output fails; the command is then killed.
    """
    source, out, err = files

    def sink(kind: str, data: bytes) -> None:
        if kind == "o" and out is not None:
            write(out, data)
        elif kind == "e" and err is not None:
            with contextlib.suppress(OSError):  # as for our own messages
                write(err, data)

    stream, waker = Pipe(link, sink), Waker()
    feeding = threading.Thread(target=_feed, args=(stream, source, waker), daemon=True)
    try:
        has_input = "0" if source is None else "1"
        stream.send("r", request(node, [has_input, *environment(env), *argv]))
        if source is not None:
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
