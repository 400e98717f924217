"""A wait in a step: with a timeout, shown to the user, can end early."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from testbed import polling
from testbed.errors import LabError, TimeoutExpired

if TYPE_CHECKING:
    from testbed.steps.context import Context


class Wait:
    """A wait of at most ``seconds``.

    ``what`` describes the awaited event, as a phrase after "waiting for". :meth:`saw` sets the
    last observation, which is shown during the wait and in the error after the timeout.

    >>> from testbed.steps.context import Context
    >>> wait = Wait(None, "a sign", 60)
    >>> wait.saw("none yet")
    >>> wait.words
    'a sign: none yet'
    """

    def __init__(
        self, context: Context | None, what: str, seconds: float, *, hint: str | None = None
    ) -> None:
        self._context = context
        self._what = what
        self._seconds = seconds
        self._hint = hint
        self._began = time.monotonic()
        self._pause = polling.PAUSE
        self._seen = ""
        self.saw("")

    @property
    def words(self) -> str:
        return f"{self._what}: {self._seen}" if self._seen else self._what

    @property
    def gone(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self._began

    def saw(self, seen: str) -> None:
        """Set the last observation."""
        self._seen = seen
        if self._context is not None:
            self._context.waiting(self.words)

    def pause(self) -> None:
        """Sleep until the next check.

        Raises TimeoutExpired after the timeout, LabError when the run gives up.
        """
        if self.gone > self._seconds:
            raise TimeoutExpired(
                f"gave up after {self._seconds:g} s of waiting for {self.words}", hint=self._hint
            )
        if self._context is None:
            time.sleep(self._pause)
        elif self._context.given_up.wait(self._pause):
            raise LabError(f"stopped waiting for {self.words}")
        self._pause = polling.longer(self._pause)
