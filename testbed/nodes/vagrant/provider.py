"""Create, find and remove virtual machines with Vagrant and libvirt.

All machines of a lab run in one cell, its hypervisor
(:mod:`testbed.nodes.vagrant.hypervisor`), on the same fabric as namespace nodes.  A libvirt
of this machine is not used and gets no domain, volume, network or dnsmasq of the lab, and
``down`` only has to end two processes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed import memory
from testbed.artifacts import release
from testbed.errors import LabError, MachineError, NoSuchNode, ServiceError, TestbedError
from testbed.nodes import wiring
from testbed.nodes.base import Node, NodeSpec, Setup, has_ended
from testbed.nodes.inside import LAST_LINES, Process, open_port, spoken
from testbed.nodes.netns.cells import CellProvider
from testbed.nodes.netns.provider import identities
from testbed.nodes.qemu.provider import QemuProvider
from testbed.nodes.vagrant import hypervisor
from testbed.requirement import INSTALL, Requirement

# Modules for virtual machines are imported where needed: other labs don't load them.

if TYPE_CHECKING:
    import socket

    from testbed.nodes.netns import find
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.ssh.node import SshNode
    from testbed.nodes.vagrant.client import Client
    from testbed.nodes.wiring import Difference
    from testbed.topology.model import Topology
    from testbed.vm.accel import Acceleration

READY = f"{hypervisor.FOLDER}/ready"
START_SECONDS = 30.0  # timeout for libvirtd, which needs a fifth of a second
SPARE_SECONDS = 60.0  # timeout for Vagrant itself, added to that for a machine's boot
SSH_SECONDS = 30.0
PLUGIN = "vagrant-libvirt"
PROGRAMS = {
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon",
    "virtlogd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "dnsmasq": "dnsmasq-base",
}
#: libvirtd's drivers: modules, which are separate packages in Debian 13.
DRIVERS = ("network", "qemu", "storage")
DRIVER_FILES = "*/libvirt/connection-driver/libvirt_driver_{}.so"  # below LIBRARIES
LIBRARIES = Path("/usr/lib")
#: Vagrant's lists of plugins: Debian's, and the user's own.
PLUGINS = (
    Path("/usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json"),
    hypervisor.users_home() / "plugins.json",
)

# Arguments: the machine's name, its folder, its console.  Missing parts are ignored.
REMOVE = f"""\
export LIBVIRT_DEFAULT_URI=qemu:///system
virsh destroy "$1"
virsh undefine "$1" --managed-save --snapshots-metadata --nvram
virsh vol-delete "$1.img" --pool default
rm -rf "{hypervisor.FOLDER}/.vagrant/machines/$1" "$2" "$3"
# No other machine's: node1-2 may be one beside node1.
for path in /sys/class/net/"$1".[0-9] /sys/class/net/"$1"-[0-9]; do
    test -e "$path" && ip link delete "${{path##*/}}"
