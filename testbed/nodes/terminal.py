"""Helpers for joining the user's terminal to a terminal of a node, for all providers."""

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
    """Set a terminal to raw mode, so that each key arrives as typed, while the block runs."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)  # keep keys that were typed ahead
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal may be gone itself
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_resize(resized: Callable[[], None]) -> Iterator[None]:
    """Call ``resized`` when the terminal's size changes, while the block runs."""

    def told(*_: Any) -> None:
        resized()

    before = signal.signal(signal.SIGWINCH, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def size(fd: int) -> os.terminal_size:
    """Return the size of a terminal, regardless of COLUMNS and LINES."""
    try:
        return os.get_terminal_size(fd)
    except OSError:
        return os.terminal_size((80, 24))


END_OF_FILE = b"\x04"  # of a terminal (Ctrl-D)


def typed(fd: int) -> bytes:
    """Read the next bytes from the user; empty at the end of input."""
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
    """Wait until some of the files can be read or have ended; return these.

    It uses poll(2), because select(2) accepts no file descriptor above 1023.
    """
    poller = select.poll()
    for fd in files:
        poller.register(fd, select.POLLIN)
    return {fd for fd, _ in poller.poll()}


def shell_status(status: int) -> int:
    """Return the status as a shell reports it: 128 + N when signal N killed the command."""
    return status if status >= 0 else 128 - status
