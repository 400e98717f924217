"""A wait for something that this machine or a node brings about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE = 0.01  # seconds


def until(true: Callable[[], object], seconds: float, *, pause: float = PAUSE) -> bool:
    """Call ``true`` until its result is true; return False if it is not after ``seconds``.

    It is called at least once, and ``pause`` seconds lie between two calls.  A wait in a step of
    a plan is :class:`testbed.steps.wait.Wait`: it is shown to the user, and can be given up.

    >>> until(lambda: True, 0)
    True
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