done
:
"""


@dataclass(eq=False)
class _Run:
    """A running ``vagrant up``."""

    client: Client
    names: Sequence[str]
    done: threading.Event = field(default_factory=threading.Event)


class VagrantProvider(CellProvider):
    """Nodes as machines of Vagrant."""

    name = "vagrant"
    files = "the box, whose kernel boots it"
    mtu_max = 1500  # the network device of a machine has no more
    kind: ClassVar[find.Kind] = "hypervisor"
    kernel = QemuProvider.kernel
    programs: ClassVar[Mapping[str, str]] = {**QemuProvider.programs, **PROGRAMS}
    takes = QemuProvider.takes
    processes = (*QemuProvider.processes, "libvirtd", "virtlogd", "dnsmasq", "vagrant")
    folders = ("/var/lib/libvirt",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._reached: dict[tuple[int, str, int], SshNode] = {}
        self._making = threading.Lock()
        self._runs: list[_Run] = []
        #: One at a time: two that find no network for their machines both define it.
        self._vagrant = threading.Lock()

    def exposed(self) -> Iterable[Path]:
        return [*super().exposed(), hypervisor.users_home()]

    def probe(self) -> list[Requirement]:
        from testbed.vm import box

        missing = lacking()
        packages = tuple(sorted(set(release.packages(missing.values()))))
        programs = Requirement(
            "vagrant",
            ok=not missing,
            detail=f"no {', '.join(missing)}" if missing else "Vagrant and libvirt are installed",
            fix=f"{INSTALL} {' '.join(packages)}" if packages else "",
            needed_by=(self.name,),
            packages=packages,
        )
        machines = box.probe(self.name, self._store.folder)
        return [*self.cells.probe(), *machines, programs, plugin()]

    # -- finding ----------------------------------------------------------

    def hypervisor(self, lab: str) -> NetnsNode | None:
        """Return the hypervisor of a lab; None if it is missing or incomplete."""
        cell = self.cells.found(lab).get(hypervisor.NAME)
        if cell is not None:
            with contextlib.suppress(OSError, NoSuchNode):
                cell.get(READY)
                return cell
        return None

    def nodes(self, lab: str) -> dict[str, Node]:
        return dict(self._machines(lab))

    def _machines(self, lab: str) -> dict[str, SshNode]:
        """Return :meth:`nodes` with their precise type."""
        cell = self.hypervisor(lab)
        if cell is None:
            return {}
        there: dict[str, SshNode] = {}
        try:
            machines = hypervisor.read(cell)["machines"]
        except (OSError, NoSuchNode):  # it has just ended
            return {}
        for name, machine in machines.items():
            # A machine that Vagrant has not finished is no node; `create` replaces it.
            with contextlib.suppress(OSError, NoSuchNode):
                address = cell.get(machine["address"]).decode()
                pid = running(cell, name)
                if pid:
                    there[name] = self._reach(cell, name, machine["digest"], address, pid)
        return there

    def _reach(self, cell: NetnsNode, name: str, digest: str, address: str, pid: int) -> SshNode:
        from testbed.nodes.ssh.node import SshNode

        folder = hypervisor.Machine(name, digest, 0, 0, 0).folder

        def connect() -> socket.socket:
            return open_port(cell.init.pid, address, SSH_SECONDS)

        with self._lock:
            self._forget_ended()
            key = (cell.init.pid, name, pid)
            if key not in self._reached:
                process = Process(cell.init.pid, pid)
                inside = Path(cell.socket(folder))
                self._reached[key] = SshNode(
                    name,
                    digest,
                    connect,
                    key=inside / "key",
                    host_key=cell.get(f"{folder}/host").decode(),
                    agent=self.agent,
                    folder=inside,
                    alive=process.alive,
                    last_words=lambda: last_words(cell, name),
                    lab=cell.init.lab,
                    programs=lambda: dict(self.box().manifest()["programs"]),
                )
            return self._reached[key]

    def _forget_ended(self) -> None:
        for key in [key for key, node in self._reached.items() if not node.alive()]:
            self._reached.pop(key).close()

    def ended(self, lab: str) -> dict[str, str]:
        cell = self.hypervisor(lab)
        said: dict[str, str] = {}
        if cell is not None:
            with contextlib.suppress(OSError, NoSuchNode):
                for name, machine in hypervisor.read(cell)["machines"].items():
                    # Vagrant had finished it.
                    if Path(cell.socket(machine["address"])).exists() and not running(cell, name):
                        said[name] = last_words(cell, name)
        return said

    # -- making -----------------------------------------------------------

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        from testbed.nodes.qemu.command import Hardware

        require_plugin()
        there = self.nodes(lab)
        memory.require([Hardware.of(spec).memory for spec in specs if spec.name not in there])
        self._acceleration()
        self.box()

    def make_hypervisor(self, lab: str) -> NetnsNode:
        """Return the hypervisor of a lab; create it if necessary."""
        with self._making:
            cell = self.hypervisor(lab)
            if cell is None:
                require_plugin()
                box, acceleration = self.box(), self._acceleration()
                self.cells.destroy(lab, [hypervisor.NAME])  # a killed creator may have left it
                cell = self.cells.create_one(lab, NodeSpec(hypervisor.NAME, "-"))
                hypervisor.make(cell, box, acceleration, START_SECONDS)
                cell.put(b"", READY)
            return cell

    def _acceleration(self) -> Acceleration:
        from testbed.vm import accel

        return accel.probe(self._store.folder)

    def announce(self, lab: str, specs: Sequence[NodeSpec]) -> NetnsNode:
        """Describe machines to Vagrant, with new keys; replace descriptions of the same names."""
        cell = self.make_hypervisor(lab)
        with self._making:
            described = hypervisor.read(cell)
            for spec in specs:
                machine = hypervisor.Machine.of(spec)
                if spec.name in described["machines"]:
                    self._remove(cell, spec.name)
                hypervisor.introduce(cell, machine)
                described["machines"][spec.name] = machine.described()
            hypervisor.write(cell, described)
        return cell

    def together(self, node: str) -> bool:
        del node
        return True  # one Vagrant takes long to start, and six take longer

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        cell = self.announce(lab, specs)
        names = [spec.name for spec in specs]
        self._bring_up(cell, names)
        there = self._machines(lab)
        for name in names:
            if name not in there:
                raise ServiceError(
                    "vagrant",
                    name,
                    "the machine ended right after its start",
                    last_words(cell, name),
                )
            there[name].wait_ssh(SSH_SECONDS)
        return {name: there[name] for name in names}

    def _bring_up(self, cell: NetnsNode, names: Sequence[str]) -> None:
        from testbed.nodes.qemu.machine import BOOT_SECONDS
        from testbed.nodes.vagrant.client import Client

        seen: set[str] = set()

        def look() -> None:
            now = {name for name in names if running(cell, name)}
            for name in sorted(seen - now):
                raise ServiceError(
                    "vagrant", name, "the machine ended before it was ready", last_words(cell, name)
                )
            seen.update(now)

        run = _Run(Client(cell), names)
        with self._lock:
            self._runs.append(run)
        try:
            seconds = BOOT_SECONDS[self._acceleration().kind] + SPARE_SECONDS
            with self._vagrant:
                run.client.bring_up(names, seconds, look)
        except TestbedError as error:
            raise self._explained(cell, names, error) from error
        finally:
            with self._lock:
                self._runs.remove(run)
            run.done.set()

    def _explained(
        self, cell: NetnsNode, names: Sequence[str], error: TestbedError
    ) -> TestbedError:
        """Return ``error`` with the state and the last output of the machines added."""
        from testbed.nodes.vagrant.client import Client

        if isinstance(error, ServiceError | NoSuchNode) or not cell.init.alive():
            return error
        words = [error.message]
        with contextlib.suppress(LabError):
            states = Client(cell).states()
            words.append(", ".join(f"{name}: {states.get(name)}" for name in names))
        for name in names:
            said = last_words(cell, name)
            if said:
                words.append(f"the console of {name}:\n{said}")
        return LabError("\n".join(words), hint=error.hint)

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        cell = self.hypervisor(lab)
        if cell is None:
            raise has_ended(node.name, lab)
        name, ports = node.name, topology.nodes[node.name].ports
        self.cells.plug_in(
            lab,
            topology,
            cell,
            machine=name,
            inside=lambda index: hypervisor.joint(name, index),
        )
        self._join_ports(cell, name, range(len(ports)))
        wiring.set_up(topology, node, identities(topology, node.name))

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        cell = self.hypervisor(lab)
        if cell is None:
            raise has_ended(node.name, lab)
        name = node.name
        again = self.cells.plug_in_again(
            lab,
            topology,
            cell,
            differences,
            machine=name,
            inside=lambda index: hypervisor.joint(name, index),
        )
        if again:
            self._join_ports(cell, name, again)
        wiring.restore(topology, node, differences)

    @staticmethod
    def _join_ports(cell: NetnsNode, name: str, indexes: Iterable[int]) -> None:
        """Join each link with one of these numbers to the machine's bridge."""
        joints = [
            f"link set dev {hypervisor.joint(name, index)} "
            f"master {hypervisor.bridge(name, index)} up"
            for index in indexes
        ]
        cell.run(["ip", "-batch", "-"], input="\n".join(joints).encode())

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        wanted = None if nodes is None else set(nodes)
        cell = self.hypervisor(lab)
        if cell is not None:
            self._end_runs(cell, wanted)
        if wanted is None:
            self.cells.destroy(lab)
        elif cell is not None:
            with self._making:
                described = hypervisor.read(cell)
                for name in sorted(wanted & set(described["machines"])):
                    self._remove(cell, name)
                    del described["machines"][name]
                hypervisor.write(cell, described)
        with self._lock:
            self._forget_ended()

    def _end_runs(self, cell: NetnsNode, names: set[str] | None) -> None:
        with self._lock:
            meant = [
                run
                for run in self._runs
                if run.client.cell.init == cell.init and (names is None or names & set(run.names))
            ]
        for run in meant:
            run.client.end()
        for run in meant:
            run.done.wait()

    def _remove(self, cell: NetnsNode, name: str) -> None:
        folder = hypervisor.Machine(name, "", 0, 0, 0).folder
        argv = ["sh", "-c", REMOVE, "sh", name, folder, hypervisor.console(name)]
        said = cell.run(argv, check=False).stderr
        if running(cell, name):
            raise LabError(f"the machine {name} did not end\n{said}")


