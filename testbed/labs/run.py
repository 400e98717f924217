"""Execute a plan: start every step once the steps that it needs are done.

Steps run in threads. The caller's thread waits for them, so that it gets signals. Only a few heavy
steps run at once, those furthest along in the plan first: daemons that start together compete for
the kernel's single lock on network settings (RTNL), and the waiting ones spin. When a step fails,
no new step starts, running steps are ended, and all failures are reported together.
"""

from __future__ import annotations

import graphlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed.errors import (
    CommandError,
    Interrupted,
    NoAnswer,
    NotFound,
    StepsFailed,
    TimeoutExpired,
)
from testbed.limits import at_once, exhausted
from testbed.process import no_more_processes
from testbed.spelling import counted
from testbed.steps.context import LeftAlone

if TYPE_CHECKING:
    from testbed.labs.difference import Effect
    from testbed.signals import Held
    from testbed.steps.context import Context
    from testbed.steps.step import Plan, Step


IDLE_SECONDS = 1.0  # time without a finished step until the waits are reported
LEAVE_SECONDS = 2.0  # time limit for steps to end if they leave nothing to clean up
JOIN_SECONDS = 0.1  # time between two looks for a second signal
WORKERS = 64  # steps at once
FILES_PER_STEP = 12  # open files: a program with its pipes, or a request with its files
HEAVY_PER_CPU = (
    2  # measured: from 4 on a large lab may spend three times as long, most of it spinning
)


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a step.

    Times are in seconds; ``began`` counts from the run's start.
    """

    step: Step
    began: float
    seconds: float
    words: str = ""
    changed: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A running step, its seconds so far, and the reason for its wait."""

    step: str
    seconds: float
    words: str = ""

    def __str__(self) -> str:
        return f"{self.step}: waiting for {self.words}" if self.words else self.step


@dataclass(slots=True)
class Watch:
    """Callbacks for the progress of an operation on a lab; all run in the caller's thread.

    ``step`` gets each finished step, ``idle`` the running ones about once a second, and
    ``words`` a message. ``differences`` gets what an update changes, before it begins.
    """

    step: Callable[[Done], None] = lambda _: None
    idle: Callable[[list[Waiting]], None] = lambda _: None
    words: Callable[[str], None] = lambda _: None
    differences: Callable[[Sequence[Effect]], None] = lambda _: None


