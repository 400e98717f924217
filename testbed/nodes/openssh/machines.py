"""The machines of one topology, reached by OpenSSH's client, and the nodes installed on them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

from testbed.errors import LabError, TestbedError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.nodes.existing import TOGETHER, ExistingNode, Machines
from testbed.nodes.footprint import Footprint
from testbed.nodes.keeper import COMMANDS
from testbed.nodes.openssh import client
from testbed.nodes.openssh.installation import Installation
from testbed.nodes.openssh.installed import InstalledNode
from testbed.nodes.openssh.node import OpenSshNode
from testbed.nodes.openssh.section import PROVIDER, way_of
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.nodes.base import Node, NodeSpec, Setup
    from testbed.topology.model import Topology


class SshMachines(Machines):
    """The machines of one topology.

    ``installs`` are the nodes that are installed on theirs, each with its folder there.
    """

    def __init__(self, setup: Setup, topology: Topology, installs: Mapping[str, str]) -> None:
        super().__init__(PROVIDER, topology, self._reach_machine)
        self._setup = setup
        self._installed = {
            name: InstalledNode(
                name,
                topology.node_digest(name),
                self._arguments(name),
                lab=topology.name,
                on=folder,
                agent=self._agent,
                init=self._init,
                folder=self._sockets,
            )
            for name, folder in installs.items()
        }

    def _reach_machine(self, name: str, daemons: Sequence[str]) -> OpenSshNode:
        return OpenSshNode(
            name,
            self._arguments(name),
            lab=self._topology.name,
            agent=self._agent,
            services=daemons,
            folder=self._sockets,
        )

    def _arguments(self, name: str) -> list[str]:
        return client.arguments(way_of(self._topology, name), self._topology.folder)

    def _agent(self) -> Path:
        return self._setup.store.binary("testbed-agent")

    def _init(self) -> Path:
        return self._setup.store.binary("testbed-init")

    @property
    def _sockets(self) -> Path:
        return self._setup.state / "sockets"

    def nodes(self, lab: str) -> dict[str, Node]:
        return {**super().nodes(lab), **self._installed}

    # -- installing -----------------------------------------------------------

    def _installation(self, lab: str, name: str) -> Installation:
        topology = self._topology
        roles = [ROLES[role] for role in topology.nodes[name].roles]
        programs = dict(pair for role in roles for pair in role.programs_for(topology).items())
        footprint = Footprint.of_all(role.footprint(topology, name) for role in roles)
        machine = cast("ExistingNode", super().nodes(lab)[name])
        # Two labs of one name may be of two users, or of two machines.
        owner = f"{self._setup.state.resolve()} on {socket.gethostname()}"
        return Installation(machine, lab, owner, footprint, programs)

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        for spec in specs:
            installation = self._installation(lab, spec.name)
            if not installation.is_ours():
                installation.check()

    def is_installed(self, lab: str, spec: NodeSpec) -> bool:
        del lab
        return self._installed[spec.name].digest_there() == spec.digest

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        return {spec.name: self.create_one(lab, spec) for spec in specs}

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        program = self._init()
        installation = self._installation(lab, spec.name)
        installation.create(spec, self._setup.state, program.read_bytes())
        node = self._installed[spec.name]
        node.offer(dict.fromkeys(COMMANDS, program))
        return node

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        """Remove what is installed; the machines stay.

        Raises LabError with every failure, after all others have been removed.
        """
        wanted = self._installed.keys() if nodes is None else {*nodes} & self._installed.keys()

        def remove(name: str) -> TestbedError | None:
            try:
                self._installation(lab, name).remove()
            except TestbedError as error:
                return error
            self._installed[name].close()
            return None

        with ThreadPoolExecutor(at_once(TOGETHER, files=FILES_PER_NODE)) as pool:
            failed = [error for error in pool.map(remove, sorted(wanted)) if error is not None]
        if failed:
            file = self._setup.state / f"{lab}.json"
            raise LabError(
                "\n".join(str(error) for error in failed),
                hint=f"repeat `testbed down {lab}`; if a machine does not exist any more, delete "
                f"{file} first",
            )
