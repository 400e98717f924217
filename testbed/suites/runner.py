"""Runs the suites on a lab that is up, and collects what became of each claim.

pytest runs in this process, with this project's plugin and no other, and
without its own terminal output: the caller is told of each finding as it comes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import pytest_plugin
from testbed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from testbed.claims.model import Finding
    from testbed.lab.live import LiveLab

SUITES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Check:
    """An ordinary test, without a claim, of a suite or of the user."""

    name: str
    outcome: str  #: passed, failed or skipped
    seconds: float
    problem: str = ""


@dataclass(slots=True)
class Results:
    """What a run came to.  ``elsewhere`` are the checks that need another kind of lab."""

    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    signum: int | None = None  #: the signal that ended the run early

    @property
    def interrupted(self) -> bool:
        return self.signum is not None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which checks to run: pytest's ``-k`` expression, claim ids, document numbers, own paths."""

    expression: str = ""
    claims: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


class _Collector:
    """The pytest plugin that stands in for the terminal: chooses, and tells."""

    def __init__(
        self,
        lab: LiveLab,
        selection: Selection,
        told: Callable[[Finding | Check], None],
    ) -> None:
        self._lab = lab
        self._selection = selection
        self._caller = told
        self.results = Results()
        self.broken_off: Exception | None = None

    def _told(self, found: Finding | Check) -> None:
        try:
            self._caller(found)
        except Exception as error:  # the caller's own, such as BrokenPipeError: not pytest's affair
            self.broken_off = error
            raise KeyboardInterrupt from error

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[pytest_plugin.LAB] = self._lab
        config.stash[pytest_plugin.FINDINGS] = self.results.findings

    @pytest.hookimpl(trylast=True)  # after -k: what it leaves out is not selected
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        del config
        features = pytest_plugin.features(self._lab.topology)
        kept = []
        for item in items:
            if not self._is_selected(item):
                continue
            needs = {n for mark in item.iter_markers("needs") for n in mark.args}
            if needs - features:
                self.results.elsewhere.append(pytest_plugin.claim_of(item) or item.nodeid)
            else:
                kept.append(item)
        items[:] = kept

    def _is_selected(self, item: pytest.Item) -> bool:
        from testbed.claims.catalogue import claims

        claim = pytest_plugin.claim_of(item)
        if self._selection.claims and claim not in self._selection.claims:
            return False
        if self._selection.documents:
            return claim is not None and claims()[claim].document in self._selection.documents
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.results.broken.append(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        claim = pytest_plugin.claim_of(item)
        if claim is None:
            if report.when == "call" or not report.passed:
                problem = "" if report.passed else report.longreprtext
                check = Check(item.nodeid, report.outcome, report.duration, problem)
                self.results.checks.append(check)
                self._told(check)
        elif call.when == "setup" and report.failed:
            finding = self._failed(claim, f"the set-up failed: {_error(call)}")
            self._told(finding)
        elif call.when == "teardown" and report.failed:
            self.results.findings[-1].problem = f"the clean-up failed: {_error(call)}"
            self._told(self.results.findings[-1])
        elif call.when == "call" or report.skipped:
            self._told(self.results.findings[-1])
        return report

    def _failed(self, claim: str, problem: str) -> Finding:
        from testbed.claims.model import Finding

        finding = Finding(claim, None, problem=problem)
        self.results.findings.append(finding)
        return finding


def _error(call: pytest.CallInfo[None]) -> str:
    assert call.excinfo is not None
    return f"{call.excinfo.typename}: {call.excinfo.value}"


def run(
    lab: LiveLab,
    selection: Selection,
    *,
    told: Callable[[Finding | Check], None] = lambda _: None,
    junit: Path | None = None,
) -> Results:
    """Run what the selection names and the lab can answer; return what came of it.

    ``told`` is called with each finding and check as it ends.  An interrupt
    ends the run early; what there is by then is in the results.  Raises
    UsageError when nothing at all is selected.
    """
    _refuse_unknown(selection)
    collector = _Collector(lab, selection, told)
    paths = selection.paths or (SUITES,)
    arguments = [
        *map(str, paths),
        "--rootdir", str(SUITES if not selection.paths else Path.cwd()),
        "-c", os.devnull,  # nothing of the folder that we happen to be in
        "-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:warnings",
        "-p", "testbed.pytest_plugin",
        "--continue-on-collection-errors",  # one broken file does not keep the others from running
    ]  # fmt: skip
    if selection.expression:
        arguments += ["-k", selection.expression]
    if junit:
        arguments += ["--junit-xml", str(junit)]
    results = collector.results
    with _own_environment(), _signals_interrupt(results):
        status = pytest.main(arguments, plugins=[collector])
    if collector.broken_off is not None:
        raise collector.broken_off
    if status == pytest.ExitCode.INTERNAL_ERROR:
        raise RuntimeError("pytest failed within itself; its own words are above")
    if status == pytest.ExitCode.INTERRUPTED and results.signum is None:
        results.signum = signal.SIGINT
    if status == pytest.ExitCode.USAGE_ERROR:
        raise UsageError("pytest refuses these arguments", hint="check -k and the paths")
    if not (results.findings or results.checks or results.broken or results.interrupted):
        raise UsageError(
            f"nothing that lab {lab.name} can decide was selected",
            hint="leave out -k, --claim and --document, or choose another lab",
        )
    return results


def _refuse_unknown(selection: Selection) -> None:
    from testbed.claims.catalogue import claims

    for claim in selection.claims:
        if claim not in claims():
            from difflib import get_close_matches

            close = get_close_matches(claim, claims(), 1)
            hint = f"did you mean {close[0]}?" if close else "the catalogue is in testbed/claims"
            raise UsageError(f"no claim {claim!r}", hint=hint)
    known = sorted({claim.document for claim in claims().values()})
    for document in selection.documents:
        if document not in known:
            raise UsageError(f"no document {document!r}", hint=f"there are: {', '.join(known)}")
    for path in selection.paths:
        if not path.exists():
            raise UsageError(f"no file or folder {path}")


@contextmanager
def _signals_interrupt(results: Results) -> Iterator[None]:
    """SIGTERM and SIGHUP end the run as Ctrl-C does: pytest then still tells what it has."""

    def came(signum: int, _: Any) -> None:
        results.signum = signum
        raise KeyboardInterrupt

    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, came) for signum in wanted}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Neither options nor plugins of the user's other projects take part."""
    saved = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    saved["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


__all__ = ["SUITES", "Check", "Results", "Selection", "run"]
