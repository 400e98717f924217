"""Runs the suites on a running lab, and collects the finding of each claim.

pytest runs in this process, with this project's plugin and no other, and
without its own terminal output: a callback receives each finding.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import pytest_checks, pytest_plugin
from testbed.errors import NoAnswer, NothingSelected, TestbedError, TimeoutExpired, UsageError
from testbed.suites.model import Check, Results, Selection

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import ModuleType

    from testbed.claims.model import Finding
    from testbed.labs.live import LiveLab

OURS = Path(__file__).parents[1]  #: the package
RECOVERY = Path(__file__).parent / "recovery.py"  #: run only on request: it breaks the lab
QUIET = "quiet"  #: a feature that checks marked ``testbed_alone`` need: an otherwise idle machine


class _Collector:
    """The pytest plugin that selects tests and passes on their results."""

    def __init__(
        self,
        lab: LiveLab | None,
        selection: Selection,
        told: Callable[[Finding | Check], None],
        before_alone: Callable[[], None],
        *,
        lacks: AbstractSet[str],
    ) -> None:
        self._lab = lab
        self._selection = selection
        self._claims = selection.catalogue.claims
        self._caller = told
        self._lacks = lacks
        self._before_alone: Callable[[], None] | None = before_alone
        self._due: list[str] = []
        self.results = Results()
        self.broken_off: Exception | None = None
        self.refused: list[TestbedError] = []
        self.marked: set[str | None] = set()  # the claims that some test decides
        self.lacking: dict[str | None, set[str]] = {}  # missing features, by claim that they affect

    def _told(self, found: Finding | Check) -> None:
        try:
            self._caller(found)
        except Exception as error:  # the caller's own error, such as BrokenPipeError: not pytest's
            self.broken_off = error
            raise KeyboardInterrupt from error

    @pytest.hookimpl(tryfirst=True)  # before the plugin determines the lab
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> None:
        if self._lab is not None:
            early_config.stash[pytest_plugin.LAB] = self._lab
        early_config.stash[pytest_plugin.REFUSED] = self.refused
        early_config.stash[pytest_plugin.CATALOGUE] = self._selection.catalogue

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[pytest_plugin.FINDINGS] = self.results.findings

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Release the lab: the suites' modules keep the config that loaded them for good."""
        self._lab = None
        if pytest_plugin.LAB in config.stash:
            del config.stash[pytest_plugin.LAB]

    @pytest.hookimpl(trylast=True)  # after -k: tests that it deselects are not selected
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        del config
        self.marked = {pytest_checks.claim_of(item) for item in items}
        features = pytest_checks.features(self._lab.topology) | {"lab"} if self._lab else {"none"}
        features = (features | {QUIET}) - self._lacks
        kept = []
        for item in items:
            if not self._is_selected(item):
                continue
            if lacking := self._needs(item) - features:
                self.results.elsewhere.append(pytest_checks.claim_of(item) or item.nodeid)
                self.lacking[pytest_checks.claim_of(item)] = lacking
            else:
                kept.append(item)
        items[:] = sorted(kept, key=pytest_checks.is_alone)
        self._due = [claim for item in items if (claim := pytest_checks.claim_of(item))]

    def missed(self) -> list[str]:
        """Return the claims that were due, but are not decided."""
        found = {finding.claim for finding in self.results.findings}
        return [claim for claim in self._due if claim not in found]

    def _is_selected(self, item: pytest.Item) -> bool:
        claim = pytest_checks.claim_of(item)
        if item.path in _beside(self._selection) and not pytest_checks.uses_lab(item):
            return False
        if claim is not None:
            return self._selection.has(self._claims[claim])
        if self._selection.names_some:
            return item.nodeid in self._selection.tests
        if self._selection.only and not set(self._selection.only) & self._needs(item):
            return False
        return not self._selection.documents

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if self._before_alone and pytest_checks.is_alone(item):
            self._before_alone()
            self._before_alone = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.results.broken.append(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        claim = pytest_checks.claim_of(item)
        if claim is None:
            if report.when == "call" or not report.passed:
                problem = "" if report.passed else report.longreprtext
                notes = item.stash.get(pytest_plugin.NOTES, None)
                check = Check(
                    item.nodeid,
                    report.outcome,
                    report.duration,
                    problem,
                    tuple(notes.evidence) if notes else (),
                    tuple(notes.measurements) if notes else (),
                )
                self.results.checks.append(check)
                self._told(check)
        elif call.when == "setup" and report.failed:
            self._told(self._failed(claim, item, call))
        elif call.when == "teardown" and report.failed:
            self.results.findings[-1].problem = f"the clean-up failed: {_error(item, call)}"
            self._told(self.results.findings[-1])
        elif call.when == "call" or report.skipped:
            self._told(self.results.findings[-1])
        return report

    def _failed(self, claim: str, item: pytest.Item, call: pytest.CallInfo[None]) -> Finding:
        """Record a check whose set-up failed or timed out."""
        from testbed.claims.model import Finding

        expected, why = self._claims[claim].expected(self._lab.facts if self._lab else {})
        finding = Finding(claim, None, expected=expected, why=why)
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, TimeoutExpired | NoAnswer):
            finding.unsettled(error.message)
        else:
            finding.problem = f"the set-up failed: {_error(item, call)}"
        self.results.findings.append(finding)
        return finding

    def _needs(self, item: pytest.Item) -> set[str]:
        """Return a check's needs: from its mark, else from its claim, else any lab."""
        claim = pytest_checks.claim_of(item)
        needs = pytest_checks.needs_of(item) or set(self._claims[claim].needs if claim else {"lab"})
        return needs | {QUIET} if pytest_checks.is_alone(item) else needs


