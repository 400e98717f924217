"""Build a :class:`Topology` from a tree, with all defaults.

Invalid values are reported and left out. :mod:`testbed.topology.check` checks whether the parts
fit together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check import check
from testbed.topology.declare import Draft, keys_of, read_block
from testbed.topology.model import Topology
from testbed.topology.read import Reader

if TYPE_CHECKING:
    from testbed.topology.tree import Problems, Tree

__all__ = ["build"]


def build(root: Tree, problems: Problems) -> Topology:
    """Return the topology that a tree describes.

    Raises TopologyError with all problems.
    """
    if not isinstance(root, tree.Mapping):
        Reader(problems).mapping(root, keys_of(Topology), "a mapping with 'name' and 'nodes'")
        raise problems.error()
    draft = Draft(Reader(problems, root), root)
    topology = read_block(draft, Topology, root, source=problems.source)
    assert topology is not None, "every key has a default"
    check(topology, root, problems)
    if problems:
        raise problems.error()
    # A section of a role or a provider that no node has says nothing.
    named = {*topology.roles, *topology.providers}
    used = {name: one for name, one in topology.sections.items() if name in named}
    return topology if used == topology.sections else replace(topology, sections=used)
