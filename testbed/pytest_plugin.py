"""The pytest plugin: a live lab as fixtures, and tests that are checks of claims.

It is loaded by pytest wherever ``testbed`` is installed, and does nothing
until a test asks for one of its fixtures.  ``--testbed-lab NAME`` (or the
variable TESTBED_LAB) names the lab; it must be up.

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
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.model import FEATURES, Finding
from testbed.claims.observation import Observation
from testbed.errors import MachineError, UsageError

if TYPE_CHECKING:
    from testbed.faults.force import Faults
    from testbed.faults.model import Fault
    from testbed.lab.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

LAB = pytest.StashKey["LiveLab"]()
FINDINGS = pytest.StashKey[list[Finding]]()
NOTES = pytest.StashKey[Observation]()
REFUSED = pytest.StashKey[list[UsageError]]()  #: for who runs pytest and tells it in its own words
INTERRUPTED = "interrupted"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("testbed", "labs of container networks")
    group.addoption(
        "--testbed-lab",
        default=os.environ.get("TESTBED_LAB"),
        metavar="NAME",
        help="the lab, brought up before, that the fixtures `lab` and `nodes` give",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(id): the test decides this claim of the catalogue")
    config.addinivalue_line(
        "markers", "needs(*features): what the lab must have: docker, flannel, flannel-udp, ..."
    )
    config.addinivalue_line("markers", "alone: it measures, and wants a quiet machine")
    config.stash[FINDINGS] = []


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab that runs, as a :class:`testbed.lab.live.LiveLab`."""
    given = request.config.stash.get(LAB, None)
    if given is not None:
        yield given
        return
    name = request.config.getoption("--testbed-lab")
    if not name:
        pytest.skip("no lab was named: use --testbed-lab NAME, after `testbed up NAME`")
    from testbed.errors import NoSuchLab
    from testbed.lab.lab import Lab
    from testbed.lab.live import LiveLab
    from testbed.settings import settings

    try:
        live = LiveLab(Lab(name, settings()).context())
    except NoSuchLab as error:
        pytest.skip(str(error))
    yield live
    live.close()


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
    notes = Observation()
    request.node.stash[NOTES] = notes
    return notes


@pytest.fixture(autouse=True)
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
        found |= {*cluster.add_ons, f"pods-by-{cluster.cni}"}
        if (cluster.cni, cluster.backend) == ("flannel", "vxlan"):
            found.add("pods-over-vxlan")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    claim = claim_of(item)
    if claim is None:
        outcome = yield
        _refuse_refuted(item)
        return outcome
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
    try:
        return (yield)
    except pytest.skip.Exception as skip:
        claim = claim_of(item)
        if claim is not None:
            finding = Finding(claim, "not here", reason=str(skip))
            _expect(item, finding)
            item.config.stash[FINDINGS].append(finding)
        raise


def claim_of(item: pytest.Item) -> str | None:
    """The id of the claim that a test decides, or None for an ordinary test."""
    mark = item.get_closest_marker("claim")
    return str(mark.args[0]) if mark and mark.args else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse a mark with an id or a feature that the catalogue does not have."""
    try:
        for item in items:
            _refuse_unknown(item)
    except UsageError as error:
        refused = config.stash.get(REFUSED, None)
        if refused is None:
            raise pytest.UsageError(str(error)) from None
        refused.append(error)
        items.clear()


def _refuse_unknown(item: pytest.Item) -> None:
    """Raise UsageError for a mark that means nothing: it would keep a test from running."""
    from testbed.claims.catalogue import claims

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
    from difflib import get_close_matches

    close = get_close_matches(str(word), known, 1)
    hint = f"did you mean {close[0]}?" if close else otherwise
    path, line, name = item.location
    where = f"{path}:{line + 1}" if line is not None else path
    return UsageError(f"{where}, {name}: {what}", hint=hint)
