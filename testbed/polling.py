"""A wait for something that this machine or a node brings about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE = 0.01  # seconds
LONGEST = 0.25  # seconds that a pause grows to: a long wait costs little, and ends little later


def longer(pause: float, longest: float = LONGEST) -> float:
    """Return the pause after ``pause``, in seconds: a tenth longer, up to ``longest``.

    >>> longer(0.125), longer(0.24), longer(2)
    (0.1375, 0.25, 2)
    """
    return max(pause, min(longest, pause * 1.1))


def until(true: Callable[[], object], seconds: float, *, pause: float = PAUSE) -> bool:
    """Call ``true`` until its result is true; return False if it is not after ``seconds``.

    It is called at least once. ``pause`` seconds lie between the first two calls, and more between
    later ones (see :func:`longer`).  A wait in a step of
    a plan is :class:`testbed.steps.wait.Wait`: it is shown to the user, and can be given up.

    >>> until(lambda: True, 0)
    True
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = longer(pause)
    return True
