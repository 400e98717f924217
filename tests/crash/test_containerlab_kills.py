"""``up`` and ``down`` of nodes that containerlab deploys, killed at steps and in the middle."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from crash.means import LONG, Bed, Count, Watch, dice, killed_at
from crash.test_kill_matrix import boundaries, duration, ended_as

LAB = "small"
FILE = str(Path(__file__).with_name("small.yaml"))
UP = ("up", FILE, "--provider", "containerlab")
INSTANTS = 20 if LONG else 2


def killed_after(bed: Bed, steps: int) -> None:
    """Bring up, and kill it once it has told of so many steps."""
    slow = bed.slow(*UP)
    for told, _ in enumerate(slow.lines()):
        if told == steps:
            break
    ended_as(slow.end(signal.SIGKILL), signal.SIGKILL, slow.err.decode())


@pytest.mark.thorough
@pytest.mark.seconds(15)
def test_up_is_killed_at_every_step(bed: Bed, watch: Watch, count: Count) -> None:
    """The next ``down`` leaves nothing, and the next ``up`` makes the lab whole."""
    names = boundaries(FILE)
    for point, name in list(enumerate(names))[:: 1 if LONG else 3]:
        killed_after(bed, point)
        if LONG or point % 2:
            bed.must(*UP, "-q")
            assert bed.status(LAB)["ok"]
        bed.must("down", LAB)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()
        count.add(name)


@pytest.mark.thorough
@pytest.mark.seconds(15)
def test_up_and_down_are_killed_in_the_middle(bed: Bed, watch: Watch, count: Count) -> None:
    """While the engine starts, containerlab deploys, or containers end."""
    chance = dice("containerlab")
    whole = duration(bed, *UP, "-q")
    short = duration(bed, "down", LAB)
    for turn in range(INSTANTS):
        at = chance.uniform(0.2 * whole, 0.9 * whole)
        killed_at(bed.start(*UP, "-q"), at, signal.SIGKILL)
        if turn % 2:
            bed.must(*UP, "-q")
            assert bed.status(LAB)["ok"]
            at = chance.uniform(0.2 * short, short)
            killed_at(bed.start("down", LAB), at, signal.SIGKILL)
        bed.must("down", LAB)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()
        count.add(f"{at:.3f} s")
