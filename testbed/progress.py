"""Progress of what takes long, and how much of it is shown where no terminal is.

A terminal shows all of it.  A file, such as the log of a CI job, gets a line when a thing
begins, one when it ends, and one every half a minute between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

EVERY = 30.0  # seconds


class Tell(Protocol):
    """Called as a thing goes on, by its name, with what is being done for it.

    ``ended`` marks the last words.  A thing is an artifact, for instance, or a lab.
    """

    def __call__(self, thing: str, words: str, /, *, ended: bool = False) -> None: ...


def silent(_thing: str, _words: str, *, ended: bool = False) -> None:
    """Show nothing."""
    del ended


class Log:
    """Chooses the lines for a file, and writes them by ``echo``.  ``clock`` is in seconds."""

    def __init__(
        self, echo: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._echo = echo
        self._clock = clock
        self._told: dict[str, float] = {}  # the things under way, and when each was told of last

    def tell(self, thing: str, line: str) -> None:
        """Write a line if the thing begins with it, or was last told of half a minute ago."""
        now = self._clock()
        if now - self._told.get(thing, now - EVERY) >= EVERY:
            self._told[thing] = now
            self._echo(line)

    def end(self, thing: str, line: str = "") -> None:
        """Forget a thing; write its last line, if there is one."""
        self._told.pop(thing, None)
        if line:
            self._echo(line)

    def keep(self, things: Collection[str]) -> None:
        """Forget all others: they have ended, and somebody else has said so."""
        self._told = {thing: at for thing, at in self._told.items() if thing in things}
