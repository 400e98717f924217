"""Access to a namespace node from outside: its network, its processes, a console.

Used for nodes that virtual machines run in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading

CLONE_NEWNET = 0x40000000  # setns(2)
SSH_PORT = 22
CHUNK = 1 << 16  # bytes copied at once
LAST_LINES = 12  # as many as an error shows
PANIC = "Kernel panic"


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


def open_port(pid: int, address: str, timeout: float, port: int = SSH_PORT) -> socket.socket:
    """Connect to a port in the network namespace of a process.  Raises OSError.

    A socket belongs to the network namespace of the thread that creates it.
    """
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            enter_network(pid)
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
        answer.connect((address, port))
    except OSError:
        answer.close()
        raise
    answer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer.settimeout(None)
    return answer


def exchange(far: socket.socket) -> int:
    """Copy between a connection and standard input and output until the far side closes it.

    Return the exit status 0.  Raises OSError.
    """
    threading.Thread(target=_send, args=(far,), daemon=True).start()
    while data := far.recv(CHUNK):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
    return 0


def _send(far: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other thread reports the end
        while data := os.read(0, CHUNK):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)


class Process:
    """A process of a node, by its pid in the node's pid namespace.

    Its entry in the node's /proc is kept open, so that a later process with the same pid
    is not mistaken for it.  Raises OSError if there is no such process.
    """

    def __init__(self, init: int, pid: int) -> None:
        self._entry = -1
        place = f"/proc/{init}/root/proc/{pid}"
        self._entry = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def alive(self) -> bool:
        """Tell whether the process runs, at the cost of one system call."""
        try:
            os.stat("status", dir_fd=self._entry)
        except OSError:
            return False
        return True

    def __del__(self) -> None:
        if self._entry >= 0:
            os.close(self._entry)


def spoken(console: bytes) -> list[str]:
    """Return the lines that a machine wrote to its console, up to a kernel panic if any."""
    said = lines(console.decode(errors="replace"))
    panic = next((at for at, line in enumerate(said) if PANIC in line), len(said))
    return said[: panic + 1]  # registers and stacks follow


def lines(text: str) -> list[str]:
    """Return the non-empty lines of a text."""
    return [line.strip() for line in text.splitlines() if line.strip()]
