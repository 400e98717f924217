"""The pytest plugin: a live lab as fixtures, and tests that are checks of claims.

pytest loads this module wherever ``testbed`` is installed, so it is small.  It handles
only tests that use its fixtures or its marks, and loads the rest,
:mod:`testbed.pytest_checks`, when a run has such a test or names a lab.  A project's own
fixture of the same name overrides the one here.

A lab is named by ``--testbed-lab NAME``, by ``--hosts=testbed://NAME`` (testinfra's
option), or by the variable TESTBED_LAB.  If it is not running, the run ends with pytest's
status 4 before any test.  testinfra's own fixture ``host`` then means the lab's nodes, and
hosts outside of the lab are refused.  A run for a lab in which every test was skipped ends
with pytest's status 5.

::

    def test_docker0(lab):
        docker0 = lab.node("node1").host.interface("docker0")
        assert docker0.addresses == ["100.96.1.1"]

    @pytest.mark.testbed_claim("bridge-docker0-first-address")
    @pytest.mark.testbed_needs("docker")
    def test_first_address(lab, observe): ...
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from testbed.api import Follow
    from testbed.claims.catalogue import Catalogue
    from testbed.claims.model import Finding
    from testbed.claims.observation import Observation
    from testbed.errors import TestbedError
    from testbed.faults.inflict import Inflict
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

LAB = pytest.StashKey["LiveLab"]()
CATALOGUE: pytest.StashKey[Catalogue] = pytest.StashKey()
FINDINGS: pytest.StashKey[list[Finding]] = pytest.StashKey()
NOTES = pytest.StashKey["Observation"]()
#: Set by a program that runs pytest, lends the lab, and reports a refusal itself.
REFUSED: pytest.StashKey[list[TestbedError]] = pytest.StashKey()
PROBLEMS: pytest.StashKey[list[TestbedError]] = pytest.StashKey()
VARIABLE = "TESTBED_LAB"
SCHEME = "testbed://"  #: of testinfra's hostspecs; `testbed.hostspec` has the rest
CLAIM, NEEDS, ALONE, CHANGES = MARKS = (
    "testbed_claim", "testbed_needs", "testbed_alone", "testbed_changes",
)  # fmt: skip
CHECKS = "testbed-checks"  #: plugin name of the part that is loaded later
TESTINFRA_HOST = "_testinfra_host"  #: the fixture that testinfra's own ``host`` uses
OF_A_LAB = frozenset({"lab", "nodes", "fault", "walk"})  #: fixtures below that need a lab
OURS = OF_A_LAB | {"observe"}


class Named(NamedTuple):
    """The labs named for a run, and the option or variable that named them."""

    labs: tuple[str, ...] = ()
    by: str = ""  #: the option or the variable; empty if no lab was named
    before: tuple[str, ...] | None = None  #: the labs that hosts were confined to before this run

    @property
    def at_once(self) -> bool:
        """True if the labs were named on the command line: they must run for any test."""
        return self.by.startswith("--")


NAMED = pytest.StashKey[Named]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("testbed", "labs of container networks")
    group.addoption(
        "--testbed-lab",
        metavar="NAME",
        help="run the tests on this lab, which must be up (default: the lab of "
        f"--hosts={SCHEME}LAB, or the variable {VARIABLE})",
    )
    group.addoption(
        "--testbed-catalogue",
        metavar="DIR",
        action="append",
        default=[],
        help="the catalogue of claims that tests check: a folder, or the name of an installed "
        "one; repeatable (default: the folder claims beside the lab's topology, else those of "
        "[tool.testbed] in pyproject.toml, else the shipped one)",
    )
    group.addoption(
        "--testbed-allow-changes",
        action="store_true",
        help=f"on a lab of machines that exist already, run tests with the mark {CHANGES} too",
    )


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Confine testinfra to the lab before any module of the project is loaded."""
    _begin(early_config, early_config.known_args_namespace)


def pytest_configure(config: pytest.Config) -> None:
    _begin(config, config.option)  # the hook above is not called where a conftest loads us
    for line in (
        f"{CLAIM}(id): the test checks this claim of a catalogue",
        f"{NEEDS}(*features): requirements of the test: docker, flannel, flannel-udp, ...",
        f"{ALONE}: the test measures, and needs a quiet machine",
        f"{CHANGES}: the test changes the machines, so it is left out where they exist already",
    ):
        config.addinivalue_line("markers", line)


def _begin(config: pytest.Config, options: Any) -> None:
    if NAMED in config.stash:
        return
    config.stash[PROBLEMS] = []
    named = Named()
    if (
        REFUSED in config.stash
        or options.testbed_lab is not None
        or SCHEME in (getattr(options, "hosts", None) or "")
        or os.environ.get(VARIABLE)
    ):
        from testbed import pytest_checks

        named = pytest_checks.named(config, options)
    if (
        named.by or "testinfra.backend" in sys.modules
    ):  # without either there is no host to look for
        from testbed import hostspec

        hostspec.register()
        named = named._replace(before=hostspec.confine(named.labs if named.by else None))
        if lent := config.stash.get(LAB, None):
            from testbed import hosts

            hosts.lend(lent)
    config.stash[NAMED] = named
    if named.by and named.by != VARIABLE:
        checks(config)


