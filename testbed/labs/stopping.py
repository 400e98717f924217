"""Stop, start and restart a node, a service or a container of a running lab by hand.

What was stopped is in the lab's record, so that ``status`` tells it. It stays stopped until it is
started by hand, or until the next ``up``.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from testbed.errors import LabError, NoSuchService, TestbedError, UsageError
from testbed.labs.lab import waits
from testbed.labs.run import Watch
from testbed.labs.status import expected_services
from testbed.registry import ROLES
from testbed.spelling import counted, nearest

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node
    from testbed.roles.container import Control
    from testbed.steps.context import Context

GRACE = 10.0  # seconds between the signal to end and SIGKILL, as of docker(1)
START_SECONDS = 180.0  # as the roles wait for their daemons

Kind = Literal["node", "service", "container"]


@dataclass(frozen=True, slots=True)
class Act:
    """The result of an action on a target.

    ``lines`` say it, one part in each. ``affected`` are other parts of the node that do not run
    any more because of it. Nothing was ``changed`` if it was in the wanted state before.
    """

    target: str
    kind: Kind
    changed: bool
    lines: list[str] = field(default_factory=list)
    affected: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Target:
    """A part of a lab: a node (which need not run), or a service or container of a node."""

    text: str
    kind: Kind
    node: str
    name: str = ""
    machine: Node | None = None
    control: Control | None = None


class Stopping:
    """Stops and starts parts of one lab.

    ``grace`` is in seconds. ``tell`` is called with the target and a line for each part, at once.
    Each method raises NotFound for an unknown target, LabError, and
    UsageError for a lab that testbed has not created.
    """

    def __init__(
        self,
        lab: Lab,
        watch: Watch | None = None,
        *,
        grace: float = GRACE,
        tell: Callable[[str, str], None] = lambda _target, _line: None,
    ) -> None:
        self._lab = lab
        self._watch = watch or Watch()
        self._grace = grace
        self._tell = tell

    def stop(self, text: str) -> Act:
        """Stop NODE, NODE/SERVICE or NODE/CONTAINER.

        The services of a node are stopped in the reverse order of their starts, then it is removed.
        """
        with self._held(f"stop {text}") as context:
            target = self._target(context, text)
            before = _running(context, target)
            _remember(self._lab, add=[target.text])
            lines = self._told(target, self._stop(context, target))
            return self._act(context, target, lines, before)

    def start(self, text: str) -> Act:
        """Start what was stopped, or has ended: a service or container with its settings.

        A node is created again, with all its steps.
        """
        with self._held(f"start {text}") as context:
            target = self._target(context, text)
            _refuse_early(context, target)
            if target.kind != "node":
                lines = self._told(target, self._start(target))
                _remember(self._lab, remove=[target.text])
                return Act(target.text, target.kind, changed=bool(lines), lines=lines)
            if target.node in context.nodes:
                return Act(target.text, target.kind, changed=False)
        return self._create(target)

    def restart(self, text: str) -> Act:
        """Stop and start a target; what does not run is started."""
        with self._held(f"restart {text}") as context:
            target = self._target(context, text)
            _refuse_early(context, target)
            before = _running(context, target)
            lines = self._told(target, self._stop(context, target))
            if target.kind != "node":
                lines += self._told(target, self._start(target))
                _remember(self._lab, remove=[target.text])
                return self._act(context, target, lines, before)
        return self._create(target, lines)

    @staticmethod
    def _act(context: Context, target: _Target, lines: list[str], before: Sequence[str]) -> Act:
        after = _running(context, target)
        own = f"{target.kind} {target.name}"
        lost = [one for one in before if one not in after and one != own]
        return Act(target.text, target.kind, bool(lines), lines, lost)

    def _told(self, target: _Target, lines: Iterator[str]) -> list[str]:
        """Return the lines of what is being done, each told as soon as it is."""
        found = []
        for line in lines:
            self._tell(target.text, line)
            found.append(line)
        return found

    # -- targets ----------------------------------------------------------

    @contextlib.contextmanager
    def _held(self, purpose: str) -> Iterator[Context]:
        self._lab.refuse_attached("stopped or started")
        state = self._lab.settings.state
        with state.lock(self._lab.name, purpose, waiting=waits(self._watch)):
            yield self._lab.remains()

    def _target(self, context: Context, text: str) -> _Target:
        node, slash, name = text.partition("/")
        if not slash and node in context.topology.nodes:
            return _Target(text, "node", node)
        machine = context.node(node)  # raises an error if it does not run
        if not name:
            raise UsageError(
                f"{text} is no node of the topology", hint="a target is NODE or NODE/NAME"
            )
        expected = (
            expected_services(context.topology, node) if node in context.topology.nodes else ()
        )
        services = [*machine.services(), *expected]
        if name in services:
            return _Target(text, "service", node, name, machine)
        known: list[str] = []
        failure: TestbedError | None = None
        for control in _controls(context, machine):
            try:
                states = control.states()
            except TestbedError as error:
                failure = error
                continue
            if name in states:
                return _Target(text, "container", node, name, machine, control)
            known += states
        if failure is not None:
            raise failure
        everything = [*dict.fromkeys([*services, *known])]
        there = f"{node} has {', '.join(everything) or 'neither'}"
        raise NoSuchService(
            f"{node} has no service or container {name!r}",
            name=name,
            known=everything,
            hint=nearest(name, everything, there),
        )

    # -- stop -------------------------------------------------------------

    def _stop(self, context: Context, target: _Target) -> Iterator[str]:
        if target.kind == "node":
            yield from self._stop_node(context, target.node)
            return
        assert target.machine is not None
        if target.control is None:
            yield from self._stop_service(target.machine, target.name)
        elif _runs(target.control.states()[target.name]):
            began = time.monotonic()
            how = target.control.stop(target.name, self._grace)
            yield _stopped(f"container {target.name}", began, how)

    def _stop_service(self, machine: Node, name: str) -> Iterator[str]:
        state = machine.services().get(name)
        if state is not None and state.state != "dead":
            began = time.monotonic()
            machine.stop(name, grace=self._grace)
            yield _stopped(f"service {name}", began, _ending(machine.services()[name].status))

    def _stop_node(self, context: Context, name: str) -> Iterator[str]:
        node = context.nodes.get(name)
        if node is None:
            return
        for service in reversed(list(node.services())):
            yield from self._stop_service(node, service)
        context.provider.destroy(context.lab, [name])
        yield f"node {name} removed"

    # -- start ------------------------------------------------------------

    def _start(self, target: _Target) -> Iterator[str]:
        assert target.machine is not None
        began = time.monotonic()
        if target.control is not None:
            if not _runs(target.control.states()[target.name]):
                target.control.start(target.name)
                yield f"container {target.name} started ({time.monotonic() - began:.2f} s)"
            return
        state = target.machine.services().get(target.name)
        if state is None or state.state == "dead":
            target.machine.start_again(target.name, timeout=START_SECONDS)
            pid = target.machine.services()[target.name].pid
            yield f"service {target.name} started, pid {pid} ({time.monotonic() - began:.2f} s)"

    def _create(self, target: _Target, lines: Sequence[str] = ()) -> Act:
        """Create a node again; everything else that was stopped by hand stays so."""
        record = self._lab.record()
        left = [one for one in record.stopped if one.partition("/")[0] != target.node]
        topology = self._lab.topology()
        outcome = self._lab.up(topology, keep=True, replace=True, watch=self._watch, left=left)
        words = f"node {target.node} created again, {counted(len(outcome.changed), 'step')}"
        more = self._told(target, iter([words]))
        return Act(target.text, target.kind, changed=True, lines=[*lines, *more])


def forget_running(lab: Lab) -> None:
    """Remove from the record of a lab what runs again, though it was stopped by hand.

    The caller holds the lock of the lab.
    """
    if by_hand := lab.record().stopped:
        context = lab.context()
        _remember(lab, remove=[one for one in by_hand if _runs_again(context, one)])


def _remember(lab: Lab, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    record = lab.record()
    stopped = sorted({*record.stopped, *add} - {*remove})
    if stopped != record.stopped:
        lab.settings.state.write(replace(record, stopped=stopped))


def _runs_again(context: Context, text: str) -> bool:
    """Tell whether a node, a service or a container runs, as far as its node tells it."""
    node, slash, name = text.partition("/")
    machine = context.nodes.get(node)
    if machine is None or not slash:
        return machine is not None
    if name in machine.services():
        return _is_alive(context, text)
    for control in _controls(context, machine):
        with contextlib.suppress(TestbedError):
            if _runs(control.states().get(name, "")):
                return True
    return False


def _refuse_early(context: Context, target: _Target) -> None:
    """Raise LabError for a service that would never be ready, before anything is stopped."""
    spec = context.topology.nodes.get(target.node)
    if target.kind != "service" or spec is None:
        return
    needs = [
        needed
        for role in spec.roles
        for needed in ROLES[role].service_needs(context.topology, target.node).get(target.name, ())
    ]
    lacking = [one for one in needs if not _is_alive(context, one)]
    if lacking:
        lab = context.topology.name
        raise LabError(
            f"{target.text} needs {', '.join(lacking)}, which does not run",
            hint=f"`testbed start -l {lab} {' '.join([*lacking, target.text])}` starts both",
        )


def _is_alive(context: Context, service: str) -> bool:
    node, _, name = service.partition("/")
    machine = context.nodes.get(node)
    state = machine.services().get(name) if machine else None
    return state is not None and state.state != "dead"


def _running(context: Context, target: _Target) -> list[str]:
    """Return the services and containers that run on the node of a target.

    Containers are found by their processes: their daemon may be what was stopped. For a node as the
    target there are none.
    """
    if target.machine is None:
        return []
    alive = (one.name for one in target.machine.services().values() if one.state != "dead")
    roles = (
        context.topology.nodes[target.node].roles if target.node in context.topology.nodes else ()
    )
    inside = (name for role in roles for name in ROLES[role].containers(target.machine))
    return [*(f"service {name}" for name in alive), *(f"container {name}" for name in inside)]


def _controls(context: Context, machine: Node) -> list[Control]:
    spec = context.topology.nodes.get(machine.name)
    found = (ROLES[role].control(machine) for role in (() if spec is None else spec.roles))
    return [one for one in found if one is not None]


def _runs(state: str) -> bool:
    """Tell whether a service or a container with this state runs."""
    return state in ("ready", "starting", "running", "healthy", "unhealthy", "restarting", "paused")


def _stopped(what: str, began: float, how: str) -> str:
    return f"{what} stopped{how and f', {how}'} ({time.monotonic() - began:.2f} s)"


def _ending(status: int | None) -> str:
    if status is None:
        return ""
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
