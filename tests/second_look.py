"""Run pytest, and run failed tests on real labs once more, each result shown: for CI alone.

    tests/second_look.py ARGUMENT...     (those of pytest)

A machine that is shared by many stands still for seconds at times, and one such pause among a
thousand real labs would refuse a good change. So a few tests that failed run again by themselves;
the result is then that of the second run. Both are printed, with the tests that passed only then.
There is no second run if a test has left something behind, or if more than ``MOST`` have failed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

MOST = 3


class Failed:
    """A pytest plugin that notes failed tests; ``final`` if a second run cannot help."""

    def __init__(self) -> None:
        self.tests: list[str] = []
        self.final = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            # With --dist loadgroup xdist adds the group to the name.
            self.tests.append(report.nodeid.rpartition("@")[0] or report.nodeid)
            self.final |= report.when == "teardown"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.final |= report.failed


def main(arguments: list[str]) -> int:
    failed = Failed()
    status = int(pytest.main(arguments, plugins=[failed]))
    tests = list(dict.fromkeys(failed.tests))
    if status != pytest.ExitCode.TESTS_FAILED or failed.final or not 0 < len(tests) <= MOST:
        return status
    print(f"\n{len(tests)} failed. Once more, alone: {' '.join(tests)}", flush=True)
    again = subprocess.run([sys.executable, "-m", "pytest", *tests], check=False).returncode
    print("They failed again." if again else f"FLAKY, passed the second time: {' '.join(tests)}")
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
