"""Carrying out a plan: at once what can be, all failures together, no thread left."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from testbed.errors import (
    CommandError,
    Interrupted,
    LabError,
    MachineError,
    NoAnswer,
    NoSuchNode,
    StepsFailed,
)
from testbed.labs import run as running
from testbed.labs.run import Done, Watch, carry_out
from testbed.signals import Held
from testbed.steps.step import Plan, Step, order

if TYPE_CHECKING:
    from testbed.steps.context import Context


class _Nothing(SimpleNamespace):
    """A context for steps that need none."""

    def of_step(self, _: str) -> _Nothing:
        return self


class _Store:
    """Makes things on this machine until it is told to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def interrupt(self) -> None:
        self.stop.set()


def nothing() -> Context:
    """A context of its own, for a run that is given up."""
    return cast(
        "Context",
        _Nothing(done_ahead={}, waits={}, given_up=threading.Event(), store=_Store()),
    )


NOTHING = nothing()
Act = Callable[[], None]


def step(
    name: str, needs: Iterable[str] = (), act: Act = lambda: None, *, heavy: bool = False
) -> Step:
    def do(_: Context) -> tuple[str, bool]:
        act()
        return f"{name} is there", True

    return Step(name, name, tuple(needs), heavy=heavy, act=do)


def plan(*steps: Step) -> Plan:
    return Plan("lab", order(steps))


def left_over() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "testbed step"]


