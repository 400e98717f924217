"""The provider ``ssh``: machines that exist already.

``up`` connects to them and looks, ``down`` forgets them.  Nothing stays on a machine: the agent
ends with its connection, and its file has no name.  Where the file says ``install``, ``up`` starts
a node with the roles on the machine, and ``down`` removes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from testbed.nodes.attachable import AttachedProvider
from testbed.nodes.openssh.installation import folder_of
from testbed.nodes.openssh.machines import SshMachines
from testbed.nodes.openssh.section import PROVIDER, WayToAll, WayToNode, way_of
from testbed.requirement import program

if TYPE_CHECKING:
    from testbed.nodes.attachable import Listed
    from testbed.nodes.base import Node, Provider, Setup
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology


class SshProvider(AttachedProvider):
    """All labs of machines that exist; :meth:`of_machines` has those of one lab."""

    name = PROVIDER
    existing = "machines over ssh"
    section = WayToAll
    node_section = WayToNode
    programs: ClassVar[Mapping[str, str]] = {"ssh": "openssh-client"}

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup)

    def probe(self) -> list[Requirement]:
        return [program("ssh", "openssh-client", (PROVIDER,))]

    @classmethod
    def listed(cls, path: str, text: str, chosen: Mapping[str, str]) -> Listed | None:
        del chosen
        from testbed.nodes.openssh import inventories

        return inventories.read(path, text)

    @classmethod
    def installs(cls, topology: Topology) -> Mapping[str, str]:
        return {
            name: folder_of(topology.name)
            for name, node in topology.nodes.items()
            if node.roles and way_of(topology, name).install
        }

    def of_machines(self, topology: Topology) -> Provider:
        return SshMachines(self._setup, topology, self.installs(topology))

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}  # a lab has a record, and nothing else is ours
