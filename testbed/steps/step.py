"""A step of a plan, and a plan as a graph of steps in order.

Roles make steps and know nothing of how a plan is put together from them
(:mod:`testbed.labs.plan`) or carried out (:mod:`testbed.labs.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.steps.context import Context


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    ``needs`` names the steps that must have ended well before.  ``act`` does
    it, or finds that it is done already; it returns a few words on what is
    there now, and True if it changed anything.  A ``heavy`` one keeps a CPU
    busy while it runs: only so many of those run at once.  One that can be taken
    ``ahead`` needs a machine and nothing of the lab, neither networks nor peers.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()
    heavy: bool = False
    ahead: bool = False
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


def node_step(name: str) -> str:
    """The name of the step after which a node is there and joined to its networks."""
    return f"node {name}"
