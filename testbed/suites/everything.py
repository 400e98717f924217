"""Every lab that the catalogue needs, one after the other: up, put to the test, down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.claims.catalogue import claims
from testbed.errors import UsageError
from testbed.lab.lab import Lab, Settings, Watch
from testbed.lab.live import LiveLab
from testbed.pytest_plugin import features
from testbed.suites.runner import Check, Results, Selection, run
from testbed.topology.load import Overrides, load, names

if TYPE_CHECKING:
    from testbed.claims.model import Finding
    from testbed.topology.model import Topology

PREFIX = "verify-"  # of the labs' names: a lab of the user's stays as it is


@dataclass(frozen=True, slots=True)
class LabRun:
    """One lab's part.  Times are in seconds."""

    topology: str
    results: Results
    up: float
    seconds: float
    down: float
    versions: dict[str, str]


@dataclass(slots=True)
class Watching:
    """What is told while it goes on."""

    lab: Callable[[str], None] = lambda _: None
    up: Callable[[str, float], None] = lambda _name, _seconds: None
    found: Callable[[Finding | Check], None] = lambda _: None
    down: Callable[[str, float], None] = lambda _name, _seconds: None


def run_everything(
    settings: Settings, selection: Selection, watching: Watching | None = None
) -> list[LabRun]:
    """Run what the selection names on every shipped topology that can decide any of it.

    Each lab is taken down whatever happens to it.  Raises UsageError when no
    lab can decide anything of the selection.
    """
    watching = watching or Watching()
    runs = []
    for name in names():
        if not _may_decide(load(name), selection):
            continue
        try:
            runs.append(_one(settings, name, selection, watching))
        except _NothingHere:
            continue
        if runs[-1].results.interrupted:
            break
    if not runs:
        raise UsageError(
            "nothing that any shipped lab can decide was selected",
            hint="check -k, --claim and --document",
        )
    return runs


def _may_decide(topology: Topology, selection: Selection) -> bool:
    """False where a lab need not even be brought up: it has not what the chosen claims need."""
    if not selection.claims:
        return True
    has = features(topology)
    return any(set(claims()[claim].needs) <= has for claim in selection.claims if claim in claims())


class _NothingHere(Exception):
    """A lab can decide nothing of the selection."""


def _one(settings: Settings, name: str, selection: Selection, watching: Watching) -> LabRun:
    topology = load(name, Overrides(name=f"{PREFIX}{name}"))
    lab = Lab(topology.name, settings)
    watching.lab(name)
    try:
        outcome = lab.up(topology, watch=Watch())
        watching.up(name, outcome.seconds)
        live = LiveLab(lab.context())
        began = time.monotonic()
        try:
            results = run(live, selection, told=watching.found)
        except UsageError as error:
            raise _NothingHere from error
        finally:
            live.close()
        seconds = time.monotonic() - began
        versions = lab.record().versions
    finally:
        began = time.monotonic()
        lab.down()
        taken = time.monotonic() - began
    watching.down(name, taken)
    return LabRun(name, results, outcome.seconds, seconds, taken, versions)
