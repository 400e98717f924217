"""The node of a lab on a machine that exists already, on which `up` has installed roles.

It is a namespace node (pid 1 is ``testbed-init``) with the machine's own network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NodeNotRunning
from testbed.nodes.openssh import client
from testbed.nodes.stream.kept import KeptNode

if TYPE_CHECKING:
    from testbed.process import Duplex

DIGEST = 4  # place of the digest among the arguments of ``testbed-init``


class InstalledNode(KeptNode):
    """One node.

    ``argv`` and ``agent`` are as in :class:`testbed.nodes.openssh.node.ExistingNode`. ``on`` is the
    folder of the lab on the machine, ``digest`` is that of the topology.  The others are as in
    :class:`KeptNode`.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        argv: Sequence[str],
        *,
        lab: str,
        on: str,
        agent: Callable[[], Path],
        init: Callable[[], Path],
        folder: Path,
    ) -> None:
        self._argv = list(argv)
        self._lab = lab
        self._on = on
        self._agent = agent
        super().__init__(name, digest, folder=folder, init=init)

    def __repr__(self) -> str:
        return f"<node {self.name} of {self._lab}, installed on {self._argv[-1]}>"

    def channel(self) -> Duplex:
        return client.connect(self.name, self._argv, self._agent(), inside=self._on)

    def lost_error(self) -> LabError:
        return LabError(
            f"the connection to {self.name} was lost ({self._argv[-1]})",
            hint="run the command again; the next one opens a new connection",
        )

    def digest_there(self) -> str:
        """Return the digest that the running node was created with; empty if it does not run.

        Raises LabError if its machine cannot be reached.
        """
        try:
            arguments = self.get("/proc/1/cmdline").split(b"\0")
        except NodeNotRunning:
            return ""
        return arguments[DIGEST].decode() if len(arguments) > DIGEST else ""
