"""The plan: a graph of named steps that bring a topology up, with nothing done yet.

:func:`make` is pure.  It asks each role for the steps of each node that has
it, and checks that every need is met by a step.  ``testbed plan`` prints it,
:mod:`testbed.lab.run` carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    ``needs`` names the steps that must have ended well before.  ``act`` does
    it, or finds that it is done already; it returns a few words on what is
    there now, and True if it changed anything.  A ``heavy`` one keeps a CPU
    busy while it runs: only so many of those run at once.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()
    heavy: bool = False
    act: Callable[[Context], tuple[str, bool]] = field(
        default=lambda _: ("", False), compare=False, repr=False
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps by name, each after what it needs."""

    lab: str
    steps: Mapping[str, Step]

    def to_dict(self) -> dict[str, Any]:
        return {
            "lab": self.lab,
            "steps": [
                {"name": s.name, "about": s.about, "needs": list(s.needs)}
                for s in self.steps.values()
            ],
        }


def make(topology: Topology) -> Plan:
    """The plan for a topology.

    Raises ValueError for a need without a step, two steps of one name, or steps
    that need each other: all are mistakes in a role, not in a topology.
    """
    from testbed.lab import base_steps
    from testbed.roles import ROLES
    from testbed.roles.containers import reach_steps

    steps = list(base_steps.steps(topology))
    for node in topology.nodes.values():
        for role in node.roles:
            steps += ROLES[role].steps(topology, node)
    steps += reach_steps(topology)
    return Plan(topology.name, order(steps))


def order(steps: Iterable[Step]) -> dict[str, Step]:
    """The steps by name, each after those that it needs, else in the order given."""
    steps = list(steps)
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        names = [step.name for step in steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the plan does not work out: twice {twice}")
    ordered: dict[str, Step] = {}
    waiting = dict(by_name)
    while waiting:
        ready = [s for s in waiting.values() if all(need in ordered for need in s.needs)]
        if not ready:
            unmet = {n for s in waiting.values() for n in s.needs if n not in by_name}
            what = f"no step {sorted(unmet)}" if unmet else f"a circle among {sorted(waiting)}"
            raise ValueError(f"the plan does not work out: {what}")
        for step in ready:
            ordered[step.name] = waiting.pop(step.name)
    return ordered
