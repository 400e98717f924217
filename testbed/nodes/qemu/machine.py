"""Boot a virtual machine in a cell, or wake one there, and wait until it answers."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, ServiceError
from testbed.nodes.base import Service
from testbed.nodes.qemu import cell as cells
from testbed.nodes.qemu import identity, qmp
from testbed.nodes.qemu.cell import SERVICE
from testbed.nodes.qemu.command import DISK, FOLDER, MONITOR, SCRIPT, Hardware, command
from testbed.nodes.ssh.node import SshNode

if TYPE_CHECKING:
    import socket

    from testbed.nodes.netns.node import NetnsNode
    from testbed.vm.accel import Acceleration, Kind
    from testbed.vm.box import Built

KEYS = "/run/testbed/ssh"  # in the cell
KEY, HOST_KEY = "key", "host"
MEMORY, OVERLAY = "memory", "disk.qcow2"  # of a snapshot
SAVED, INCOMING = f"{FOLDER}/memory", f"{FOLDER}/incoming"  # in the cell
SAVE_SECONDS = 120.0
SSH_SECONDS = 10.0
MONITOR_SECONDS = 30.0  # timeout for QEMU's monitor, which QEMU opens first
ENDING = 1.0  # seconds between QEMU's last output and its exit
#: Timeout in seconds until sshd answers, on a busy machine.
BOOT_SECONDS: dict[Kind, float] = {"kvm": 60.0, "tcg": 240.0}
POLL = 0.05

# On SIGHUP sshd reads its key again; it writes a new pid file when it has done so.
AWAKE = """\
read sshd < /run/sshd.pid
rm /run/sshd.pid
kill -HUP "$sshd"
hostname "$NAME"
date -s "@$NOW" > /dev/null
until test -s /run/sshd.pid; do sleep 0.05; done
"""

# Arguments: the base disk, and the machine's disk on top of it.  Input: lines for `ip -batch`.
# The links between machine and fabric must send nothing themselves: no IPv6 in the cell.
PREPARE = """\
sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
mkdir -p /var/log/testbed
test -e /dev/kvm || mknod /dev/kvm c 10 232
qemu-img create -q -f qcow2 -F qcow2 -b "$1" "$2"
ip -batch -
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that machines are made from on this machine."""

    qemu: str
    acceleration: Acceleration
    box: Built
    agent: Callable[[], Path]

    def programs(self) -> dict[str, str]:
        """Return the programs of the box, by the sha256 of their content."""
        found: dict[str, str] = self.box.manifest()["programs"]
        return found

    def line(
        self, cell: NetnsNode, hardware: Hardware, more: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Return the command that runs a machine in a cell."""
        return command(
            self.qemu,
            self.acceleration,
            hardware,
            kernel=cell.provide(self.box.kernel),
            initrd=cell.provide(self.box.initramfs),
            more=more,
        )


def reach(
    cell: NetnsNode, agent: Callable[[], Path], programs: Callable[[], dict[str, str]]
) -> SshNode:
    """Return the machine of a cell as a node, reached with the keys stored in the cell."""

    def connect() -> socket.socket:
        return cells.open_ssh(cell, SSH_SECONDS)

    inside = Path(f"/proc/{cell.init.pid}/root{KEYS}")
    return SshNode(
        cell.name,
        cell.digest,
        connect,
        key=inside / KEY,
        host_key=cell.get(f"{KEYS}/{HOST_KEY}").decode(),
        agent=agent,
        folder=inside,
        alive=cells.pulse(cell),
        last_words=lambda: cells.last_words(cell),
        lab=cell.init.lab,
        programs=programs,
    )


def boot(
    cell: NetnsNode,
    hardware: Hardware,
    parts: Parts,
    waiting: Callable[[float], None] = lambda _seconds: None,
) -> SshNode:
    """Boot a machine and wait until it answers.

    ``waiting`` is called often meanwhile, with the seconds that have passed.
    """
    keys = identity.make_keys()
    words = identity.script(cell.name, keys) + identity.seed() + identity.link(hardware.interfaces)
    _prepare(cell, hardware, parts.box.disk, words)
    give_keys(cell, keys.client, keys.host_public)
    cell.start(Service(SERVICE, parts.line(cell, hardware), digest=cell.digest))
    return _answering(cell, parts, waiting)


