"""The plan: a graph of named steps that create a lab.

:func:`make` is pure. It collects the steps of each role for each of its nodes, and checks that
every required step exists. ``testbed plan`` prints the plan, :mod:`testbed.labs.run` executes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.labs import base_steps, program_steps, settings_steps
from testbed.registry import ROLES
from testbed.steps.step import Plan, order

if TYPE_CHECKING:
    from testbed.topology.model import Topology


def make(topology: Topology) -> Plan:
    """Return the plan for a topology.

    Raises ValueError for a required step that does not exist, two steps with the same name, or
    a circle of steps. Each of these is an error in a role, not in a topology.
    """
    steps = list(base_steps.steps(topology))
    for node in topology.nodes.values():
        own = [step for role in node.roles for step in ROLES[role].steps(topology, node)]
        names = [step.name for step in own]
        late = [*settings_steps.late_steps(topology, node, names)]
        steps += [*own, *late, *program_steps.steps(topology, node, names)]
    for role in sorted(topology.roles):
        steps += ROLES[role].lab_steps(topology)
    return Plan(topology.name, order(steps))
