"""The network of a container, with the programs of this machine.

``ip`` and ``tcpdump`` need not be in the container's image, and nothing is put there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from testbed.nodes.stream.container import ContainerNode
from testbed.process import Duplex, in_network

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.errors import LabError
    from testbed.nodes.base import Result, Running
    from testbed.nodes.stream.wire import Channel


class Outside:
    """Commands of this machine in the network namespace of a container on it.

    ``agent`` returns the path of ``testbed-agent``, which runs them.
    """

    def __init__(self, node: ContainerNode, agent: Callable[[], Path]) -> None:
        self._beside = _Beside(node, agent)

    @property
    def name(self) -> str:
        return self._beside.name

    @property
    def slowness(self) -> float:
        return self._beside.slowness

    def spawn(self, argv: Sequence[str]) -> Running:
        """Start a command and return without waiting for it.  Raises NoSuchNode."""
        return self._beside.spawn(argv)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command to its end.  Raises as :meth:`testbed.nodes.base.Node.run` does."""
        return self._beside.run(argv, input=input, timeout=timeout, check=check)


class _Beside(ContainerNode):
    """An agent that has entered nothing of a container but its network."""

    def __init__(self, node: ContainerNode, agent: Callable[[], Path]) -> None:
        self._node = node
        super().__init__(
            node.name,
            node.digest,
            lab="",
            pid=node.pid,
            start=Duplex,
            agent=lambda: str(agent()),
            alive=node.alive,
            place=str,
            init=agent,
        )

    def channel(self) -> Channel:
        return self._start(in_network(f"/proc/{self.pid}/ns/net", [self._agent()]))

    def lost_error(self) -> LabError:
        return self._node.lost_error()