def checks(config: pytest.Config) -> Any:
    """Register the module for runs on a lab as a plugin of this run, and return it."""
    from testbed import pytest_checks

    if not config.pluginmanager.has_plugin(CHECKS):
        pytest_checks.prepare(config)
        config.pluginmanager.register(pytest_checks, CHECKS)
    return pytest_checks


def pytest_unconfigure(config: pytest.Config) -> None:
    named = config.stash.get(NAMED, None)
    if named is None or "testbed.hostspec" not in sys.modules:
        return
    from testbed import hostspec

    hostspec.confine(named.before)
    if "testbed.hosts" in sys.modules:
        from testbed import hosts

        if lent := config.stash.get(LAB, None):
            hosts.forget(lent.name)
        hosts.close()


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Any:
    """Make testinfra's ``host`` the lab's nodes, by setting testinfra's hosts.

    A project's own fixture ``host`` does not use the fixture that testinfra parametrizes, and is
    left alone.
    """
    if TESTINFRA_HOST not in metafunc.fixturenames:
        return (yield)
    config = metafunc.config
    given = config.option.hosts
    theirs = getattr(metafunc.module, "testinfra_hosts", [None])
    specs = given.split(",") if given is not None else theirs
    if not config.stash[NAMED].by and not any(str(spec).startswith(SCHEME) for spec in specs):
        return (yield)
    config.option.hosts = checks(config).hosts_of(metafunc, specs)
    try:
        return (yield)
    finally:
        config.option.hosts = given


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Load the rest if there are tests of ours, and let it refuse invalid ones."""
    ours = [item for item in items if is_ours(item)]
    problems: list[TestbedError] = config.stash[PROBLEMS]
    # The variable alone does not count: it may be set permanently.
    hosts = config.stash[NAMED].by and any(asks_for_host(item) for item in items)
    if ours or hosts or problems or config.pluginmanager.has_plugin(CHECKS):
        checks(config).collected(config, items, ours)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of pytest-xdist workers, if they ran tests of ours."""
    if counts := getattr(node, "workeroutput", {}).get("testbed"):
        checks(node.config).add(node.config, counts)


def asks_for_host(item: pytest.Item) -> bool:
    """Tell whether a test uses testinfra's own fixture ``host``."""
    return TESTINFRA_HOST in getattr(item, "fixturenames", ())


def is_ours(item: pytest.Item) -> bool:
    """Tell whether a test uses a fixture or a mark of this plugin."""
    keywords = item.keywords
    return bool(fixtures_of(item, OURS)) or any(
        mark in keywords and item.get_closest_marker(mark) is not None for mark in MARKS
    )


def fixtures_of(item: pytest.Item, names: frozenset[str]) -> set[str]:
    """Return the names of fixtures that come from this plugin for a test, not its project."""
    asked = names.intersection(getattr(item, "fixturenames", ()))
    return {name for name in asked if _is_own(item, name)}


def _is_own(item: pytest.Item, name: str) -> bool:
    """Tell whether a test uses the fixture from here, directly or through an override."""
    info = getattr(item, "_fixtureinfo", None)
    for definition in reversed(info.name2fixturedefs.get(name, ()) if info else ()):
        if getattr(definition.func, "__module__", None) == __name__:
            return True
        if name not in definition.argnames:
            return False
    return False


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> LiveLab:
    """The running lab, a :class:`testbed.labs.live.LiveLab`."""
    found: LiveLab = checks(request.config).lab_of(request.config)
    return found


@pytest.fixture(scope="session")
def nodes(lab: LiveLab) -> dict[str, Node]:
    """The lab's nodes by name; ``nodes["node1"].host`` is testinfra's Host."""
    return dict(lab.nodes)


@pytest.fixture
def fault(lab: LiveLab) -> Iterator[Inflict]:
    """Break parts of the lab; all faults are healed at the end, even if the test fails.

    ::

        def test_a_partition(lab, fault):
            fault("partition node1:node2")
            ...
            fault.heal()
    """
    from testbed.faults.force import Faults
    from testbed.faults.inflict import Inflict
    from testbed.labs.lab import Lab
    from testbed.settings import settings

    inflict = Inflict(lab, Faults(Lab(lab.name, settings())))
    try:
        yield inflict
    finally:
        inflict.heal()


@pytest.fixture(scope="session")
def walk(lab: LiveLab) -> Follow:
    """Follow the packets of a request; return a :class:`testbed.walk.model.Walk`.

    ::

        def test_no_nat_between_containers(walk):
            found = walk("node1/container-1", "node2/container-2")
            assert found.arrived
            assert "nat POSTROUTING" not in found.hops

    The arguments are those of :meth:`testbed.Lab.walk`.
    """
    from testbed.api import follow

    return functools.partial(follow, lab)


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    """Show the difference of two walks as a difference of their paths."""
    if "testbed.walk.model" not in sys.modules:
        return None
    from testbed.walk.assertion import explain

    return explain(op, left, right, whole=config.get_verbosity() > 1)


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Observation:
    """The record in which a check of a claim enters its observations and conclusions."""
    from testbed.claims.observation import Observation

    notes = Observation()
    request.node.stash[NOTES] = notes
    return notes
