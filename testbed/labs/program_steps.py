"""Steps for the programs of a node's own: commands at its start, and services.

A mark on the node notes which commands have run, and the one of all settings
(:mod:`testbed.labs.own_mark`) which services the file has had.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from testbed.errors import LabError, ServiceError, TimeoutExpired
from testbed.labs import file_steps, own_mark
from testbed.labs.own_mark import SERVICES
from testbed.labs.placed import placed
from testbed.nodes.base import Service
from testbed.nodes.marks import mark, marked
from testbed.nodes.sockets import sockets
from testbed.roles.base import dead, digest_of, start
from testbed.roles.part import Part
from testbed.spelling import counted
from testbed.steps.step import Step
from testbed.steps.wait import Wait
from testbed.topology.programs import NEVER, argv, shown

if TYPE_CHECKING:
    from testbed.labs.own_mark import OwnMark
    from testbed.nodes.base import Node, Result
    from testbed.steps.context import Context
    from testbed.topology.containers import Ready
    from testbed.topology.model import Node as NodeModel
    from testbed.topology.model import Topology
    from testbed.topology.programs import Command, Line, OwnService

RAN = "run"  # mark: the digests of the commands that have run, as JSON
REMOVED = "removed"  # what the node's own mark notes of a service that the file no longer has
LOOK_SECONDS = 0.5  # between two looks whether the run gives up
MOMENT = 0.3  # seconds after which a service without `ready` must still run
CHECK_SECONDS = 10.0  # time limit, in seconds, for one run of a `ready` command
#: Arguments: the policy, then a command.  A killed shell leaves no child: it would keep its ports.
SUPERVISE = """\
policy=$1; shift
tie=; setpriv --pdeathsig KILL true 2> /dev/null && tie='setpriv --pdeathsig KILL'
trap 'kill -TERM "$child" 2> /dev/null; wait "$child"; exit 143' TERM INT
while :; do
  $tie "$@" & child=$!
  wait "$child"; status=$?
  [ "$policy" = always ] || [ "$status" -ne 0 ] || exit 0
  echo "testbed: $1 has ended with status $status and is started again" >&2
  sleep 1 & child=$!
  wait "$child"
