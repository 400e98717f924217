"""What joining the user's terminal to a node's takes, whatever the way to the node."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key as it is typed, while the block runs."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)  # what was typed ahead is kept
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone itself
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_resize(resized: Callable[[], None]) -> Iterator[None]:
    """Have the terminal's changes of size told, while the block runs."""

    def told(*_: Any) -> None:
        resized()

    before = signal.signal(signal.SIGWINCH, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


END_OF_FILE = b"\x04"  # as a terminal says it (Ctrl-D)


def typed(fd: int) -> bytes:
    """The next bytes from the user; nothing once there will be no more."""
    try:
        return os.read(fd, 4096)
    except OSError:  # EIO: the user's terminal has gone
        return b""


def write(fd: int, data: bytes) -> None:
    """Write all of ``data``.  Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def readable(files: Iterable[int]) -> set[int]:
    """Wait until one of the files can be read or has ended; return all that are so.

    By poll(2): select(2) takes no file whose number is 1024 or more.
    """
    poller = select.poll()
    for fd in files:
        poller.register(fd, select.POLLIN)
    return {fd for fd, _ in poller.poll()}


def shell_status(status: int) -> int:
    """A status as a shell gives it: 128 + N when signal N ended the command."""
    return status if status >= 0 else 128 - status
