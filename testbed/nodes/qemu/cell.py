"""A cell: the namespaces in which one virtual machine runs.

It is a namespace node of the kind ``cell``, so the kernel ends the machine with
the cell's pid 1, and no record on disk is needed.  It holds QEMU, a tap device
for each interface of the machine, and one more for the machine's sshd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.base import has_ended
from testbed.nodes.inside import LAST_LINES, Process, lines, open_port, spoken
from testbed.nodes.qemu.command import CONSOLE, MGMT_TAP, tap
from testbed.nodes.qemu.identity import (
    CELL_ADDRESS,
    CELL_MAC,
    GUEST_ADDRESS,
    GUEST_MAC,
    PREFIX,
)

if TYPE_CHECKING:
    import socket

    from testbed.nodes.netns.node import NetnsNode

SERVICE = "qemu"  #: service of the cell
QEMU_LINES = 3  # of QEMU's own output, in last_words()


def taps(interfaces: int) -> list[str]:
    """Return ``ip -batch`` lines that create the cell's devices, before QEMU starts."""
    batch = [
        f"tuntap add dev {MGMT_TAP} mode tap",
        f"link set dev {MGMT_TAP} address {CELL_MAC} up",
        f"address add {CELL_ADDRESS}/{PREFIX} dev {MGMT_TAP}",
        # The machine does not have to answer ARP before its sshd listens.
        f"neighbour add {GUEST_ADDRESS} lladdr {GUEST_MAC} dev {MGMT_TAP} nud permanent",
    ]
    for index in range(interfaces):
        bridge = f"br{index}"
        batch += [
            f"tuntap add dev {tap(index)} mode tap",
            f"link add name {bridge} type bridge mcast_snooping 0",
            f"link set dev {tap(index)} master {bridge} up",
            f"link set dev {bridge} up",
        ]
    return batch


def joint(index: int) -> str:
    """Return the name of a link of the cell to the fabric, whatever the machine calls its own."""
    return f"eth{index}"


def joints(interfaces: int) -> list[str]:
    """Return ``ip -batch`` lines that join each link to the fabric to the tap of that number."""
    return [f"link set dev {joint(index)} master br{index} up" for index in range(interfaces)]


def open_ssh(cell: NetnsNode, timeout: float) -> socket.socket:
    """Connect to the machine's sshd.  Raises OSError."""
    return open_port(cell.init.pid, GUEST_ADDRESS, timeout)


def pulse(cell: NetnsNode) -> Callable[[], bool]:
    """Return a function that tells whether the machine of a cell runs.

    It looks at the QEMU process, because the cell outlives QEMU.  It is called often, and the
    cell's pid 1 may answer slowly while the machine is busy, so only this call asks pid 1.
    Raises NoSuchNode if the machine has already ended.
    """
    pid = cell.services()[SERVICE].pid
    with contextlib.suppress(OSError):
        held = Process(cell.init.pid, pid)
        # The pid is the same after the entry was opened, so the entry is QEMU's.
        if pid and cell.services()[SERVICE].pid == pid:
            return held.alive
    raise has_ended(cell.name, cell.init.lab, last_words(cell))


def last_words(cell: NetnsNode) -> str:
    """Return the end of the machine's console, up to a panic if any, and QEMU's last output."""
    words: list[str] = []
    with contextlib.suppress(OSError, LabError):
        words = spoken(cell.get(CONSOLE))
    with contextlib.suppress(OSError, LabError):
        said = lines(cell.logs(SERVICE))[-QEMU_LINES:]
        status = cell.services()[SERVICE].status
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            said = [*said[1 - QEMU_LINES :], f"QEMU: {how}"]
        words = [*words[len(said) - LAST_LINES :], *said]
    return "\n".join(words[-LAST_LINES:])
