"""The provider ``ssh``: machines that exist already.

``up`` connects to them and looks, ``down`` forgets them.  Nothing is created, and nothing stays on
a machine: the agent ends with its connection, and its file has no name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from testbed.nodes.attachable import AttachedProvider
from testbed.nodes.existing import Machines
from testbed.nodes.openssh import client
from testbed.nodes.openssh.node import OpenSshNode
from testbed.nodes.openssh.section import PROVIDER, WayToAll, WayToNode, way_to
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
    def listed(cls, path: str, text: str) -> Listed | None:
        from testbed.nodes.openssh import inventories

        return inventories.read(path, text)

    def of_machines(self, topology: Topology) -> Provider:
        def reach(name: str, daemons: Sequence[str]) -> OpenSshNode:
            sections = topology.nodes[name].sections
            way = way_to(name, sections.get(PROVIDER), topology.sections.get(PROVIDER))
            return OpenSshNode(
                name,
                client.arguments(way, topology.folder),
                lab=topology.name,
                agent=lambda: self._setup.store.binary("testbed-agent"),
                services=daemons,
                folder=self._setup.state / "sockets",
            )

        return Machines(PROVIDER, topology, reach)

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}  # a lab has a record, and nothing else is ours
