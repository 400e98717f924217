"""Connections to ports of nodes and containers, by a program on the node for each of them.

Nothing of this machine or of the lab is changed: no rule, no route, and nothing listens on a node.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.errors import MachineError, TestbedError, UsageError
from testbed.limits import EXHAUSTED
from testbed.roles.container import enter

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer
    from testbed.nodes.base import Node

LOOPBACK = "127.0.0.1"
PYTHON = "python3"
PAUSE = 1.0  # seconds until a client is accepted that had no file descriptor
#: Arguments: a port, and addresses that are tried in order.  Copies both ways; one way may end
#: before the other.
CONNECT = """\
import os, socket, sys, threading
port, *hosts = sys.argv[1:]
for host in hosts:
    try:
        far = socket.create_connection((host, int(port)), 10)
        break
    except OSError as error:
        reason = error.strerror or str(error)
else:
    sys.exit(f"{reason}")
far.settimeout(None)
def send():
    try:
        while data := os.read(0, 1 << 16):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)
    except OSError:
        pass
threading.Thread(target=send, daemon=True).start()
try:
    while data := far.recv(1 << 16):
        while data:
            data = data[os.write(1, data):]
except OSError:
    pass
os._exit(0)
"""
TARGET = re.compile(
    r"(?P<place>[^:\[\]]+):(?:(?P<host>[^:\[\]]+|\[[^\[\]]+\]):)?(?P<port>[0-9]{1,5})"
)
LOCAL = re.compile(r"(?:(?P<host>[^:\[\]]+|\[[^\[\]]+\]):)?(?P<port>[0-9]{1,5})")
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Target:
    """A port: of NODE or NODE/CONTAINER itself, or of a host that it reaches."""

    text: str
    place: str
    host: str
    port: int


def target(text: str) -> Target:
    """Return the target of NODE[/CONTAINER]:[HOST:]PORT.  Raises UsageError.

    >>> target("node1:80").port, target("node1/web:[fd00::1]:80").host
    (80, 'fd00::1')
    """
    found = TARGET.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= MAX_PORT:
        raise UsageError(
            f"wanted NODE:PORT, NODE/CONTAINER:PORT or NODE:HOST:PORT, got {text!r}", where="TARGET"
        )
    return Target(text, found["place"], (found["host"] or "").strip("[]"), int(found["port"]))


def local(text: str | None, port: int) -> tuple[str, int]:
    """Return the address and the port of [ADDRESS:]PORT; by default ``port`` of loopback.

    Raises UsageError.
    """
    if text is None:
        return LOOPBACK, port
    found = LOCAL.fullmatch(text)
    if found is None or int(found["port"]) > MAX_PORT:
        raise UsageError(f"wanted PORT or ADDRESS:PORT, got {text!r}", where="LOCAL")
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


@dataclass(frozen=True, slots=True)
class Way:
    """The command on a node that connects its standard input and output to a target."""

    target: Target
    node: Node
    argv: tuple[str, ...]

    def connect(self, files: tuple[int, int], errors: int | None = None) -> int:
        """Run the command on open files until one side closes the connection.

        Return its exit status.  Raises NoSuchNode.
        """
        return self.node.pipe(self.argv, stdin=files[0], stdout=files[1], stderr=errors)


def way(one: Target, node: Node, container: LiveContainer | None) -> Way:
    """Return the way to a target on a node, or in a container of it.

    Raises MachineError if the node has no Python.
    """
    if not node.run(["sh", "-c", f"command -v {PYTHON}"], check=False).ok:
        raise MachineError(
            f"{node.name} has no {PYTHON}, which connects to its ports",
            missing=[PYTHON],
            hint=f"install it there, or use `testbed exec {node.name}`",
        )
    entered = () if container is None else tuple(enter(container.pid, mounts=False))
    hosts = [one.host] if one.host else [LOOPBACK, *_own(node, container)]
    return Way(one, node, (*entered, PYTHON, "-c", CONNECT, str(one.port), *hosts))


def _own(node: Node, container: LiveContainer | None) -> list[str]:
    """Return the addresses of a node or container besides loopback.

    A server need not listen on loopback.
    """
    entered = () if container is None else enter(container.pid, mounts=False)
    shown = node.run([*entered, "ip", "-j", "address", "show", "scope", "global"], check=False)
    entries = shown.json() if shown.ok else None
    return [info["local"] for entry in entries or [] for info in entry.get("addr_info", []) if info]


class Forwarder:
    """Listens on a port of this machine, and connects each client to a target.

    ``tell`` is called with words about a connection that fails, in a thread of it.  Raises
    UsageError if the port cannot be used.
    """

    def __init__(self, found: Way, address: str, port: int, tell: Callable[[str], None]) -> None:
        self._way = found
        self._tell = tell
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, port), family=family, backlog=64)
        except OSError as error:
            raise UsageError(
                f"cannot listen on port {port} of {address}: {error.strerror}",
                where="LOCAL",
                hint=f"choose another one: testbed forward {found.target.text} 0 takes any",
            ) from error
        self.address, self.port = self._listener.getsockname()[:2]

    def serve(self) -> None:
        """Accept clients until the end of the process."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._tell(f"{self._way.target.text}: clients wait: {error.strerror}")
                time.sleep(PAUSE)
                continue
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        with client:
            try:
                self._carry(client.fileno())
            except (TestbedError, OSError) as error:
                self._tell(f"{self._way.target.text}: {error}")

    def _carry(self, client: int) -> None:
        errors = os.memfd_create("testbed")
        try:
            if status := self._way.connect((client, client), errors):
                said = os.pread(errors, 1 << 12, 0).decode(errors="replace").strip()
                last = said.rpartition("\n")[2] or f"exit status {status}"
                self._tell(f"{self._way.target.text}: {last}")
        finally:
            os.close(errors)

    def close(self) -> None:
        """Stop accepting clients."""
        self._listener.close()
