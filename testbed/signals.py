"""Deferred signals: held back during work that must not be interrupted, and then checked."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from testbed.errors import Interrupted, TimeoutExpired

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN = 0.05  # seconds; uninterruptible code has ended long before
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Held:
    """The signals received while they were held."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.count = 0  #: number of signals; a second one means that the user does not want to wait
        #: Called from the signal handler with the first signal; must be safe to run there.
        self.told: Callable[[int], None] = lambda _: None

    def check(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def came(self, signum: int, _: Any) -> None:
        """The signal handler."""
        self.count += 1
        if self.signum is None:
            self.signum = signum
            self.told(signum)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block SIGINT, SIGTERM and SIGHUP, for this thread and the processes it forks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Unblock these signals in a process that was forked while they were blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextlib.contextmanager
def held() -> Iterator[Held]:
    """Hold back SIGINT, SIGTERM and SIGHUP.  Has no effect outside the main thread."""
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


@contextlib.contextmanager
def alarm(seconds: float | None) -> Iterator[Callable[[], None]]:
    """Raise TimeoutExpired in the block after ``seconds``; None means never.

    The yielded function turns the alarm off.  Has no effect outside the main thread.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def came(_: int, __: Any) -> None:
        raise TimeoutExpired(f"timeout after {seconds:g} s, before anything of the lab was created")

    def off() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, came)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield off
    finally:
        off()
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """Send a signal again if its exception was lost.

    Python prints and ignores an exception that a signal handler raises during a ``__del__`` or a
    callback of a weak reference, which imports use.
    """
    before = sys.unraisablehook

    def hook(unraisable: UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt | Interrupted):
            before(unraisable)
            return
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
