"""A proxy on the way of a request, such as docker-proxy, and the connection that it opens itself.

The connection has nothing of the request in its headers. It is told by the socket: after the
request came, the process that listens there has a new one to the address and port that its command
line names, and a packet that opens this connection was captured. The data of a datagram are passed
on as they are, with their token.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from testbed.observe.capture import LINK_ETHERNET, LINK_RAW, decode
from testbed.observe.taps import ETHERNET, OUTGOING
from testbed.walk.explain import SOCKETS
from testbed.walk.frames import Signature

if TYPE_CHECKING:
    from testbed.walk.frames import Sighting

PAUSE = 0.005  # seconds between two looks at the sockets
OPENING = "SYN-SENT"  # a state of ss(8)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy: its network namespace, where it connects to, and the command lines of its processes.

    Several processes may listen, as one for each family.
    """

    place: tuple[str, str]
    address: str
    port: int
    commands: frozenset[str]

    @property
    def family(self) -> Literal[4, 6]:
        return 6 if ":" in self.address else 4

    @property
    def to(self) -> str:
        return f"{self.address} port {self.port}"

    @property
    def _filter(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"dst {address} and dport = :{self.port}"

    @property
    def sockets(self) -> list[str]:
        """The command that lists its connections, and others to the same port."""
        return ["sh", "-c", SOCKETS, "sockets", "-t", self._filter]

    @property
    def source(self) -> str:
        """The same as a reader can run it."""
        return f"ss -np -t '{self._filter}'"


def connections(printed: str, commands: Collection[str]) -> dict[int, str]:
    """Return the local ports of connections, with their states.

    ``printed`` is what :data:`explain.SOCKETS` printed; those of other processes are left out.
    """
    found = {}
    for line in printed.splitlines():
        state, _, rest = line.partition(" ")
        here, _, command = rest.partition(" ")
        port = here.rpartition(":")[2]
        if command.strip() in commands and port.isdecimal():
            found[int(port)] = state
    return found


class Lookout:
    """Looks at the sockets of a proxy while a request holds its own connection open.

    ``run`` returns what a command prints in the proxy's namespace. It is called in a thread that
    was started in the caller's network namespace. ``found`` are the new connections.
    """

    def __init__(self, proxy: Proxy, run: Callable[[Sequence[str]], str], seconds: float) -> None:
        self._proxy = proxy
        self._run = run
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(1)
        self._known = self._pool.submit(self._look).result()
        self.found: dict[int, str] = {}

    def _look(self) -> dict[int, str]:
        return connections(self._run(self._proxy.sockets), self._proxy.commands)

    def __call__(self, sock: socket.socket) -> None:
        """Wait until the proxy has connected, or the connection of the request is closed."""
        done: Future[None] = self._pool.submit(self._wait, sock)
        done.result()

    def _wait(self, sock: socket.socket) -> None:
        deadline = time.monotonic() + self._seconds
        while True:
            ended = time.monotonic() > deadline or _is_closed(sock)
            found = {port: state for port, state in self._look().items() if port not in self._known}
            self.found = found or self.found
            if ended or (found and OPENING not in found.values()):
                return
            time.sleep(PAUSE)

    def close(self) -> None:
        self._pool.shutdown()


def _is_closed(sock: socket.socket) -> bool:
    """Tell whether the other end has closed a connection; data of it are left there."""
    if not select.select([sock], [], [], 0)[0]:
        return False
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def connected(
    proxy: Proxy,
    frames: Iterable[Sequence[Any]],
    addresses: Collection[str],
    found: Collection[int],
) -> Signature | None:
    """Return by what the proxy's own connection is recognised.

    ``frames`` and ``addresses`` are those of its namespace, ``found`` the local ports of its new
    connections. None if no packet that opens one was captured, or those of several: then it is not
    known which one is that of the request.
    """
    opened = set()
    for _, _, kind, hardware, data in frames:
        packet = decode(data, LINK_ETHERNET if hardware in ETHERNET else LINK_RAW[0])
        ends = (packet.dst, packet.dport) == (proxy.address, proxy.port)
        if kind == OUTGOING and packet.is_syn and ends and packet.src in addresses:
            opened.add((packet.sport, packet.seq))
    if len(opened) != 1:
        return None
    ((port, number),) = opened
    return Signature("tcp", proxy.family, number, port) if port in found else None


def passed_on(proxy: Proxy, sightings: Iterable[Sighting]) -> Sighting | None:
    """Return the datagram by which a proxy passes on that of the request; None if not seen.

    ``sightings`` are those of its namespace. It has the token of the request in its data.
    """
    for one in sightings:
        ends = (one.packet.dst, one.packet.dport) == (proxy.address, proxy.port)
        if one.direction == "there" and one.point == "out" and ends:
            return one
    return None


def is_same(one: Sighting, passed: Sighting) -> bool:
    """Tell whether a sighting is of the datagram that a proxy has passed on.

    It has a source port of its own, until somebody translates it, and the same IP id everywhere.
    """
    a, b = one.packet, passed.packet
    return a.ip_id == b.ip_id and (bool(a.ip_id) or a.sport == b.sport)
