"""``up``, ``verify`` and ``down``, ended at every step boundary and at random instants."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from crash.means import ENDING, LONG, STATUS, Bed, Count, Watch, dice, killed_at
from crash.means import no_traceback as clean
from testbed.labs import plan
from testbed.topology import load

SIGNALS = (signal.SIGKILL, *ENDING)
#: The long form does it all with flannel, etcd and two Docker nodes, the short one with one.
LAB = "two-node" if LONG else "small"
TOPOLOGY = "two-node" if LONG else str(Path(__file__).with_name("small.yaml"))
#: Claims that the lab can decide, each quick.
CLAIMS = {
    "two-node": ("flannel-overlay-connects-all", "flannel-subnet-mapping-in-etcd"),
    "small": ("bridge-docker0-first-address",),
}[LAB]
TURNS = 12 * len(SIGNALS) if LONG else 2  # random instants, with each signal in turn


def boundaries(topology: str) -> list[str]:
    """Before the first step, after each, and after the last word."""
    steps = len(plan.make(load(topology)).steps)
    return ["begin", *(f"step {n} of {steps}" for n in range(1, steps + 1)), "end"]


def up_to(bed: Bed, boundary: int, signum: int, topology: str = TOPOLOGY) -> tuple[int, str]:
    """Bring up, and end it once it has told of so many steps."""
    slow = bed.slow("up", topology)
    told = -1
    for line in slow.lines():
        told += 1
        if told == boundary:
            assert line
            break
    else:
        raise AssertionError(f"it told of {told} steps only: {slow.err.decode()}")
    return slow.end(signum), slow.err.decode()


def ended_as(status: int, signum: int, said: str) -> None:
    """By the signal; or well, for one that came when all was done."""
    clean(said)
    assert status in (STATUS[signal.Signals(signum)], 0), said


def matrix() -> list[tuple[int, signal.Signals]]:
    points = range(len(boundaries(TOPOLOGY)))
    if LONG:
        return [(point, signum) for signum in SIGNALS for point in points]
    # Each point is killed; the gentler signals take a point each.
    soft = [(2 * n + 1, signum) for n, signum in enumerate(ENDING)]
    return [(point, signal.SIGKILL) for point in points] + soft


@pytest.mark.thorough
@pytest.mark.seconds(20)
def test_down_after_up_was_ended_at_every_boundary(bed: Bed, watch: Watch, count: Count) -> None:
    names = boundaries(TOPOLOGY)
    for point, signum in matrix():
        status, said = up_to(bed, point, signum)
        ended_as(status, signum, said)
        if signum != signal.SIGKILL and names[point] != "end":
            assert status, said
            assert bed.labs() == [], f"{names[point]}, {signum}: something was left"
        bed.must("down", LAB)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()
        count.add(f"{names[point]}, {signal.Signals(signum).name}")
    wanted = {name for name in names if any(p.startswith(f"{name},") for p in count.points)}
    assert wanted == set(names), "no point may be skipped"


@pytest.mark.thorough
@pytest.mark.seconds(10)
def test_up_again_after_up_was_killed_at_every_boundary(
    bed: Bed, watch: Watch, count: Count
) -> None:
    names = boundaries(TOPOLOGY)
    for point in range(len(names)) if LONG else (2, 4, 6):
        status, said = up_to(bed, point, signal.SIGKILL)
        ended_as(status, signal.SIGKILL, said)
        bed.must("up", TOPOLOGY, "-q")
        assert bed.status(LAB)["ok"]
        if LONG or point == 6:
            claims = [word for claim in CLAIMS for word in ("--claim", claim)]
            bed.must("verify", LAB, "-q", *claims)
        bed.must("down", LAB)
        assert bed.leftovers() == []
        watch.check()
        count.add(names[point])


def duration(bed: Bed, *argv: str) -> float:
    began = time.monotonic()
    bed.must(*argv)
    return time.monotonic() - began


@pytest.mark.thorough
@pytest.mark.seconds(12)
def test_up_ended_at_random_instants(bed: Bed, watch: Watch, count: Count) -> None:
    chance = dice("up")
    whole = duration(bed, "up", TOPOLOGY, "-q")
    bed.must("down", LAB)
    for turn in range(TURNS):
        signum = SIGNALS[turn % len(SIGNALS)]
        at = chance.uniform(0, whole)
        status, said = killed_at(bed.start("up", TOPOLOGY, "-q"), at, signum)
        if signum == signal.SIGKILL:
            clean(said)
        else:
            ended_as(status, signum, said)
        if turn % 2:
            bed.must("up", TOPOLOGY, "-q")
            assert bed.status(LAB)["ok"]
        bed.must("down", LAB)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()
        count.add(f"{at:.3f} s of {whole:.3f} s, {signal.Signals(signum).name}")


@pytest.mark.thorough
@pytest.mark.seconds(12)
def test_down_ended_at_random_instants(bed: Bed, watch: Watch, count: Count) -> None:
    chance = dice("down")
    bed.must("up", TOPOLOGY, "-q")
    whole = duration(bed, "down", LAB)
    for turn in range(TURNS):
        signum = SIGNALS[turn % len(SIGNALS)]
        bed.must("up", TOPOLOGY, "-q")
        at = chance.uniform(0, whole)
        status, said = killed_at(bed.start("down", LAB), at, signum)
        ended_as(status, signum, said)
        if turn % 2:
            bed.must("up", TOPOLOGY, "-q")
            assert bed.status(LAB)["ok"]
        bed.must("down", LAB)
        assert bed.labs() == []
        assert bed.leftovers() == []
        watch.check()
        count.add(f"{at:.3f} s of {whole:.3f} s, {signal.Signals(signum).name}")


def test_verify_ended_at_every_verdict(bed: Bed, watch: Watch, count: Count) -> None:
    bed.must("up", TOPOLOGY, "-q")
    claims = [word for claim in CLAIMS for word in ("--claim", claim)]
    every = [(point, signum) for signum in SIGNALS for point in range(len(CLAIMS) + 1)]
    for point, signum in every if LONG else every[1:3]:
        slow = bed.slow("verify", LAB, *claims)
        for told, _ in enumerate(slow.lines()):
            if told == point:
                break
        status = slow.end(signum)
        clean(slow.err.decode())
        assert status in (STATUS[signum], 0), slow.err
        assert bed.status(LAB)["ok"], "a run that is ended leaves the lab as it was"
        count.add(f"verdict {point}, {signum.name}")
    bed.must("verify", LAB, "-q", *claims)
    bed.must("down", LAB)
    watch.check()
