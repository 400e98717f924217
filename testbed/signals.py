"""Signals as messages: while work must not be cut in the middle, they wait to be asked for."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from testbed.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Held:
    """The signals that came while they were held."""

    def __init__(self) -> None:
        self.signum: int | None = None
        #: Called, from the signal handler, with each that comes: must be safe there.
        self.told: Callable[[int], None] = lambda _: None

    def check(self) -> None:
        """Raise Interrupted if one has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def came(self, signum: int, _: Any) -> None:
        """The signal handler."""
        if self.signum is None:
            self.signum = signum
            self.told(signum)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait in the kernel, for this thread and what it forks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Let them come: in a process that was forked while they were blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """Hold SIGINT, SIGTERM and SIGHUP back.  Outside the main thread nothing is held."""
    holder = Held()
    if threading.current_thread() is not threading.main_thread():
        yield holder
        return
    before = {signum: signal.signal(signum, holder.came) for signum in ENDING}
    try:
        yield holder
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
