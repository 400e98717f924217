"""The plan: a graph of named steps that bring a topology up, with nothing done yet.

:func:`make` is pure.  It asks each role for the steps of each node that has
it, and checks that every need is met by a step.  ``testbed plan`` prints it,
:mod:`testbed.labs.run` carries it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.labs import base_steps
from testbed.registry import ROLES
from testbed.roles.containers import reach_steps
from testbed.steps.step import Plan, order

if TYPE_CHECKING:
    from testbed.topology.model import Topology


def make(topology: Topology) -> Plan:
    """The plan for a topology.

    Raises ValueError for a need without a step, two steps of one name, or steps
    that need each other: all are mistakes in a role, not in a topology.
    """
    steps = list(base_steps.steps(topology))
    for node in topology.nodes.values():
        for role in node.roles:
            steps += ROLES[role].steps(topology, node)
    steps += reach_steps(topology)
    return Plan(topology.name, order(steps))
