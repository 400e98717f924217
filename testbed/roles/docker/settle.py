"""The last step of a node: wait until its containers are ready or done.

A container that is expected to end must have ended with its exit status. A successful start proves
little, because a container may exit a moment later. So this step checks all containers of a node
together. A container that listens on a port is ready; any other one must have been running for a
short time.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from testbed.errors import ContainerError, LabError, StepsFailed, TimeoutExpired
from testbed.nodes.base import killed_for_memory
from testbed.nodes.sockets import sockets as listening
from testbed.roles.base import dead, still_alive
from testbed.roles.container import enter
from testbed.roles.docker.engine import ContainerState, Engine
from testbed.steps.step import Step
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

#: Seconds for which a container without a sign of readiness must have been running.
MOMENT = 2.5
#: Time limit, in seconds, for a container that is expected to end.
END_SECONDS = 600.0
#: Time limit, in seconds, for a container that Docker starts again until it runs.
RESTART_SECONDS = 60.0
#: Docker's defaults for a health check: nanoseconds, and a number (its reference, HEALTHCHECK).
INTERVAL = TIMEOUT = 30_000_000_000
RETRIES = 3
#: Seconds by which a daemon's health checks may be late on a busy machine.
LATE = 60.0
#: Time limit, in seconds, for one run of a `ready` command.
COMMAND_SECONDS = 10.0
#: Exit statuses of shells and container engines for a command that could not run.
NOT_RUN = {126: "its command cannot be executed", 127: "its command was not found"}


def settle_step(node: str) -> str:
    """Return the name of the step after which all containers are settled.

    Each of them is ready, or has ended as expected.
    """
    return f"containers {node}"


def settle_steps(topology: Topology, node: str, after: Iterable[str]) -> Iterable[Step]:
    """Yield the step that checks all containers of a node.

    Yield nothing without containers.
    """
    mine = topology.containers_on(node)

    def act(context: Context) -> tuple[str, bool]:
        looks = [
            _Look(context, container)
            for container in mine
            if container.name in context.started
            or container.ready is not None
            or not is_settled(container, context.containers[container.name])
        ]
        if looks:
            _settle(context, node, looks)
        return _count(mine), False

    if mine:
        about = "; ".join(f"{container.name} {_wanted(container)}" for container in mine)
        yield Step(settle_step(node), about, tuple(after), act=act)


def is_settled(container: Container, state: ContainerState) -> bool:
    """Tell whether a container's reported state is the expected one."""
    if container.expect is not None:
        return state.status == "exited" and state.exit == container.expect
    return state.status == "running" and state.health in ("", "healthy")


def start_failed(engine: Engine, container: Container, error: LabError) -> LabError:
    """Return the error for a container that could not start.

    It contains the daemon's reason.
    """
    state = engine.find(container.name)
    if state is None or not state.error:
        return error
    reason = NOT_RUN.get(state.exit, "could not be started")
    what = f"did not start: {reason} (exit status {state.exit})"
    # Each layer of the engine adds its name in front of the reason.
    words = state.error.removesuffix(": unknown").rpartition("container process: ")[2]
    return ContainerError(
        container.name, container.node, what, words, status=state.exit,
        hint="check `command` in the file, and the programs of the image",
    )  # fmt: skip


def removed(container: Container) -> ContainerError:
    """Return the error for a container that was removed by someone else."""
    return ContainerError(container.name, container.node, "has been removed")


def has_ended(
    node: Node, engine: Engine, container: Container, state: ContainerState
) -> ContainerError:
    """Return the error for an unexpected exit.

    It contains the end of the container's log.
    """
    what = f"ended with {ending(state.exit)}"
    if state.out_of_memory or (state.exit == 137 and killed_for_memory(node)):
        what += ": it ran out of memory"
    elif state.exit in NOT_RUN:
        what += f": {NOT_RUN[state.exit]}"
    if state.restarts or state.status == "restarting":
        what += f", and was restarted {state.restarts} times"
    exits = f"`expect: exit {state.exit}`"
    hint = f"use a command that keeps running, or {exits} if it should end"
    if container.expect is not None:
        what += f", not with {container.expect}"
        hint = f"correct its command, or write {exits}"
    log = _log(engine, state)
    if "exec format error" in log:
        hint = "its program is for another architecture, or a script without #!/bin/sh"
    return ContainerError(container.name, container.node, what, log, status=state.exit, hint=hint)


