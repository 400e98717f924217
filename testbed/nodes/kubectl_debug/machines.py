"""The nodes of a cluster that are the machines of one lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.nodes.existing import Machines
from testbed.nodes.kubectl_debug.node import DebugNode
from testbed.nodes.kubectl_debug.section import PROVIDER

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.base import NodeSpec
    from testbed.nodes.kubectl_debug.way import Way
    from testbed.topology.model import Topology


class ClusterMachines(Machines):
    """The machines of a topology.

    ``way`` leads to them.  ``folder`` is the folder of this machine for their sockets.
    """

    def __init__(self, topology: Topology, way: Way, folder: Path) -> None:
        def reach(name: str, daemons: Sequence[str]) -> DebugNode:
            return DebugNode(name, way.entrance, lab=topology.name, services=daemons, folder=folder)

        self._way = way
        super().__init__(PROVIDER, topology, reach)

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        del lab, specs
        self._way.prepare()
