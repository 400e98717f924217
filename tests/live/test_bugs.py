"""Each bug report of examples/bugs on its lab: the reported behaviour, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from bugs import BUGS
from commands import call
from labs import verify_beside

#: Quick ones, for `make test`; the others run in `make test-all`.
SHORT = ("libnetwork-1151", "moby-20179", "moby-45610")


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=bug.name, marks=() if bug.name in SHORT else pytest.mark.long)
        for bug in BUGS
    ],
)
@pytest.mark.seconds(8)
def test_a_report_and_its_fix_are_seen(bug: Path, tmp_path: Path) -> None:
    verify_beside(bug, tmp_path)


@pytest.mark.seconds(4)
def test_a_new_lab_runs_and_its_tests_fail_until_they_are_complete(tmp_path: Path) -> None:
    state = {"TESTBED_STATE": str(tmp_path / "state")}
    for words, status, counted in (
        (["office"], 0, "1 other checks, 0 failed"),
        (["report", "--bug", "moby/moby#1"], 1, "2 other checks, 2 failed"),
    ):
        folder = tmp_path / words[0]
        assert call(tmp_path, "new", str(folder), *words[1:]).status == 0
        try:
            assert call(tmp_path, "up", str(folder / "lab.yaml"), "-q", env=state).status == 0
            done = call(
                tmp_path, "verify", str(folder / "lab.yaml"), str(folder / "tests"), env=state
            )
            assert done.status == status, done.out + done.err
            assert counted in done.out
        finally:
            assert call(tmp_path, "down", "--all", env=state).status == 0
