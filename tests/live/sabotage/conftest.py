"""The lab that is sabotaged, the order of the trials, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sabotage.table import data, table
from sabotage.trials import Labs, Sabotage, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIALS = pytest.StashKey[list[Trial]]()
LAST = 1 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sabotage-json", metavar="FILE", help="write what became of each claim")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIALS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One lab after the other; on each, first the sabotages, then the look whether it is whole."""
    labs: dict[str, int] = {}

    def order(item: pytest.Item) -> tuple[int, bool]:
        given = getattr(item, "callspec", None)
        wanted = given.params.get("sabotage") if given else None
        if isinstance(wanted, Sabotage):
            return labs.setdefault(wanted.lab, len(labs)), False
        lab = given.params.get("topology") if given else None
        return (LAST if lab is None else labs.setdefault(lab, len(labs))), True

    here = [item for item in items if item.path.parent == Path(__file__).parent]
    ordered = iter(sorted(here, key=order))
    chosen = set(here)
    items[:] = [next(ordered) if item in chosen else item for item in items]


@pytest.fixture(scope="module")
def labs() -> Iterator[Labs]:
    """Labs of this module, one at a time: the tests of others find none of them."""
    kept = Labs()
    yield kept
    kept.drop()


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> list[Trial]:
    """All trials of this session so far."""
    return request.config.stash[TRIALS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    trials = config.stash[TRIALS]
    if not trials:
        return
    terminalreporter.section("sabotage")
    for line in table(trials):
        terminalreporter.write_line(line)
    # Known only where pytest was given this folder itself: else it is loaded too late.
    if (path := config.getoption("sabotage_json", None)) is not None:
        Path(path).write_text(json.dumps(data(trials), indent=1), encoding="utf-8")