class Wait:
    """A step that ends when it is given up, as a wait on a node does."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.gone = threading.Event()
        self.given_up = 0

    def act(self) -> None:
        self.begun.set()
        assert self.gone.wait(60)
        raise NoSuchNode("node has ended")

    def give_up(self) -> None:
        self.given_up += 1
        self.gone.set()


def fail(error: Exception) -> Act:
    def act() -> None:
        raise error

    return act


def test_how_each_step_ended_in_the_order_in_which_they_did() -> None:
    told: list[Done] = []
    done = carry_out(
        plan(step("b", ["a"]), step("a"), step("c", ["b"])),
        NOTHING,
        watch=Watch(step=told.append),
    )
    assert [(d.step.name, d.words, d.changed, d.error) for d in done] == [
        (name, f"{name} is there", True, None) for name in "abc"
    ]
    assert told == done
    assert done[0].began <= done[1].began <= done[2].began
    assert left_over() == []


def test_an_empty_plan() -> None:
    assert carry_out(plan(), NOTHING) == []


def test_what_can_be_at_once_is() -> None:
    all_here = threading.Barrier(8)
    steps = [step(f"s{i}", act=lambda: (all_here.wait(60), None)[1]) for i in range(8)]
    assert len(carry_out(plan(*steps), NOTHING)) == 8


def test_nothing_begins_before_what_it_needs_has_ended() -> None:
    ended: list[str] = []

    def act(name: str, needs: list[str]) -> Act:
        def do() -> None:
            assert set(needs) <= set(ended)
            time.sleep(0.002)
            ended.append(name)

        return do

    needs = {f"s{i}": [f"s{j}" for j in range(i) if (i * 7 + j) % 3 == 0] for i in range(20)}
    carry_out(plan(*(step(n, of, act(n, of)) for n, of in needs.items())), NOTHING)
    assert sorted(ended) == sorted(needs)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_only_so_many_heavy_ones_at_once(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "heavy_limit", lambda: limit)
    lock = threading.Lock()
    first = threading.Barrier(limit)  # as many as may are at it at once
    began, now, most = 0, 0, 0

    def act() -> None:
        nonlocal began, now, most
        with lock:
            began += 1
            now += 1
            most = max(most, now)
            early = began <= limit
        if early:
            first.wait(60)
        time.sleep(0.001)
        with lock:
            now -= 1

    carry_out(plan(*(step(f"s{i}", act=act, heavy=True) for i in range(10))), NOTHING)
    assert most == limit


def test_light_ones_do_not_wait_for_heavy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "heavy_limit", lambda: 1)
    light = threading.Barrier(4)  # one heavy step and three light ones, all at once

    def meet() -> None:
        light.wait(60)

    steps = [step("h", act=meet, heavy=True), *(step(f"l{i}", act=meet) for i in range(3))]
    assert len(carry_out(plan(*steps), NOTHING)) == 4


def test_those_furthest_along_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "heavy_limit", lambda: 1)
    began: list[str] = []
    steps = [
        step("start"),
        *(step(n, ["start"], partial(began.append, n), heavy=True) for n in "abc"),
    ]
    carry_out(plan(*steps), NOTHING)
    assert began == ["c", "b", "a"]


class _Needs(tuple[str, ...]):
    """Names of steps, which counts how often somebody goes through them."""

    __slots__ = ()
    looks = 0

    def __iter__(self) -> Iterator[str]:
        type(self).looks += 1
        return super().__iter__()


def test_the_work_for_a_step_does_not_grow_with_the_plan() -> None:
    looks = {}
    for size in (50, 200):
        steps = [step("first"), *(step(f"s{i}", ["first"], heavy=True) for i in range(size))]
        made = plan(*(replace(one, needs=_Needs(one.needs)) for one in steps))
        _Needs.looks = 0
        assert len(carry_out(made, NOTHING)) == size + 1
        looks[size] = _Needs.looks / size
    assert looks[200] <= looks[50] * 1.1


def test_no_more_threads_than_workers() -> None:
    lock = threading.Lock()
    names: set[int] = set()

    def act() -> None:
        with lock:
            names.add(threading.get_ident())
        time.sleep(0.005)

    carry_out(plan(*(step(f"s{i}", act=act) for i in range(30))), NOTHING, workers=3)
    assert len(names) <= 3


def few_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """No more than so many can be started, as with a pids.max."""
    start, started = threading.Thread.start, iter(range(most))

    def limited(thread: threading.Thread) -> None:
        if next(started, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_with_fewer_threads_than_it_wants_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, 2)
    done = carry_out(plan(*(step(f"s{i}") for i in range(30))), NOTHING)
    assert len(done) == 30
    assert left_over() == []


def test_without_any_thread_the_machine_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, 0)
    given_up: list[str] = []
    with pytest.raises(MachineError, match="process or thread"):
        carry_out(plan(step("a")), NOTHING, give_up=lambda: given_up.append("given up"))
    assert given_up == ["given up"]


def test_a_failure_stops_what_has_not_begun() -> None:
    begun: list[str] = []
    with pytest.raises(StepsFailed) as caught:
        carry_out(
            plan(
                step("a", act=fail(LabError("no"))),
                step("b", ["a"], lambda: begun.append("b")),
            ),
            NOTHING,
        )
    assert begun == []
    assert str(caught.value) == "a: no"
    assert caught.value.exit_code == 4


def test_a_failure_gives_up_what_is_under_way_once() -> None:
    wait = Wait()

    def act() -> None:
        assert wait.begun.wait(60)
        raise LabError("no")

    with pytest.raises(StepsFailed) as caught:
        carry_out(plan(step("w", act=wait.act), step("a", act=act)), NOTHING, give_up=wait.give_up)
    assert wait.given_up == 1
    # That the node went away is what giving up does, no failure of its own.
    assert [name for name, _ in caught.value.failures] == ["a"]
    assert left_over() == []


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_command_that_giving_up_has_cut_off_is_no_failure(gives_up: bool) -> None:
    wait, told = Wait(), threading.Event()

    def act() -> None:
        assert wait.begun.wait(60)
        raise MachineError("no more processes")

    def cut_off() -> None:
        wait.begun.set()
        assert (wait.gone if gives_up else told).wait(60)
        raise CommandError(["ip"], where="fabric", status=1, stderr="No such process")

    with pytest.raises(StepsFailed) as caught:
        carry_out(
            plan(step("w", act=cut_off), step("a", act=act)),
            NOTHING,
            watch=Watch(step=lambda _: told.set()),
            give_up=wait.give_up if gives_up else None,
        )
    assert [name for name, _ in caught.value.failures] == (["a"] if gives_up else ["a", "w"])
    assert caught.value.exit_code == (3 if gives_up else 4)


def test_all_failures_are_told() -> None:
    together = threading.Barrier(3)

    def act(error: Exception) -> Act:
        def do() -> None:
            together.wait(60)
            raise error

        return do

    given_up: list[int] = []
    steps = [step(n, act=act(LabError(f"no {n}\nmore of {n}"))) for n in "abc"]
    with pytest.raises(StepsFailed) as caught:
        carry_out(plan(*steps), NOTHING, give_up=lambda: given_up.append(1))
    assert sorted(name for name, _ in caught.value.failures) == ["a", "b", "c"]
    assert "b: no b\n  more of b" in str(caught.value)
    assert given_up == [1]


def test_an_error_that_is_no_lab_error_is_told_too() -> None:
    with pytest.raises(StepsFailed, match="a: 'key'"):
        carry_out(plan(step("a", act=fail(KeyError("key")))), NOTHING)


def test_if_the_machine_lacks_something_the_exit_code_says_so() -> None:
    with pytest.raises(StepsFailed) as caught:
        carry_out(plan(step("a", act=fail(MachineError("no veth")))), NOTHING)
    assert caught.value.exit_code == 3


def test_giving_up_that_fails_does_not_hide_why() -> None:
    def give_up() -> None:
        raise LabError("node1 does not end")

    with pytest.raises(StepsFailed) as caught:
        carry_out(plan(step("a", act=fail(LabError("no")))), NOTHING, give_up=give_up)
    assert [(n, str(e)) for n, e in caught.value.failures] == [
        ("a", "no"),
        ("giving up", "node1 does not end"),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, LabError])
def test_an_exception_of_a_callback_ends_all(error: type[BaseException]) -> None:
    wait = Wait()

    def told(_: Done) -> None:
        raise error("stop")

    with pytest.raises(error, match="stop"):
        carry_out(
            plan(step("w", act=wait.act), step("a")),
            NOTHING,
            watch=Watch(step=told),
            give_up=wait.give_up,
        )
    assert wait.given_up == 1
    assert left_over() == []


def test_ctrl_c_in_the_caller_joins_the_threads() -> None:
    wait = Wait()

    def interrupt() -> None:
        assert wait.begun.wait(60)
        _thread.interrupt_main()  # as SIGINT would, while the caller waits

    with pytest.raises(KeyboardInterrupt):
        carry_out(
            plan(step("w", act=wait.act), step("i", act=interrupt)),
            NOTHING,
            give_up=wait.give_up,
        )
    assert wait.given_up == 1
    assert left_over() == []


def signalled(held: Held, begun: threading.Event, times: int = 1) -> None:
    """Send signals to who holds them, once something has begun."""
    assert begun.wait(60)
    for _ in range(times):
        held.came(signal.SIGTERM, None)


def test_a_signal_ends_waits_though_what_there_is_is_kept() -> None:
    """As with `--keep`: there is no giving up, that would end the nodes that are waited for."""
    context, held, begun = nothing(), Held(), threading.Event()

    def act() -> None:
        begun.set()
        assert context.given_up.wait(60)
        raise LabError("stopped waiting")

    steps = plan(step("w", act=act), step("s", act=lambda: signalled(held, begun)))
    with pytest.raises(Interrupted) as caught:
        carry_out(steps, context, signals=held)
    assert caught.value.signum == signal.SIGTERM
    assert left_over() == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_signal_ends_what_is_made_on_this_machine(keep: bool) -> None:
    """A program that packs layers or compiles: no node's end would end it."""
    context, held, begun = nothing(), Held(), threading.Event()

    def make() -> None:
        begun.set()
        assert cast("_Store", context.store).stop.wait(60)

    steps = plan(step("m", act=make), step("s", act=lambda: signalled(held, begun)))
    with pytest.raises(Interrupted):
        carry_out(steps, context, give_up=None if keep else lambda: None, signals=held)
    assert left_over() == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_step_that_hears_nothing_does_not_keep_a_signal_waiting(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--keep` one is enough; without, a step may be making a node, that has to go."""
    monkeypatch.setattr(running, "LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(running, "JOIN_SECONDS", 0.001)
    held, begun, end = Held(), threading.Event(), threading.Event()
    threads: dict[str, threading.Thread] = {}

    def deaf() -> None:
        threads["deaf"] = threading.current_thread()
        begun.set()
        end.wait(60)

    def send() -> None:
        threads["sends"] = threading.current_thread()
        signalled(held, begun, 1 if keep else 2)

    steps = plan(step("deaf", act=deaf), step("s", act=send))
    with pytest.raises(Interrupted):
        carry_out(steps, nothing(), give_up=None if keep else lambda: None, signals=held)
    threads["sends"].join()  # the run may leave it a moment before its end
    assert left_over() == [threads["deaf"]], "it ends with the process"
    end.set()
    threads["deaf"].join()


def test_an_interrupt_after_a_failure_does_not_give_up_again() -> None:
    wait = Wait()
    told: list[str] = []

    def done(of: Done) -> None:
        told.append(of.step.name)
        if of.step.name == "w":
            raise KeyboardInterrupt

    def late() -> None:
        with contextlib.suppress(NoSuchNode):
            wait.act()
        raise LabError("of its own")

    steps = [step("w", act=late), step("a", act=fail(LabError("no")))]
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(*steps), NOTHING, watch=Watch(step=done), give_up=wait.give_up)
    assert (told, wait.given_up) == (["a", "w"], 1)


@pytest.mark.parametrize("error", [NoSuchNode("gone"), NoAnswer("dockerd does not answer")])
def test_what_giving_up_has_ended_is_not_told_as_a_failure(error: LabError) -> None:
    wait = Wait()
    told: list[str] = []

    def cut_off() -> None:
        with contextlib.suppress(NoSuchNode):
            wait.act()
        raise error

    steps = [step("w", act=cut_off), step("a", act=fail(LabError("no")))]
    with pytest.raises(StepsFailed) as caught:
        carry_out(
            plan(*steps),
            NOTHING,
            watch=Watch(step=lambda done: told.append(done.step.name)),
            give_up=wait.give_up,
        )
    assert told == ["a"]
    assert [name for name, _ in caught.value.failures] == ["a"]


def test_what_runs_is_told_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "IDLE_SECONDS", 0.05)
    idle: list[list[str]] = []
    free = threading.Event()

    def told(waiting: list[running.Waiting]) -> None:
        idle.append([one.step for one in waiting])
        free.set()

    acts = [step(n, act=lambda: (free.wait(60), None)[1]) for n in "ba"]
    carry_out(plan(*acts), NOTHING, watch=Watch(idle=told))
    assert idle[0] == ["a", "b"]
