"""Run a command on a new terminal at the end of a stream, joined to the user's terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence

from testbed.errors import LabError, output_error
from testbed.nodes.request import environment, request
from testbed.nodes.stream.wire import Link, Pipe
from testbed.nodes.terminal import (
    END_OF_FILE,
    Waker,
    raw,
    readable,
    resizes,
    shell_status,
    size,
    typed,
    write,
)


def with_terminal(
    node: str, link: Link, argv: Sequence[str], env: Mapping[str, str], *, inside: int = 1
) -> int:
    """Run ``argv`` on a new terminal of the node; return its exit status.

    The terminal is made in the devpts that the process ``inside`` of the node sees.

    Raises ReaderGone or OutputError if writing to the user's terminal fails; the command is then
    killed.
    """
    user, out = sys.stdin.fileno(), sys.stdout.fileno()
    # This thread waits for keys; the end of the output and a new size wake it.
    with resizes() as waker:
        stream = Pipe(link, lambda _, data: write(out, data))

        def end() -> None:
            stream.poured.wait()
            waker.wake()

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        try:
            variables = environment({**env, "TERM": os.environ.get("TERM", "dumb")})
            fields = [f"{_size()} {inside}", *variables]
            with raw(user):
                stream.send("t", request(node, [*fields, *argv]))
                _type(stream, user, waker)
                status = stream.wait(None)
        finally:
            stream.forget()
            ending.join()
    if not stream.pid:
        raise LabError(f"{node} has no new terminal: {os.strerror(status)}")
    return shell_status(status)


def _type(stream: Pipe, user: int, waker: Waker) -> None:
    """Pass on what is typed, and each new size, until the command has ended."""
    watched = [waker.fileno(), user]
    while True:
        ready = readable(watched)
        if waker.fileno() in ready:
            waker.clear()
            if stream.poured.is_set():
                break
            stream.send("z", _size().encode())
        if user in ready:
            data = typed(user)
            if not data:
                watched.remove(user)
            stream.feed(data or END_OF_FILE)
    if stream.failed is not None:
        raise output_error(stream.failed)


def _size() -> str:
    """Return the size of the user's terminal as the agent reads it."""
    now = size(sys.stdin.fileno())
    return f"{now.lines} {now.columns}"