def running(cell: NetnsNode, name: str) -> int:
    """Return the pid of a machine's QEMU in the hypervisor's pid namespace; 0 if not running."""
    root = cell.socket("")
    with contextlib.suppress(OSError, ValueError):
        # libvirt's pid file may be stale, and the pid used by another process.
        pid = int(Path(f"{root}/run/libvirt/qemu/{name}.pid").read_text(encoding="ascii"))
        words = Path(f"{root}/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.startswith(f"guest={name},".encode()) for word in words):
            return pid
    return 0


def last_words(cell: NetnsNode, name: str) -> str:
    """Return the last lines of a machine's console."""
    with contextlib.suppress(OSError, NoSuchNode):
        return "\n".join(spoken(cell.get(hypervisor.console(name)))[-LAST_LINES:])
    return ""


def lacking() -> dict[str, str]:
    """Return programs and drivers missing on this machine, each with its Debian 12 package."""
    from testbed.process import which

    missing = {name: of for name, of in PROGRAMS.items() if which(name) is None}
    for driver in DRIVERS:
        if not any(LIBRARIES.glob(DRIVER_FILES.format(driver))):
            missing[f"libvirt's driver {driver}"] = PROGRAMS["libvirtd"]
    return missing


def plugin() -> Requirement:
    """Check that Vagrant has the plugin for libvirt."""
    there = [path for path in PLUGINS if PLUGIN in _text(path)]
    return Requirement(
        PLUGIN,
        ok=bool(there),
        detail=str(there[0]) if there else "Vagrant has no plugin for libvirt",
        fix=f"{INSTALL} {PLUGIN}, or vagrant plugin install {PLUGIN}",
        needed_by=("vagrant",),
        packages=(PLUGIN,),
    )


def require_plugin() -> None:
    """Raise MachineError unless Vagrant has the plugin."""
    found = plugin()
    if not found.ok:
        raise MachineError(found.detail, hint=found.fix)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
