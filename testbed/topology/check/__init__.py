"""Check that the parts of a topology fit together.

There is one method per rule, and one file per subject. A rule ignores values that were already
reported as invalid, so one mistake in a file is one problem in the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.check.containers import Containers
from testbed.topology.check.faults import Faults
from testbed.topology.check.flannel import Flannel
from testbed.topology.check.kubernetes import Kubernetes
from testbed.topology.check.namespaces import Namespaces
from testbed.topology.check.networks import Networks

if TYPE_CHECKING:
    from testbed.topology.check.look import Look
    from testbed.topology.model import Topology
    from testbed.topology.tree import Problems, Tree

__all__ = ["check"]

_SUBJECTS: tuple[type[Look], ...] = (
    Networks,
    Flannel,
    Kubernetes,
    Containers,
    Namespaces,
    Faults,
)


def check(topology: Topology, root: Tree, problems: Problems) -> None:
    """Check all rules and add the problems.

    Raises TopologyError if there are too many.
    """
    for look in [subject(topology, root, problems) for subject in _SUBJECTS]:
        for rule in look.rules():
            rule()
