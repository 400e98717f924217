"""Check that the parts of a topology fit together.

There is one method per rule, and one file per subject; roles bring rules of their own. A rule
ignores values that were already reported as invalid, so one mistake in a file is one problem in the
report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check.containers import Containers
from testbed.topology.check.existing import Existing
from testbed.topology.check.faults import Faults
from testbed.topology.check.namespaces import Namespaces
from testbed.topology.check.networks import Networks
from testbed.topology.check.packages import Packages
from testbed.topology.check.sections import Sections
from testbed.topology.check.settings import Settings
from testbed.topology.declare import role_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.topology.check.look import Look
    from testbed.topology.model import Topology
    from testbed.topology.tree import Problems, Tree

__all__ = ["check"]


def check(topology: Topology, root: Tree, problems: Problems) -> None:
    """Check all rules and add the problems.

    Raises TopologyError if there are too many.
    """
    for look in [subject(topology, root, problems) for subject in _subjects(topology, root)]:
        for rule in look.rules():
            rule()


def _subjects(topology: Topology, root: Tree) -> Iterator[type[Look]]:
    """Yield the rules of the file itself, and those of the roles that it names."""
    yield Networks
    yield Settings
    named = {role for node in topology.nodes.values() for role in node.roles}
    for name in sorted(named | {*tree.keys_at(root)}):
        if (role := role_of(name)) is not None:
            yield from role.checks
    yield from (Packages, Sections, Containers, Namespaces, Existing, Faults)
