"""The pytest plugin: a live lab as fixtures, and tests that are checks of claims.

It is loaded by pytest wherever ``testbed`` is installed, and does nothing
until a lab is named or a test asks for one of its fixtures.  The lab is named
by ``--testbed-lab NAME``, by ``--hosts=testbed://NAME`` (testinfra's option),
or by the variable TESTBED_LAB.  It must be up, or the run ends with pytest's
status 4 before any test.  testinfra's own fixture ``host`` then means the lab's
nodes, and hosts outside of the lab are refused.

A run for a lab in which every test was skipped ends with pytest's status 5.

::

    def test_docker0(lab):
        docker0 = lab.node("node1").host.interface("docker0")
        assert docker0.addresses == ["100.96.1.1"]

    @pytest.mark.claim("bridge-docker0-first-address")
    @pytest.mark.needs("docker")
    def test_first_address(lab, observe): ...
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

# Whatever else it needs is loaded where it is: this is loaded by pytest in every project.
if TYPE_CHECKING:
    from testbed.claims.model import Finding
    from testbed.claims.observation import Observation
    from testbed.errors import TestbedError, UsageError
    from testbed.faults.force import Faults
    from testbed.faults.model import Fault
    from testbed.lab.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

LAB = pytest.StashKey["LiveLab"]()
FINDINGS = pytest.StashKey["list[Finding]"]()
NOTES = pytest.StashKey["Observation"]()
#: Set by a program that runs pytest, lends the lab, and shows a refusal in its own words.
REFUSED: pytest.StashKey[list[TestbedError]] = pytest.StashKey()
INTERRUPTED = "interrupted"
VARIABLE = "TESTBED_LAB"
NEEDS = "_needs"  #: the fixture of that name, below
NO_LAB = "no lab was named: use --testbed-lab NAME, after `testbed up NAME`"


class Named(NamedTuple):
    """The labs that a run was told to use, and how it was told."""

    labs: tuple[str, ...] = ()
    by: str = ""  #: the option or the variable; empty where no lab was named
    before: tuple[str, ...] | None = None  #: what hosts were confined to before this run

    @property
    def at_once(self) -> bool:
        """True if the labs were named on the command line: they must be up whatever is run."""
        return self.by.startswith("--")


NAMED = pytest.StashKey[Named]()
PROBLEMS: pytest.StashKey[list[TestbedError]] = pytest.StashKey()
TALLY = pytest.StashKey["_Tally"]()
REFUSAL = pytest.StashKey[str]()  #: why each test of this process fails


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("testbed", "labs of container networks")
    group.addoption(
        "--testbed-lab",
        metavar="NAME",
        help="run the tests on this lab, which must be up (default: the lab of "
        "--hosts=testbed://LAB, or the variable TESTBED_LAB)",
    )


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Confine testinfra to the lab before any module of the project is loaded."""
    _begin(early_config, early_config.known_args_namespace)


def _begin(config: pytest.Config, options: Any) -> None:
    if NAMED in config.stash:
        return
    labs, by = _named(config, options)
    before = None
    if by or "testinfra.backend" in sys.modules:  # without either there is no host to look for
        from testbed.lab import hostspec

        hostspec.register()
        before = hostspec.confine(labs if by else None)
        if lent := config.stash.get(LAB, None):
            from testbed.lab import hosts

            hosts.lend(lent)
    config.stash[NAMED] = Named(labs, by, before)
    config.stash[PROBLEMS] = []


def _named(config: pytest.Config, options: Any) -> tuple[tuple[str, ...], str]:
    """The labs that the run is for, and what named them."""
    if REFUSED in config.stash:
        lent = config.stash.get(LAB, None)
        return ((lent.name,) if lent else ()), "who runs pytest"
    if (given := options.testbed_lab) is not None:
        return (_name(given),), "--testbed-lab"
    scheme = "testbed://"
    specs = (getattr(options, "hosts", None) or "").split(",")
    labs = [spec.removeprefix(scheme) for spec in specs if spec.startswith(scheme)]
    if labs:
        return tuple(dict.fromkeys(lab.partition("/")[0].partition("?")[0] for lab in labs)), (
            "--hosts"
        )
    if name := os.environ.get(VARIABLE):
        return (_name(name),), VARIABLE
    return (), ""


