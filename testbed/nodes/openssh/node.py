"""A machine that exists already, as a node: looked at, and changed only where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from testbed.errors import LabError
from testbed.nodes.attachable import refuse
from testbed.nodes.base import Service, ServiceState, no_service
from testbed.nodes.openssh import client
from testbed.nodes.stream.node import ChannelNode

if TYPE_CHECKING:
    from testbed.process import Duplex

#: Arguments: names of programs.  Prints the name and the pid of each process that runs one in the
#: machine's own pid namespace: a container may run one, too.  The kernel keeps 15 characters of a
#: name (proc_pid_comm(5)).
FIND = """\
own=$(readlink /proc/1/ns/pid)
for folder in /proc/[0-9]*; do
  read -r comm < "$folder/comm" || continue
  for name; do
    [ "$comm" = "$(printf %.15s "$name")" ] && [ "$(readlink "$folder/ns/pid")" = "$own" ] &&
      echo "$name ${folder##*/}"
  done
done 2> /dev/null
:
"""
#: Argument: a pid.  Prints the log of its systemd unit since the machine booted.
JOURNAL = """\
unit=$(sed -n 's,.*/\\([^/]*\\.service\\)$,\\1,p' "/proc/$1/cgroup" | head -n 1)
[ -n "$unit" ] && command -v journalctl > /dev/null || exit 3
exec journalctl --no-pager --quiet --boot --output=short-iso --unit="$unit"
"""
NO_JOURNAL = 3


class ExistingNode(ChannelNode):
    """One machine.

    ``argv`` is the command line of ssh (:func:`testbed.nodes.openssh.client.arguments`), ``agent``
    returns the path of ``testbed-agent``, ``services`` are the names of the daemons that its roles
    have, and ``lab`` is the name of the lab.  ``folder`` is as in :class:`ChannelNode`.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        lab: str,
        agent: Callable[[], Path],
        services: Sequence[str],
        folder: Path,
    ) -> None:
        self._argv = list(argv)
        self._lab = lab
        self._agent = agent
        self._names = tuple(services)
        super().__init__(name, "", folder=folder)

    def __repr__(self) -> str:
        return f"<machine {self.name} of {self._lab}, {self._argv[-1]}>"

    def channel(self) -> Duplex:
        return client.connect(self.name, self._argv, self._agent())

    def lost_error(self) -> LabError:
        return LabError(
            f"the connection to {self.name} was lost ({self._argv[-1]})",
            hint="run the command again; the next one opens a new connection",
        )

    def attach_terminal(self, argv: Sequence[str], inside: int) -> int:
        from testbed.nodes.stream import terminal

        return terminal.with_terminal(self.name, self.link(), argv, self._env, inside=inside)

    def socket(self, path: str) -> str:
        self.link()  # now: a client of the socket waits for an answer, and not for a login
        return super().socket(path)

    # -- services -------------------------------------------------------------

    def services(self) -> dict[str, ServiceState]:
        """Return the daemons of its roles that run, whoever has started them."""
        if not self._names:
            return {}
        found: dict[str, ServiceState] = {}
        listed = self.run(["sh", "-c", FIND, "sh", *self._names]).stdout
        for line in listed.splitlines():
            name, _, pid = line.partition(" ")
            if name not in found or int(pid) < found[name].pid:
                found[name] = ServiceState(name, "ready", int(pid), None, "")
        return found

    def logs(self, service: str) -> str:
        known = self.services()
        if service not in known:
            raise no_service(service, self.name, known)
        result = self.run(["sh", "-c", JOURNAL, "sh", str(known[service].pid)], check=False)
        if result.status == NO_JOURNAL:
            raise LabError(
                f"the log of {service} on {self.name} is not in a journal of systemd",
                hint=f"read it where it is written: testbed exec -l {self._lab} {self.name} ...",
            )
        return self.require(result).stdout

    # -- what would change the machine ------------------------------------------

    def start(self, service: Service, *, timeout: float = 60.0) -> None:
        del timeout
        self._refuse_change(f"{service.name} is not started")

    def start_again(self, service: str, *, timeout: float = 60.0) -> None:
        del timeout
        self._refuse_change(f"{service} is not started")

    def stop(self, service: str, *, grace: float = 5.0) -> None:
        del grace
        self._refuse_change(f"{service} is not stopped")

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        del data, mode
        self._refuse_change(f"{path} is not written")

    def provide(self, path: Path) -> str:
        self._refuse_change(f"{path} is not copied to it")

    def offer(self, programs: Mapping[str, Path]) -> None:
        self._refuse_change(f"{', '.join(programs)} are not installed")

    def _refuse_change(self, what: str) -> NoReturn:
        refuse(self._lab, "changed", f": {what} on {self.name}")
