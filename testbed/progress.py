"""Progress of long tasks, and a shorter form of it for output that is not a terminal.

A terminal shows every message.  A file, such as the log of a CI job, gets a line when a task
begins, one when it ends, and one every 30 s in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

EVERY = 30.0  # seconds


class Tell(Protocol):
    """A function called with a task's name and its current step.

    ``ended`` marks the last message of the task.  A task is, for instance, a lab or the build
    of an artifact.
    """

    def __call__(self, thing: str, words: str, /, *, ended: bool = False) -> None: ...


def silent(_thing: str, _words: str, *, ended: bool = False) -> None:
    """Show nothing."""
    del ended


class Log:
    """Selects the lines for a file and writes them with ``echo``.  ``clock`` is in seconds."""

    def __init__(
        self, echo: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._echo = echo
        self._clock = clock
        self._told: dict[str, float] = {}  # running tasks, with the time of the last line of each

    def tell(self, thing: str, line: str) -> None:
        """Write a line if it is the task's first, or its last line is 30 s old."""
        now = self._clock()
        if now - self._told.get(thing, now - EVERY) >= EVERY:
            self._told[thing] = now
            self._echo(line)

    def end(self, thing: str, line: str = "") -> None:
        """End a task; write its last line, if there is one."""
        self._told.pop(thing, None)
        if line:
            self._echo(line)

    def keep(self, things: Collection[str]) -> None:
        """Forget all other tasks: they have ended and were reported elsewhere."""
        self._told = {thing: at for thing, at in self._told.items() if thing in things}
