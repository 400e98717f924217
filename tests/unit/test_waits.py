"""Waits: what they are for is told, their way is tested, and they end early where they can."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from labs import hour_passes_at

from testbed import signals
from testbed.errors import LabError, PathError, ServiceError, ServiceNotReady, TimeoutExpired
from testbed.labs.lab import Lab
from testbed.labs.run import Waiting, carry_out
from testbed.nodes.base import Service
from testbed.nodes.fake import Answer, Behaviour, FakeProvider
from testbed.roles import base, way
from testbed.roles.way import Way
from testbed.steps.context import Context
from testbed.steps.step import Plan, Step
from testbed.steps.wait import Wait
from testbed.testing.provider import spec
from testbed.topology import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.testing.fakes import Bench

FLANNELD = Service("flanneld", ("flanneld",), notify=True)


class Two:
    """Two fake nodes of the shipped topology; etcd runs on the first."""

    def __init__(self) -> None:
        from testbed.testing.fakes import FakeStore

        self.provider = FakeProvider()
        self.one = self.provider.create_one("two-node", spec("node1"))
        self.two = self.provider.create_one("two-node", spec("node2"))
        self.one.start(Service("etcd", ("etcd",), notify=True))
        nodes = self.provider.nodes("two-node")
        self.context = Context(load("two-node"), self.provider, FakeStore(), nodes).of_step("s")
        self.way = Way(self.context, "node2", "node1", "etcd", "10.168.0.2", 2379)

    @property
    def words(self) -> str:
        return self.context.waits.get("s", "")


@pytest.fixture
def two() -> Two:
    return Two()


# -- a wait ------------------------------------------------------------------------


def test_a_wait_says_what_it_is_for_and_what_was_seen_last(two: Two) -> None:
    wait = Wait(two.context, "a sign", 60)
    assert two.words == "a sign"
    wait.saw("refused")
    assert two.words == "a sign: refused"


def test_a_wait_ends_at_its_bound(two: Two) -> None:
    wait = Wait(two.context, "a sign", 0.0)
    wait.saw("refused")
    with pytest.raises(TimeoutExpired, match="a sign: refused"):
        wait.pause()


def test_a_wait_ends_when_the_run_gives_up(two: Two) -> None:
    wait = Wait(two.context, "a sign", 1e9)
    two.context.given_up.set()
    with pytest.raises(LabError, match="a sign"):
        wait.pause()


# -- the way ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(0), ""),
        (Answer(2), way.NO_ROUTE),
        (Answer(1, err=b"bash: connect: Network is unreachable\n"), way.NO_ROUTE),
        (Answer(1, err=b"bash: connect: No route to host\n"), way.UNREACHABLE),
        (Answer(1, err=b"bash: connect: Connection refused\n"), way.REFUSED),
        (Answer(124), way.SILENT),
        (Answer(1, err=b"bash: connect: Connection timed out\n"), way.SILENT),
    ],
)
def test_how_a_connection_fails(two: Two, answer: Answer, reason: str) -> None:
    two.provider.script(["sh", "-c", way.TEST], answer)
    assert way.test(two.two, "10.168.0.2", 2379) == reason
    asked = two.provider.asked("run", "node2")[-1]
    assert asked[4:6] == ("10.168.0.2", "2379")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr("testbed.roles.way.time", SimpleNamespace(monotonic=lambda: now[0]))

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


@pytest.mark.parametrize("reason", way.PATIENCE)
def test_a_way_that_stays_blocked_is_given_up(
    two: Two, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(way, "test", lambda *_: reason)
    assert reason in two.way.seen()
    clock(way.PATIENCE[reason] - 0.5)
    assert "etcd on node1 at 10.168.0.2:2379" in two.way.seen()
    clock(1.0)
    with pytest.raises(PathError) as caught:
        two.way.seen()
    error = caught.value
    assert (error.node, error.address, error.port) == ("node2", "10.168.0.2", 2379)
    assert error.reason == reason


def test_a_way_that_opens_again_is_not_given_up(
    two: Two, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for reason in (way.NO_ROUTE, "", way.NO_ROUTE, way.SILENT, way.NO_ROUTE):
        monkeypatch.setattr(way, "test", lambda *_, reason=reason: reason)
        two.way.seen()
        clock(3.0)


def test_a_service_that_has_died_ends_the_wait_for_it(two: Two) -> None:
    two.one.end("etcd", 1, "no space left\n")
    with pytest.raises(ServiceError) as caught:
        two.way.seen()
    assert (caught.value.service, caught.value.node) == ("etcd", "node1")
    assert "no space left" in str(caught.value)


# -- a daemon that does not become ready -------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LOOK_SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
def test_what_a_daemon_waits_for_is_told(two: Two) -> None:
    two.provider.behave("flanneld", Behaviour(never_ready=True, log="starting\nno lease yet\n"))
    seen = iter(["", "the port is closed"])
    told: list[str] = []

    def look() -> str:
        told.append(two.words)
        return next(seen)

    with pytest.raises(StopIteration):
        base.start(two.two, FLANNELD, context=two.context, seen=look)
    assert "no lease yet" in told[1]
    assert "the port is closed" in told[2]
    assert all("flanneld on node2" in words for words in told[1:])


@pytest.mark.usefixtures("quick")
def test_a_daemon_that_is_never_ready_ends_at_the_bound(two: Two) -> None:
    two.provider.behave("flanneld", Behaviour(never_ready=True, log="no lease yet\n"))
    with pytest.raises(ServiceNotReady) as caught:
        base.start(two.two, FLANNELD, context=two.context, timeout=0.05)
    assert caught.value.log == "no lease yet\n"


@pytest.mark.usefixtures("quick")
def test_a_daemon_that_dies_between_two_looks_is_not_started_again(two: Two) -> None:
    two.provider.behave("flanneld", Behaviour(never_ready=True))

    def dies() -> str:
        two.two.end("flanneld", 1, "bad option\n")
        return "x"

    starts = len(two.provider.asked("start", "node2"))
    with pytest.raises(ServiceError, match="bad option"):
        base.start(two.two, FLANNELD, context=two.context, seen=dies)
    assert len(two.provider.asked("start", "node2")) == starts + 1


@pytest.mark.usefixtures("quick")
def test_a_daemon_is_not_waited_for_when_the_run_gives_up(two: Two) -> None:
    two.provider.behave("flanneld", Behaviour(never_ready=True))
    two.context.given_up.set()
    with pytest.raises(ServiceNotReady):
        base.start(two.two, FLANNELD, context=two.context, timeout=1e6)


@pytest.mark.usefixtures("quick")
def test_a_node_without_a_way_to_etcd_ends_up_early(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "PATIENCE", dict.fromkeys(way.PATIENCE, 0.0))
    bench.provider.behave("flanneld", Behaviour(never_ready=True), "node2")
    bench.provider.script(["sh", "-c", way.TEST], Answer(2), "node2")
    with pytest.raises(LabError) as caught:
        Lab("two-node", bench.settings).up(load("two-node"))
    failures = getattr(caught.value, "failures", ())
    errors = {step: error for step, error in failures if isinstance(error, PathError)}
    assert list(errors) == ["flannel node2"]
    assert errors["flannel node2"].reason == way.NO_ROUTE


# -- the bound of all of it ----------------------------------------------------------------


def steps(act: Callable[[Context], tuple[str, bool]]) -> Plan:
    first, second = Step("w", "w", act=act), Step("after", "after", ("w",))
    return Plan("lab", {step.name: step for step in (first, second)})


def test_at_the_deadline_it_is_said_what_is_waited_for(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = hour_passes_at(monkeypatch, "none yet", idle_seconds=0.01)

    def act(context: Context) -> tuple[str, bool]:
        wait = Wait(context, "a sign", 1e9)
        wait.saw("none yet")
        while True:
            wait.pause()

    with pytest.raises(TimeoutExpired, match=r"w: .*a sign.*none yet"):
        carry_out(steps(act), two.context, watch=watch, deadline=time.monotonic() + 1800)
    assert two.context.given_up.is_set()


def test_what_ends_in_time_has_no_deadline(two: Two) -> None:
    done = carry_out(steps(lambda _: ("", False)), two.context, deadline=time.monotonic() + 60)
    assert [one.step.name for one in done] == ["w", "after"]
    assert two.context.waits == {}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.usefixtures("quick")
def test_up_fails_at_its_time_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """An hour passes once flanneld is waited for, however long it takes to come that far."""
    watch = hour_passes_at(monkeypatch, "flanneld", idle_seconds=0.01)
    bench.provider.behave("flanneld", Behaviour(never_ready=True))
    lab = Lab("two-node", bench.settings)
    with pytest.raises(TimeoutExpired) as caught:
        lab.up(load("two-node"), keep=keep, timeout=1800, watch=watch)
    assert "flanneld on node" in caught.value.message
    assert caught.value.exit_code == 4
    assert "--timeout" in str(caught.value.hint)
    assert bool(bench.provider.nodes("two-node")) is keep


def test_a_step_tells_what_it_waits_for_while_nothing_ends(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    from testbed.labs import run

    monkeypatch.setattr(run, "IDLE_SECONDS", 0.01)
    told: list[list[Waiting]] = []
    enough = threading.Event()

    def idle(waiting: list[Waiting]) -> None:
        told.append(waiting)
        enough.set()

    def act(context: Context) -> tuple[str, bool]:
        context.waiting("a sign")
        assert enough.wait(60)
        return "", False

    carry_out(steps(act), two.context, watch=run.Watch(idle=idle))
    assert (told[0][0].step, told[0][0].words) == ("w", "a sign")
    assert 0 < told[0][0].seconds < 3600


def test_what_comes_before_the_lab_is_bounded_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
        signal.raise_signal(signal.SIGALRM)
        pytest.fail("the alarm was not heard")

    monkeypatch.setattr(bench.provider, "prepare", prepare)
    with pytest.raises(TimeoutExpired):
        Lab("two-node", bench.settings).up(load("two-node"), timeout=3600)
    assert bench.provider.nodes("two-node") == {}


def test_an_alarm_that_is_off_does_not_come() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with signals.alarm(3600) as off:
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        off()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with signals.alarm(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
