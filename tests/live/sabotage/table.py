"""The outcome of all trials: a table to read, and the same for a machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sabotage.every import SABOTAGES
from sabotage.judgements import Place, places
from sabotage.trials import JUDGED, Trial, can_be_refuted


def write_trial(trial: Trial) -> str:
    """A trial as text, for another process; :func:`read_trial` reads it."""
    said = {"outcomes": trial.outcomes, "said": trial.said, "seconds": trial.seconds}
    return json.dumps({"sabotage": trial.sabotage.name, **said})


def read_trial(text: str) -> Trial:
    """The trial of a text by :func:`write_trial`."""
    said = json.loads(text)
    name = said.pop("sabotage")
    (sabotage,) = [one for one in SABOTAGES if one.name == name]
    return Trial(sabotage, **said)


def write_judgements() -> str:
    """The judgements of this process as text; :func:`read_judgements` adds them to another's."""
    return json.dumps(sorted((place.file, place.line, held) for place, held in JUDGED))


def read_judgements(text: str) -> None:
    """Add the judgements of a text by :func:`write_judgements` to those of this process."""
    JUDGED.update((Place(file, line), held) for file, line, held in json.loads(text))


def seen_to_fail(trials: list[Trial]) -> tuple[list[str], list[str], list[str]]:
    """Of all testable claims: those refuted, those whose checks only gave up, the others."""
    refuted = {name for trial in trials for name in trial.having("refuted")}
    broke = {name for trial in trials for name in trial.having("broke", "unsettled")} - refuted
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
        broke = trial.having("broke", "unsettled")
        stayed = trial.having("held", "unclear", "undecided")
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
        yield f"    only with an error of the check, or no verdict: {name}"
    for name in never:
        yield f"    never: {name}"


def data(trials: list[Trial]) -> dict[str, Any]:
    """Return the result of each claim as data."""
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