def wake(cell: NetnsNode, hardware: Hardware, parts: Parts, snapshot: Path) -> SshNode:
    """Resume a saved machine in a cell with a new identity; return when it answers with that."""
    _prepare(cell, hardware, snapshot / OVERLAY, "")
    give_keys(cell, *(snapshot.joinpath(name).read_text("utf-8") for name in (KEY, HOST_KEY)))
    # QEMU passes its command to a shell, so the file's own name is not part of it.
    cell.run(["ln", "-sfn", cell.provide(snapshot / MEMORY), INCOMING])
    incoming = ("-incoming", f"exec:cat {INCOMING}")
    cell.start(Service(SERVICE, parts.line(cell, hardware, incoming), digest=cell.digest))
    with monitor_of(cell) as monitor:
        monitor.wait_state("paused", BOOT_SECONDS[parts.acceleration.kind])
        monitor.do("cont")
    keys = identity.make_keys()
    node = _answering(cell, parts)
    # All machines that wake from the snapshot share its memory, the random number state included;
    # Debian's kernel lacks the driver for a "VM generation ID", which would detect that.
    node.stir(secrets.token_bytes(identity.SEED))
    env = {**identity.values(cell.name, keys), "NOW": str(time.time())}
    node.run(["sh", "-ec", identity.SCRIPT + AWAKE], env=env)
    give_keys(cell, keys.client, keys.host_public)
    node.shows(keys.host_public)  # the current login stays valid: it is the same machine
    return node


def give_keys(cell: NetnsNode, client: str, host_public: str) -> None:
    """Store in the cell the keys for logging in to its machine."""
    cell.put(client.encode(), f"{KEYS}/{KEY}", mode=0o600)
    cell.put(host_public.encode(), f"{KEYS}/{HOST_KEY}")


def _prepare(cell: NetnsNode, hardware: Hardware, disk: Path, script: str) -> None:
    cell.put(script.encode() or b"\n", SCRIPT, mode=0o600)
    batch = "\n".join(cells.taps(hardware.interfaces)).encode()
    cell.run(["sh", "-ec", PREPARE, "sh", cell.provide(disk), DISK], input=batch)


@contextlib.contextmanager
def monitor_of(cell: NetnsNode) -> Iterator[qmp.Monitor]:
    """Open QEMU's monitor as soon as it answers.

    If QEMU ends before, its output is in the error.
    """
    deadline = time.monotonic() + MONITOR_SECONDS
    while True:
        try:
            monitor = qmp.Monitor(cell.socket(MONITOR))
            break
        except LabError:  # the socket is missing, or nothing listens on it yet or any more
            still_runs(cell)
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL / 5)
    try:
        with monitor:
            yield monitor
    except LabError:
        deadline = time.monotonic() + ENDING
        while time.monotonic() < deadline:
            still_runs(cell)
            time.sleep(POLL)
        raise


def save(cell: NetnsNode, node: SshNode, into: Path, *, onto: Path | None = None) -> None:
    """Save a machine and its keys to the folder ``into`` and end the machine.

    ``onto`` is a new base disk: the machine's disk is saved as a difference to it, instead of
    to the base that the machine woke with.
    """
    node.run(["sync"])
    node.close()
    with monitor_of(cell) as monitor:
        monitor.save(SAVED, SAVE_SECONDS)
    cell.stop(SERVICE)  # QEMU writes all data of the disk to the file before it exits
    into.chmod(0o700)  # the memory contains keys, too
    if onto is not None:
        below = cell.provide(onto)
        cell.run(["qemu-img", "rebase", "-f", "qcow2", "-F", "qcow2", "-b", below, DISK])
    shutil.copyfile(cell.socket(SAVED), into / MEMORY)
    shutil.copyfile(cell.socket(DISK), into / OVERLAY)
    for name in (KEY, HOST_KEY):
        (into / name).write_bytes(cell.get(f"{KEYS}/{name}"))
        (into / name).chmod(0o600)


def _answering(
    cell: NetnsNode, parts: Parts, waiting: Callable[[float], None] = lambda _seconds: None
) -> SshNode:
    """Wait until the machine answers and return it; fail as soon as it ends."""
    seconds = BOOT_SECONDS[parts.acceleration.kind]
    begin = time.monotonic()
    deadline = begin + seconds
    while True:
        with contextlib.suppress(OSError):
            cells.open_ssh(cell, 1.0).close()
            break
        still_runs(cell)
        if time.monotonic() > deadline:
            what = f"the machine did not answer within {seconds:g} s"
            raise ServiceError(SERVICE, cell.name, what, cells.last_words(cell))
        waiting(time.monotonic() - begin)
        time.sleep(POLL)
    node = reach(cell, parts.agent, parts.programs)
    node.wait_ssh(max(SSH_SECONDS, deadline - time.monotonic()))
    return node


def still_runs(cell: NetnsNode) -> None:
    """Raise ServiceError, with the end of the console, if the machine has ended."""
    if cell.services()[SERVICE].state == "dead":
        what = "ended together with the machine"
        raise ServiceError(SERVICE, cell.name, what, cells.last_words(cell))
