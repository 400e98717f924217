"""A cell: the namespaces that one virtual machine runs in, seen from outside.

It is a namespace node of the kind ``cell``, so the kernel ends the machine with
the cell's pid 1, and no file has to remember it.  In it are QEMU, a tap device
for each interface of the machine, and one more that leads to the machine's sshd.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from typing import TYPE_CHECKING

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
LAST_LINES = 12  # as many as an error shows
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


def open_ssh(cell: NetnsNode, timeout: float, address: str = GUEST_ADDRESS) -> socket.socket:
    """A connection to the sshd of the machine that has the address.  Raises OSError.

    A socket belongs to the network namespace that its thread was in when it was made.
    """
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            enter_network(cell.init.pid)
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
        answer.connect((address, SSH_PORT))
    except OSError:
        answer.close()
        raise
    answer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer.settimeout(None)
    return answer


def enter_network(pid: int) -> None:
    """Put the calling thread into the network namespace of a process.  Raises OSError."""
    # os.setns is Python 3.12's.
    libc = ctypes.CDLL(None, use_errno=True)
    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(space, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(space)


def last_words(cell: NetnsNode, console: str = CONSOLE) -> str:
    """The end of what the machine wrote to its console, up to a panic if there was one."""
    try:
        lines = cell.get(console).decode(errors="replace").splitlines()
    except OSError:
        return ""
    shown = [line.strip() for line in lines if line.strip()]
    panic = next((at for at, line in enumerate(shown) if PANIC in line), len(shown))
    return "\n".join(shown[: panic + 1][-LAST_LINES:])  # behind it come registers and stacks