def _wanted(container: Container) -> str:
    """Return a short description of the state that ``up`` waits for."""
    if container.expect is not None:
        return f"ends with exit {container.expect}"
    check, ready = container.healthcheck, container.ready
    words = ["runs"]
    if check is not None and check.test[:1] != ("NONE",):
        words.append("is healthy")
    if ready is not None and ready.port:
        words.append(f"listens on {ready.port}/{ready.protocol}")
    if ready is not None and ready.command:
        words.append(f"passes `{ready.command[0]}`")
    return ", ".join(words)


def _count(containers: Sequence[Container]) -> str:
    ended = sum(container.expect is not None for container in containers)
    counts = {"running": len(containers) - ended, "ended as expected": ended}
    return ", ".join(f"{count} {words}" for words, count in counts.items() if count)


def _settle(context: Context, node: str, looks: list[_Look]) -> None:
    """Wait until every container is in its expected state, or one has failed."""
    machine = context.node(node)
    others = dead(machine)
    wait = Wait(context, f"containers of {node}", math.inf)
    failures: list[tuple[str, Exception]] = []
    with Engine(machine) as engine:
        while looks:
            still_alive(machine, others=others)
            pending = []
            for look in looks:
                try:
                    if not look.over(engine):
                        pending.append(look)
                except ContainerError as error:
                    failures.append((look.container.name, error))
            if failures or not pending:
                break
            looks = pending
            wait.saw("; ".join(f"{look.container.name} {look.seen}" for look in looks[:3]))
            wait.pause()
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        raise StepsFailed(failures)


