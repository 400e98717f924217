"""For all tests: a state folder of their own, and a look at what they left on the machine."""

from __future__ import annotations

import functools
import gc
import importlib
import itertools
import os
import signal
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from catalogues import shipped
from sabotage.gather import Gathered

from testbed import leaks, machine_state
from testbed.catalogues.shipped import FOLDER
from testbed.claims import choose
from testbed.claims.load import load
from testbed.labs.state import folder
from testbed.nodes.fake import FakeNode
from testbed.nodes.vagrant.provider import PROGRAMS
from testbed.process import which
from testbed.settings import settings
from testbed.testing.fakes import Bench

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from testbed.nodes.base import Service
    from testbed.topology import Topology

ROOT_ONLY = ("live", "crash", "vm", "k8s")
VM_ONLY = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs")
#: Files whose tests look at, or remove, what is left of labs of any state folder.
WHOLE_MACHINE = ("test_leaks_command.py", "test_concurrency.py")
HERE = Path(__file__).parent
pytest.register_assert_rewrite("hops", "k8s.walked", "verdicts")  # which assert for tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sabotage-json", metavar="FILE", help="write the outcome of each sabotage")
    parser.addoption(
        "--part", metavar="K/N", type=Part.read, help="collect the K-th of N parts of all files"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that reports, not one that runs tests
        _refuse_an_older_installation()
        config.pluginmanager.register(Gathered(), "sabotage trials")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        config.pluginmanager.register(FromBothEnds(worker), "from both ends")
    if config.getoption("loadgroup", default=False):  # a process of xdist
        config.pluginmanager.register(LongestFirst(), "longest first")
    # A shell without job control starts what is to run beside it (`make test &`) with SIGINT
    # ignored, and so would all be that is started here, to see what Ctrl-C does to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _refuse_an_older_installation() -> None:
    """Raise UsageError if a provider, role or command is not registered yet."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {(g, *one) for g, points in project["entry-points"].items() for one in points.items()}
    there = {
        (one.group, one.name, one.value)
        for one in metadata.distribution(project["name"]).entry_points
    }
    if missing := ", ".join(sorted(name for _, name, _ in wanted - there)):
        why = f"the installed testbed lacks {missing} of pyproject.toml"
        raise pytest.UsageError(f"{why}: run `make .venv/ready`")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    part = config.getoption("part")
    return True if part and part.leaves_out(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """Collect without looks of the garbage collector, which would find none of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        why = "needs root, to create namespaces, links and mounts"
        _skip(items, ROOT_ONLY, why)
    if missing := [name for name in VM_ONLY if which(name) is None]:
        _skip(items, ("vm",), f"no {', '.join(missing)}: testbed doctor --provider qemu --fix")
    if missing := [name for name in PROGRAMS if which(name) is None]:
        why = f"no {', '.join(missing)}: testbed doctor --provider vagrant --fix"
        _skip(items, ("vm",), why, word="vagrant")
    if "TESTBED_LONG" not in os.environ:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only in the long form: make test-all"))
    for item in items:
        if item.path.name in WHOLE_MACHINE:
            item.add_marker(pytest.mark.whole_machine)
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what is loaded by now out of each look of the garbage collector: none of it goes.

    It looks less often, too: with so little left to look at, it would look at everything each time.
    In a process of xdist, refuse groups that have no effect: each process would create all labs.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    if session.config.getoption("loadgroup", default=False) and "PYTEST_XDIST_WORKER" in os.environ:
        grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
        if any("@" not in item.nodeid for item in grouped):
            raise pytest.UsageError("pytest-xdist does not group tests with this pytest")


def _group(item: pytest.Item) -> str | None:
    """The tests that must run in one process (``--dist loadgroup``), one after the other.

    These are tests that share a fixture of their module, such as a lab, with the same
    parameters of it. All others can run anywhere, at any time.
    """
    if item.get_closest_marker("xdist_group") or not isinstance(item, pytest.Function):
        return None
    module = item.nodeid.partition("::")[0]
    shared = [
        name
        for name, definitions in item._fixtureinfo.name2fixturedefs.items()
        if definitions[-1].scope == "module"
        or (definitions[-1].scope == "session" and definitions[-1].baseid == module)
    ]
    if not shared:
        return None
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    return " ".join([module, *(str(indices[name]) for name in shared if name in indices)])


@dataclass(frozen=True)
class Part:
    """Every N-th file of tests, for processes that each run a part of them.

    They need a third less processor time than those of xdist, which collect all files each, and
    report each step of each test to another process.  The files of a folder are taken in the
    order of their size, there and back, so that the parts take about as long.
    """

    number: int  #: from 0
    count: int

    @classmethod
    def read(cls, text: str) -> Part:
        number, count = map(int, text.split("/"))
        if not 1 <= number <= count:
            raise ValueError(text)
        return cls(number - 1, count)

    def leaves_out(self, path: Path) -> bool:
        return path.is_file() and self._of(path.parent).get(path, self.number) != self.number

    @functools.cache  # noqa: B019  the few parts live as long as the process
    def _of(self, folder: Path) -> dict[Path, int]:
        """Return the part of each file of tests, by its path."""
        turns = itertools.cycle([*range(self.count), *reversed(range(self.count))])
        files = sorted(folder.glob("test_*.py"), key=lambda path: (-path.stat().st_size, path.name))
        return dict(zip(files, turns, strict=False))


class FromBothEnds:
    """A pytest plugin for processes of xdist: every second one collects the last file first.

    Each process loads what another has compiled already. So the files of a fresh clone, which take
    longer to compile than all their tests to collect, are compiled once, and not in each process.
    """

    def __init__(self, worker: str) -> None:
        self._from_the_end = int(worker.removeprefix("gw")) % 2 == 1

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if self._from_the_end and isinstance(collector, pytest.Directory) and report.passed:
            report.result.reverse()
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the files in one order, for xdist requires the same in all processes."""
        items.sort(key=lambda item: item.path.parts)


SECONDS = 0.4  #: of a test without a mark; sabotages take longer, on labs of their own


class LongestFirst:
    """A pytest plugin that begins with the groups of tests that take longest.

    So all processes end at about the same time. It needs ``--no-loadscope-reorder``: xdist itself
    begins with the group of the most tests.
    """

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        seconds: dict[str, float] = defaultdict(float)
        for item in items:
            seconds[_groups(item)] += _seconds(item)
        items.sort(key=lambda item: -seconds[_groups(item)])  # keeps the order within a group


def _groups(item: pytest.Item) -> str:
    names = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
    return "_".join(names) or item.nodeid


def _seconds(item: pytest.Item) -> float:
    """The seconds that a test takes, as its mark says."""
    mark = item.get_closest_marker("seconds")
    return float(mark.args[0]) if mark else SECONDS


def _skip(items: list[pytest.Item], folders: tuple[str, ...], why: str, *, word: str = "") -> None:
    """Skip the tests of folders; with a ``word``, only those whose names have it."""
    for item in items:
        here = item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in folders
        if here and word in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _state_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the user's labs; and labs of other folders are not ours (see below)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _shipped_once() -> Iterator[None]:
    """Read the shipped catalogue once: it takes as long as fifty short tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "load", lambda path: shipped() if path == FOLDER else load(path))
        yield


