"""Topologies: read and check topology files.

``load("two-node")`` or ``load("./mine.yaml")`` returns a :class:`Topology`, a frozen value. For
an invalid file it raises TopologyError with all problems, each with its line and column. This
package does not access a machine.
"""

from __future__ import annotations

from testbed.topology.load import load, load_data, load_text, names
from testbed.topology.model import Topology
from testbed.topology.schema import schema
from testbed.topology.variant import Overrides, vary

__all__ = ["Overrides", "Topology", "load", "load_data", "load_text", "names", "schema", "vary"]
