"""A node of a cluster, reached by a Pod on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.existing import ExistingNode

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.channel import ExecChannel
    from testbed.nodes.kubernetes.entrance import Entrance

#: Argument: the agent's path in the Pod.  It is started from its open file, because it has no path
#: on the machine.  The pid namespace is the machine's already (hostPID), and the cgroup stays the
#: Pod's, so whatever runs there ends with the Pod.
ENTER = """\
exec 9< "$1"
(
  exec 9<&-
  exec env -i HOME=/root USER=root LOGNAME=root SHELL=/bin/sh \\
    nsenter --target=1 --mount --uts --ipc --net --cgroup -- "/proc/$$/fd/9"
)
exit $?
"""


class DebugNode(ExistingNode):
    """One node of a cluster.

    ``entrance`` returns the way into the Pod on it, which is created if none runs.  The others are
    as in :class:`ExistingNode`.
    """

    def __init__(
        self,
        name: str,
        entrance: Callable[[str], Entrance],
        *,
        lab: str,
        services: Sequence[str],
        folder: Path,
    ) -> None:
        self._find = entrance
        self._entrance: Entrance | None = None
        super().__init__(name, lab=lab, services=services, folder=folder)

    def __repr__(self) -> str:
        return f"<machine {self.name} of {self._lab}, by a Pod>"

    def channel(self) -> ExecChannel:
        self._entrance = self._find(self.name)
        return self._entrance.open(lambda agent: ["sh", "-c", ENTER, "sh", agent])

    def lost_error(self) -> LabError:
        if self._entrance is None:
            return LabError(f"the connection to {self.name} was lost")
        return self._entrance.lost_error()
