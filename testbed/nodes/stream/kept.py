"""Nodes without ssh and systemd: the agent opens terminals, ``testbed-init`` keeps services."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes import keeper
from testbed.nodes.request import request
from testbed.nodes.stream.node import ChannelNode
from testbed.nodes.stream.wire import Stream
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.nodes.base import Service, ServiceState

#: Place on a node for the program that keeps services, unless the node's first process does.
KEEPER = "/var/lib/testbed/testbed-init"
#: Arguments: the program, then names of it to put on PATH, unless the node has such commands.
NAMES = """\
case :$PATH: in *:/usr/local/bin:*) folder=/usr/local/bin;; *) folder=${PATH##*:};; esac
program=$1; shift
mkdir -p "$folder"
for name; do command -v "$name" > /dev/null || ln -s "$program" "$folder/$name"; done
"""
#: Arguments of a first process that will keep services soon: of our image, and of runc, which
#: then becomes that process.
BOOTING = (b"testbed-init\0machine", b"runc\0init")
BOOT = 60.0  # timeout in seconds for such a process to begin
NOBODY = (errno.ENOENT, errno.ECONNREFUSED)  # connect(2): no keeper has been started, or it ended


class KeptNode(ChannelNode):
    """A node whose services ``testbed-init`` keeps, and whose terminals the agent opens.

    The node's first process may be ``testbed-init machine``.  Otherwise the first service that
    is started puts ``testbed-init`` on the node and runs ``testbed-init keep`` there.

    ``init`` returns the path of the ``testbed-init`` program on this machine.  The others are as
    in :class:`ChannelNode`.
    """

    has_system = False

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        folder: Path,
        init: Callable[[], Path],
        env: Mapping[str, str] | None = None,
        programs: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._init = init
        self._keeping = threading.Lock()
        super().__init__(name, digest, folder=folder, programs=programs, env=env)

    def forked(self) -> None:
        self._keeping = threading.Lock()  # a thread of the parent may hold the old one
        super().forked()

    # -- commands -------------------------------------------------------------

    def attach_terminal(self, argv: Sequence[str], inside: int) -> int:
        from testbed.nodes.stream import terminal

        return terminal.with_terminal(self.name, self.link(), argv, self._env, inside=inside)

    # -- services -------------------------------------------------------------

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        keeper.start(self._ask_or_keep, self, service, timeout)

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        keeper.start_again(self._ask, self, service, timeout)

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        keeper.stop(self._ask, self, service, grace)

    def services(self) -> dict[str, ServiceState]:
        return keeper.services(self._ask)

    def _ask(self, fields: Sequence[str], timeout: float) -> str:
        """Ask the node's ``testbed-init``; without one, answer as one without services."""
        answer = self._answer(fields, timeout)
        if answer is None:
            return "ok\n" if fields[0] == "list" else "unknown"
        return answer

    def _ask_or_keep(self, fields: Sequence[str], timeout: float) -> str:
        """Ask the node's ``testbed-init``, and start it first if there is none."""
        answers = [self._answer(fields, timeout)]

        def booted() -> bool:
            answers.append(self._answer(fields, timeout))
            return answers[-1] is not None or not self._boots()

        if answers[-1] is None and self._boots() and not until(booted, BOOT):
            # A second keeper would take the socket of the first one away.
            raise LabError(
                f"the first process of {self.name} has not begun to keep services within "
                f"{BOOT:g} s",
                hint="`testbed status LAB` shows whether the node runs or is stopped",
            )
        if answers[-1] is None:
            with self._keeping:
                self._keep()
            answers.append(self._answer(fields, timeout))
        return "error testbed-init has ended" if answers[-1] is None else answers[-1]

    def _boots(self) -> bool:
        """Tell whether the node's first process is going to keep services."""
        with contextlib.suppress(OSError):  # a container need not have a /proc
            arguments = self.get("/proc/1/cmdline")
            return any(words in arguments for words in BOOTING)
        return False

    def _answer(self, fields: Sequence[str], timeout: float) -> str | None:
        """Return the answer to a request, or None if nothing keeps services on the node."""
        stream = Stream(self.link())
        try:
            stream.send("q", request(self.name, fields))
            with stream.changed:
                if not stream.changed.wait_for(lambda: stream.out or stream.over, timeout):
                    raise TimeoutError(f"{self.name}: no answer within {timeout:g} s")
                if stream.out:
                    return stream.out.decode(errors="replace")
            number = stream.wait(0)
        finally:
            stream.forget()
        if number in NOBODY:
            return None
        self._refuse(number, "testbed-init")
        return None  # it has ended while it was asked

    def _keep(self) -> None:
        program = self._init().read_bytes()
        try:
            self.put(program, KEEPER, mode=0o755)
        except OSError as error:
            raise LabError(
                f"{self.name} cannot keep services: {KEEPER} cannot be written: {error.strerror}",
                hint="services need a file system that can be written, with some room",
            ) from error
        self.run([KEEPER, "keep"])
        # An image without a shell has no need of these.
        self.run(["sh", "-c", NAMES, "sh", KEEPER, *keeper.COMMANDS], check=False)