class _Look:
    """The repeated check of one container until it is in its expected state."""

    def __init__(self, context: Context, container: Container) -> None:
        self.container = container
        self.seen = ""  #: the reason why it is not there yet
        self._node = context.node(container.node)
        self._restarts = context.containers[container.name].restarts
        self._began = time.monotonic()
        self._started = context.started.get(container.name, -math.inf)
        self._checks = 0.0  # seconds that its health check may take
        self._ready = container.ready is None

    def over(self, engine: Engine) -> bool:
        """Tell whether the container is in its expected state.

        Raises ContainerError if it can no longer get there.
        """
        state = engine.find(self.container.name)
        if state is None:
            raise removed(self.container)
        if self.container.expect is None:
            bound = self._runs(engine, state)
        else:
            bound = self._ends(engine, state)
        if bound and time.monotonic() - self._began > bound:
            raise self._error(f"{self.seen}, after {bound:g} s", _log(engine, state))
        return not bound

    def _ends(self, engine: Engine, state: ContainerState) -> float:
        """Return the time limit to end, in seconds; 0 if it has ended."""
        if state.status not in ("exited", "dead"):
            self.seen = "has not ended"
            return END_SECONDS
        if state.exit != self.container.expect:
            raise self._ended(engine, state)
        return 0.0

    def _runs(self, engine: Engine, state: ContainerState) -> float:
        """Return the time limit to be ready, in seconds; 0 if it is."""
        if state.status in ("exited", "dead", "restarting") or state.restarts > self._restarts:
            if not self._restarts_by_itself(state):
                raise self._ended(engine, state)
            self._restarts, self._started = state.restarts, time.monotonic()
        if state.status == "restarting":
            self.seen = f"has ended, and was restarted {state.restarts} times"
            return RESTART_SECONDS
        if state.status != "running":
            self.seen = f"is {state.status}"
            return LATE
        if state.health == "unhealthy":
            raise self._unhealthy(engine)
        if state.health == "starting":
            self._checks = self._checks or _check_seconds(engine.inspect_raw(state.name))
            self.seen = "has not passed its health check"
            return self._checks
        ready = self.container.ready
        if ready is not None and not self._is_ready(engine, state):
            return self._checks + ready.timeout
        age = time.monotonic() - self._started
        if state.health or ready is not None or age >= MOMENT or self._serves(state):
            return 0.0
        self.seen = f"has been running for {age:.1f} of {MOMENT:g} s"
        return 2 * MOMENT + LATE

    def _restarts_by_itself(self, state: ContainerState) -> bool:
        """Tell whether Docker starts an ended container again, as the file says."""
        again = state.status in ("running", "restarting")
        return again and self.container.restart not in (None, "no")

    # -- signs ------------------------------------------------------------

    def _is_ready(self, engine: Engine, state: ContainerState) -> bool:
        ready = self.container.ready
        assert ready is not None
        if ready.port:
            sockets = listening(self._node, state.pid, ready.protocol)
            if ready.port not in sockets.values():
                self.seen = f"does not listen on {ready.port}/{ready.protocol}"
                return False
        if ready.command is not None:
            return self._passes(engine, state, ready.command)
        return True

    def _passes(self, engine: Engine, state: ContainerState, command: Sequence[str]) -> bool:
        env = engine.inspect_raw(state.name)["Config"]["Env"] or []
        # The program is found on the container's PATH, nsenter on the node's.
        nsenter = self._node.run(["sh", "-c", "command -v nsenter"]).stdout.strip()
        argv = ["env", *env, nsenter, *enter(state.pid)[1:], *command]
        try:
            result = self._node.run(argv, timeout=COMMAND_SECONDS, check=False)
        except TimeoutExpired:
            self.seen = f"has not passed `{command[0]}`: still running after {COMMAND_SECONDS:g} s"
            return False
        last = (result.stderr.strip() or result.stdout.strip()).rpartition("\n")[2]
        self.seen = f"has not passed `{command[0]}`: exit status {result.status}"
        self.seen += f", {last}" if last else ""
        return result.ok

    def _serves(self, state: ContainerState) -> bool:
        """Tell whether the container's first process accepts connections."""
        sockets = listening(self._node, state.pid, "tcp")
        if not sockets or self.container.network in ("bridge", "none", ""):
            return bool(sockets)
        # Other processes share the network namespace: check whose socket it is.
        listed = self._node.run(["ls", "-l", f"/proc/{state.pid}/fd"], check=False).stdout
        return bool(sockets.keys() & set(re.findall(r"socket:\[(\d+)\]", listed)))

    # -- errors -----------------------------------------------------------

    def _error(self, what: str, log: str = "") -> ContainerError:
        return ContainerError(self.container.name, self.container.node, what, log)

    def _ended(self, engine: Engine, state: ContainerState) -> ContainerError:
        return has_ended(self._node, engine, self.container, state)

    def _unhealthy(self, engine: Engine) -> ContainerError:
        health = engine.inspect_raw(self.container.name)["State"]["Health"]
        last: dict[str, Any] = next(reversed(health.get("Log") or []), {})
        what = f"is unhealthy: its check ended with exit status {last.get('ExitCode', '?')}"
        return self._error(what, last.get("Output", ""))


def ending(status: int) -> str:
    """Describe an exit status, with the signal that caused it, if any."""
    if status <= 128:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"exit status {status} ({signal.Signals(status - 128).name})"
    return f"exit status {status}"


def _log(engine: Engine, state: ContainerState) -> str:
    with contextlib.suppress(LabError):  # some logging drivers keep no readable log
        return engine.logs(state.name)
    return ""


def _check_seconds(inspected: dict[str, Any]) -> float:
    """Return the time, in seconds, for a health check to reach its result."""
    check = inspected["Config"]["Healthcheck"]
    each = (check.get("Interval") or INTERVAL) + (check.get("Timeout") or TIMEOUT)
    rounds = (check.get("Retries") or RETRIES) + 1
    nanoseconds: int = (check.get("StartPeriod") or 0) + each * rounds
    return nanoseconds / 1e9 + LATE
