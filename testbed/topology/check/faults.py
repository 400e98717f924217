"""Faults that a topology names: their targets must exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed import registry
from testbed.faults.model import Unreadable, require
from testbed.topology.check.look import Look

if TYPE_CHECKING:
    from collections import abc

__all__ = ["Faults"]


class Faults(Look):
    """Rules for faults."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (self.targets,)

    def targets(self) -> None:
        if self.bad("nodes") or any(map(self.bad, registry.ROLES)):  # already reported
            return
        for name, fault in self.t.faults.items():
            if fault.node in self.nodes and self.unsure(fault.node, "roles"):
                continue
            try:
                require(fault, self.t)
            except Unreadable as error:
                self.add(self.value("faults", name), error.wanted, error.seen, error.hint)