def _error(item: pytest.Item, call: pytest.CallInfo[None]) -> str:
    assert call.excinfo is not None
    return pytest_checks.problem(item, call.excinfo.value)


def run(
    lab: LiveLab | None,
    selection: Selection,
    *,
    told: Callable[[Finding | Check], None] = lambda _: None,
    before_alone: Callable[[], None] = lambda: None,
    lacks: AbstractSet[str] = frozenset(),
) -> Results:
    """Run the part of the selection that the lab can decide; return the results.

    ``lab`` None is for checks that need no lab.  ``told`` is called with each
    finding and check as it ends, ``before_alone`` once before the first check
    that measures: those come last, on a quiet machine.  ``lacks`` are features
    that the lab is treated as not having, such as ``none`` or QUIET: checks that
    need them are left out.  An interrupt ends the run early, with the results so
    far.  Raises UsageError, and NothingSelected if nothing that is selected can
    be decided.
    """
    refuse_unknown(selection)
    collector = _Collector(lab, selection, told, before_alone, lacks=lacks)
    paths = _paths(selection)
    arguments = [
        *map(str, paths),
        "--rootdir", str(_root(selection)),
        "--confcutdir", str(_top(paths)),
        "-c", os.devnull,  # ignores configuration in the working directory
        "-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:warnings",
        "-p", "no:unraisableexception",  # our own hook handles signals (testbed.signals)
        "--continue-on-collection-errors",  # a broken file does not stop the others from running
    ]  # fmt: skip
    folders = [] if selection.paths else [*selection.catalogue.folders]
    folders += dict.fromkeys(map(_modules, _beside(selection)))
    if len(folders) > 1:
        # Files of the same name in several folders are different modules.
        arguments += ["--import-mode", "importlib"]
        arguments += ["-o", f"pythonpath={shlex.join(map(str, folders))}"]
    arguments += ["--testbed-allow-changes"] if selection.changes else []
    arguments += ["-k", selection.expression] if selection.expression else []
    if helpers := sys.modules.get("testbed.suites.helpers"):
        helpers.IN_VAIN.clear()  # the timeouts of the previous run
    results = collector.results
    try:
        with _own_environment(selection), _signals_interrupt(results):
            status = pytest.main(arguments, plugins=[collector, *_plugins()])
    except KeyboardInterrupt:  # while pytest starts or ends, and does not handle it
        status = pytest.ExitCode.INTERRUPTED
    if collector.broken_off is not None:
        raise collector.broken_off
    if collector.refused:
        raise collector.refused[0]
    if status == pytest.ExitCode.INTERNAL_ERROR:
        raise RuntimeError("pytest had an internal error; its output is above")
    if status == pytest.ExitCode.INTERRUPTED and results.signum is None:
        results.signum = signal.SIGINT
    if results.interrupted:
        results.missed = collector.missed()
    if status == pytest.ExitCode.USAGE_ERROR:
        raise UsageError("pytest rejects these arguments", hint="check -k and the paths")
    if not (results.findings or results.checks or results.broken or results.interrupted):
        raise NothingSelected(
            f"the selection has no check for lab {lab.name}"
            if lab
            else "the selection has no check that needs no lab",
            hint=_why_nothing(selection, collector)
            or "remove -k, --claim and --document, or choose another lab",
        )
    return results


