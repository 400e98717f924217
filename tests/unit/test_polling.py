"""A wait: as often as needed, at least once, and never for ever."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from testbed.polling import LONGEST, PAUSE, until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made; only they take time."""
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: sum(pauses))
    monkeypatch.setattr("testbed.polling.time", clock)
    return pauses


def test_what_holds_at_once_is_not_waited_for(clock: list[float]) -> None:
    assert until(lambda: "yes", 0)
    assert clock == []


def test_it_is_asked_again_after_each_pause(clock: list[float]) -> None:
    answers = itertools.chain([False, None, 0], itertools.repeat(True))
    assert until(lambda: next(answers), 10, pause=2)
    assert clock == [2, 2, 2]


def test_the_longer_it_takes_the_less_often_it_is_asked(clock: list[float]) -> None:
    assert not until(lambda: False, 60)
    assert clock == sorted(clock)
    assert (clock[0], clock[-1]) == (PAUSE, LONGEST)
    assert len(clock) < 300


def test_it_ends_in_vain_after_its_time(clock: list[float]) -> None:
    assert not until(lambda: False, 1, pause=0.25)
    assert 1 <= sum(clock) <= 1.25


def test_an_error_ends_it(clock: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 // 0, 1)
    assert clock == []
