"""Fixtures: a bed of its own for each test, down in the end; and the counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.means import Bed, Count, Watch

COUNTS: dict[str, Count] = {}


def cleared(made: Bed) -> None:
    """Whatever was done with it: ``down --all`` ends well, and nothing is left then."""
    made.env, made.under = {}, ()
    gone = made.run("down", "--all")
    assert gone.returncode == 0, gone.stderr
    assert made.leftovers() == []


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path / "state")
    yield made
    cleared(made)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Bed]:
    """Another user's."""
    made = Bed(tmp_path / "other state\nwith 'words'")
    yield made
    cleared(made)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Count:
    name = request.node.name
    return COUNTS.setdefault(name, Count())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("points killed")
    for name, one in COUNTS.items():
        terminalreporter.line(f"{name}: {len(one.points)} points, {one.rounds} rounds")
    points = sum(len(one.points) for one in COUNTS.values())
    rounds = sum(one.rounds for one in COUNTS.values())
    terminalreporter.line(f"in all {points} points, {rounds} rounds")
