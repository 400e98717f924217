"""Create, find and remove virtual machines run by QEMU.

Each runs in a cell, a separate kind of namespace node, on the same fabric as
namespace nodes.  Nothing of it is in this machine's own namespaces, and killing
one process ends all of it.  The keys of a machine are stored in its cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed import memory
from testbed.errors import LabError, NoSuchNode
from testbed.limits import Takes
from testbed.nodes import wiring
from testbed.nodes.base import Ahead, Node, NodeSpec, OneByOne, Setup, Snapshot, has_ended
from testbed.nodes.netns.cells import CellProvider
from testbed.nodes.netns.provider import identities

# Modules for virtual machines are imported where needed: labs of namespaces don't load them.

if TYPE_CHECKING:
    from testbed.artifacts.source import Runner
    from testbed.nodes.netns import find
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu import machine
    from testbed.nodes.qemu.command import Hardware
    from testbed.nodes.ssh.node import SshNode
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology

PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}
BOOTED = "/run/testbed/booted"  # in the cell: the machine has answered


class QemuProvider(OneByOne, CellProvider):
    """Nodes as virtual machines."""

    name = "qemu"
    files = "the box, whose kernel boots it"
    kind: ClassVar[find.Kind] = "cell"
    kernel = ("tun",)
    programs = PROGRAMS
    processes = ("qemu-system",)
    takes = Takes(tasks=10)  # pid 1 of its cell, and QEMU with its threads
    #: 30 free slots of the q35 machine, less disk, random numbers and the link to its cell.
    networks_max = 27
    mtu_max = 1500  # the network device of a machine has no more
    snapshot_parts = ("memory", "disk")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._reached: dict[int, SshNode] = {}
        self._made_from: machine.Parts | None = None

    def probe(self) -> list[Requirement]:
        from testbed.vm import box

        return [*self.cells.probe(), *box.probe(self.name, self._store.folder)]

    @classmethod
    def summary(cls, cache: Path, *, full: bool, runner: Runner) -> Iterable[Requirement]:
        from testbed.vm import box

        yield box.summary(cls.name)
        if full:
            yield box.kvm(cls.name, cache, runner)

    # -- finding ----------------------------------------------------------

    def nodes(self, lab: str) -> dict[str, Node]:
        there: dict[str, Node] = {}
        for name, cell in self.cells.found(lab).items():
            # A half-created machine, whose creator was killed, is no node: `create` replaces it.
            with contextlib.suppress(OSError, NoSuchNode):
                cell.get(BOOTED)
                node = self._reach(cell)
                if node.alive():
                    there[name] = node
        return there

    def _reach(self, cell: NetnsNode) -> SshNode:
        from testbed.nodes.qemu import machine

        with self._lock:
            self._forget_ended()
            if cell.init.pid not in self._reached:
                self._reached[cell.init.pid] = machine.reach(
                    cell, self.agent, lambda: self.parts().programs()
                )
            return self._reached[cell.init.pid]

    def _forget_ended(self) -> None:
        for pid in [pid for pid, node in self._reached.items() if not node.alive()]:
            self._reached.pop(pid).close()

    def ended(self, lab: str) -> dict[str, str]:
        from testbed.nodes.qemu import cell as cells

        said = {}
        for name, cell in self.cells.found(lab).items():
            with contextlib.suppress(OSError, NoSuchNode):
                cell.get(BOOTED)
                if cell.services()[cells.SERVICE].state == "dead":
                    said[name] = cells.last_words(cell)
        return said

    # -- making -----------------------------------------------------------

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        from testbed.nodes.qemu.command import Hardware

        there = self.nodes(lab)  # a recreated machine reuses its memory
        memory.require([Hardware.of(spec).memory for spec in specs if spec.name not in there])
        wanted = [(Hardware.of(spec), spec.ahead() if spec.ahead else None) for spec in specs]
        for hardware, ahead in dict.fromkeys(wanted):
            self._snapshot(lab, hardware, ahead)

    def _snapshot(self, lab: str, hardware: Hardware, ahead: Ahead | None) -> Path:
        """Return the snapshot that a node wakes from, with the setup of ``ahead`` done if any."""
        from testbed.nodes.qemu.snapshot import NAME, Ready, Snapshot

        base = Snapshot(self.parts(), hardware, self.cells, lab)
        folder = self._store.keep(NAME, base)
        return self._store.keep(NAME, Ready(base, ahead, folder)) if ahead else folder

    def fits(self, folder: Path) -> bool:
        """Tell whether machines created now would wake from the snapshot in a folder."""
        from testbed.nodes.qemu.snapshot import Snapshot, base_of, hardware_of

        hardware = hardware_of(folder)
        if hardware is None:
            return False
        return base_of(folder) == Snapshot(self.parts(), hardware, self.cells, "").key()

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        from testbed.nodes.qemu import machine
        from testbed.nodes.qemu.command import Hardware

        parts, hardware = self.parts(), Hardware.of(spec)
        snapshot = self._snapshot(lab, hardware, spec.ahead() if spec.ahead else None)
        self.cells.destroy(lab, [spec.name])  # a killed creator may have left it
        # The memory size limits the machine itself; QEMU's own memory does not count for the node.
        cell = self.cells.create_one(lab, NodeSpec(spec.name, spec.digest, spec.cpus))
        try:
            node = machine.wake(cell, hardware, parts, snapshot)
            cell.put(b"", BOOTED)
        except BaseException:
            with contextlib.suppress(LabError):
                self.cells.destroy(lab, [spec.name])
            raise
        with self._lock:
            self._reached[cell.init.pid] = node
        return node

    def parts(self) -> machine.Parts:
        """Return the parts that machines are made from; build the box first if necessary."""
        from testbed.nodes.qemu import machine
        from testbed.vm import accel

        if self._made_from is None:
            self._made_from = machine.Parts(
                accel.find_qemu(),
                accel.probe(self._store.folder),
                self.box(),
                self.agent,
            )
        return self._made_from

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        from testbed.nodes.qemu import cell as cells

        cell = self.cells.found(lab).get(node.name)
        if cell is None:
            raise has_ended(node.name, lab)
        self.cells.plug_in(lab, topology, cell, inside=cells.joint)
        joints = "\n".join(cells.joints(len(topology.nodes[node.name].ports))).encode()
        cell.run(["ip", "-batch", "-"], input=joints)
        wiring.set_up(topology, node, identities(topology, node.name))

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        from testbed.nodes.qemu import cell as cells

        cell = self.cells.found(lab).get(node.name)
        if cell is None:
            raise has_ended(node.name, lab)
        if self.cells.plug_in_again(lab, topology, cell, differences, inside=cells.joint):
            joints = cells.joints(len(topology.nodes[node.name].ports))
            cell.run(["ip", "-batch", "-"], input="\n".join(joints).encode())
        wiring.restore(topology, node, differences)

    # -- snapshots --------------------------------------------------------

    def snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        from testbed.nodes.qemu import states

        cells = self._running(lab, nodes)
        memory.require([states.memory_of(cell) for cell in cells.values()])  # images are in it
        states.save(cells, name)

    def revert(self, lab: str, nodes: Collection[str], name: str) -> None:
        from testbed.nodes.qemu import states

        cells = self._running(lab, nodes)
        states.load(cells, name)
        for cell in cells.values():
            states.refresh(self._reach(cell))

    def drop_snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        from testbed.nodes.qemu import states

        states.drop(self._running(lab, nodes), name)

    def recover(self, lab: str, nodes: Collection[str]) -> list[str]:
        from testbed.nodes.qemu import states

        there = self.cells.found(lab)  # a name may be that of another provider's node
        cells = {name: there[name] for name in nodes if name in there}
        continued = [name for name, cell in cells.items() if states.proceed(cell)]
        for name in continued:
            states.refresh(self._reach(cells[name]))
        return continued

    def snapshots(self, lab: str) -> dict[str, list[Snapshot]]:
        from testbed.nodes.qemu import states

        cells = self._running(lab, self.nodes(lab))
        return {name: states.of_machine(cell) for name, cell in cells.items()}

    def _running(self, lab: str, nodes: Collection[str]) -> dict[str, NetnsNode]:
        """Return the cells of running machines."""
        cells = self.cells.found(lab)
        for name in nodes:
            if name not in cells:
                raise has_ended(name, lab)
        return {name: cells[name] for name in nodes}

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        self.cells.destroy(lab, nodes)
        with self._lock:
            self._forget_ended()
