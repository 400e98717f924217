"""Labs side by side, in real processes: what each does with its lab is a stand-in."""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from catalogues import of_claims, shipped

from testbed import pytest_checks, signals
from testbed.claims.labs import PREFIX, Wanted
from testbed.claims.model import Claim, Evidence, Finding, Sabotage
from testbed.errors import LabError, MachineError, NothingSelected, NothingTested, UsageError
from testbed.labs.lab import Lab
from testbed.roles.flannel.section import FlannelSection
from testbed.suites import everything, prove
from testbed.suites.everything import NO_LAB, Watching, narrowed, run_everything
from testbed.suites.model import Check, LabRun, Results, Run, Selection
from testbed.testing.provider import spec
from testbed.topology.load import Overrides

if TYPE_CHECKING:
    from testbed.claims.model import Verdict
    from testbed.testing.fakes import Bench

FORK = multiprocessing.get_context("fork")
LONG = 240.0  # seconds that nothing here takes unless it hangs


def claim(name: str, document: str, *needs: str) -> Claim:
    return Claim(name, document, "line 1", "So it is.", "state", needs, "confirmed", "Look.")


CLAIMS = {
    c.id: c
    for c in (
        claim("sum", "000", "none"),
        claim("veth", "000", "netns"),
        claim("bridge", "003", "docker"),
        claim("fdb", "003", "flannel-vxlan"),
        claim("mtu", "003", "docker"),
    )
}
A = Wanted("two-node", ("003",))
B = Wanted("docker-single", ("003",))
C = Wanted("docker-10-1-27", ("003",))


def chosen(*args: Any, **more: Any) -> Selection:
    return Selection(*args, **{"catalogue": of_claims(*CLAIMS.values()), **more})


BRIDGE = chosen(claims=("bridge", "mtu"))

Play = Callable[[Connection, LabRun], None]


def found(name: str = "bridge", **more: Any) -> Finding:
    return Finding(name, "confirmed", expected="confirmed", **more)


def tell(pipe: Connection, *names: str) -> list[Finding]:
    findings = [found(name) for name in names]
    for finding in findings:
        pipe.send(("found", finding))
    return findings


def well(pipe: Connection, part: LabRun) -> None:
    """A lab that decides one claim."""
    pipe.send(("up", 0.5))
    part.up, part.seconds = 0.5, 1.5
    part.results.findings += tell(pipe, "bridge")


def be_busy() -> None:
    """Go on until a signal comes.

    One that comes just before the kernel's sleep begins is noticed only after it.
    """
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.01)


def hang(pipe: Connection, part: LabRun) -> None:
    """A lab that decides one claim, and is at the next until a signal comes."""
    tell(pipe, "bridge")
    be_busy()


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(everything, "_preload", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # two labs at once, then
    began = time.monotonic()
    yield
    assert FORK.active_children() == []
    assert time.monotonic() - began < LONG / 2, "something has waited for its end in vain"


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[Wanted, Play]], None]:
    """The action of each lab's process, in place of starting the lab."""

    def install(by_lab: Mapping[Wanted, Play]) -> None:
        def one(
            _s: Any, wanted: Wanted, _c: Any, pipe: Connection, part: LabRun, **_: object
        ) -> None:
            # As by the command. Hypothesis leaves a callback of the garbage collector, and Python
            # ignores what a signal raises within it.
            with signals.never_lost():
                by_lab[wanted](pipe, part)

        monkeypatch.setattr(everything, "_one", one)

    return install


Plays = Callable[[Mapping[Wanted, Play]], None]


