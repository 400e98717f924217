"""A machine that exists already, reached by OpenSSH's client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.existing import ExistingNode
from testbed.nodes.openssh import client

if TYPE_CHECKING:
    from testbed.process import Duplex


class OpenSshNode(ExistingNode):
    """One machine over ssh.

    ``argv`` is the command line of ssh (:func:`testbed.nodes.openssh.client.arguments`), ``agent``
    returns the path of ``testbed-agent``.  The others are as in :class:`ExistingNode`.
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
        self._agent = agent
        super().__init__(name, lab=lab, services=services, folder=folder)

    def __repr__(self) -> str:
        return f"<machine {self.name} of {self._lab}, {self._argv[-1]}>"

    def channel(self) -> Duplex:
        return client.connect(self.name, self._argv, self._agent())

    def lost_error(self) -> LabError:
        return LabError(
            f"the connection to {self.name} was lost ({self._argv[-1]})",
            hint="run the command again; the next one opens a new connection",
        )
