"""A node that is reached over ssh; all requests go through the agent on it."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoSuchNode, ServiceError, ServiceNotReady, TimeoutExpired
from testbed.nodes.base import (
    Login,
    Result,
    Service,
    ServiceState,
    has_ended,
    log_of,
    no_service,
)
from testbed.nodes.inside import exchange
from testbed.nodes.ssh import services
from testbed.nodes.ssh.session import Door, Session, told
from testbed.nodes.stream.node import FILES, StreamNode
from testbed.nodes.stream.wire import Stream
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.nodes.stream.wire import Command, Link

POLL = 0.05  # seconds between two attempts to reach a machine that does not answer yet
ENDING = 1.0  # seconds between a machine's last output and its end
MANAGER = 60.0  # timeout in seconds until systemd begins to handle a request


class SshNode(StreamNode):
    """One machine.  Reuse the object: it connects at first use and shares the connection.

    ``connect``, ``key``, ``host_key`` and ``agent`` are as in :class:`Door`.
    ``alive`` tells whether the node still runs, and is called often; ``last_words``
    returns the last output of a node that has ended.  The others are as in
    :class:`StreamNode`.
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
        self._door = Door(connect, key, host_key, agent)
        self.alive = alive
        self._last_words = last_words
        self._lab = lab
        self._session: Session | None = None
        self._connecting = threading.Lock()
        super().__init__(name, digest, folder=folder, programs=programs)

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
        super().close()
        with self._connecting:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def login(self) -> Login:
        door = self._door

        def join() -> int:
            with door.connect() as far:
                return exchange(far)

        return Login(door.key, door.host_key, join, door.user)

    def shows(self, host_key: str) -> None:
        """Expect another host key from the next login on."""
        self._door = dataclasses.replace(self._door, host_key=host_key)

    def forked(self) -> None:
        if self._session is not None:
            self._session.disown()
        self._session = None
        self._connecting = threading.Lock()  # a thread of the parent may hold the old one
        super().forked()

    def link(self) -> Link:
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
                raise LabError(f"{self.name} refused the ssh connection: {reason}") from error
            return self._session

    def _ends(self, within: float) -> bool:
        """Tell whether the machine ends within ``within`` seconds.

        A machine that is being ended closes its connections a moment before its end.
        """
        return until(lambda: not self.alive(), within, pause=POLL)

    def _lost(self) -> LabError:
        if not self._ends(ENDING):
            return LabError(f"the ssh connection to {self.name} was lost")
        return has_ended(self.name, self._lab, self._last_words())

    def attach_terminal(self, argv: Sequence[str], inside: int) -> int:
        del inside  # sshd makes terminals in the machine's own devpts
        from testbed.nodes.ssh import terminal

        session = self._connected()
        try:
            with told():
                return terminal.with_terminal(session.channel(), argv)
        except LabError as error:
            if session.closed:
                raise self._lost() from error
            raise

    # -- the kernel -----------------------------------------------------------

    def stir(self, data: bytes) -> None:
        """Mix ``data`` into the random number generator of the machine's kernel."""
        stream = Stream(self.link())
        stream.send("s", data)
        try:
            self._refuse(stream.wait(FILES), "/dev/urandom")
        except TimeoutError:
            raise TimeoutExpired(f"{self.name}: timeout while reading random numbers") from None
        finally:
            stream.forget()

    # -- services -----------------------------------------------------------

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        unit, script = services.unit_of(service), services.script(service)
        kind = "notify" if service.notify else "exec"
        argv = ["sh", "-c", services.START, "sh", service.name, unit, service.digest, kind]
        word, err = self._started(service.name, argv, script, timeout)
        if word == "differs":
            self.stop(service.name)
            word, err = self._started(service.name, argv, script, timeout)
        self._require_ready(word, err, service.name)

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        known = self.services()
        if service not in known:
            raise no_service(service, self.name, known)
        argv = ["sh", "-c", services.START_AGAIN, "sh", service]
        self._require_ready(*self._started(service, argv, b"", timeout), service)

    def _require_ready(self, word: str, err: str, service: str) -> None:
        if word == "ready":
            return
        status = self.services()[service].status
        if status is None:
            raise ServiceError(service, self.name, "could not be started", err)
        how = f"exit {status}" if status >= 0 else f"signal {-status}"
        what = f"died before it was ready ({how})"
        raise ServiceError(service, self.name, what, log_of(self, service))

    def _started(
        self, name: str, argv: Sequence[str], script: bytes, timeout: float
    ) -> tuple[str, str]:
        with self.spawn(argv, input=script) as running:
            try:
                result = running.wait(timeout)
            except TimeoutExpired:
                if self._is_starting(running, name):
                    what = f"was not ready within {timeout:g} s"
                    raise ServiceNotReady(name, self.name, what, log_of(self, name)) from None
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
            what = f"did not end within {timeout:g} s"
            raise ServiceError(service, self.name, what, log_of(self, service)) from None

    def services(self) -> dict[str, ServiceState]:
        return services.states(self.run(["sh", "-c", services.LIST]).stdout)