class Watcher:
    """Messages during the run."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.ended: list[LabRun] = []

    def watching(self) -> Watching:
        return Watching(
            began=lambda name: self.heard.append(("began", name)),
            up=lambda name, seconds: self.heard.append(("up", name, str(seconds))),
            found=lambda name, of: self.heard.append(
                ("found", name, of.claim if isinstance(of, Finding) else of.name)
            ),
            ended=self._ended,
        )

    def _ended(self, lab: LabRun) -> None:
        self.heard.append(("ended", lab.name))
        self.ended.append(lab)


def go(
    bench: Bench,
    wanted: Sequence[Wanted],
    watcher: Watcher | None = None,
    selection: Selection = BRIDGE,
) -> Run:
    watching = (watcher or Watcher()).watching()
    return run_everything(bench.settings, selection, watching, wanted=wanted)


def ids(lab: LabRun) -> list[str]:
    return [finding.claim for finding in lab.results.findings]


# -- side by side ----------------------------------------------------------------


def test_a_lab_is_told_from_its_beginning_to_its_end(bench: Bench, plays: Plays) -> None:
    plays({A: well})
    watcher = Watcher()
    run = go(bench, [A], watcher)
    assert watcher.heard == [
        ("began", "two-node"),
        ("up", "two-node", "0.5"),
        ("found", "two-node", "bridge"),
        ("ended", "two-node"),
    ]
    (lab,) = run.labs
    assert watcher.ended == [lab]
    assert (lab.name, lab.up, lab.seconds, lab.error, lab.status) == ("two-node", 0.5, 1.5, "", 0)
    assert lab.topology is not None
    assert lab.topology.name == "all-two-node"
    assert ids(lab) == ["bridge"]
    assert (run.signum, run.complete) == (None, True)
    assert run.undecided() == ["mtu"]  # it should have been decided
    assert run.status == 1
    assert 0 < run.seconds < LONG


def test_all_that_was_seen_comes_over(bench: Bench, plays: Plays) -> None:
    finding = found(evidence=[Evidence("node1# ip link", "1: lo")], reason="so", why="and so")
    check = Check("test_x.py::test_it", "failed", 0.25, "assert 1 == 2")

    def play(pipe: Connection, part: LabRun) -> None:
        part.facts, part.versions, part.picture = {"docker": "29.0"}, {"etcd": "3"}, {"nodes": []}
        part.results = Results([finding], [check], ["mtu"], ["test_y.py: broken"])
        part.down = 0.75

    plays({A: play})
    (lab,) = go(bench, [A]).labs
    assert lab.results == Results([finding], [check], ["mtu"], ["test_y.py: broken"])
    assert (lab.facts, lab.versions, lab.picture) == (
        {"docker": "29.0"},
        {"etcd": "3"},
        {"nodes": []},
    )
    assert lab.down == 0.75


def test_as_many_at_once_as_keep_the_machine_busy(bench: Bench, plays: Plays) -> None:
    meet = FORK.Barrier(2)
    at_work, most = FORK.Value("i", 0), FORK.Value("i", 0)

    def play(pipe: Connection, part: LabRun) -> None:
        with at_work.get_lock():
            at_work.value += 1
            most.value = max(most.value, at_work.value)
        meet.wait(LONG)  # one alone would never come past it
        well(pipe, part)
        with at_work.get_lock():
            at_work.value -= 1

    four = [A, B, C, Wanted("two-node-host-gw", ("003",))]
    plays(dict.fromkeys(four, play))
    run = go(bench, four)
    assert [ids(lab) for lab in run.labs] == [["bridge"]] * 4
    assert most.value == everything.PER_CPU


def test_labs_are_in_the_order_of_the_list_whichever_ends_first(bench: Bench, plays: Plays) -> None:
    b_ended = FORK.Event()

    def first(pipe: Connection, part: LabRun) -> None:
        assert b_ended.wait(LONG)
        well(pipe, part)

    ended: list[str] = []

    def note(lab: LabRun) -> None:
        ended.append(lab.name)
        b_ended.set()

    plays({A: first, B: well})
    run = run_everything(bench.settings, BRIDGE, Watching(ended=note), wanted=[A, B])
    assert ended == [B.name, A.name]
    assert [lab.name for lab in run.labs] == [A.name, B.name]


def test_a_lab_with_nothing_to_say_is_not_in_the_run(bench: Bench, plays: Plays) -> None:
    plays({A: well, B: lambda _pipe, _part: None})
    watcher = Watcher()
    run = go(bench, [A, B], watcher)
    assert [lab.name for lab in run.labs] == [A.name]
    assert {lab.name for lab in watcher.ended} == {A.name, B.name}


# -- what measures ------------------------------------------------------------------


def test_what_measures_has_the_machine_for_itself(
    bench: Bench, plays: Plays, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"

    def write(what: str) -> None:
        with journal.open("a", encoding="utf-8") as file:  # one write, appended
            file.write(f"{what}\n")

    def play(pipe: Connection, part: LabRun) -> None:
        write("works")
        pipe.send(("waits", None))
        pipe.recv()
        write(f"measures {part.name}")
        time.sleep(0.02)  # time enough for another one to come between, if it could
        write(f"has measured {part.name}")
        well(pipe, part)

    def other(pipe: Connection, part: LabRun) -> None:
        write("works")
        well(pipe, part)

    four = {A: play, B: other, C: play, Wanted("two-node-host-gw", ("003",)): play}
    plays(four)
    run = go(bench, [*four])
    assert len(run.labs) == 4
    lines = journal.read_text().splitlines()
    assert lines[:4] == ["works"] * 4, "those that wait keep none from working"
    pairs = list(zip(lines[4::2], lines[5::2], strict=True))
    assert len(pairs) == 3
    assert all(end == begin.replace("measures", "has measured") for begin, end in pairs)


# -- what breaks off -----------------------------------------------------------------


def left_behind(bench: Bench, *labs: Wanted) -> None:
    """Nodes of labs that their processes do not take down."""
    for lab in labs:
        bench.provider.create_one(f"{PREFIX}{lab.name}", spec("node1"))


def test_one_that_is_killed_keeps_what_it_told_and_its_lab_goes(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        pipe.send(("found", Check("test_it", "passed", 0.1)))
        tell(pipe, "mtu")
        os.kill(os.getpid(), signal.SIGKILL)

    plays({A: play, B: well})
    left_behind(bench, A)
    run = go(bench, [A, B])
    killed, other = run.labs
    assert ids(killed) == ["bridge", "mtu"]
    assert [check.name for check in killed.results.checks] == ["test_it"]
    assert (killed.error, killed.status) == ("its process ended with status -9", 1)
    assert killed.topology is not None
    assert ids(other) == ["bridge"]
    assert bench.provider.labs() == []
    assert run.undecided() == []
    assert run.status == 1


def test_one_that_is_killed_in_the_middle_of_a_word(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"and")
        os.kill(os.getpid(), signal.SIGKILL)

    plays({A: play})
    (lab,) = go(bench, [A]).labs
    assert ids(lab) == ["bridge"]
    assert lab.error == "its process ended with status -9"


def test_one_that_is_killed_while_it_waits_to_measure(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        pipe.send(("waits", None))
        os.kill(os.getpid(), signal.SIGKILL)

    def other(pipe: Connection, part: LabRun) -> None:
        pipe.send(("waits", None))
        pipe.recv()
        well(pipe, part)

    plays({A: play, B: other})
    killed, other_lab = go(bench, [A, B]).labs
    assert (killed.status, ids(killed)) == (1, [])
    assert ids(other_lab) == ["bridge"]


def test_what_is_told_again_takes_the_place_of_the_first(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge", "mtu")
        pipe.send(("found", found("mtu", problem="the clean-up failed")))
        os.kill(os.getpid(), signal.SIGKILL)

    plays({A: play})
    (lab,) = go(bench, [A]).labs
    assert [(f.claim, f.problem) for f in lab.results.findings] == [
        ("bridge", ""),
        ("mtu", "the clean-up failed"),
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(LabError("no nodes", hint="wait"), 4), (MachineError("no vxlan"), 3)]
)
def test_a_lab_that_does_not_come_up(
    error: LabError | MachineError, status: int, bench: Bench, plays: Plays
) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        raise error

    plays({A: play, B: lambda pipe, part: part.results.findings.extend(tell(pipe, *BRIDGE.claims))})
    run = go(bench, [A, B])
    failed, other = run.labs
    assert (failed.error, failed.status) == (str(error), status)
    assert (ids(failed), ids(other)) == ([], ["bridge", "mtu"])
    assert run.status == status


def test_a_defect_is_shown_with_the_rest(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        raise ZeroDivisionError("by zero")

    plays({A: play, B: well})
    left_behind(bench, A)
    run = go(bench, [A, B])
    failed, other = run.labs
    assert failed.error.startswith("Traceback")
    assert failed.error.endswith("ZeroDivisionError: by zero\n")
    assert failed.status == 1
    assert ids(failed) == ids(other) == ["bridge"], "and what was told before"
    assert bench.provider.labs() == []
    assert run.status == 1


def test_a_lab_that_will_not_go_is_told(
    bench: Bench, plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_: Lab) -> bool:
        raise LabError("it will not go")

    def play(pipe: Connection, part: LabRun) -> None:
        raise MachineError("no vxlan")

    monkeypatch.setattr(Lab, "down", down)
    plays({A: play})
    (lab,) = go(bench, [A]).labs
    assert (lab.error, lab.status) == ("no vxlan\nit will not go", 3)


# -- signals --------------------------------------------------------------------------

TOLD = FORK.Semaphore(0)  # raised by a lab that has told what it had
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
NAMES = [signum.name for signum in ENDING]


def and_then(signum: signal.Signals, others: int = 0) -> Play:
    """A lab that decides one claim, and at the next somebody ends all of us."""

    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        for _ in range(others):
            assert TOLD.acquire(timeout=LONG)
        os.kill(os.getppid(), signum)
        be_busy()

    return play


@pytest.mark.parametrize("signum", ENDING, ids=NAMES)
def test_a_signal_ends_all_with_what_there_is(
    signum: signal.Signals, bench: Bench, plays: Plays
) -> None:
    def waiting(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "mtu")
        pipe.send(("waits", None))
        TOLD.release()
        pipe.recv()
        raise AssertionError("nothing is measured any more")

    def busy(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        TOLD.release()
        be_busy()

    third = Wanted("two-node-host-gw", ("003",))
    plays({A: waiting, B: busy, C: and_then(signum, others=2), third: well})
    left_behind(bench, A, B, C)
    watcher = Watcher()
    run = go(bench, [A, B, C, third], watcher)
    assert (run.signum, run.status) == (signum, 128 + signum)
    assert [lab.name for lab in run.labs] == [A.name, B.name, C.name]
    assert [lab.results.signum for lab in run.labs] == [signum] * 3
    assert [lab.error for lab in run.labs] == [""] * 3
    assert [ids(lab) for lab in run.labs] == [["mtu"], ["bridge"], ["bridge"]]
    assert ("began", third.name) not in watcher.heard
    assert bench.provider.labs() == []


def test_what_an_interrupted_lab_did_not_come_to(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        part.results = Results(missed=["mtu"], signum=signal.SIGTERM)

    plays({A: play})
    run = go(bench, [A], selection=chosen(claims=("bridge", "mtu")))
    (lab,) = run.labs
    assert (ids(lab), lab.results.missed) == (["bridge"], ["mtu"])
    assert lab.results.signum == signal.SIGTERM


def test_handlers_and_mask_are_put_back(bench: Bench, plays: Plays) -> None:
    plays({A: and_then(signal.SIGTERM)})
    before = [signal.getsignal(signum) for signum in ENDING]
    go(bench, [A])
    assert [signal.getsignal(signum) for signum in ENDING] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(ENDING)


@pytest.mark.parametrize("signum", ENDING, ids=NAMES)
def test_a_signal_while_a_process_is_forked_is_not_lost(
    signum: signal.Signals, bench: Bench, plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = os.fork

    def forked() -> int:
        pid = fork()
        if pid:  # to this thread: another one would take it at once, although it is blocked here
            signal.raise_signal(signum)
        return pid

    monkeypatch.setattr(os, "fork", forked)
    plays({A: hang, B: well})
    run = go(bench, [A, B])
    assert run.signum == signum
    assert [(lab.name, lab.results.signum) for lab in run.labs] == [(A.name, signum)]


def test_a_signal_for_one_of_them_is_no_success(bench: Bench, plays: Plays) -> None:
    def play(pipe: Connection, part: LabRun) -> None:
        part.results.findings += tell(pipe, "bridge", "mtu")
        os.kill(os.getpid(), signal.SIGTERM)
        be_busy()

    plays({A: play})
    run = go(bench, [A])
    assert (run.signum, run.labs[0].results.signum) == (None, signal.SIGTERM)
    assert run.undecided() == []
    assert run.status == 1


def test_a_signal_while_a_lost_lab_is_taken_down_is_for_all(
    bench: Bench, plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy = bench.provider.destroy

    def interrupted(lab: str, nodes: Iterable[str] | None = None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        destroy(lab, nodes)

    b_hangs = FORK.Event()

    def killed(pipe: Connection, part: LabRun) -> None:
        assert b_hangs.wait(LONG)
        os.kill(os.getpid(), signal.SIGKILL)

    def other(pipe: Connection, part: LabRun) -> None:
        tell(pipe, "bridge")
        b_hangs.set()
        be_busy()

    monkeypatch.setattr(bench.provider, "destroy", interrupted)
    plays({A: killed, B: other})
    left_behind(bench, A)
    run = go(bench, [A, B])
    assert run.signum == signal.SIGTERM
    assert [(lab.name, ids(lab)) for lab in run.labs] == [(A.name, []), (B.name, ["bridge"])]
    assert bench.provider.labs() == []


def test_a_watcher_that_goes_ends_all(bench: Bench, plays: Plays) -> None:
    error = BrokenPipeError(errno.EPIPE, "Broken pipe")

    def gone(_name: str, _found: Finding | Check) -> None:
        raise error

    def chatty(pipe: Connection, part: LabRun) -> None:
        while True:  # more than a pipe holds
            tell(pipe, *["bridge"] * 100)

    plays({A: chatty, B: chatty})
    left_behind(bench, A, B)
    with pytest.raises(BrokenPipeError) as caught:
        run_everything(bench.settings, BRIDGE, Watching(found=gone), wanted=[A, B])
    assert caught.value is error
    assert bench.provider.labs() == []


# -- without a lab -----------------------------------------------------------------------


@pytest.fixture
def labless(monkeypatch: pytest.MonkeyPatch) -> Callable[[Results | Exception], None]:
    """Results of a run without a lab."""

    def install(outcome: Results | Exception) -> None:
        def run(lab: None, _: Selection, **_more: Any) -> Results:
            assert lab is None
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(everything, "run", run)

    return install


Labless = Callable[[Results | Exception], None]


def test_what_is_computed_is_run_first_and_once(
    bench: Bench, plays: Plays, labless: Labless
) -> None:
    labless(Results([found("sum")]))
    plays({A: well})
    watcher = Watcher()
    run = go(bench, [A], watcher, chosen())
    assert [(lab.name, ids(lab)) for lab in run.labs] == [(NO_LAB, ["sum"]), (A.name, ["bridge"])]
    assert watcher.heard[0] == ("ended", NO_LAB)
    assert run.labs[0].topology is None


@pytest.mark.parametrize(
    ("selection", "labs"),
    [
        (chosen(claims=("sum",)), [NO_LAB]),
        (chosen(claims=("sum",), tests=("test_x.py::test_it",)), [NO_LAB, A.name]),
        (chosen(claims=("bridge",)), [A.name]),
        (chosen(documents=("000",)), [NO_LAB]),
        (chosen("sum or bridge"), [NO_LAB, A.name]),  # only pytest knows what that means
    ],
)
def test_only_labs_that_may_decide_something_are_brought_up(
    selection: Selection, labs: list[str], bench: Bench, plays: Plays, labless: Labless
) -> None:
    labless(Results([found("sum")]))
    plays({A: well})
    assert [lab.name for lab in go(bench, [A], selection=selection).labs] == labs


def test_ctrl_c_without_a_lab_ends_the_run(bench: Bench, plays: Plays, labless: Labless) -> None:
    labless(Results([found("sum")], signum=signal.SIGINT))
    plays({A: well})
    watcher = Watcher()
    run = go(bench, [A], watcher, chosen())
    assert (run.signum, run.status) == (signal.SIGINT, 130)
    assert [lab.name for lab in run.labs] == [NO_LAB]
    assert ("began", A.name) not in watcher.heard


def test_a_bad_expression_is_told_before_any_lab_is_up(
    bench: Bench, plays: Plays, labless: Labless
) -> None:
    labless(UsageError("pytest refuses these arguments"))
    plays({A: well})
    watcher = Watcher()
    with pytest.raises(UsageError, match="pytest refuses"):
        go(bench, [A], watcher, chosen("one and ("))
    assert watcher.heard == []


def test_nothing_that_any_lab_decides(bench: Bench, plays: Plays, labless: Labless) -> None:
    labless(NothingSelected("nothing"))
    plays({A: lambda _pipe, _part: None})
    with pytest.raises(NothingSelected):
        go(bench, [A], selection=chosen("nothing_is_called_so"))
    with pytest.raises(UsageError, match="no claim 'brigde'"):
        go(bench, [A], selection=chosen(claims=("brigde",)))


def test_a_definition_alone_is_shown_and_tests_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = Claim("word", "003", "l", "A is B.", "definition", ("none",), "not testable", "-")
    monkeypatch.setitem(CLAIMS, "word", word)
    run = go(bench, [A], selection=chosen(claims=("word",)))
    assert (run.labs, [c.id for c in run.meant()], run.status) == ([], ["word"], 5)


def test_a_catalogue_without_labs_is_refused(bench: Bench, labless: Labless) -> None:
    with pytest.raises(UsageError) as caught:
        run_everything(bench.settings, BRIDGE)
    assert "catalogue.yaml" in str(caught.value.hint)
    labless(Results([found("sum")]))
    run = run_everything(bench.settings, chosen(claims=("sum",)))
    assert [lab.name for lab in run.labs] == [NO_LAB], "it needs none"


# -- one lab, in its process -----------------------------------------------------------------


class Pipe(io.IOBase):
    """The end of a pipe that a lab's process has, and what went through it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def send(self, message: tuple[str, Any]) -> None:
        self.log.append(message[0])

    def recv(self) -> str:
        self.log.append("go on")
        return "go on"