def _name(given: str) -> str:
    """The name of a lab that may be given by the path of its topology, as for the commands."""
    if "/" in given or given.endswith((".yaml", ".yml")):
        from testbed.cli.common import lab_meant
        from testbed.errors import TestbedError
        from testbed.settings import settings

        with suppress(TestbedError):  # told later, as of any lab that is not up
            return lab_meant(settings(), given).name
    return given


def pytest_configure(config: pytest.Config) -> None:
    _begin(config, config.option)  # the hook above is not called where a conftest loads us
    config.stash[TALLY] = _Tally()
    config.pluginmanager.register(config.stash[TALLY], "testbed-tally")
    config.addinivalue_line("markers", "claim(id): the test decides this claim of the catalogue")
    config.addinivalue_line(
        "markers", "needs(*features): what the lab must have: docker, flannel, flannel-udp, ..."
    )
    config.addinivalue_line("markers", "alone: it measures, and wants a quiet machine")
    config.stash[FINDINGS] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    named = config.stash.get(NAMED, None)
    if named is None or "testbed.lab.hostspec" not in sys.modules:
        return
    from testbed.lab import hostspec

    hostspec.confine(named.before)
    if "testbed.lab.hosts" in sys.modules:
        from testbed.lab import hosts

        if lent := config.stash.get(LAB, None):
            hosts.forget(lent.name)
        hosts.close()


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run at once when the lab that was named on the command line is not up."""
    config = session.config
    if REFUSED in config.stash:
        return
    if config.stash[NAMED].at_once:
        from testbed.errors import TestbedError

        try:
            _require(config)
        except TestbedError as error:
            raise pytest.UsageError(str(error)) from None


def _require(config: pytest.Config) -> None:
    """Raise UsageError for options that contradict each other, NoSuchLab for a lab not up."""
    from testbed.errors import UsageError
    from testbed.lab import hosts
    from testbed.lab.hostspec import SCHEME

    named = config.stash[NAMED]
    for name in named.labs:
        if not name:
            raise UsageError(f"{named.by} names no lab", hint="name a lab that `testbed ls` shows")
        hosts.live(name)
    connection = config.getoption("connection", None)
    if connection not in {None, SCHEME}:
        raise UsageError(
            f"--connection={connection} does not lead to lab {', '.join(named.labs)}, "
            f"which {named.by} names",
            hint="leave out one of the two",
        )
    for spec in filter(None, [config.getoption("hosts", None)]):
        for one in spec.split(","):
            hosts.resolve(one)


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Any:
    """Let testinfra's ``host`` mean the lab's nodes, by the hosts that testinfra is told.

    ``_testinfra_host`` is what testinfra's plugin parametrizes: a project's own
    fixture ``host`` does not ask for it, and is left alone.
    """
    named = metafunc.config.stash[NAMED]
    if "_testinfra_host" not in metafunc.fixturenames:
        return (yield)
    option = metafunc.config.option
    given = option.hosts
    specs = (
        given.split(",")
        if given is not None
        else getattr(metafunc.module, "testinfra_hosts", [None])
    )
    if not named.by and not any(str(spec).startswith("testbed://") for spec in specs):
        return (yield)
    from testbed.errors import TestbedError, UsageError
    from testbed.lab import hosts
    from testbed.lab.hostspec import PREFIX

    lent_none = named.by and not named.labs  # what wants a host is left out by who runs pytest
    try:
        found = [] if lent_none else [one for spec in specs for one in hosts.resolve(spec)]
    except TestbedError as error:
        if given is None and hasattr(metafunc.module, "testinfra_hosts"):
            path = os.path.relpath(metafunc.definition.path)
            error = UsageError(f"{path}: testinfra_hosts: {error.message}", hint=error.hint)
        metafunc.config.stash[PROBLEMS].append(error)
        found = []
    option.hosts = ",".join(found) or PREFIX
    try:
        return (yield)
    finally:
        option.hosts = given


class _Tally:
    """Counts the tests of a run that were run, and those that were skipped."""

    def __init__(self) -> None:
        self.tested = 0
        self.skipped = 0
        self.wanted = False  #: whether some test asked for a lab

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not (report.when == "call" and hasattr(report, "wasxfail")):
            self.skipped += 1
            self.wanted = self.wanted or NO_LAB in str(report.longrepr)
        elif report.when == "call" or report.failed:
            self.tested += 1

    def nothing(self, config: pytest.Config) -> bool:
        """Tell whether a run that was for a lab has tested nothing."""
        by_variable = config.stash[NAMED].by == VARIABLE
        distributed = config.getoption("dist", "no") != "no"  # pytest-xdist: others collect
        wanted = self.wanted or config.stash[NAMED].at_once or (by_variable and distributed)
        return wanted and self.skipped > 0 and not self.tested


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run for a lab that has tested nothing is not green."""
    if session.exitstatus == pytest.ExitCode.OK and session.config.stash[TALLY].nothing(
        session.config
    ):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if tally.nothing(config):
        labs = ", ".join(config.stash[NAMED].labs)
        where = f"on lab {labs}" if labs else "no lab was named"
        terminalreporter.write_line(
            f"testbed: nothing was tested: {where}, {tally.skipped} skipped", red=True, bold=True
        )


