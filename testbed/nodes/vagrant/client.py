"""A client that runs Vagrant in a lab's hypervisor and reports its errors."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import vagrant

from testbed.errors import LabError, NodeNotRunning, TimeoutExpired
from testbed.nodes.vagrant import hypervisor

if TYPE_CHECKING:
    from testbed.nodes.base import Result, Running
    from testbed.nodes.netns.node import NetnsNode

PROVIDER = "libvirt"
LOOK = 0.5  # seconds between two checks while Vagrant waits
QUERY_SECONDS = 60.0  # timeout for commands that start no machine
#: Vagrant's heading for the error of one machine of several.
OF_ONE = re.compile(r"^An error occurred while executing the action on the '([^']+)'$")
GENERIC = re.compile(
    r"^(==> \S+: An error occurred\. The error will be shown|"
    r"An error occurred while executing multiple|Any errors that occurred are shown|"
    r"machine\. Please handle this error then try again:)"
)
MOST = 20  # maximum lines of Vagrant's output in an error


class Client(vagrant.Vagrant):
    """Runs python-vagrant's commands in the hypervisor of a lab.

    There the kernel ends them with the hypervisor or with this process.  Errors contain
    Vagrant's output; python-vagrant's own errors contain only the exit status.
    """

    def __init__(self, cell: NetnsNode) -> None:
        super().__init__(root=hypervisor.FOLDER, env=hypervisor.environment())  # type: ignore[no-untyped-call]
        self.cell = cell
        self._running: Running | None = None
        self._ended = threading.Event()

    def bring_up(self, names: Sequence[str], seconds: float, look: Callable[[], None]) -> None:
        """Run one ``vagrant up`` for several machines.

        ``look`` is called regularly and may raise an error to end the wait.  ``seconds`` is the
        timeout.  Raises LabError.
        """
        command = ["up", *names, "--no-provision", f"--provider={PROVIDER}"]
        self._require(self._carry_out(command, seconds, look))

    def states(self) -> dict[str, str]:
        """Return Vagrant's state of each machine.  Raises LabError if Vagrant reports none."""
        found = {one.name: one.state for one in self.status() if one.name}  # type: ignore[no-untyped-call]
        if not found:
            raise LabError(
                "Vagrant knows no machine", hint=f"it reads {hypervisor.FOLDER}/Vagrantfile"
            )
        return found

    def end(self) -> None:
        """Kill the running command; the thread that waits for it gets an error."""
        self._ended.set()
        running = self._running
        if running is not None:
            running.kill()

    # python-vagrant calls these for each of its commands.

    def _call_vagrant_command(self, args: Sequence[str | None]) -> None:
        self._run_vagrant_command(args)

    def _run_vagrant_command(self, args: Sequence[str | None]) -> str:
        words = [word for word in args if word is not None]
        return self._require(self._carry_out(words, QUERY_SECONDS, lambda: None)).stdout

    def _carry_out(self, words: Sequence[str], seconds: float, look: Callable[[], None]) -> Result:
        argv = ["vagrant", *words]
        self._refuse_ended()
        with self.cell.spawn(argv, env=self.env) as running:
            self._running = running
            looks = max(1, round(seconds / LOOK))
            for _ in range(looks):
                with contextlib.suppress(TimeoutExpired):
                    result = running.wait(LOOK)
                    self._refuse_ended()
                    return result
                self._refuse_ended()
                look()
        raise TimeoutExpired(f"`{' '.join(argv)}` did not end within {seconds:g} s")

    def _refuse_ended(self) -> None:
        if self._ended.is_set():
            raise NodeNotRunning("Vagrant was stopped because its machines are being removed")

    def _require(self, result: Result) -> Result:
        if not result.ok:
            said = "\n".join(meant(result.stderr or result.stdout))
            raise LabError(
                f"`{' '.join(result.argv)}` ended with status {result.status}\n{said}",
            )
        return result


def meant(said: str) -> list[str]:
    """Return the last lines of Vagrant's output, without empty and routine lines."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    kept: list[str] = []
    for line in lines:
        one = OF_ONE.match(line)
        if one:
            kept.append(f"{one[1]}:")
        elif not GENERIC.match(line):
            kept.append(line)
    return kept[-MOST:]