done
"""


def run_steps(topology: Topology, node: NodeModel, needs: tuple[str, ...]) -> Iterator[Step]:  # noqa: ARG001  as for services
    """Yield the step for the commands of a node, if it has any."""
    if node.run:
        yield _run_step(node, needs)


def service_steps(topology: Topology, node: NodeModel, needs: tuple[str, ...]) -> Iterator[Step]:
    """Yield a step for each service of a node."""
    for service in node.services.values():
        yield _service_step(topology, node, service, needs)


# -- commands at start --------------------------------------------------------------------


def _keys(commands: Sequence[Command]) -> list[str]:
    """Return a name for each command: its digest, and its number among equal ones."""
    seen: Counter[str] = Counter()
    found = []
    for one in commands:
        digest = digest_of(one.to_dict())
        seen[digest] += 1
        found.append(f"{digest}-{seen[digest]}")
    return found


def _ran(node: Node) -> list[str]:
    return list(json.loads(marked(node, RAN) or "[]"))


def _run_step(node: NodeModel, needs: tuple[str, ...]) -> Step:
    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node.name)
        before = _ran(machine)
        keys = _keys(node.run)
        done = [key for key in before if key in keys]
        told = []
        for index, (key, command) in enumerate(zip(keys, node.run, strict=True)):
            with placed(context.topology, "nodes", node.name, "run", index):
                if command.done is not None:
                    is_done = _call(context, machine, node, command.done, command.timeout).ok
                else:
                    is_done = key in done
                if not is_done:
                    _run(context, machine, node, command)
            if not is_done:
                told.append(f"ran `{shown(command.line)}`")
            if key not in done:
                done.append(key)
                mark(machine, RAN, json.dumps(done))
        if done != before:
            mark(machine, RAN, json.dumps(done))
        count = f"{counted(len(keys), 'command')} done"
        return ", ".join(told if 0 < len(told) < len(keys) else [count]), bool(told)

    about = "; ".join(shown(one.line) for one in node.run)
    return Step(f"run {node.name}", about, needs, act=act)


def _run(context: Context, machine: Node, node: NodeModel, command: Command) -> None:
    result = _call(context, machine, node, command.line, command.timeout)
    machine.require(result)
    if command.done is None:
        return
    proof = _call(context, machine, node, command.done, command.timeout)
    if not proof.ok:
        said = "\n".join(filter(None, (proof.stdout.strip(), proof.stderr.strip())))
        raise LabError(
            f"`{shown(command.line)}` has succeeded on {node.name}, but its `done` ends with "
            f"status {proof.status}: {shown(command.done)}" + (f"\n{said}" if said else ""),
            hint="correct one of them: `done` must succeed once the command has run",
        )


def _call(context: Context, machine: Node, node: NodeModel, line: Line, timeout: float) -> Result:
    """Run a command to its end.  Raises TimeoutExpired, and LabError when the run gives up."""
    left = timeout * machine.slowness
    context.waiting(f"`{shown(line)}` on {node.name}")
    with machine.spawn(argv(line), env=node.env) as running:
        while True:
            try:
                return running.wait(min(left, LOOK_SECONDS))
            except TimeoutExpired:
                left -= LOOK_SECONDS
            if context.given_up.is_set():
                raise LabError(f"stopped waiting for `{shown(line)}` on {node.name}")
            if left <= 0:
                said = (running.out + running.err).decode(errors="replace").strip()
                raise TimeoutExpired(
                    f"`{shown(line)}` on {node.name} has not ended within {timeout:g} s"
                    + (f"\n{said}" if said else ""),
                    hint="give it a longer `timeout`, or make it a service if it keeps running",
                )


# -- services -----------------------------------------------------------------------------


def _service_step(
    topology: Topology, node: NodeModel, service: OwnService, needs: tuple[str, ...]
) -> Step:
    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node.name)
        wanted = _service(topology, node, service)
        before = machine.services().get(service.name)
        with placed(context.topology, "nodes", node.name, "services", service.name):
            started = start(machine, wanted, timeout=60.0 * machine.slowness, context=context)
            if started or service.ready is not None:
                _await(context, machine, node, service, fresh=started)
        state = machine.services()[service.name]
        words = f"pid {state.pid}"
        if before is not None and started:
            words += ", restarted" if before.digest == wanted.digest else ", changed"
        return words, started

    about = shown(service.line)
    return Step(f"service {node.name}/{service.name}", about, needs, act=act)


def _service(topology: Topology, node: NodeModel, service: OwnService) -> Service:
    words = argv(service.line)
    if service.restart != NEVER:
        words = ("sh", "-c", SUPERVISE, "sh", service.restart, *words)
    env = {**node.env, **service.env}
    named = {
        path: one.digest
        for path, one in file_steps.contents(topology, node.name).items()
        if any(path in word for word in words)
    }
    digest = digest_of(words, env, *([named] if named else []))
    return Service(service.name, words, env, digest=digest)


def _await(
    context: Context, machine: Node, node: NodeModel, service: OwnService, *, fresh: bool
) -> None:
    """Wait until a service is ready, or has run for a moment.  Raises ServiceError."""
    ready = service.ready
    what = f"service {service.name} of {node.name}"
    wait = Wait(context, what, ready.timeout * machine.slowness if ready else CHECK_SECONDS)
    while True:
        if service.name in dead(machine):
            state = machine.services()[service.name]
            how = f"ended with status {state.status} before it was ready"
            raise ServiceError(service.name, node.name, how, machine.logs(service.name))
        if ready is None:
            if not fresh or wait.gone >= MOMENT:
                return
            wait.saw(f"has run for {wait.gone:.1f} of {MOMENT:g} s")
        elif not (seen := _unready(machine, node, service, ready)):
            return
        else:
            wait.saw(seen)
        wait.pause()


def _unready(machine: Node, node: NodeModel, service: OwnService, ready: Ready) -> str:
    """Return why a service is not ready; empty if it is."""
    if ready.port and ready.port not in sockets(machine, 1, ready.protocol).values():
        return f"nothing listens on {ready.port}/{ready.protocol}"
    if ready.command is None:
        return ""
    env = {**node.env, **service.env}
    try:
        result = machine.run(ready.command, env=env, timeout=CHECK_SECONDS, check=False)
    except TimeoutExpired:
        return f"`{shown(ready.command)}` still runs after {CHECK_SECONDS:g} s"
    last = (result.stderr.strip() or result.stdout.strip()).rpartition("\n")[2]
    words = f"`{shown(ready.command)}` ends with status {result.status}"
    return "" if result.ok else words + (f": {last}" if last else "")


def remove_old(topology: Topology, machine: Node, own: OwnMark) -> list[str]:
    """Stop the services of a node that the file no longer has; return what was done.

    Those that it has are noted, before they are started.
    """
    spec = topology.nodes[machine.name]
    known = own.get(SERVICES)
    gone = [name for name, state in known.items() if name not in spec.services and not state]
    for name in gone:
        machine.stop(name)
    own.keep(SERVICES, dict.fromkeys(known, REMOVED) | dict.fromkeys(spec.services, ""))
    return [f"removed service {name}" for name in gone]


# -- status -------------------------------------------------------------------------------


def removed(machine: Node) -> set[str]:
    """Return the services that the file had once, and no longer has."""
    services = own_mark.of(machine).get(SERVICES)
    return {name for name, state in services.items() if state == REMOVED}


def parts(topology: Topology, machine: Node) -> list[Part]:
    """Return the state of a node's commands at start, for ``status``."""
    node = topology.nodes[machine.name]
    if not node.run:
        return []
    ran = _ran(machine)
    found = []
    for key, command in zip(_keys(node.run), node.run, strict=True):
        ok = key in ran
        detail = ""
        if command.done is not None:
            ok = False
            with contextlib.suppress(TimeoutExpired):
                done = argv(command.done)
                limit = command.timeout * machine.slowness
                ok = machine.run(done, env=node.env, timeout=limit, check=False).ok
            detail = "" if ok else f"fails: {shown(command.done)}"
        found.append(Part(shown(command.line), "done" if ok else "not done", ok, detail))
    return found
