"""Create, find and remove nodes with containerlab.

containerlab and an engine run on the lab's fabric, which is so their cell
(:mod:`testbed.nodes.containerlab.cell`).  Nodes are privileged containers of that engine, on the
same bridges as namespace nodes.  All nodes that are created at once are one topology file, so that
containerlab never changes the links of nodes that run already.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import LabError, NoSuchNode
from testbed.limits import Takes
from testbed.nodes import engine, wiring
from testbed.nodes.base import Node, NodeSpec, Setup, has_ended
from testbed.nodes.containerlab import DIGEST, IMAGE, NAME, READY
from testbed.nodes.inside import Process
from testbed.nodes.links import port_name
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.cells import CellProvider
from testbed.nodes.netns.provider import bridge_of, veth
from testbed.polling import until

RECORDING = 5.0  # seconds; the engine needs a few milliseconds

# Modules for cells are imported where needed: other labs don't load them.

if TYPE_CHECKING:
    from testbed.nodes.attachable import Attachable
    from testbed.nodes.containerlab.cell import Cell, Container
    from testbed.nodes.containerlab.node import ContainerlabNode
    from testbed.nodes.netns import find
    from testbed.nodes.place import Place
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Requirement
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology


class ContainerlabProvider(CellProvider):
    """Nodes as containers that containerlab deploys."""

    name = "containerlab"
    kind: ClassVar[find.Kind] = "fabric"
    shares_kernel = True
    vlans = False  # containerlab connects their links
    images = True
    kernel = ("overlay",)
    #: Those of a cell. Nodes have their own.
    programs: ClassVar[Mapping[str, str]] = {"iptables": "iptables", "sysctl": "procps"}
    takes = Takes(tasks=16)  # its shim with threads, pid 1, and a command

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._topologies: dict[str, Topology] = {}  # of labs whose fabric we have created
        self._reached: dict[tuple[int, str], ContainerlabNode] = {}
        self._making = threading.Lock()
        self._folders: list[Path] = []  # those of the user's file that is deployed next

    def exposed(self) -> Iterable[Path]:
        return [*super().exposed(), *self._folders]

    def probe(self) -> list[Requirement]:
        from testbed.nodes.containerlab import needs
        from testbed.requirement import program

        programs = (program(name, of, (self.name,)) for name, of in self.programs.items())
        return [*self.cells.probe(), *programs, *needs.probe(self._store, self.name)]

    @classmethod
    def attachable(cls) -> type[Attachable]:
        from testbed.nodes.containerlab.attached import Containerlab

        return Containerlab

    # -- finding ----------------------------------------------------------

    def _cell(self, lab: str) -> Cell | None:
        """Return the cell of a lab, whether its engine runs or not; None without one."""
        fabric = self.cells.fabric(lab)
        if fabric is None or not os.path.exists(fabric.socket(READY)):  # noqa: PTH110  (no error)
            return None
        from testbed.nodes.containerlab.cell import Cell

        return Cell(fabric, self._store)

    def _containers(self, cell: Cell) -> dict[str, Container]:
        """Return the containers of a lab's nodes by node, running or not."""
        found = {c.labels.get(NAME) or c.node: c for c in cell.containers()}
        found.pop("", None)  # not of containerlab
        return found

    def nodes(self, lab: str) -> dict[str, Node]:
        return dict(self._running(lab))

    def _running(self, lab: str) -> dict[str, ContainerlabNode]:
        """Return :meth:`nodes` with their precise type."""
        cell = self._cell(lab)
        if cell is None:
            return {}
        from testbed.nodes.containerlab import userfile

        there: dict[str, ContainerlabNode] = {}
        theirs = userfile.digests(cell)
        for name, container in self._containers(cell).items():
            if cell.runs(container):
                with contextlib.suppress(OSError):  # it has just ended
                    digest = container.labels.get(DIGEST) or theirs.get(name, "")
                    there[name] = self._reach(cell, name, container, digest)
        return there

    def _reach(self, cell: Cell, name: str, container: Container, digest: str) -> ContainerlabNode:
        from testbed.nodes.containerlab.entered import Entered
        from testbed.nodes.containerlab.node import ContainerlabNode, UsersNode

        ours = NAME in container.labels and IMAGE not in container.labels
        init = cell.node.init
        outside = {} if ours else {"outside": Entered(cell.node, name, container.pid)}

        def frozen() -> bool:
            freezer = cgroups.freezer()
            return freezer is not None and freezer.is_set(*_cgroup(cell, container))

        with self._lock:
            for gone in [key for key, node in self._reached.items() if not node.alive()]:
                self._reached.pop(gone).close()
            key = (init.pid, container.id)
            if key not in self._reached:
                process = Process(init.pid, container.pid)
                if not cell.runs(container):  # another process may have had its pid by then
                    raise ProcessLookupError(container.pid)
                self._reached[key] = (ContainerlabNode if ours else UsersNode)(
                    name,
                    digest,
                    lab=init.lab,
                    pid=container.pid,
                    start=cell.node.duplex,
                    agent=lambda: cell.node.provide(self.agent()),
                    alive=process.alive,
                    init=lambda: self._store.binary("testbed-init"),
                    place=cell.node.socket,
                    mounts={folder: str(folder) for folder in self._shared()} if ours else {},
                    env={} if ours else container.environment,
                    last_words=lambda: cell.last_words(container),
                    frozen=frozen,
                    **outside,
                )
            self._reached[key].digest = digest  # a user's file may have been deployed again
            return self._reached[key]

    def _shared(self) -> list[Path]:
        """Return the folders of programs and images, which nodes have at the same paths."""
        return [path for path in (f.resolve() for f in self._store.folders) if path.is_dir()]

    def ended(self, lab: str) -> dict[str, str]:
        cell = self._cell(lab)
        if cell is None:
            return {}
        found = self._containers(cell)
        return {name: cell.last_words(c) for name, c in found.items() if not cell.runs(c)}

    def outdated(self, lab: str, topology: Topology) -> Collection[str]:
        from testbed.artifacts import archive

        foreign, cell = topology.foreign, self._cell(lab)
        if foreign is None or cell is None:
            return ()  # up to the roles: their programs are not in the image
        archives = {name: self._store.image(name) for name in topology.images}
        replaced = cell.replaced(archives)
        there = self._containers(cell) if replaced else {}
        return [
            name
            for name, node in foreign.nodes.items()
            if node.image in replaced
            and name in there
            and not archive.contains(archives[node.image], there[name].image_id)
        ]

    # -- making -----------------------------------------------------------

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        from testbed.nodes.containerlab import needs
        from testbed.nodes.containerlab.cell import RELEASE

        del lab
        needs.require_version(self._store, self.name)
        for name in engine.PROGRAMS:
            engine.program(self._store, RELEASE, name)
        self.agent()
        for image in {_image_of(spec) for spec in specs if not spec.foreign}:
            self._store.image(image)

    def create_fabric(self, lab: str, topology: Topology) -> None:
        folders: list[Path] = []
        if topology.foreign is not None:
            from testbed.nodes.containerlab import userfile

            folders = userfile.folders(topology.foreign)
        with self._making:
            self._folders = folders
            super().create_fabric(lab, topology)
        self._topologies[lab] = topology
        cell = self._cell(lab)
        if cell is not None:
            cell.start()  # its engine may have died

    def together(self, node: str) -> bool:
        del node
        return True  # one file

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        from testbed.nodes.containerlab.cell import with_room

        with with_room():
            return self._create(lab, specs)

    def _create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        names = {spec.name for spec in specs}
        topology = self._topologies.get(lab)
        if topology is not None and topology.foreign is not None:
            return self._create_users(lab, topology, topology.foreign, names)
        cell = self._start(lab, {*map(_image_of, specs)}, bridge=False)
        self._clear(cell, specs)
        path = self._write(cell, lab, specs)
        try:
            cell.deploy(path)
        except LabError as error:
            raise self._explained(cell, names, error) from error
        return self._created(cell, lab, names)

    def _create_users(
        self, lab: str, topology: Topology, foreign: Foreign, names: set[str]
    ) -> dict[str, Node]:
        """Deploy a user's own file, and return the nodes with these names."""
        from testbed.nodes.containerlab import userfile

        cell = self._start(lab, topology.images)
        file = userfile.UserFile(topology, foreign, cell)
        with self._making:  # a node that has lost its link to these may be restored meanwhile
            file.stage()
            file.deploy()
        return self._created(cell, lab, names)

    def _created(self, cell: Cell, lab: str, names: set[str]) -> dict[str, Node]:
        """Return the new nodes by name.  Raises LabError if one has ended already."""
        there = self._running(lab)
        if gone := sorted(names - there.keys()):
            raise self._died(cell, gone[0])
        return {name: there[name] for name in names}

    def _start(self, lab: str, images: Iterable[str], *, bridge: bool = True) -> Cell:
        """Return the cell of a lab with a running engine that has some images.

        Without ``bridge``, a new engine has no docker0.
        """
        from testbed.artifacts.reference import full_name, local_name
        from testbed.nodes.containerlab.cell import Cell

        fabric = self.cells.fabric(lab)
        if fabric is None:
            raise LabError(
                f"the fabric of lab {lab} does not run", hint=f"`testbed up -l {lab}` restores it"
            )
        cell = Cell(fabric, self._store)
        archives = {name: self._store.image(name) for name in images}
        with self._making:  # not _lock: others look at nodes meanwhile
            cell.start(archives.values(), bridge=bridge)
            there, replaced = {full_name(name) for name in cell.images()}, cell.replaced(archives)
            lacking = [
                name
                for name in archives
                if name in replaced or full_name(local_name(name)) not in there
            ]
            for name in lacking:
                cell.load(archives[name], name)
            if lacking and not there:
                cell.keep_images(archives.values())  # a cell works without it
            cell.note_images(archives)
        return cell

    def _clear(self, cell: Cell, specs: Sequence[NodeSpec]) -> None:
        """Remove what is left of earlier nodes of the same names, or of a failed creation."""
        names = {spec.name for spec in specs}
        for name, container in self._containers(cell).items():
            if name in names:  # it has ended
                cell.remove(container)
        # The kernel removes the links of a node a little later than its processes.
        ports = (port_name(spec.name, index) for spec in specs for index in range(spec.interfaces))
        if lines := [f"link delete dev {port}" for port in ports]:
            argv = ["ip", "-force", "-batch", "-"]
            cell.node.run(argv, input="\n".join(lines).encode(), check=False)

    def _write(self, cell: Cell, lab: str, specs: Sequence[NodeSpec]) -> str:
        """Write the topology file of new nodes; return its path in the cell."""
        from testbed.nodes.containerlab import clabfile

        name = cell.claim(lab)
        options = clabfile.Options(
            _image(),
            binds={cell.node.provide(path): str(path) for path in self._shared()},
            init=cell.node.provide(self._store.binary("testbed-init")),
        )
        content = clabfile.document(name, specs, options, self._topologies.get(lab))
        return cell.write(name, clabfile.text(content))

    def _explained(self, cell: Cell, names: Iterable[str], error: LabError) -> LabError:
        """Return the reason of a failure: a node that ended at once, or containerlab's words."""
        if isinstance(error, NoSuchNode):
            return error
        for name, container in self._containers(cell).items():
            started = container.pid or container.exit
            if name in names and started and not cell.runs(container):
                return self._died(cell, name)
        return error

    def _died(self, cell: Cell, name: str) -> LabError:
        from testbed.nodes.containerlab.cell import exited

        found = self._containers(cell).get(name)
        if found is None:
            return LabError(f"{name}: containerlab has not created it")
        container = found

        def recorded() -> bool:  # the engine writes its end down a moment later
            nonlocal container
            container = self._containers(cell).get(name, container)
            return not container.pid

        until(recorded, RECORDING)
        words = cell.last_words(container)
        return LabError(exited(name, container.exit, words), hint="`testbed up` creates it again")

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        cell, pid = self._place(lab, node)
        found = self.cells.differences(lab, topology).get(node.name, ())
        missing = {one.index for one in found if one.seen == "missing"}
        if missing:  # containerlab did not know the topology
            self._plug(cell, topology, node.name, pid, missing)
        wiring.set_up(topology, node)

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        cell, pid = self._place(lab, node)
        if topology.foreign is not None:
            from testbed.nodes.containerlab import userfile
            from testbed.nodes.containerlab.cell import with_room

            with with_room(), self._making:  # one deployment restores all nodes
                userfile.UserFile(topology, topology.foreign, cell).restore(node.name)
            return
        own = topology.nodes[node.name].ports
        ports = {one.index: one.seen for one in differences if one.kind == "port"}
        gone = {index for index, seen in ports.items() if seen == "missing"}
        gone |= {one.index for one in differences if one.kind == "link" and one.seen == "missing"}
        for index in gone:
            # Only one end is in place: a user has moved or renamed the other.
            port = port_name(node.name, index)
            cell.node.run(["ip", "link", "delete", "dev", port], check=False)
            node.network.run(["ip", "link", "delete", "dev", own[index].name], check=False)
        lines = [
            f"link set dev {port_name(node.name, index)} master {bridge_of(own[index].network)} up"
            for index in ports.keys() - gone
        ]
        if lines:
            cell.node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
        if gone:
            self._plug(cell, topology, node.name, pid, gone)
        wiring.restore(topology, node, differences, gone)

    def _place(self, lab: str, node: Node) -> tuple[Cell, int]:
        """Return the cell of a node, and the pid of its first process there."""
        from testbed.nodes.containerlab.node import ContainerlabNode

        cell = self._cell(lab)
        if cell is None or not isinstance(node, ContainerlabNode):
            raise has_ended(node.name, lab)
        return cell, node.pid

    @staticmethod
    def _plug(cell: Cell, topology: Topology, name: str, pid: int, indexes: set[int]) -> None:
        """Link a node to the bridges of its networks with these numbers."""
        lines = []
        for index, port in enumerate(topology.nodes[name].ports):
            if index in indexes:
                outside = port_name(name, index)
                lines += [
                    veth(
                        outside,
                        f"{port.name} address {port.hardware} netns {pid}",
                        topology.networks[port.network].mtu,
                    ),
                    f"link set dev {outside} master {bridge_of(port.network)} up",
                ]
        cell.node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())

    def network_of(self, lab: str, node: Node) -> Place:
        from testbed.nodes.containerlab.node import UsersNode

        del lab
        return node.network if isinstance(node, UsersNode) else node

    # -- faults -----------------------------------------------------------

    def ports(self, topology: Topology, node: str) -> list[str]:
        if topology.foreign is None:
            return super().ports(topology, node)
        from testbed.nodes.containerlab import userfile

        cell = self._cell(topology.name)
        container = None if cell is None else self._containers(cell).get(node)
        found = userfile.ports(topology.foreign, node)
        if cell is not None and container is not None and cell.runs(container):
            found += userfile.management_ports(topology.foreign, cell, container)
        return found

    def direct(self, topology: Topology, node: str) -> dict[str, str]:
        if topology.foreign is None:
            return super().direct(topology, node)
        from testbed.nodes.containerlab import userfile

        return userfile.direct(topology.foreign, node)

    def pause(self, lab: str, node: str) -> None:
        self._freeze(lab, node, on=True)

    def resume(self, lab: str, node: str) -> None:
        self._freeze(lab, node, on=False)

    def _freeze(self, lab: str, node: str, *, on: bool) -> None:
        cell = self._cell(lab)
        container = None if cell is None else self._containers(cell).get(node)
        if cell is None or container is None:
            raise has_ended(node, lab)
        cgroups.need_freezer().set(*_cgroup(cell, container), on=on)

    def paused(self, lab: str) -> list[str]:
        cell, freezer = self._cell(lab), cgroups.freezer()
        others = self.cells.paused(lab)
        if cell is None or freezer is None:
            return others
        found = self._containers(cell)
        mine = [name for name, c in found.items() if freezer.is_set(*_cgroup(cell, c))]
        return sorted({*others, *mine})

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        wanted = None if nodes is None else set(nodes)
        cell = self._cell(lab)
        found = {} if cell is None else self._containers(cell)
        meant = [c for name, c in found.items() if wanted is None or name in wanted]
        if cell is not None and wanted and not meant:
            with contextlib.suppress(NoSuchNode):
                cell.interrupt()  # it may be about to create them
        if cell is not None and meant and wanted is None:
            with contextlib.suppress(LabError):  # the end of the cell ends them, whatever hangs
                self._end(cell, meant)
        if cell is not None and meant and wanted is not None:
            with contextlib.suppress(NoSuchNode):  # a concurrent `down` was faster
                self._end(cell, meant)
                cell.interrupt()
                cell.start()  # its engine may have died
                for container in meant:
                    cell.remove(container)
        if wanted is None:
            self.cells.destroy(lab)

    @staticmethod
    def _end(cell: Cell, containers: Sequence[Container]) -> None:
        """Kill the processes of containers.

        Connections within the lab are then closed while its networks are still there.
        """
        freezer = cgroups.freezer()
        for container in containers:
            place = _cgroup(cell, container)
            if freezer is not None and freezer.is_set(*place):
                # Version 1's freezer keeps even a killed process from ending.
                with contextlib.suppress(LabError):
                    freezer.set(*place, on=False)
        cell.kill(containers)


def _image() -> str:
    from testbed.artifacts.node_image import NAME

    return NAME


def _image_of(spec: NodeSpec) -> str:
    return spec.image or _image()


def _cgroup(cell: Cell, container: Container) -> tuple[str, str]:
    """Return the place of a container's cgroup: the lab's folder, and its path below."""
    init = cell.node.init
    folder = cgroups.folder_name(init.lab, Path(init.state))
    return folder, f"{init.node}/docker/{container.id}"
