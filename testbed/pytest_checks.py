"""The part of the pytest plugin for runs on a lab: validates, judges checks, counts.

:mod:`testbed.pytest_plugin` registers it when a run names a lab or has a test that uses the
plugin's fixtures or marks.  Other projects' runs never load it.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import TestbedError, UsageError
from testbed.pytest_plugin import (
    ALONE,
    CATALOGUE,
    CHANGES,
    CLAIM,
    FINDINGS,
    LAB,
    NAMED,
    NEEDS,
    NOTES,
    OF_A_LAB,
    PROBLEMS,
    REFUSED,
    SCHEME,
    VARIABLE,
    Named,
    asks_for_host,
    fixtures_of,
    is_ours,
)
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Finding
    from testbed.labs.live import LiveLab
    from testbed.topology.model import Topology

INTERRUPTED = "interrupted"
NEEDED = "_testbed_needed"  #: name of a fixture below
NO_LAB = "no lab is named; create one with `testbed up NAME` and use --testbed-lab NAME"
REFUSAL = pytest.StashKey[str]()  #: why each test of this process fails


@dataclass
class Tally:
    """Counters of the tests of a run."""

    tested: int = 0
    skipped: int = 0
    wanted: bool = False  #: True if a test uses a lab

    def count(self, report: pytest.TestReport) -> None:
        if report.skipped and not (report.when == "call" and hasattr(report, "wasxfail")):
            self.skipped += 1
            self.wanted = self.wanted or NO_LAB in str(report.longrepr)
        elif report.when == "call" or report.failed:
            self.tested += 1

    def nothing(self, named: Named) -> bool:
        """Tell whether a run for a lab has tested nothing."""
        return (self.wanted or named.at_once) and self.skipped > 0 and not self.tested


class _Counter:
    """Counts the reports of this process; with pytest-xdist, the counts that workers send."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._config.stash[TALLY].count(report)


TALLY = pytest.StashKey[Tally]()


def prepare(config: pytest.Config) -> None:
    """Set up the state that the hooks below expect."""
    config.stash[TALLY] = Tally()
    config.stash.setdefault(FINDINGS, [])
    distributed = config.getoption("dist", "no") != "no"  # pytest-xdist: workers run the tests
    if not distributed or hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counter(config), "testbed-counter")


def add(config: pytest.Config, counts: dict[str, Any]) -> None:
    """Add the counts of a pytest-xdist worker."""
    tally, other = config.stash[TALLY], Tally(**counts)
    tally.tested += other.tested
    tally.skipped += other.skipped
    tally.wanted = tally.wanted or other.wanted


# -- which lab -----------------------------------------------------------------------------


def named(config: pytest.Config, options: Any) -> Named:
    """Return the labs of the run, and the option or variable that named them."""
    if REFUSED in config.stash:
        lent = config.stash.get(LAB, None)
        return Named((lent.name,) if lent else (), "who runs pytest")
    if (given := options.testbed_lab) is not None:
        return Named((_name(given),), "--testbed-lab")
    specs = (getattr(options, "hosts", None) or "").split(",")
    labs = [spec.removeprefix(SCHEME) for spec in specs if spec.startswith(SCHEME)]
    if labs:
        names = (lab.partition("/")[0].partition("?")[0] for lab in labs)
        return Named(tuple(dict.fromkeys(names)), "--hosts")
    if name := os.environ.get(VARIABLE):
        return Named((_name(name),), VARIABLE)
    return Named()


def _name(given: str) -> str:
    """Return a lab's name, which may be given as the path of its topology, as in commands."""
    from testbed.spelling import is_a_path

    if is_a_path(given):
        from testbed.labs import origin
        from testbed.settings import settings

        with suppress(TestbedError):  # reported later, like any lab that is not running
            return origin.named(settings(), given)
    return given


