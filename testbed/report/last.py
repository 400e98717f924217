"""The last run, kept in the state folder so that failures can be run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed import files, owner
from testbed.errors import MachineError, NothingTested, UsageError
from testbed.report.data import current, tested

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.suites.model import Selection

FOLDER = "runs"
FILE = "last.json"


def keep(state: Path, run: Mapping[str, Any]) -> None:
    """Store a run, replacing the last one.

    It is in the form of :func:`testbed.report.data.to_dict`.  Raises MachineError if it can't
    be written.
    """
    folder = state / FOLDER
    try:
        owner.make(folder, 0o700)
    except OSError as error:
        if isinstance(error, MachineError):
            raise
        raise MachineError(
            f"cannot store the run in {folder}: {error.strerror}",
            hint="free space there, or set TESTBED_STATE to another folder",
        ) from error
    files.keep(folder / FILE, json.dumps(run))


def catalogues(state: Path) -> tuple[str, ...]:
    """Return the folders of the catalogues of the last run; none if there was no run."""
    try:
        run = json.loads((state / FOLDER / FILE).read_text(encoding="utf-8"))
        return tuple(source["folder"] for source in current(run)["catalogues"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def failed(state: Path, selection: Selection) -> Selection:
    """Return the selection, narrowed to failures of the last run.

    That includes what an interrupted run did not reach.  Raises UsageError if
    there is no last run, NothingTested if it tested nothing; the result is empty
    if nothing failed.
    """
    path = state / FOLDER / FILE
    try:
        run = current(json.loads(path.read_text(encoding="utf-8")))
        wrong = {claim["id"] for claim in run["claims"] if not claim["as_expected"]}
        for lab in run["labs"]:  # include labs whose results are unknown or incomplete
            every = [claim["id"] for claim in run["claims"] if claim["expect"] != "not testable"]
            wrong |= set(every if lab["error"] else lab["missed"])
        tests = {
            check["name"]
            for lab in run["labs"]
            for check in lab["checks"]
            if check["outcome"] == "failed"
        }
        something = tested(run)
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        raise UsageError(
            "there is no last run with failures to repeat",
            hint="run `testbed verify` without --rerun-failed first",
        ) from None
    if not (something or wrong or tests):
        raise NothingTested(
            "the last run tested nothing",
            hint="run `testbed verify` without --rerun-failed",
        )
    known = selection.catalogue.claims.values()
    wrong = {claim.id for claim in known if claim.id in wrong and selection.has(claim)}
    if selection.claims or selection.documents:  # an ordinary test belongs to no claim
        tests = set()
    return replace(selection, claims=tuple(sorted(wrong)), tests=tuple(sorted(tests)))
