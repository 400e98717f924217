"""Makes, finds and removes virtual machines that QEMU runs.

Each runs in a cell, a namespace node of its own kind, on the same fabric that
namespace nodes are on: nothing of it is in the machine's own namespaces, and a
kill of one process ends all of it.  The keys of a machine are in its cell too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, MachineError, NoSuchLab, ServiceError
from testbed.nodes.base import Finding, Node, NodeSpec, Provider, Service
from testbed.nodes.netns.provider import NetnsProvider, mac_of, set_up

# What is for machines alone is imported where it is needed: labs of namespaces do without.

if TYPE_CHECKING:
    import socket

    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu.command import Hardware
    from testbed.nodes.ssh.node import SshNode
    from testbed.topology.model import Topology
    from testbed.vm.accel import Acceleration
    from testbed.vm.box import Built

SERVICE = "qemu"
KEY = "/run/testbed/ssh/key"
HOST_KEY = "/run/testbed/ssh/host"
BOOTED = "/run/testbed/booted"  # of the cell: the machine has answered
#: Seconds until sshd answers, on a machine that has much else to do.
BOOT_SECONDS: dict[str, float] = {"kvm": 60.0, "tcg": 240.0}
SSH_SECONDS = 10.0


class QemuProvider(Provider):
    """Nodes as virtual machines.

    ``state``, ``init`` and ``exposed`` are as :class:`NetnsProvider` has them; ``cache`` is the
    folder in which it is remembered what machines run on here, ``box`` gives the box when it is
    first needed, and ``agent`` the program that commands on a machine go through.
    """

    name = "qemu"

    def __init__(
        self,
        state: Path,
        init: Callable[[], Path],
        *,
        exposed: Callable[[], Iterable[Path]],
        cache: Path,
        box: Callable[[], Built],
        agent: Callable[[], Path],
    ) -> None:
        self._cells = NetnsProvider(state, init, exposed, kind="cell")
        self._cache = cache
        self._box = box
        self._agent = agent
        self._state = state
        self._reached: dict[int, SshNode] = {}
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None

    def probe(self) -> list[Finding]:
        from testbed.vm import accel

        try:
            found = accel.probe(self._cache)
        except MachineError as error:
            mine = Finding("qemu", ok=False, detail=error.message, fix=error.hint or "")
        else:
            mine = Finding("qemu", ok=True, detail=f"{found.kind}: {found.detail}")
        return [*self._cells.probe(), mine]

    # -- finding ----------------------------------------------------------

    def nodes(self, lab: str) -> dict[str, Node]:
        there: dict[str, Node] = {}
        for name, cell in self._cells.found(lab).items():
            # One whose maker was killed half-way is no node; `create` makes it anew.
            with contextlib.suppress(OSError, NoSuchLab):
                cell.get(BOOTED)
                there[name] = self._reach(cell)
        return there

    def labs(self) -> list[str]:
        return self._cells.labs()

    def fabric(self, lab: str) -> NetnsNode | None:
        return self._cells.fabric(lab)

    def _reach(self, cell: NetnsNode) -> SshNode:
        with self._lock:
            for pid in [pid for pid, node in self._reached.items() if not node.alive()]:
                self._reached.pop(pid).close()
            if cell.init.pid not in self._reached:
                self._reached[cell.init.pid] = self._ssh_node(cell)
            return self._reached[cell.init.pid]

    def _ssh_node(self, cell: NetnsNode) -> SshNode:
        from testbed.nodes.qemu import cell as cells
        from testbed.nodes.ssh.node import SshNode

        def connect() -> socket.socket:
            return cells.open_ssh(cell, SSH_SECONDS)

        return SshNode(
            cell.name,
            cell.digest,
            connect,
            key=Path(f"/proc/{cell.init.pid}/root{KEY}"),
            host_key=cell.get(HOST_KEY).decode(),
            agent=self._agent,
            folder=Path(f"/proc/{cell.init.pid}/root/run/testbed"),
            alive=cell.init.alive,
            lab=cell.init.lab,
            programs=self._programs,
        )

    def _programs(self) -> dict[str, str]:
        """The programs of the box, by the sha256 of their content."""
        if self._known is None:
            self._known = self._box().manifest()["programs"]
        return self._known

    # -- making -----------------------------------------------------------

    def create_fabric(self, lab: str, topology: Topology) -> None:
        self._cells.create_fabric(lab, topology)

    def create(self, lab: str, spec: NodeSpec) -> Node:
        from testbed.nodes.qemu.command import Hardware
        from testbed.vm import accel

        acceleration = accel.probe(self._cache)
        box = self._box()
        self._cells.destroy(lab, [spec.name])  # what a maker that was killed may have left
        # Its memory is the machine's own; what QEMU needs beside it is not the node's affair.
        cell = self._cells.create(lab, NodeSpec(spec.name, spec.digest, spec.cpus))
        try:
            self._boot(cell, Hardware.of(spec), acceleration, box)
            node = self._reach(cell)
            self._wait(cell, node, BOOT_SECONDS[acceleration.kind])
            cell.put(b"", BOOTED)
        except BaseException:
            with contextlib.suppress(LabError):
                self._cells.destroy(lab, [spec.name])
            raise
        return node

    @staticmethod
    def _boot(cell: NetnsNode, hardware: Hardware, acceleration: Acceleration, box: Built) -> None:
        from testbed.nodes.qemu import cell as cells
        from testbed.nodes.qemu import identity
        from testbed.nodes.qemu.command import DISK, SCRIPT, command
        from testbed.vm import accel

        keys = identity.make_keys()
        words = identity.script(cell.name, keys) + identity.link(hardware.interfaces)
        cell.put(words.encode(), SCRIPT, mode=0o600)
        cell.put(keys.client.encode(), KEY, mode=0o600)
        cell.put(keys.host_public.encode(), HOST_KEY)
        # The links between machine and fabric are no place of their own: they say nothing.
        quiet = "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
        devices = "mkdir -p /var/log/testbed; test -e /dev/kvm || mknod /dev/kvm c 10 232"
        image = f"qemu-img create -q -f qcow2 -F qcow2 -b {cell.provide(box.disk)} {DISK}"
        batch = "\n".join(cells.taps(hardware.interfaces)).encode()
        cell.run(["sh", "-ec", f"{quiet}; {devices}; {image}; ip -batch -"], input=batch)
        argv = command(
            accel.find_qemu(),
            acceleration,
            hardware,
            kernel=cell.provide(box.kernel),
            initrd=cell.provide(box.initramfs),
        )
        cell.start(Service(SERVICE, argv, digest=cell.digest))

    def _wait(self, cell: NetnsNode, node: SshNode, seconds: float) -> None:
        """Wait until the machine answers; one that has ended is not waited for."""
        from testbed.nodes.qemu import cell as cells

        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                cells.open_ssh(cell, 1.0).close()
                break
            if cell.services()[SERVICE].state == "dead":
                raise ServiceError(
                    SERVICE,
                    cell.name,
                    "the machine ended before it answered",
                    cell.logs(SERVICE) + cells.last_words(cell),
                )
            if time.monotonic() > deadline:
                raise ServiceError(
                    SERVICE,
                    cell.name,
                    f"the machine did not answer within {seconds:g} s",
                    cells.last_words(cell),
                )
            time.sleep(0.05)
        node.wait_ssh(max(10.0, deadline - time.monotonic()))

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        from testbed.nodes.qemu import cell as cells

        cell = self._cells.found(lab).get(node.name)
        if cell is None:
            raise NoSuchLab(f"node {node.name} of lab {lab} has ended")
        networks = topology.nodes[node.name].networks
        self._cells.plug_in(lab, topology, cell)
        joints = "\n".join(cells.joints(len(networks))).encode()
        cell.run(["ip", "-batch", "-"], input=joints)
        macs = [
            f"link set dev eth{index} address {mac_of(address)}"
            for index, address in enumerate(networks.values())
        ]
        set_up(topology, node, macs)

    # -- removing ---------------------------------------------------------

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        self._cells.destroy(lab, nodes)
        with self._lock:
            for pid in [pid for pid, node in self._reached.items() if not node.alive()]:
                self._reached.pop(pid).close()
