"""Machines that exist already: the plan of ``up`` looks at each of them, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.labs.status import expected_services
from testbed.nodes import wiring
from testbed.spelling import counted
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

#: Prints the kernel's release, and the name of the distribution (os-release(5)).
#: A shell ends if a file that it reads with the dot is missing: hence one of its own.
SYSTEM = (
    "uname -r; "
    """(. /etc/os-release && printf '%s\\n' "${PRETTY_NAME-}") 2> /dev/null || :"""
)


def steps(topology: Topology) -> Iterator[Step]:
    """Yield a step for each machine that looks at it."""
    yield from (_look_at(topology, name) for name in topology.nodes)


def _look_at(topology: Topology, name: str) -> Step:
    node = topology.nodes[name]
    addresses = ", ".join(map(str, (*node.addresses, *node.addresses6))) or "no address"
    wanted = "".join(f", {role}" for role in node.roles)
    about = f"look at the machine with {addresses}{wanted}; nothing is changed"

    def act(context: Context) -> tuple[str, bool]:
        context.waiting("an answer of the machine")
        machine = context.provider.nodes(context.lab)[name]
        words = seen_on(topology, machine)
        new = name not in context.nodes
        context.nodes[name] = machine
        return words, new

    return Step(node_step(name), about, (), act=act)


def system_of(machine: Node) -> list[str]:
    """Return the distribution of a machine, if it is known, and its kernel, in words."""
    release, *names = machine.run(["sh", "-c", SYSTEM]).stdout.splitlines()
    return [*filter(None, names), f"kernel {release}"]


def seen_on(topology: Topology, machine: Node) -> str:
    """Return a machine's system in words, and how it differs from its topology."""
    words = system_of(machine)
    expected = expected_services(topology, machine.name)
    there = machine.services() if expected else {}
    if running := [name for name in expected if name in there]:
        words.append(f"{', '.join(running)} {'runs' if len(running) == 1 else 'run'}")
    seen = wiring.look(machine.network)
    missing = [f"no {name}" for name in expected if name not in there]
    found = wiring.differences(topology, machine.name, seen)
    missing += [f"{one.what} is {one.seen}" for one in found]
    if missing:
        words.append(f"{counted(len(missing), 'difference')}: {', '.join(missing)}")
    return ", ".join(words)