def _wants_lab(item: pytest.Item) -> bool:
    """Tell whether a test asks for a lab, by a fixture or by a mark."""
    asked = set(getattr(item, "fixturenames", ()))
    marked = {name for mark in item.iter_markers("needs") for name in mark.args} - {"none"}
    return bool(asked & {"lab", "nodes", "fault", "_testinfra_host"} or marked)


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> LiveLab:
    """The lab that runs, as a :class:`testbed.lab.live.LiveLab`."""
    given = request.config.stash.get(LAB, None)
    if given is not None:
        return given
    named = request.config.stash[NAMED]
    if not named.labs:
        pytest.skip(NO_LAB)
    if len(named.labs) > 1:
        pytest.fail(
            f"{named.by} names the labs {', '.join(named.labs)}: choose one with --testbed-lab",
            pytrace=False,
        )
    from testbed.errors import TestbedError
    from testbed.lab import hosts

    try:
        return hosts.live(named.labs[0])
    except TestbedError as error:  # asked for in the middle of a test: others are refused before
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def nodes(lab: LiveLab) -> dict[str, Node]:
    """The lab's nodes by name; ``nodes["node1"].host`` is testinfra's Host."""
    return dict(lab.nodes)


class Inflict:
    """What the fixture ``fault`` gives: brings faults about, and heals those that it has."""

    def __init__(self, lab: LiveLab, faults: Faults) -> None:
        self._lab = lab
        self._faults = faults
        self._done: list[Fault] = []

    def __call__(self, words: str) -> Fault:
        """Bring a fault about, by its words or by its name in the topology.

        Skips the test, and says why, where the machine lacks what it takes.
        """
        from testbed.errors import MachineError
        from testbed.faults.force import fault_of

        fault = fault_of(words, self._lab.topology)
        self._done.append(fault)  # first: what is cut off half-way is healed, too
        try:
            if not self._faults.apply(fault):
                self._done.remove(fault)  # it was there before, and is not ours to heal
        except MachineError as error:  # nothing has been changed
            self._done.remove(fault)
            pytest.skip(str(error))
        return fault

    def heal(self) -> None:
        """Undo what has been done so far."""
        keys = {fault.key for fault in self._done}
        if keys:
            self._faults.heal(lambda fault: fault.key in keys, kinds={kind for kind, *_ in keys})
            self._lab.close()  # an engine that was started again wants a new connection
        self._done.clear()


