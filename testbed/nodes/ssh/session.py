"""An ssh connection to a machine, with the agent running on that machine."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.stream.wire import ALIVE, Link

if TYPE_CHECKING:
    import paramiko

PORT = 22
PATIENCE = 60.0  # seconds for each part of a login: an emulated machine computes slowly
MISSING = 42  # exit status of a machine that has no agent yet
#: Folders of the agent on a machine: from its image, or put there by the first connection.
PLACES = ("/usr/local/lib/testbed", "/var/lib/testbed")
START = "for agent in {0}; do test -x $agent && exec $agent; done; exit {1}"
STORE = "umask 077; mkdir -p {0}; cat > {1}.$$ && chmod 700 {1}.$$ && mv -f {1}.$$ {1}"


@functools.cache
def digest(agent: Path) -> str:
    """Return a hash of the agent program, part of its file name on a machine."""
    return hashlib.sha256(agent.read_bytes()).hexdigest()[:16]


def places(agent: Path) -> list[str]:
    """Return the paths at which a machine may have the agent."""
    return [f"{folder}/agent-{digest(agent)}" for folder in PLACES]


@dataclass(frozen=True, slots=True)
class Door:
    """The parameters for logging in to one machine, and to no other.

    ``connect`` opens a connection to its sshd; ``host_key`` is its expected public
    host key ("ssh-ed25519 AAAA..."), ``key`` the file with our private key.
    ``agent`` returns the path of the ``testbed-agent`` program.
    """

    connect: Callable[[], socket.socket]
    key: Path
    host_key: str
    agent: Callable[[], Path]
    user: str = "root"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise paramiko's errors as LabError."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError) as error:
        raise LabError(str(error) or "the connection ended") from error


class Session:
    """One login.  Raises OSError or LabError if logging in fails.

    A machine that is gone does not close its connection, so it is closed here; that ends
    every wait on it.
    """

    def __init__(
        self, door: Door, alive: Callable[[], bool], lost_error: Callable[[], LabError]
    ) -> None:
        self._alive = alive
        self._lost_error = lost_error
        self._done = threading.Event()
        with told():
            self._transport = _transport(door)
            threading.Thread(target=self._watch, name="testbed-watch", daemon=True).start()
            try:
                _login(door, self._transport)
                self.link = self._start(door.agent())
            except BaseException:
                self._done.set()
                self._transport.close()
                raise

    @property
    def closed(self) -> bool:
        return self.link.closed or not self._transport.is_active()

    def channel(self) -> paramiko.Channel:
        """Open a separate channel, for a command that needs a terminal."""
        with told():
            return self._transport.open_session(timeout=PATIENCE)

    def close(self) -> None:
        self._done.set()
        self.link.close()
        self._transport.close()

    def disown(self) -> None:
        """Drop the connection in a forked child, without sending: it belongs to the parent."""
        self.link.closed = True
        self._transport.active = False  # type: ignore[attr-defined]  # its types lack it
        self._transport.sock.close()  # this process's copy of it

    def _watch(self) -> None:
        while not self._done.wait(ALIVE):
            if not self._alive():
                self._transport.close()
                return

    def _start(self, agent: Path) -> Link:
        command = START.format(" ".join(places(agent)), MISSING)
        for _ in range(2):
            channel = self.channel()
            channel.exec_command(command)
            link = Link(channel, self._alive, self._lost_error)
            if link.greet(PATIENCE):
                return link
            if channel.recv_exit_status() != MISSING:
                break
            self._store(agent)
        raise LabError(
            "the agent does not run on the machine",
            hint="the agent is built for this machine's processor architecture only",
        )

    def _store(self, agent: Path) -> None:
        channel = self.channel()
        channel.exec_command(STORE.format(PLACES[-1], places(agent)[-1]))
        channel.sendall(agent.read_bytes())
        channel.shutdown_write()
        if channel.recv_exit_status():
            raise LabError(f"the agent cannot be written to {PLACES[-1]} of the machine")


def _transport(door: Door) -> paramiko.Transport:
    import paramiko

    # Our errors contain its messages; without a handler, logging would print them to stderr.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    transport = paramiko.Transport(door.connect())
    transport.daemon = True
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = PATIENCE
    return transport


def _login(door: Door, transport: paramiko.Transport) -> None:
    import paramiko

    kind, text = door.host_key.split()[:2]
    wanted = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
    ours = paramiko.PKey.from_path(door.key)
    transport.connect(hostkey=wanted, username=door.user, pkey=ours)
