"""Machines that exist already, as nodes: looked at, and never changed by testbed itself.

A provider of such machines (:attr:`testbed.nodes.base.Provider.existing`) brings a way to reach
them: an :class:`ExistingNode` for each, in :class:`Machines`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from testbed.errors import LabError, TestbedError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.nodes.attachable import AttachedProvider, refuse
from testbed.nodes.base import Service, ServiceState, no_service
from testbed.nodes.stream.node import ChannelNode
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

TOGETHER = (
    16  # machines asked at once; a jump host may accept few more (MaxStartups, sshd_config(5))
)

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
    """One machine.  A subclass reaches it: :meth:`channel` and :meth:`lost_error`.

    ``lab`` is the name of the lab, ``services`` are the names of the daemons that the machine's
    roles have.  ``folder`` is as in :class:`ChannelNode`.
    """

    def __init__(self, name: str, *, lab: str, services: Sequence[str], folder: Path) -> None:
        self._lab = lab
        self._names = tuple(services)
        super().__init__(name, "", folder=folder)

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


class Machines(AttachedProvider):
    """The machines of one topology.  Each is connected to at its first use.

    ``name`` is that of their provider.  ``reach`` returns a node by its name and the names of the
    daemons that its roles have; nothing is asked yet.
    """

    def __init__(
        self,
        name: str,
        topology: Topology,
        reach: Callable[[str, Sequence[str]], ExistingNode],
    ) -> None:
        self.name = name
        self._topology = topology
        self._reach = reach
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        with self._lock:
            for name, spec in self._topology.nodes.items():
                if name not in self._nodes:
                    roles = [ROLES[role] for role in spec.roles]
                    daemons = [d for role in roles for d in role.services_on(self._topology, name)]
                    self._nodes[name] = self._reach(name, daemons)
            return dict(self._nodes)

    def ended(self, lab: str) -> dict[str, str]:
        def reason(node: Node) -> str:
            try:
                node.run(["true"])
            except TestbedError as error:
                return str(error)
            return ""

        nodes = self.nodes(lab)
        with ThreadPoolExecutor(at_once(TOGETHER, files=FILES_PER_NODE)) as pool:
            reasons = pool.map(reason, nodes.values())
            return {name: words for name, words in zip(nodes, reasons, strict=True) if words}
