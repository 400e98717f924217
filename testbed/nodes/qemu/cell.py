"""A cell: the namespaces that one virtual machine runs in, seen from outside.

It is a namespace node of the kind ``cell``, so the kernel ends the machine with
the cell's pid 1, and no file has to remember it.  In it are QEMU, a tap device
for each interface of the machine, and one more that leads to the machine's sshd.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.base import has_ended
from testbed.nodes.qemu.command import CONSOLE, MGMT_TAP, tap
from testbed.nodes.qemu.identity import (
    CELL_ADDRESS,
    CELL_MAC,
    GUEST_ADDRESS,
    GUEST_MAC,
    PREFIX,
)

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode

CLONE_NEWNET = 0x40000000  # setns(2)
SSH_PORT = 22
SERVICE = "qemu"  #: of the cell
LAST_LINES = 12  # as many as an error shows
QEMU_LINES = 3  # of those, for QEMU's own
PANIC = "Kernel panic"


def taps(interfaces: int) -> list[str]:
    """Lines for ``ip -batch``: the cell's devices, before QEMU starts."""
    lines = [
        f"tuntap add dev {MGMT_TAP} mode tap",
        f"link set dev {MGMT_TAP} address {CELL_MAC} up",
        f"address add {CELL_ADDRESS}/{PREFIX} dev {MGMT_TAP}",
        # The machine need not answer for itself before it listens.
        f"neighbour add {GUEST_ADDRESS} lladdr {GUEST_MAC} dev {MGMT_TAP} nud permanent",
    ]
    for index in range(interfaces):
        bridge = f"br{index}"
        lines += [
            f"tuntap add dev {tap(index)} mode tap",
            f"link add name {bridge} type bridge mcast_snooping 0",
            f"link set dev {tap(index)} master {bridge} up",
            f"link set dev {bridge} up",
        ]
    return lines


def joints(interfaces: int) -> list[str]:
    """Lines for ``ip -batch``: each ``ethN`` of the cell is joined to the tap of that number."""
    return [f"link set dev eth{index} master br{index} up" for index in range(interfaces)]


def open_ssh(cell: NetnsNode, timeout: float) -> socket.socket:
    """A connection to the machine's sshd.  Raises OSError.

    A socket belongs to the network namespace that its thread was in when it was made.
    """
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            space = os.open(f"/proc/{cell.init.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(space)
            finally:
                os.close(space)
            made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter)  # ends with the namespace: no other code runs in it
    thread.start()
    thread.join()
    answer = made[0]
    if isinstance(answer, OSError):
        raise answer
    answer.settimeout(timeout)
    try:
        answer.connect((GUEST_ADDRESS, SSH_PORT))
    except OSError:
        answer.close()
        raise
    answer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer.settimeout(None)
    return answer


def _setns(space: int) -> None:
    # os.setns is Python 3.12's.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Pulse:
    """Whether the machine of a cell runs: its QEMU, that is, and not the cell, which outlives it.

    It is asked often, and the cell's pid 1 may be slow to answer beside a busy machine.  So
    QEMU's entry of /proc is held open: another process of that number has another entry.
    Raises NoSuchLab for a machine that has ended already.
    """

    def __init__(self, cell: NetnsNode) -> None:
        self._entry = -1
        pid = cell.services()[SERVICE].pid
        with contextlib.suppress(OSError):
            place = f"/proc/{cell.init.pid}/root/proc/{pid}"
            self._entry = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Still of that number once its entry is held: it is QEMU's.
        if self._entry < 0 or not pid or cell.services()[SERVICE].pid != pid:
            raise has_ended(cell.name, cell.init.lab, last_words(cell))

    def __call__(self) -> bool:
        try:
            os.stat("status", dir_fd=self._entry)
        except OSError:
            return False
        return True

    def __del__(self) -> None:
        if self._entry >= 0:
            os.close(self._entry)


def last_words(cell: NetnsNode) -> str:
    """What the machine wrote to its console, up to a panic if there was one; QEMU's own words."""
    words: list[str] = []
    with contextlib.suppress(OSError, LabError):
        console = _lines(cell.get(CONSOLE).decode(errors="replace"))
        panic = next((at for at, line in enumerate(console) if PANIC in line), len(console))
        words = console[: panic + 1]  # behind it come registers and stacks
    with contextlib.suppress(OSError, LabError):
        said = _lines(cell.logs(SERVICE))[-QEMU_LINES:]
        status = cell.services()[SERVICE].status
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            said = [*said[1 - QEMU_LINES :], f"QEMU: {how}"]
        words = [*words[len(said) - LAST_LINES :], *said]
    return "\n".join(words[-LAST_LINES:])


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
