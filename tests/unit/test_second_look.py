"""CI runs a few failed tests once more, and nothing that a second run would hide."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import second_look


class Runs:
    """Stands for pytest: the first run fails with these reports, the second with ``again``."""

    def __init__(self, reports: Sequence[tuple[str, str]], *, again: int = 0) -> None:
        self.reports = reports
        self.again = again
        self.second: list[list[str]] = []

    def first(self, arguments: list[str], plugins: list[Any]) -> pytest.ExitCode:
        del arguments
        for nodeid, when in self.reports:
            plugins[0].pytest_runtest_logreport(
                SimpleNamespace(failed=True, nodeid=nodeid, when=when)
            )
        return pytest.ExitCode.TESTS_FAILED if self.reports else pytest.ExitCode.OK

    def run(self, argv: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        del check
        self.second.append(argv[3:])
        return subprocess.CompletedProcess(argv, self.again)


def look(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> int:
    monkeypatch.setattr(pytest, "main", runs.first)
    monkeypatch.setattr(subprocess, "run", runs.run)
    return second_look.main(["tests/live"])


@pytest.mark.parametrize("again", [0, 1])
def test_what_failed_runs_once_more(monkeypatch: pytest.MonkeyPatch, again: int) -> None:
    runs = Runs([("a.py::one[x y]@a.py 0", "call"), ("b.py::two", "setup")], again=again)
    assert look(monkeypatch, runs) == again
    assert runs.second == [["a.py::one[x y]", "b.py::two"]]


@pytest.mark.parametrize(
    "reports",
    [
        [("a.py::one", "teardown")],  # it has left something on the machine
        [("a.py::one", "call"), ("b.py::two", "teardown")],
        [(f"a.py::test{number}", "call") for number in range(second_look.MOST + 1)],
    ],
    ids=["left", "left by another", "many"],
)
def test_the_first_run_counts(
    monkeypatch: pytest.MonkeyPatch, reports: list[tuple[str, str]]
) -> None:
    runs = Runs(reports)
    assert look(monkeypatch, runs) == pytest.ExitCode.TESTS_FAILED
    assert not runs.second


def test_all_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs([])
    assert look(monkeypatch, runs) == 0
    assert not runs.second
