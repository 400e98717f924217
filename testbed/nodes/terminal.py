"""Helpers for joining the user's terminal to a terminal of a node, for all providers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterable, Iterator


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


class Waker:
    """A file that a thread polls beside others, so that it can be woken."""

    def __init__(self) -> None:
        self._ours, self.file = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._ours

    def wake(self) -> None:
        """Make the file readable.  Any thread may call this until :meth:`close`."""
        with contextlib.suppress(BlockingIOError):  # full, so the thread will wake anyway
            os.write(self.file, b"x")

    def clear(self) -> None:
        """Make the file unreadable, until it is woken again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._ours, 4096):
                continue

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.file)


@contextlib.contextmanager
def resizes() -> Iterator[Waker]:
    """Yield a file that each new size of the terminal wakes, while the block runs.

    Read the size only within the block, so that no change is lost.  A Python handler of SIGWINCH
    would not do: it does not run if the signal comes right before the thread waits, or is taken by
    another thread (signal.set_wakeup_fd).
    """
    waker = Waker()
    handler = signal.signal(signal.SIGWINCH, lambda *_: None)
    before = signal.set_wakeup_fd(waker.file, warn_on_full_buffer=False)
    try:
        yield waker
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGWINCH, handler)
        waker.close()


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


def everything(fd: int) -> bytes:
    """Read a file until its end.  Raises OSError."""
    found = bytearray()
    while data := os.read(fd, 1 << 16):
        found += data
    return bytes(found)


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
