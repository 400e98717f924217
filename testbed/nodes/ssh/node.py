"""A node that is reached over ssh; all requests go through the agent on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoSuchNode, ServiceError, ServiceNotReady, TimeoutExpired
from testbed.nodes.base import Node, Result, Service, ServiceState, has_ended, no_service
from testbed.nodes.ssh import provide as provided
from testbed.nodes.ssh import services
from testbed.nodes.ssh.session import Door, Session, told
from testbed.nodes.ssh.wire import Command, Link, Stream, request

if TYPE_CHECKING:
    import testinfra.host

    from testbed.nodes.ssh.forward import Forward

POLL = 0.05  # seconds between two attempts to reach a machine that does not answer yet
ENDING = 1.0  # seconds between a machine's last output and its end
FILES = 60.0  # timeout in seconds for a file of a few megabytes
PROGRAMS = "/usr/local/bin"  # before those of Debian's packages on PATH
#: Arguments: pairs of a file and the path of a link to it.
LINK = """\
while [ $# -gt 0 ]; do
  mkdir -p "$(dirname "$2")"
  ln -sfn "$1" "$2"
  shift 2
done
"""
MANAGER = 60.0  # timeout in seconds until systemd begins to handle a request

_nodes: weakref.WeakSet[SshNode] = weakref.WeakSet()


def _forked() -> None:
    for node in list(_nodes):
        node.forked()


# A forked child lacks the threads that serve a connection and would wait for them forever.
os.register_at_fork(after_in_child=_forked)


class SshNode(Node):
    """One machine.  Reuse the object: it connects at first use and shares the connection.

    ``connect``, ``key``, ``host_key`` and ``agent`` are as in :class:`Door`.
    ``folder`` is the folder of this machine for the node's forwarded sockets.
    ``alive`` tells whether the node still runs, and is called often; ``last_words``
    returns the last output of a node that has ended.
    ``programs`` returns the programs of the node, by the sha256 of their content.
    """

    wakes = True
    slowness = 5.0

    def __init__(
        self,
        name: str,
        digest: str,
        connect: Callable[[], socket.socket],
        *,
        key: Path,
        host_key: str,
        agent: Callable[[], Path],
        folder: Path,
        alive: Callable[[], bool] = lambda: True,
        last_words: Callable[[], str] = str,
        lab: str = "",
        programs: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.name = name
        self.digest = digest
        self._door = Door(connect, key, host_key, agent)
        self._folder = folder
        self.alive = alive
        self._last_words = last_words
        self._lab = lab
        self._programs = programs
        self._session: Session | None = None
        self._connecting = threading.Lock()
        self._forwards: dict[str, Forward] = {}
        self._provided: dict[str, str] = {}
        self._providing = threading.Lock()
        _nodes.add(self)

    def __repr__(self) -> str:
        return f"<ssh node {self.name} of {self._lab}>"

    # -- the connection -----------------------------------------------------

    def wait_ssh(self, timeout: float) -> None:
        """Wait until logging in to the machine succeeds; ``connect`` may fail until then.

        Raises NoSuchNode when the machine ends, TimeoutExpired with the last
        reason after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._connected(0.0)
            except NoSuchNode:
                raise
            except LabError as error:
                if time.monotonic() > deadline:
                    raise TimeoutExpired(f"{error.message}, not within {timeout:g} s") from error
            else:
                return
            time.sleep(POLL)

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        with self._providing:
            forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            forward.close()
        with self._connecting:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def shows(self, host_key: str) -> None:
        """Expect another host key from the next login on."""
        self._door = dataclasses.replace(self._door, host_key=host_key)

    def forked(self) -> None:
        """In a forked child: use a new connection and leave the parent's alone."""
        if self._session is not None:
            self._session.disown()
        self._session = None
        self._forwards = {}
        self._connecting = threading.Lock()  # a thread of the parent may hold the old one
        self._providing = threading.Lock()

    def _link(self) -> Link:
        return self._connected().link

    def _connected(self, ending: float = ENDING) -> Session:
        with self._connecting:
            if self._session is not None and not self._session.closed and self.alive():
                return self._session
            if self._session is not None:
                self._session.close()
                self._session = None
            if not self.alive():
                raise self._lost()
            try:
                self._session = Session(self._door, self.alive, self._lost)
            except (LabError, OSError) as error:
                if self._ends(ending):
                    raise self._lost() from error
                reason = str(error) or type(error).__name__
                raise LabError(f"{self.name} does not let us in by ssh: {reason}") from error
            return self._session

    def _ends(self, within: float) -> bool:
        """Tell whether the machine ends within ``within`` seconds.

        A machine that is being ended closes its connections a moment before its end.
        """
        deadline = time.monotonic() + within
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL)
        return True

    def _lost(self) -> LabError:
        if not self._ends(ENDING):
            return LabError(f"the ssh connection to {self.name} broke")
        return has_ended(self.name, self._lab, self._last_words())

    # -- commands -----------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Command:
        return Command(self.name, self._link, argv, input=input, env=env)

    def attach(self, argv: Sequence[str], *, tty: bool, inside: int = 1) -> int:
        del inside  # sshd makes terminals in the machine's own devpts
        from testbed.nodes.ssh import terminal

        if not tty:
            return terminal.with_pipes(self.name, self._link(), argv)
        session = self._connected()
        try:
            with told():
                return terminal.with_terminal(session.channel(), argv)
        except LabError as error:
            if session.closed:
                raise self._lost() from error
            raise

    # -- files --------------------------------------------------------------

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        part = f"{path}.testbed-{os.getpid()}-{time.monotonic_ns()}"
        fields = request(self.name, [part, str(mode), path])
        stream = Stream(self._link())
        stream.send("w", fields)
        try:
            stream.finish(data)
            self._refuse(stream.wait(FILES + len(data) / 1e6), path)
        except TimeoutError:
            raise TimeoutExpired(f"{self.name}: {path} could not be written in time") from None
        finally:
            stream.forget()

    def get(self, path: str) -> bytes:
        stream = Stream(self._link())
        stream.send("g", request(self.name, [path])[:-1])
        try:
            self._refuse(stream.wait(None), path)
        finally:
            stream.forget()
        return bytes(stream.out)

    def stir(self, data: bytes) -> None:
        """Mix ``data`` into the random number generator of the machine's kernel."""
        stream = Stream(self._link())
        stream.send("s", data)
        try:
            self._refuse(stream.wait(FILES), "/dev/urandom")
        except TimeoutError:
            raise TimeoutExpired(f"{self.name}: no new random numbers in time") from None
        finally:
            stream.forget()

    def _refuse(self, number: int, path: str) -> None:
        if number:
            raise OSError(number, os.strerror(number), f"{self.name}:{path}")

    def provide(self, path: Path) -> str:
        path = path.resolve()
        with self._providing:
            known = self._provided.get(str(path))
            if known and provided.is_system(path):
                return known
            place = self._own(path) or provided.place(path)
            if place != known:
                self._copy(path, place)
                self._provided[str(path)] = place
            return place

    def _own(self, path: Path) -> str | None:
        """Return the path itself if it is a system path that the machine has too, else None."""
        if provided.is_system(path) and self.run(["test", "-e", str(path)], check=False).ok:
            return str(path)
        return None

    def _copy(self, path: Path, place: str) -> None:
        if self.run(["test", "-e", place], check=False).ok:
            return
        # Unpacked next to its place and then renamed: another process may do the same.
        folder = place.rpartition("/")[0]
        part = f"{folder}.testbed-{os.getpid()}-{time.monotonic_ns()}"
        unpack = 'mkdir -p "$1" && tar -C "$1" -xf - && { mv -T "$1" "$2" || rm -rf "$1"; }'
        data = provided.packed(path, self._programs())
        argv = ["sh", "-c", unpack, "sh", part, folder]
        self.run(argv, input=data, timeout=FILES + len(data) / 1e6)

    def offer(self, programs: Mapping[str, Path]) -> None:
        words = []
        for name, path in programs.items():
            there = self._programs().get(provided.digest(path.resolve()))
            if there is None or Path(there).name != name:
                words += [there or self.provide(path), str(Path(PROGRAMS, name))]
        if words:
            self.run(["sh", "-ec", LINK, "sh", *words])

    def socket(self, path: str) -> str:
        from testbed.nodes.ssh.forward import Forward

        with self._providing:
            if path not in self._forwards:
                self._forwards[path] = Forward(self._folder, self.name, path, self._link)
            return self._forwards[path].path

    # -- services -----------------------------------------------------------

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        unit, script = services.unit_of(service), services.script(service)
        kind = "notify" if service.notify else "exec"
        argv = ["sh", "-c", services.START, "sh", service.name, unit, service.digest, kind]
        word, err = self._started(service.name, argv, script, timeout)
        if word == "differs":
            self.stop(service.name)
            word, err = self._started(service.name, argv, script, timeout)
        if word == "ready":
            return
        status = self.services()[service.name].status
        if status is None:
            raise ServiceError(service.name, self.name, "could not be started", err)
        how = f"exit {status}" if status >= 0 else f"signal {-status}"
        what = f"died before it was ready ({how})"
        raise ServiceError(service.name, self.name, what, self._log(service.name))

    def _started(
        self, name: str, argv: Sequence[str], script: bytes, timeout: float
    ) -> tuple[str, str]:
        with self.spawn(argv, input=script) as running:
            try:
                result = running.wait(timeout)
            except TimeoutExpired:
                if self._is_starting(running, name):
                    what = f"was not ready within {timeout:g} s"
                    raise ServiceNotReady(name, self.name, what, self._log(name)) from None
                result = running.wait(MANAGER)
        self.require(result)
        return result.stdout.strip(), result.stderr

    def _is_starting(self, running: Command, name: str) -> bool:
        """Return True as soon as systemd starts the unit, False if the command ends before."""
        deadline = time.monotonic() + MANAGER
        while time.monotonic() < deadline:
            state = self.services().get(name)
            if state is not None and state.state == "starting":
                return True
            with contextlib.suppress(TimeoutExpired):
                running.wait(POLL)
                return False
        return True

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        with self.spawn(["sh", "-c", services.STOP, "sh", service]) as running:
            try:
                result = running.wait(grace)
            except TimeoutExpired:
                self.run(["sh", "-c", services.KILL, "sh", service], check=False)
                result = self._stopped(running, service, grace + 10)
        self.require(result)

    def _stopped(self, running: Command, service: str, timeout: float) -> Result:
        try:
            return running.wait(timeout)
        except TimeoutExpired:
            what = f"was not dead within {timeout:g} s"
            raise ServiceError(service, self.name, what, self._log(service)) from None

    def services(self) -> dict[str, ServiceState]:
        return services.states(self.run(["sh", "-c", services.LIST]).stdout)

    def logs(self, service: str) -> str:
        known = self.services()
        if service not in known:
            raise no_service(service, self.name, known)
        return self._log(service)

    def _log(self, service: str) -> str:
        with contextlib.suppress(OSError, NoSuchNode):
            return self.get(f"{services.LOGS}/{service}.log").decode(errors="replace")
        return ""

    @property
    def host(self) -> testinfra.host.Host:
        from testbed.nodes.testinfra_backend import host_of

        return host_of(self)
