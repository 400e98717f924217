"""Steps, and a plan as an ordered graph of steps.

Roles create steps. :mod:`testbed.labs.plan` combines them into a plan, and
:mod:`testbed.labs.run` executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.steps.context import Context


@dataclass(frozen=True, slots=True)
class Step:
    """A unit of work in a plan.

    ``needs`` are the names of steps that must succeed first. ``act`` does the work unless it is
    already done. It returns a short description of the result, and True if it changed anything.
    A ``heavy`` step keeps a CPU busy, so only a few of them run at once. A step that can be done
    ``ahead`` needs only its machine, not the lab's networks or other nodes. ``files`` are paths on
    the node, each with the text that the step writes there.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()
    heavy: bool = False
    ahead: bool = False
    files: tuple[tuple[str, str], ...] = ()
    act: Callable[[Context], tuple[str, bool]] = field(
        default=lambda _: ("", False), compare=False, repr=False
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps by name, each after the steps that it needs."""

    lab: str
    steps: Mapping[str, Step]

    def to_dict(self) -> dict[str, Any]:
        return {
            "lab": self.lab,
            "steps": [
                {"name": s.name, "about": s.about, "needs": list(s.needs)}
                | ({"files": dict(s.files)} if s.files else {})
                for s in self.steps.values()
            ],
        }


def order(steps: Iterable[Step]) -> dict[str, Step]:
    """Return the steps by name, each after the steps that it needs.

    Otherwise the given order is kept. Raises ValueError for a missing step, a duplicate name or a
    circle.
    """
    steps = list(steps)
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        names = [step.name for step in steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"duplicate step in plan: {twice}")
    ordered: dict[str, Step] = {}
    waiting = dict(by_name)
    while waiting:
        ready = [s for s in waiting.values() if all(need in ordered for need in s.needs)]
        if not ready:
            unmet = {n for s in waiting.values() for n in s.needs if n not in by_name}
            what = f"no step {sorted(unmet)}" if unmet else f"a circle among {sorted(waiting)}"
            raise ValueError(f"invalid plan: {what}")
        for step in ready:
            ordered[step.name] = waiting.pop(step.name)
    return ordered


def packages_step(name: str) -> str:
    """Return the name of the step after which a node has its Debian packages."""
    return f"packages {name}"


def node_step(name: str) -> str:
    """Return the name of the step after which a node has its networks."""
    return f"node {name}"