@pytest.fixture(scope="session", autouse=True)
def _shipped_topologies_once() -> Iterator[None]:
    """Build each shipped topology once: a thousand tests start with one of a dozen.

    What has variables is built each time.  Topologies are frozen; that no test changes one in
    spite of it is checked at the end.
    """
    module = importlib.import_module("testbed.topology.load")  # its function has the same name
    build = module.load_text
    kept: dict[tuple[str, str], tuple[Topology, str]] = {}
    places = {str(path) for path in module.names().values()}

    def load_text(text: str, source: str, variables: Mapping[str, str] | None = None) -> Topology:
        if source not in places or variables or "$" in text:
            return build(text, source, variables)  # type: ignore[no-any-return]
        if (text, source) not in kept:
            topology = build(text, source)
            kept[text, source] = topology, repr(topology)
        return kept[text, source][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_text", load_text)
        yield
    changed = [source for (_, source), (topology, was) in kept.items() if repr(topology) != was]
    assert changed == [], "a test changed a shipped topology"


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave what unit tests write to the page cache: none of them survives a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        if all(item.path.is_relative_to(HERE / "unit") for item in request.session.items):
            patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when the machine is not as it was: namespaces, links, processes, mounts, ..."""
    # Each mutant is a run of its own: a look at the machine takes longer than its tests, and what
    # others start or end on the machine meanwhile says nothing about the mutant.
    if os.geteuid() != 0 or "MUTANT_UNDER_TEST" in os.environ:
        yield
        return
    # A lab of another folder, that comes or goes meanwhile, is none of ours.
    below = tmp_path_factory.getbasetemp()
    before = machine_state.snapshot(below)
    yield
    rest = machine_state.left(before, seconds=60, below=below)
    for one in leaks.leftovers(lambda path: settings(state_folder=path), folder()):
        if one.state is not None and one.state.is_relative_to(below.resolve()) and not one.theirs:
            rest.append(f"{one.kind} {one.name}: {one.about}: {one.command}")
    if rest:
        pytest.fail("the tests left the machine changed:\n  " + "\n  ".join(rest), pytrace=False)


@pytest.fixture(scope="session")
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders for single tests, by their numbers."""
    below = tmp_path_factory.mktemp("t")
    return (below / str(number) for number in itertools.count())


@pytest.fixture
def tmp_path(_folders: Iterator[Path]) -> Path:
    """A folder for one test alone; pytest's own looks through those of all earlier tests first."""
    path = next(_folders)
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for one test alone."""
    path = tmp_path / "state"
    monkeypatch.setenv("TESTBED_STATE", str(path))
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Service]]:
    """Services as they are started, with their nodes."""
    found: list[tuple[str, Service]] = []
    real = FakeNode.start

    def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
        found.append((node.name, service))
        real(node, service, timeout=timeout)

    monkeypatch.setattr(FakeNode, "start", start)
    return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Settings with fakes all through."""
    made = Bench(tmp_path / "state")
    made.install(monkeypatch)
    return made