@pytest.fixture
def fault(lab: LiveLab) -> Iterator[Inflict]:
    """Breaks something of the lab; all of it is healed at the end, also of a test that fails.

    ::

        def test_a_partition(lab, fault):
            fault("partition node1:node2")
            ...
            fault.heal()
    """
    from testbed.faults.force import Faults
    from testbed.lab.lab import Lab
    from testbed.settings import settings

    inflict = Inflict(lab, Faults(Lab(lab.name, settings())))
    try:
        yield inflict
    finally:
        inflict.heal()


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Observation:
    """Where a check of a claim writes down what it sees and what follows from it."""
    from testbed.claims.observation import Observation

    notes = Observation()
    request.node.stash[NOTES] = notes
    return notes


@pytest.fixture
def _needs(request: pytest.FixtureRequest) -> None:
    """Skip, with the reason, a test whose lab lacks what it needs."""
    wanted = [name for mark in request.node.iter_markers("needs") for name in mark.args]
    if set(wanted) - {"none"}:  # arithmetic needs no lab at all
        missing = sorted(set(wanted) - features(request.getfixturevalue("lab").topology))
        if missing:
            pytest.skip(f"the lab has no {', '.join(missing)}")


def features(topology: Topology) -> set[str]:
    """What a lab of this topology has, in the words that ``needs`` uses."""
    found = {role for node in topology.nodes.values() for role in node.roles}
    found |= {"netns", "none"}
    if topology.flannel:
        found.add(f"flannel-{topology.flannel.backend}")
    if any(node.gateway for node in topology.nodes.values()):
        found.add("gateway")
    docker = topology.with_role("docker")
    if docker and not topology.flannel:
        found.add("plain-docker")
    if len(docker) > 1:
        found.add("two-docker-nodes")
    if cluster := topology.kubernetes:
        from testbed.roles.kubernetes.plugins import plugin_of

        found |= {*cluster.add_ons, *plugin_of(topology).features(cluster)}
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    claim = claim_of(item)
    if claim is None:
        outcome = yield
        _refuse_refuted(item)
        return outcome
    from testbed.claims.model import Finding
    from testbed.errors import Unsettled

    began = time.monotonic()
    finding = Finding(claim, None)
    _expect(item, finding)
    try:
        outcome = yield
    except pytest.skip.Exception as skip:
        finding.verdict, finding.reason = "not here", str(skip)
        raise
    except KeyboardInterrupt:
        finding.reason = INTERRUPTED
        raise
    except Unsettled as error:
        finding.verdict, finding.missing = "inconclusive", error.message
        finding.reason = f"expected {finding.expected}: {error.message}"
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
        if finding.reason != INTERRUPTED:  # a check that was cut off has found nothing
            item.config.stash[FINDINGS].append(finding)


def _refuse_refuted(item: pytest.Item) -> None:
    """Fail a test without a claim that has found a statement of its own not to hold."""
    notes = item.stash.get(NOTES, None)
    if notes is not None and notes.verdict not in {None, "confirmed", "depends", "inconclusive"}:
        pytest.fail("; ".join(notes.refuted_by), pytrace=False)


