"""Carries out a plan: every step as soon as what it needs is there.

Steps run in threads; the caller's thread waits for them, so that a signal
reaches it.  Of the heavy steps only a few run at once, and those furthest
along in the plan first: daemons that start all together fight for the kernel's
one lock on network settings (RTNL), and the losers spin.  When a step fails no
new one starts, those under way are brought to an end, and all failures are
reported together.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import Interrupted, NoSuchLab, StepsFailed

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.lab.plan import Plan, Step
    from testbed.signals import Held


IDLE_SECONDS = 1.0  # how long nothing may end before it is told what is being waited for
HEAVY_PER_CPU = 3  # measured: with 2 a CPU idles now and then, from 4 on large labs slow down


@dataclass(frozen=True, slots=True)
class Done:
    """How a step ended.  Times are in seconds, ``began`` from the start of the run."""

    step: Step
    began: float
    seconds: float
    words: str = ""
    changed: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Progress:
    """What a run tells as it goes on; every call comes from the caller's thread."""

    done: Callable[[Done], None] = lambda _: None
    idle: Callable[[list[str]], None] = lambda _: None


@dataclass(slots=True)
class _Run:
    plan: Plan
    context: Context
    workers: int
    began: float = field(default_factory=time.monotonic)
    ended: queue.SimpleQueue[Done | int] = field(default_factory=queue.SimpleQueue)
    work: queue.SimpleQueue[Step | None] = field(default_factory=queue.SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)

    def submit(self, step: Step, running: int) -> None:
        self.work.put(step)
        if len(self.threads) < min(self.workers, running):
            thread = threading.Thread(target=self.worker, name="testbed step", daemon=True)
            self.threads.append(thread)
            thread.start()

    def worker(self) -> None:
        while (step := self.work.get()) is not None:
            self.ended.put(self.carry_out(step))

    def carry_out(self, step: Step) -> Done:
        began = time.monotonic()
        failure: Exception | None = None
        try:
            words, changed = step.act(self.context)
        except Exception as error:  # noqa: BLE001  (every error is reported, by the caller's thread)
            words, changed, failure = "", True, error
        now = time.monotonic()
        return Done(step, began - self.began, now - began, words, changed, failure)

    def close(self) -> None:
        for _ in self.threads:
            self.work.put(None)
        for thread in self.threads:
            thread.join()


def carry_out(
    plan: Plan,
    context: Context,
    *,
    progress: Progress | None = None,
    workers: int = 64,
    give_up: Callable[[], None] = lambda: None,
    signals: Held | None = None,
) -> list[Done]:
    """Run all steps; return how each ended, in the order in which they did.

    ``give_up`` is called once when a step fails or a signal comes to
    ``signals``: it makes the waits of the steps under way fail.  No thread is
    left when this returns or raises.  Raises StepsFailed with every failure,
    Interrupted.
    """
    progress = progress or Progress()
    run = _Run(plan, context, workers)
    if signals is not None:
        signals.told = run.ended.put  # reentrant: safe in a signal handler
        signals.check()
    waiting = dict(plan.steps)
    running: set[str] = set()
    finished: dict[str, Done] = {}
    failures: list[tuple[str, Exception]] = []
    try:
        while True:
            if not failures:
                for step in _next(plan, waiting, running, finished):
                    del waiting[step.name]
                    running.add(step.name)
                    run.submit(step, len(running))
            if not running:
                break
            try:
                done = run.ended.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                progress.idle(sorted(running))
                continue
            if isinstance(done, int):
                raise Interrupted(done)
            running.discard(done.step.name)
            progress.done(done)
            if done.error is None:
                finished[done.step.name] = done
                continue
            failures.append((done.step.name, done.error))
            if len(failures) == 1:
                try:
                    give_up()
                except Exception as error:  # noqa: BLE001  (the first failure must not be lost)
                    failures.append(("giving up", error))
    except BaseException:
        if not failures:
            give_up()
        raise
    finally:
        run.close()
    if failures:
        raise StepsFailed(_causes(failures))
    return list(finished.values())


def heavy_limit() -> int:
    """How many heavy steps may run at once on this machine."""
    return HEAVY_PER_CPU * len(os.sched_getaffinity(0))


def _next(
    plan: Plan, waiting: Mapping[str, Step], running: set[str], finished: Mapping[str, Done]
) -> list[Step]:
    """The steps to start now, those furthest along in the plan first."""
    ready = [s for s in waiting.values() if all(n in finished for n in s.needs)]
    room = heavy_limit() - sum(plan.steps[name].heavy for name in running)
    chosen = [s for s in ready if not s.heavy]
    return chosen + [s for s in reversed(ready) if s.heavy][: max(0, room)]


def _causes(failures: list[tuple[str, Exception]]) -> list[tuple[str, Exception]]:
    """The failures, without those that only say that giving up took their node away."""
    causes = [failures[0]]
    causes += [f for f in failures[1:] if not isinstance(f[1], NoSuchLab)]
    return causes