@dataclass(slots=True)
class _Run:
    """The state of a run: waiting, running and finished steps.

    Only the caller's thread uses it.
    """

    plan: Plan
    context: Context
    watch: Watch
    workers: int
    give_up: Callable[[], None] | None
    deadline: float = math.inf  #: of time.monotonic
    began: float = field(default_factory=time.monotonic)
    #: Results from the threads, or the number of a signal.
    ended: queue.SimpleQueue[Done | int] = field(default_factory=queue.SimpleQueue)
    work: queue.SimpleQueue[Step | None] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)
    waiting: dict[str, Step] = field(default_factory=dict)
    graph: graphlib.TopologicalSorter[str] = field(default_factory=graphlib.TopologicalSorter)
    free: set[str] = field(default_factory=set)  #: those of ``waiting`` that need no other
    places: dict[str, int] = field(default_factory=dict)  #: of the steps in the plan
    running: dict[str, float] = field(default_factory=dict)  #: and when each began
    finished: dict[str, Done] = field(default_factory=dict)
    left: dict[str, Done] = field(default_factory=dict)  #: for what was stopped by hand
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    given_up: float = math.inf  #: when, in seconds from ``began``

    def carry_out(self) -> None:
        """Run until nothing is left to do; collect errors in ``failures``.

        Raises Interrupted for a signal, TimeoutExpired at the deadline.
        """
        self.waiting = dict(self.plan.steps)
        self.places = {name: place for place, name in enumerate(self.waiting)}
        self.graph = graphlib.TopologicalSorter({s.name: s.needs for s in self.waiting.values()})
        self.graph.prepare()
        self.start_ready()
        while self.running:
            left = self.deadline - time.monotonic()
            try:
                done = self.ended.get(timeout=max(0.0, min(IDLE_SECONDS, left)))
            except queue.Empty:
                if left <= IDLE_SECONDS:
                    raise self.too_late() from None
                self.watch.idle(self.under_way())
                continue
            if isinstance(done, int):
                raise Interrupted(done)
            del self.running[done.step.name]
            self.context.waits.pop(done.step.name, None)
            if done.error is None:
                self.watch.step(done)
                self.finished[done.step.name] = done
                self.graph.done(done.step.name)
            elif isinstance(done.error, LeftAlone):
                self.leave(replace(done, words=str(done.error), changed=False, error=None))
            elif not (self.failures and self.is_of_giving_up(done, done.error)):
                self.watch.step(done)
                self.failed(done, done.error)
            self.start_ready()

    def leave(self, done: Done) -> None:
        """Leave out a step, and all that need it."""
        self.watch.step(done)
        self.left[done.step.name] = done
        for step in [one for one in self.waiting.values() if done.step.name in one.needs]:
            if self.waiting.pop(step.name, None):
                words = f"left out: needs {done.step.name}"
                self.leave(Done(step, done.began + done.seconds, 0.0, words))

    def under_way(self) -> list[Waiting]:
        now = time.monotonic()
        return [
            Waiting(name, now - self.running[name], self.context.waits.get(name, ""))
            for name in sorted(self.running)
        ]

    def too_late(self) -> TimeoutExpired:
        """Return the error at the deadline, with the steps that are still running."""
        lines = [f"    {waiting}" for waiting in self.under_way()]
        left = f", {counted(len(self.waiting), 'step')} not started" if self.waiting else ""
        words = f"the lab did not start in time; unfinished{left}:"
        return TimeoutExpired("\n".join([words, *lines]), hint="use a longer --timeout")

    def start_ready(self) -> None:
        if self.failures:
            return
        for step in self.ready():
            del self.waiting[step.name]
            self.free.remove(step.name)
            self.running[step.name] = time.monotonic()
            self.work.put(step)
            if len(self.threads) < min(self.workers, len(self.running)):
                self.hire()

    def hire(self) -> None:
        """Start another thread.

        If this fails, the existing threads do all the work.
        """
        thread = threading.Thread(target=self.worker, name="testbed step", daemon=True)
        self.threads.append(thread)  # first: an interrupt may come as soon as it runs
        try:
            thread.start()
        except RuntimeError as error:
            self.threads.pop()
            if not self.threads:
                raise no_more_processes() from error

    def ready(self) -> list[Step]:
        """Return the steps to start now, those furthest along in the plan first."""
        self.free.update(self.graph.get_ready())
        ready = [self.waiting[name] for name in sorted(self.free, key=self.places.__getitem__)]
        room = heavy_limit() - sum(self.plan.steps[name].heavy for name in self.running)
        light = [step for step in ready if not step.heavy]
        return light + [step for step in reversed(ready) if step.heavy][: max(0, room)]

    def failed(self, done: Done, error: Exception) -> None:
        self.failures.append((done.step.name, error))
        if len(self.failures) == 1 and self.give_up:
            self.given_up = time.monotonic() - self.began
            try:
                self.give_up()
            except Exception as second:  # noqa: BLE001  (report the first failure, too)
                self.failures.append(("giving up", second))

    def is_of_giving_up(self, done: Done, error: Exception) -> bool:
        """Tell whether a step failed only because its node was removed.

        This happens when the run gives up after another failure.
        """
        if isinstance(error, NotFound):
            return True
        return (
            isinstance(error, CommandError | NoAnswer) and done.began + done.seconds > self.given_up
        )

    def worker(self) -> None:
        """Execute steps, as a thread, until there is no more work."""
        while (step := self.work.get()) is not None:
            self.ended.put(self.act(step))

    def act(self, step: Step) -> Done:
        began = time.monotonic()
        failure: Exception | None = None
        try:
            done = self.context.done_ahead.get(step.name)
            context = self.context.of_step(step.name)
            words, changed = step.act(context) if done is None else (done, False)
        except Exception as error:  # noqa: BLE001  (every error is reported, by the caller's thread)
            known = exhausted(error) if isinstance(error, OSError) else None
            words, changed, failure = "", True, known or error
        now = time.monotonic()
        return Done(step, began - self.began, now - began, words, changed, failure)

    def close(self, signals: Held | None, *, leave: bool) -> None:
        """End the threads.

        With ``leave``, threads that still wait after a short time are abandoned: their steps leave
        nothing to clean up. A second signal abandons all threads.
        """
        for _ in self.threads:
            self.work.put(None)
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in self.threads:
            while thread.is_alive():
                thread.join(JOIN_SECONDS)
                if signals is not None and signals.count > 1:
                    break
                if leave and time.monotonic() > deadline:
                    break


def carry_out(
    plan: Plan,
    context: Context,
    *,
    watch: Watch | None = None,
    workers: int = WORKERS,
    give_up: Callable[[], None] | None = None,
    signals: Held | None = None,
    deadline: float = math.inf,
) -> list[Done]:
    """Execute all steps; return their results in the order of their ends.

    ``give_up`` is called once when a step fails or when ``signals`` gets a signal. It must end
    the waits of running steps. All threads have ended when this function returns or raises, with
    two exceptions: after a second signal, and after a first one without ``give_up``, threads that
    the context cannot end remain until this process exits. Raises StepsFailed with every failure,
    Interrupted, and TimeoutExpired at the ``deadline`` (of ``time.monotonic``).
    """
    workers = at_once(workers, files=FILES_PER_STEP)
    run = _Run(plan, context, watch or Watch(), workers, give_up, deadline)
    if signals is not None:
        signals.told = run.ended.put  # reentrant: safe in a signal handler
        signals.check()
    leave = False
    try:
        run.carry_out()
    except BaseException as error:
        leave = give_up is None and isinstance(error, Interrupted | TimeoutExpired)
        context.given_up.set()
        if isinstance(error, Interrupted | KeyboardInterrupt):
            context.store.interrupt()  # also end builds on this machine
        if give_up and not run.failures:
            give_up()
        raise
    finally:
        run.close(signals, leave=leave)
    if run.failures:
        raise StepsFailed(run.failures)
    return [*run.finished.values(), *run.left.values()]


def heavy_limit() -> int:
    """Return the number of heavy steps that may run at once on this machine."""
    return HEAVY_PER_CPU * len(os.sched_getaffinity(0))
