"""Trials from all processes that carry them out, gathered by the one that reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from sabotage.trials import Trial

TRIAL, JUDGEMENTS = "trial", "judgements"  #: properties of a test's report


class Gathered:
    """A pytest plugin that shows the table. It loads the sabotages once there is a trial."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":  # by then all properties are there
            return
        for name, value in report.user_properties:
            if name in {TRIAL, JUDGEMENTS}:
                from sabotage.table import read_judgements, read_trial

                if name == TRIAL:
                    self.trials.append(read_trial(str(value)))
                else:
                    read_judgements(str(value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.trials:
            return
        from sabotage.table import data, table

        terminalreporter.section("sabotage")
        for line in table(self.trials):
            terminalreporter.write_line(line)
        if path := terminalreporter.config.getoption("sabotage_json"):
            Path(path).write_text(json.dumps(data(self.trials), indent=1), encoding="utf-8")
