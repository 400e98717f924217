"""The lab that is sabotaged, the order of the trials, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sabotage.judgements import Place, places
from sabotage.trials import JUDGED, Labs, Sabotage, Trial, can_be_refuted

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
        return (labs.setdefault(lab, len(labs)) if lab else LAST), True

    here = [item for item in items if item.path.parent == Path(__file__).parent]
    ordered = iter(sorted(here, key=order))
    chosen = set(here)
    items[:] = [next(ordered) if item in chosen else item for item in items]


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    """Labs of this session, one at a time."""
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


def seen_to_fail(trials: list[Trial]) -> tuple[list[str], list[str], list[str]]:
    """Of all testable claims: those refuted, those of which only the check broke, the others."""
    refuted = {name for trial in trials for name in trial.having("refuted")}
    broke = {name for trial in trials for name in trial.having("broke")} - refuted
    wanted = can_be_refuted()
    never = [name for name in wanted if name not in refuted | broke]
    return [n for n in wanted if n in refuted], [n for n in wanted if n in broke], never


def both_ways() -> set[Place]:
    """The single judgements that were seen both to hold and not to."""
    return {place for place, held in JUDGED if (place, not held) in JUDGED}


def table(trials: list[Trial]) -> Iterator[str]:
    """The trials, a line each, and what did not go as it should; then all in all."""
    yield f"{'lab':18} {'sabotage':46} {'refuted':>7} {'broke':>5} {'not':>4} {'s':>6}"
    for trial in trials:
        broke, stayed = trial.having("broke"), trial.having("held", "unclear", "undecided")
        yield (
            f"{trial.sabotage.lab or 'no lab':18} {trial.sabotage.name:46} "
            f"{len(trial.having('refuted')):7} {len(broke) or '':>5} {len(stayed) or '':>4} "
            f"{trial.seconds:6.1f}"
        )
        for words, names in (("broke", broke), ("not", stayed)):
            for name in names:
                yield f"    {words:5} {name}: {trial.said[name]:.200}"
    refuted, only_broke, never = seen_to_fail(trials)
    seen, whole = len(refuted) + len(only_broke), len(can_be_refuted())
    yield ""
    yield f"{seen} of {whole} testable claims were seen to fail"
    ways = both_ways()
    yield f"{len(ways)} of {len(places())} single judgements of their checks came out either way"
    for name in only_broke:
        yield f"    only with an error of the check: {name}"
    for name in never:
        yield f"    never: {name}"


def data(trials: list[Trial]) -> dict[str, Any]:
    """What became of each claim, for a machine to read."""
    refuted, broke, never = seen_to_fail(trials)
    return {
        "testable": can_be_refuted(),
        "refuted": refuted,
        "broke": broke,
        "never": never,
        "judgements": {str(place): place in both_ways() for place in places()},
        "sabotages": [
            {
                "name": trial.sabotage.name,
                "lab": trial.sabotage.lab,
                "what": trial.sabotage.what,
                "claims": trial.outcomes,
                "seconds": round(trial.seconds, 2),
            }
            for trial in trials
        ],
    }
