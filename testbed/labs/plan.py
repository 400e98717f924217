"""The plan: a graph of named steps that create a lab.

:func:`make` is pure. It collects the steps of each role for each of its nodes, and checks that
every required step exists. ``testbed plan`` prints the plan, :mod:`testbed.labs.run` executes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.labs import base_steps, program_steps, settings_steps
from testbed.registry import ROLES
from testbed.steps.step import Plan, node_step, order

if TYPE_CHECKING:
    from testbed.topology.model import Topology

#: The steps of a node after those of its roles, in this order.
OF_THE_FILE = (
    program_steps.run_steps,
    settings_steps.late_steps,
    program_steps.service_steps,
)


def make(topology: Topology) -> Plan:
    """Return the plan for a topology.

    Raises ValueError for a required step that does not exist, two steps with the same name, or
    a circle of steps. Each of these is an error in a role, not in a topology.
    """
    if topology.existing:
        from testbed.labs import existing

        return Plan(topology.name, order(existing.steps(topology)))
    steps = list(base_steps.steps(topology))
    for node in topology.nodes.values():
        own = [step for role in node.roles for step in ROLES[role].steps(topology, node)]
        steps += own
        needs = (node_step(node.name), *(step.name for step in own))
        for make_steps in OF_THE_FILE:
            more = [*make_steps(topology, node, needs)]
            steps += more
            needs = (*needs, *(step.name for step in more))
    for role in sorted(topology.roles):
        steps += ROLES[role].lab_steps(topology)
    return Plan(topology.name, order(steps))
