"""The provider ``ssh``: machines that exist already.

``up`` connects to them and looks, ``down`` forgets them.  Nothing is created, and nothing stays on
a machine: the agent ends with its connection, and its file has no name.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from testbed.errors import TestbedError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.nodes.attachable import AttachedProvider
from testbed.nodes.openssh import client
from testbed.nodes.openssh.node import ExistingNode
from testbed.nodes.openssh.section import PROVIDER, WayToAll, WayToNode, way_to
from testbed.registry import ROLES
from testbed.requirement import program

if TYPE_CHECKING:
    from testbed.nodes.attachable import Listed
    from testbed.nodes.base import Node, Provider, Setup
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology

TOGETHER = 16  # logins at once; a jump host may accept few more (MaxStartups, sshd_config(5))


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
        return Machines(self._setup, topology)

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}  # a lab has a record, and nothing else is ours


class Machines(SshProvider):
    """The machines of one topology.  Each is connected to at its first use."""

    def __init__(self, setup: Setup, topology: Topology) -> None:
        super().__init__(setup)
        self._topology = topology
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        with self._lock:
            for name in self._topology.nodes:
                if name not in self._nodes:
                    self._nodes[name] = self._node(name)
            return dict(self._nodes)

    def _node(self, name: str) -> Node:
        topology = self._topology
        spec = topology.nodes[name]
        way = way_to(name, spec.sections.get(PROVIDER), topology.sections.get(PROVIDER))
        roles = [ROLES[role] for role in spec.roles]
        return ExistingNode(
            name,
            client.arguments(way, topology.folder),
            lab=topology.name,
            agent=self._agent,
            services=[one for role in roles for one in role.services_on(topology, name)],
            folder=self._setup.state / "sockets",
        )

    def _agent(self) -> Path:
        return self._setup.store.binary("testbed-agent")

    def ended(self, lab: str) -> dict[str, str]:
        def reason(node: Node) -> str:
            try:
                node.run(["true"])
            except TestbedError as error:
                return str(error)
            return ""

        nodes = self.nodes(lab)
        with ThreadPoolExecutor(at_once(TOGETHER, files=FILES_PER_NODE)) as pool:
            reasons = pool.map(reason, nodes.values())
            return {name: words for name, words in zip(nodes, reasons, strict=True) if words}