class StandIn:
    """A LiveLab, as far as ``_one`` knows it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __call__(self, _: Any) -> Self:
        return self

    def close(self) -> None:
        self.log.append("closed")


@pytest.fixture
def one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LabRun, list[str]]]:
    """The whole of one lab of fakes, in this process; its checks do what is given."""

    def whole(
        checks: Callable[..., Results], selection: Selection | None = None, *, proving: bool = False
    ) -> tuple[LabRun, list[str]]:
        log: list[str] = []
        down = Lab.down

        def noted(lab: Lab) -> bool:
            log.append("down")
            return down(lab)

        monkeypatch.setattr(Lab, "down", noted)
        monkeypatch.setattr("testbed.labs.live.LiveLab", StandIn(log))
        monkeypatch.setattr(LabRun, "look", lambda *_: log.append("looked at"))
        monkeypatch.setattr(everything, "run", checks)
        part = LabRun(A.name)
        mine, pipe = selection or chosen(), cast("Connection", Pipe(log))
        try:
            everything._one(bench.settings, A, mine, pipe, part, proving=proving)
        finally:
            assert bench.provider.labs() == []
            assert log[-2:] == ["closed", "down"]
        return part, log

    return whole


One = Callable[..., tuple[LabRun, list[str]]]


def test_one_lab_comes_is_put_to_the_test_and_goes(one: One, bench: Bench) -> None:
    def checks(lab: Any, selection: Selection, *, told: Any, before_alone: Any, **more: Any) -> Any:
        assert isinstance(lab, StandIn)
        assert bench.provider.labs() == ["all-two-node"]
        assert (selection.of, more) == (("003",), {"lacks": {"none"}})
        told(found())
        before_alone()
        told(found("mtu"))
        return Results([found(), found("mtu")])

    part, log = one(checks)
    assert log == ["up", "looked at", "found", "waits", "go on", "found", "closed", "down"]
    assert ids(part) == ["bridge", "mtu"]
    assert part.versions["etcd"]
    assert part.up > 0
    assert part.seconds > 0
    assert part.down > 0


def test_one_lab_without_anything_of_the_selection(one: One) -> None:
    def checks(*_: Any, **_more: Any) -> Results:
        raise NothingSelected("nothing")

    assert one(checks)[0].is_empty


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("refused"), ValueError("odd")])
def test_one_lab_goes_whatever_happens(error: BaseException, one: One) -> None:
    def checks(*_: Any, **_more: Any) -> Results:
        raise error

    with pytest.raises(type(error)):
        one(checks)


# -- proofs ----------------------------------------------------------------------------------

CUT = Sabotage("cut", "The wire is cut.", ("fdb", "bridge"))
PROVABLE = chosen(catalogue=replace(of_claims(*CLAIMS.values()), sabotages=(CUT,)))


def test_the_labs_that_can_decide_a_claim_with_a_sabotage_are_broken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(*args: Any, proving: bool) -> None:
        _, wanted, selection, pipe, part = args
        check = Check(f"{wanted.name}: {', '.join(selection.claims)}", "passed", 0.1)
        pipe.send(("found", check))
        part.results.checks.append(check)
        part.proofs = {"bridge": {"passed" if proving else "failed"}}

    monkeypatch.setattr(everything, "_one", one)
    plain = Wanted("netns-experiments", ("000",))
    watcher = Watcher()
    run = run_everything(
        bench.settings, PROVABLE, watcher.watching(), wanted=[A, B, plain], proving=True
    )
    assert [lab.name for lab in run.labs] == [NO_LAB, "two-node", "docker-single"]
    names = [check.name for lab in run.labs[1:] for check in lab.results.checks]
    assert names == ["two-node: bridge, fdb", "docker-single: bridge, fdb"]
    assert {*run.proofs()} == {"bridge", "sum", "veth", "mtu"}
    assert run.proofs()["mtu"] == {"skipped"}
    assert (run.undecided(), run.status) == ([], 0)
    assert ("began", "netns-experiments") not in watcher.heard


def test_without_a_sabotage_no_lab_is_created(bench: Bench, plays: Plays) -> None:
    plays({})
    for selection in (chosen(), replace(PROVABLE, claims=("mtu",))):
        with pytest.raises(NothingSelected):
            run_everything(bench.settings, selection, wanted=[A], proving=True)


def test_a_lab_that_is_left_out_proves_nothing(
    bench: Bench, plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "lacking", lambda *_: "it is not built")
    plays({})
    run = run_everything(bench.settings, PROVABLE, wanted=[A], proving=True)
    assert run.labs[-1].absent == "it is not built"
    assert run.proofs()["bridge"] == {"skipped"}
    assert run.status == NothingTested.exit_code


def test_one_lab_is_broken_in_its_process(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[str] = []

    @contextlib.contextmanager
    def during(_: prove.Broken) -> Iterator[None]:
        broken.append("now")
        yield
        broken.clear()

    monkeypatch.setattr(prove.Broken, "missing", lambda _: "")
    monkeypatch.setattr(prove.Broken, "__call__", during)

    def checks(_: Any, selection: Selection, *, before_alone: Any, lacks: Any) -> Results:
        assert (lacks, selection.of) == ({"none"}, ("003",))
        before_alone()
        said: Verdict = "contradicted" if broken else "confirmed"
        return Results([Finding("bridge", said, expected="confirmed")])

    part, log = one(checks, PROVABLE, proving=True)
    (check,) = part.results.checks
    assert (check.outcome, part.proofs) == ("passed", {"bridge": {"passed"}})
    assert log.count("waits") == 3
    assert log.count("found") == 1


def test_one_lab_that_cannot_be_repaired_keeps_what_was_seen(
    one: One, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> Any:
        raise LabError("no way back")

    monkeypatch.setattr(prove.Broken, "missing", lambda _: "")
    monkeypatch.setattr(prove.Broken, "__call__", fails)
    kept: list[LabRun] = []
    real = everything._one

    def noted(*args: Any, **more: Any) -> None:
        kept.append(args[4])
        real(*args, **more)

    monkeypatch.setattr(everything, "_one", noted)
    findings = [found(), found("mtu")]
    with pytest.raises(LabError):
        one(lambda *_, **__: Results(findings), PROVABLE, proving=True)
    assert kept[0].proofs == {"mtu": {"skipped"}}


# -- the labs of the catalogue ---------------------------------------------------------------


def test_names_say_what_is_varied() -> None:
    assert Wanted("two-node", ()).name == "two-node"
    varied = Wanted("two-node", ("003",), Overrides(backend="udp"))
    assert varied.name == "two-node-udp"
    topology = varied.load()
    assert topology.name == "all-two-node-udp"
    assert FlannelSection.find(topology) is not None
    assert FlannelSection.of(topology).backend == "udp"


def test_a_lab_is_for_its_documents() -> None:
    selection = chosen("x", claims=("bridge",))
    assert narrowed(selection, A) == chosen("x", claims=("bridge",), of=("003",))


def test_a_lab_may_be_for_what_needs_some_feature_only() -> None:
    cluster = Wanted("k8s-two-node", ("003",), only=("kubernetes",))
    selection = narrowed(chosen(), cluster)
    assert not selection.has(CLAIMS["bridge"])
    assert selection.has(claim("pod", "003", "kubernetes"))


def test_a_lab_whose_software_takes_long_to_make_is_left_out(
    bench: Bench, plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLAIMS, "pod", claim("pod", "003", "kubernetes"))
    bench.store.long = {"kubernetes": ["kubernetes", "coredns"]}
    cluster = Wanted("k8s-two-node", ("003",), only=("kubernetes",))
    plays({A: well})
    watcher = Watcher()
    run = go(bench, [cluster, A], watcher, chosen(claims=("bridge", "pod")))
    assert [lab.name for lab in run.labs] == ["k8s-two-node", "two-node"]
    left_out = run.labs[0]
    assert left_out.absent.startswith("kubernetes is not built yet (kubernetes, coredns);")
    assert "testbed doctor --role kubernetes --fix" in left_out.absent
    (finding,) = left_out.results.findings
    assert (finding.claim, finding.verdict) == ("pod", "skipped")
    assert finding.as_expected
    assert (run.undecided(), run.status) == ([], 0)
    assert ("began", "k8s-two-node") not in watcher.heard


def test_only_labs_whose_names_fit(bench: Bench, plays: Plays) -> None:
    plays({A: well, B: well, C: well})
    run = run_everything(bench.settings, BRIDGE, wanted=[A, B, C], labs=["docker-*"])
    assert [lab.name for lab in run.labs] == ["docker-single", "docker-10-1-27"]
    assert not run.complete
    with pytest.raises(UsageError, match="k9s-") as refused:
        run_everything(bench.settings, BRIDGE, wanted=[A, B], labs=["two-*", "k9s-*"])
    assert "two-node, docker-single" in str(refused.value.hint)


def test_every_claim_is_decided_by_a_lab_of_the_list() -> None:
    names = [wanted.name for wanted in shipped().labs]
    assert len(set(names)) == len(names)
    labs = [(wanted.documents, pytest_checks.features(wanted.load())) for wanted in shipped().labs]
    for one in shipped().claims.values():
        if one.is_testable and one.needs != ("none",):
            assert any(
                one.document in documents and set(one.needs) <= has for documents, has in labs
            ), one.id