def _plugins() -> list[ModuleType]:
    """Return the plugins of a run; by name, pytest would look for them in all distributions."""
    import testinfra.plugin

    return [testinfra.plugin, pytest_plugin]  # testinfra's fixture `host` is a node of the lab


def _paths(selection: Selection) -> Sequence[Path]:
    """Return the files and folders of the tests: those of the user, else of the catalogue."""
    paths = (*(selection.paths or selection.catalogue.folders), *_beside(selection))
    if not paths:
        raise NothingSelected("no catalogue and no tests", hint="name one of them")
    return paths


def _root(selection: Selection) -> Path:
    """Return the folder that the names of tests are relative to."""
    if selection.beside:
        return selection.beside.folder
    if all(path.is_relative_to(OURS) for path in selection.paths):
        return _top(_paths(selection))
    return Path.cwd()


def _beside(selection: Selection) -> tuple[Path, ...]:
    return selection.beside.files if selection.beside else ()


def _modules(path: Path) -> Path:
    """Return the folder that a file of tests imports modules from, as without importlib."""
    return next(one for one in path.parents if not (one / "__init__.py").exists())


def _top(paths: Sequence[Path]) -> Path:
    """Return the topmost folder that pytest needs to search for the tests' conftest.py.

    That is the topmost one above them that has one.  pytest reads every entry of every
    folder between that folder and the tests (--confcutdir, by default nearly the root).
    """
    tops = []
    for path in (path.absolute() for path in paths):
        own = path if path.is_dir() else path.parent
        above = [] if path.is_relative_to(OURS) else [own, *own.parents][:-1]
        found = [folder for folder in above if (folder / "conftest.py").exists()]
        tops.append(found[-1] if found else own)
    return Path(os.path.commonpath(tops))


def _why_nothing(selection: Selection, collector: _Collector) -> str:
    """Explain, for each claim selected by id, why it can't be decided."""
    words = []
    for name in selection.claims:
        claim = selection.catalogue.claims[name]
        if not claim.is_testable:
            words.append(f"{name} is a definition, which cannot be tested")
        elif name not in collector.marked:
            words.append(
                f"no test decides {name}: mark one with @pytest.mark.testbed_claim({name!r})"
            )
        elif name in collector.lacking:
            words.append(f"{name} needs a lab with {', '.join(sorted(collector.lacking[name]))}")
    return "; ".join(words)


def refuse_unknown(selection: Selection) -> None:
    """Raise UsageError for an unknown claim, document or path."""
    for claim in selection.claims:
        selection.catalogue.claim(claim)
    known = sorted(selection.catalogue.documents)
    for document in selection.documents:
        if document not in known:
            raise UsageError(f"no document {document!r}", hint=f"there are: {', '.join(known)}")
    for path in selection.paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")


@contextmanager
def _signals_interrupt(results: Results) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does: pytest then reports its results."""

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
def _own_environment(selection: Selection) -> Iterator[None]:
    """Ignore options and plugins of the user's other projects.

    Leave no compiled files beside the user's tests: root's would block the user's own.
    """
    compiles, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        bool(selection.paths or selection.beside),
    )
    saved = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    saved["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        sys.dont_write_bytecode = compiles
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
