"""What a lab shall be: the topology file, read and checked, as a frozen value.

``load("two-node")`` or ``load("./mine.yaml")`` gives a :class:`Topology`; a file
that is wrong gives a TopologyError with all of its problems, each with its place.
Nothing here touches a machine.
"""

from __future__ import annotations

from testbed.topology.load import load, load_data, load_text, names
from testbed.topology.model import Topology
from testbed.topology.schema import schema
from testbed.topology.variant import Overrides, vary

__all__ = ["Overrides", "Topology", "load", "load_data", "load_text", "names", "schema", "vary"]
