"""The soak, for as long as it takes to see that what can be counted is flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash.means import LONG, Bed
from crash.soak import TELLING, TURN, Quantity, Soak, slope
from testbed.machine_state import PART


@pytest.mark.thorough
@pytest.mark.seconds(15)
def test_a_few_rounds(bed: Bed) -> None:
    rounds = TURN if LONG else 3
    soak = Soak(bed, rounds, 240)
    told: list[str] = []
    soak.carry_out(told.append)
    assert soak.failures == []
    assert soak.left == []
    assert len(told) == soak.rounds == rounds
    assert {len(values) for values in soak.values.values()} == {rounds}
    assert {"link", "mount", PART, "process", "own: open files"} <= {*soak.values}


def soaked(values: list[float], most: float) -> Soak:
    soak = Soak(Bed(Path("/nowhere")), len(values), 1, rounds=len(values))
    soak.quantities = [Quantity("it", lambda: 0, most)]
    soak.values = {"it": values}
    return soak


def test_what_grows_is_told_and_what_only_wavers_is_not() -> None:
    rounds = range(TELLING)
    assert soaked([float(n % 5) for n in rounds], 0.5).growth() == []
    assert soaked([min(n, 10.0) for n in rounds], 0.5).growth() == [], "only at first"
    assert soaked([20.0 * (n > 60) for n in rounds], 0.5).growth() == [], "once, by others"
    assert soaked([float(n) for n in rounds][:10], 0.5).growth() == [], "too few to tell"
    (line,) = soaked([float(n) + n % 2 for n in rounds], 0.5).growth()
    assert line.startswith("it grows by 1")
    assert slope([7.0]) == 0