def problem(item: pytest.Item, error: BaseException) -> str:
    """An error of a check, and the line of its file where it was."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(item.path)
    ]
    where = f"{item.path.parent.name}/{item.path.name}:{lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _expect(item: pytest.Item, finding: Finding) -> None:
    """Enter what the catalogue expects of the claim on this lab."""
    from testbed.claims.catalogue import claims

    live = item.config.stash.get(LAB, None) or getattr(item, "funcargs", {}).get("lab")
    facts = live.facts if live else {}
    finding.expected, finding.why = claims()[finding.claim].expected(facts)


def _judge(item: pytest.Item, claim: str, finding: Finding) -> None:
    """Hold what was observed against what is expected; fail the test if they differ."""
    notes = item.stash.get(NOTES, None)
    finding.verdict = notes.verdict if notes else None
    if finding.verdict is None:
        finding.problem = "the check has tested nothing"
        pytest.fail(f"{claim}: {finding.problem}")
    if not finding.as_expected:
        refuted = "; ".join(notes.refuted_by) if notes else ""
        finding.reason = f"expected {finding.expected}" + (f": {refuted}" if refuted else "")
        pytest.fail(f"{claim}: {finding.verdict}, {finding.reason}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Any:
    if (refusal := item.config.stash.get(REFUSAL, None)) is not None:
        pytest.fail(refusal, pytrace=False)
    if any(item.iter_markers("needs")):  # no fixture of every test's: most have no such mark
        getattr(item, "fixturenames", []).insert(0, NEEDS)
    try:
        return (yield)
    except pytest.skip.Exception as skip:
        claim = claim_of(item)
        if claim is not None:
            from testbed.claims.model import Finding

            finding = Finding(claim, "not here", reason=str(skip))
            _expect(item, finding)
            item.config.stash[FINDINGS].append(finding)
        raise


def claim_of(item: pytest.Item) -> str | None:
    """The id of the claim that a test decides, or None for an ordinary test."""
    mark = item.get_closest_marker("claim")
    return str(mark.args[0]) if mark and mark.args else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse unknown marks, hosts outside of the lab, and a lab that is not up."""
    named = config.stash[NAMED]
    wanted = any(_wants_lab(item) for item in items)
    config.stash[TALLY].wanted = wanted and bool(named.by)
    problems = config.stash[PROBLEMS]
    marked = [item for item in items if any(True for _ in _marks(item))]
    if not (marked or problems or named.by):
        return
    from testbed.errors import TestbedError

    try:
        for item in marked:
            _refuse_unknown(item)
        if problems:
            raise problems[0]
        if named.by == VARIABLE and wanted:
            _require(config)
    except TestbedError as error:
        refused = config.stash.get(REFUSED, None)
        if refused is not None:
            refused.append(error)
            items.clear()
        elif hasattr(config, "workerinput"):  # of pytest-xdist, which takes an error for a crash
            config.stash[REFUSAL] = str(error)
        else:
            raise pytest.UsageError(str(error)) from None


def _marks(item: pytest.Item) -> Iterator[pytest.Mark]:
    """The marks of a test that the catalogue gives their meaning."""
    yield from item.iter_markers("claim")
    yield from item.iter_markers("needs")


def _refuse_unknown(item: pytest.Item) -> None:
    """Raise UsageError for a mark that means nothing: it would keep a test from running."""
    from testbed.claims.catalogue import claims
    from testbed.claims.model import FEATURES

    claim = claim_of(item)
    if claim is not None and claim not in claims():
        what = f"no claim {claim!r} in the catalogue"
        raise _unknown(item, what, claim, claims(), "`testbed claims` lists them")
    for word in (name for mark in item.iter_markers("needs") for name in mark.args):
        if word not in FEATURES:
            what = f"no feature {word!r} that a lab could have"
            raise _unknown(item, what, word, FEATURES, f"known: {', '.join(FEATURES)}")


def _unknown(
    item: pytest.Item, what: str, word: str, known: Iterable[str], otherwise: str
) -> UsageError:
    from testbed.errors import UsageError
    from testbed.spelling import closest

    close = closest(str(word), known)
    hint = f"did you mean {close}?" if close else otherwise
    path, line, name = item.location
    where = f"{path}:{line + 1}" if line is not None else path
    return UsageError(f"{where}, {name}: {what}", hint=hint)