def lab_of(config: pytest.Config) -> LiveLab:
    """Return the lab of the run; skip the test if none was named, fail it for any other reason."""
    given = config.stash.get(LAB, None)
    if given is not None:
        return given
    names = config.stash[NAMED]
    if not names.labs:
        pytest.skip(NO_LAB)
    if len(names.labs) > 1:
        pytest.fail(
            f"{names.by} names several labs: {', '.join(names.labs)}; choose one with "
            "--testbed-lab",
            pytrace=False,
        )
    from testbed import hosts

    try:
        return hosts.live(names.labs[0])
    except TestbedError as error:  # requested during a test; other tests are refused before
        pytest.fail(str(error), pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run at once if the lab named on the command line is not running."""
    config = session.config
    if REFUSED in config.stash or not config.stash[NAMED].at_once:
        return
    try:
        _require(config)
    except TestbedError as error:
        raise pytest.UsageError(str(error)) from None


def _require(config: pytest.Config) -> None:
    """Raise UsageError for conflicting options, NoSuchLab if a lab is not running."""
    from testbed import hosts, hostspec

    names = config.stash[NAMED]
    for name in names.labs:
        if not name:
            raise UsageError(
                f"{names.by} names no lab", hint="name a running lab; `testbed ls` lists them"
            )
        hosts.live(name)
    connection = config.getoption("connection", None)
    if connection not in {None, hostspec.SCHEME}:
        raise UsageError(
            f"--connection={connection} does not lead to lab {', '.join(names.labs)}, "
            f"which {names.by} names",
            hint="remove one of the two",
        )
    for spec in filter(None, [config.getoption("hosts", None)]):
        for one in spec.split(","):
            hosts.resolve(one)


def hosts_of(metafunc: pytest.Metafunc, specs: Sequence[str | None]) -> str:
    """Return testinfra's ``--hosts`` for a test: places of the lab, or one without hosts."""
    from testbed import hosts
    from testbed.hostspec import PREFIX

    config = metafunc.config
    names = config.stash[NAMED]
    lent_none = names.by and not names.labs  # the caller of pytest leaves out tests that use a host
    try:
        found = [] if lent_none else [one for spec in specs for one in hosts.resolve(spec)]
    except TestbedError as error:
        if config.option.hosts is None and hasattr(metafunc.module, "testinfra_hosts"):
            path = os.path.relpath(metafunc.definition.path)
            error = UsageError(f"{path}: testinfra_hosts: {error.message}", hint=error.hint)
        config.stash[PROBLEMS].append(error)
        found = []
    return ",".join(found) or PREFIX


# -- what cannot be run --------------------------------------------------------------------


def collected(config: pytest.Config, items: list[pytest.Item], ours: list[pytest.Item]) -> None:
    """Refuse unknown words in our marks, hosts outside of the lab, and a lab that is not running.

    ``items`` are all tests of the run, ``ours`` those with a fixture or a mark of this plugin.
    """
    names = config.stash[NAMED]
    wanted = any(_wants_lab(item) for item in items)
    config.stash[TALLY].wanted = wanted and bool(names.by)
    try:
        for item in ours:
            _refuse_unknown(item)
        for problem in config.stash[PROBLEMS]:
            raise problem
        if names.by == VARIABLE and wanted:
            _require(config)
    except TestbedError as error:
        refused = config.stash.get(REFUSED, None)
        if refused is not None:
            refused.append(error)
            items.clear()
        elif hasattr(config, "workerinput"):  # of pytest-xdist, which treats an error as a crash
            config.stash[REFUSAL] = str(error)
        else:
            raise pytest.UsageError(str(error)) from None


def _wants_lab(item: pytest.Item) -> bool:
    """Tell whether a test uses a lab, by a fixture or by a mark."""
    return (
        asks_for_host(item) or bool(fixtures_of(item, OF_A_LAB)) or bool(needs_of(item) - {"none"})
    )


def uses_lab(item: pytest.Item) -> bool:
    """Tell whether a test uses a fixture or a mark for labs, or testinfra's own ``host``."""
    return asks_for_host(item) or is_ours(item)


def claim_of(item: pytest.Item) -> str | None:
    """Return the id of the claim that a test checks, or None for an ordinary test."""
    mark = item.get_closest_marker(CLAIM)
    return str(mark.args[0]) if mark and mark.args else None


def needs_of(item: pytest.Item) -> set[str]:
    """Return the features that a test requires of its lab, by its marks."""
    return {name for mark in item.iter_markers(NEEDS) for name in mark.args}


def is_alone(item: pytest.Item) -> bool:
    """Tell whether a test measures time, and so must not run beside others."""
    return item.get_closest_marker(ALONE) is not None


def changes_machines(item: pytest.Item) -> bool:
    """Tell whether a test changes the machines of its lab, by its mark or by its faults."""
    return item.get_closest_marker(CHANGES) is not None or breaks_machines(item)


def breaks_machines(item: pytest.Item) -> bool:
    """Tell whether a test uses faults."""
    return bool(fixtures_of(item, frozenset({"fault"})))


def catalogue_of(config: pytest.Config) -> Catalogue:
    """Return the catalogue of the run.  Raises UsageError."""
    if CATALOGUE not in config.stash:
        from testbed.claims.choose import choose
        from testbed.labs.state import State, folder

        given = config.getoption("testbed_catalogue", [])
        labs = config.stash[NAMED].labs
        record = State(folder()).read(labs[0]) if labs and labs[0] else None
        source = record.source if record else ""
        config.stash[CATALOGUE] = choose(given, source=source, project=config.rootpath)
    found: Catalogue = config.stash[CATALOGUE]
    return found


def _refuse_unknown(item: pytest.Item) -> None:
    """Raise UsageError for an invalid mark, which would keep a test from running."""
    from testbed.claims.model import feature_words

    claim = claim_of(item)
    if claim is not None and claim not in (catalogue := catalogue_of(item.config)).claims:
        what = f"no claim {claim!r} in catalogue {catalogue.name}"
        hint = "`testbed claims` lists them; --testbed-catalogue DIR chooses another catalogue"
        raise _unknown(item, what, claim, catalogue.claims, hint)
    for word in (name for mark in item.iter_markers(NEEDS) for name in mark.args):
        if word not in (known := feature_words()):
            what = f"unknown feature {word!r}"
            raise _unknown(item, what, word, known, f"known: {', '.join(known)}")


def _unknown(
    item: pytest.Item, what: str, word: str, known: Iterable[str], otherwise: str
) -> UsageError:
    from testbed.spelling import nearest

    hint = nearest(str(word), known, otherwise)
    path, line, name = item.location
    where = f"{path}:{line + 1}" if line is not None else path
    return UsageError(f"{where}, {name}: {what}", hint=hint)


# -- a test that is a check ----------------------------------------------------------------


@pytest.fixture
def _testbed_needed(request: pytest.FixtureRequest) -> None:
    """Skip a test, with the reason, if its lab lacks a feature or must not be changed."""
    if changes_machines(request.node) and (topology := _lab_under(request).topology).existing:
        if breaks_machines(request.node):
            pytest.skip(f"it breaks {topology.attached}, which have no faults")
        if not request.config.option.testbed_allow_changes:
            pytest.skip(f"it changes {topology.attached}, and changes are not allowed")
    wanted = needs_of(request.node)
    if wanted - {"none"}:  # arithmetic needs no lab at all
        missing = sorted(wanted - features(_lab_under(request).topology))
        if missing:
            pytest.skip(f"the lab has no {', '.join(missing)}")


def _lab_under(request: pytest.FixtureRequest) -> Any:
    """Return the lab of a test, from the test's own ``lab`` fixture if that returns one."""
    from testbed.topology.model import Topology

    found = request.getfixturevalue("lab")
    return (
        found if isinstance(getattr(found, "topology", None), Topology) else lab_of(request.config)
    )


def features(topology: Topology) -> set[str]:
    """Return the features of a lab of this topology, in the words of the mark ``needs``."""
    found = {"netns", "none"}
    if any(node.gateway for node in topology.nodes.values()):
        found.add("gateway")
    for role in topology.roles:
        found |= ROLES[role].features(topology)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Any:
    if (refusal := item.config.stash.get(REFUSAL, None)) is not None:
        pytest.fail(refusal, pytrace=False)
    # Not an autouse fixture, since most tests have no such mark.
    if any(item.iter_markers(NEEDS)) or changes_machines(item):
        getattr(item, "fixturenames", []).insert(0, NEEDED)
    try:
        return (yield)
    except pytest.skip.Exception as skip:
        claim = claim_of(item)
        if claim is not None:
            from testbed.claims.model import Finding

            finding = Finding(claim, "skipped", reason=str(skip))
            _expect(item, finding)
            item.config.stash[FINDINGS].append(finding)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    claim = claim_of(item)
    if claim is None:
        outcome = yield
        _refuse_refuted(item)
        return outcome
    from testbed.claims.model import Finding
    from testbed.errors import NoAnswer, TimeoutExpired

    began = time.monotonic()
    finding = Finding(claim, None)
    _expect(item, finding)
    try:
        outcome = yield
    except pytest.skip.Exception as skip:
        finding.verdict, finding.reason = "skipped", str(skip)
        raise
    except KeyboardInterrupt:
        finding.reason = INTERRUPTED
        raise
    except (TimeoutExpired, NoAnswer) as error:
        finding.unsettled(error.message)
        raise
    except BaseException as error:
        finding.problem = problem(item, error)
        raise
    else:
        _judge(item, claim, finding)
        return outcome
    finally:
        finding.seconds = time.monotonic() - began
        notes = item.stash.get(NOTES, None)
        finding.evidence = notes.evidence if notes else []
        finding.measurements = notes.measurements if notes else []
        if finding.reason != INTERRUPTED:  # an interrupted check has no result
            item.config.stash[FINDINGS].append(finding)


def _refuse_refuted(item: pytest.Item) -> None:
    """Fail a test without a claim if one of its own statements was refuted."""
    notes = item.stash.get(NOTES, None)
    if notes is not None and notes.verdict not in {
        None,
        "confirmed",
        "conditional",
        "inconclusive",
    }:
        pytest.fail("; ".join(notes.refuted_by), pytrace=False)


def problem(item: pytest.Item, error: BaseException) -> str:
    """Return the text of a check's error, with the line of its file."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(item.path)
    ]
    where = f"{item.path.parent.name}/{item.path.name}:{lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _expect(item: pytest.Item, finding: Finding) -> None:
    """Set the verdict that the catalogue expects for the claim on this lab."""
    claims = catalogue_of(item.config).claims
    live = item.config.stash.get(LAB, None) or getattr(item, "funcargs", {}).get("lab")
    facts = getattr(live, "facts", {})  # a fixture `lab` may be the project's own
    finding.expected, finding.why = claims[finding.claim].expected(facts)


def _judge(item: pytest.Item, claim: str, finding: Finding) -> None:
    """Compare the observation with the expectation; fail the test if they differ."""
    notes = item.stash.get(NOTES, None)
    finding.verdict = notes.verdict if notes else None
    if finding.verdict is None:
        finding.problem = "the check tested nothing"
        pytest.fail(f"{claim}: {finding.problem}")
    if not finding.as_expected:
        refuted = "; ".join(notes.refuted_by) if notes else ""
        finding.reason = f"expected {finding.expected}" + (f": {refuted}" if refuted else "")
        pytest.fail(f"{claim}: {finding.verdict}, {finding.reason}", pytrace=False)


# -- the end of a run ----------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run for a lab that has tested nothing."""
    config = session.config
    tally = config.stash[TALLY]
    if hasattr(config, "workeroutput"):  # a pytest-xdist worker: the controller decides
        config.workeroutput["testbed"] = asdict(tally)
    elif session.exitstatus == pytest.ExitCode.OK and tally.nothing(config.stash[NAMED]):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if tally.nothing(config.stash[NAMED]):
        labs = ", ".join(config.stash[NAMED].labs)
        where = f"on lab {labs}" if labs else "no lab is named"
        terminalreporter.write_line(
            f"testbed: nothing was tested: {where}, {tally.skipped} skipped", red=True, bold=True
        )
    for words in _incomplete(config):
        terminalreporter.write_line(f"testbed: {words}", yellow=True, bold=True)


def _incomplete(config: pytest.Config) -> Iterator[str]:
    """Yield a sentence for each lab of the run that had nodes that did not run.

    Tests of the other nodes are valid, and the fixture ``nodes`` has these alone.
    """
    names = config.stash[NAMED]
    if REFUSED in config.stash or not (names.at_once or config.stash[TALLY].wanted):
        return
    from testbed import hosts

    for name in names.labs:
        with suppress(TestbedError):  # it is not up, which was reported before
            lab = hosts.live(name)
            if absent := [one for one in lab.topology.nodes if one not in lab.nodes]:
                are = f"{', '.join(absent)} not running"
                yield f"lab {name} was incomplete: {are} (`testbed status {name}`)"
