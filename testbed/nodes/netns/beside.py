"""The network of a node whose files are an image's, for this machine's programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.errors import TimeoutExpired
from testbed.nodes.base import Result, Running
from testbed.process import in_network, run

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode


class Beside:
    """Runs commands of this machine in the network namespace of a node.

    :meth:`spawn` runs those of the image: it is for programs that users ask for.
    """

    def __init__(self, node: NetnsNode) -> None:
        self._node = node

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def slowness(self) -> float:
        return self._node.slowness

    def spawn(self, argv: Sequence[str]) -> Running:
        """Start a command of the image.  Raises NoSuchNode."""
        return self._node.spawn(argv)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command to its end.  Raises CommandError, TimeoutExpired, NoSuchNode."""
        self._node.refuse_ended()
        began = time.monotonic()
        command = in_network(f"/proc/{self._node.init.pid}/ns/net", argv)
        try:
            done = run(command, input=input, timeout=timeout, check=False)
        except TimeoutExpired as error:
            error.hint = f"`testbed shell {self.name}` opens a shell there"
            raise
        seconds = time.monotonic() - began
        result = Result(tuple(argv), done.status, done.out, done.err, seconds)
        return self._node.require(result) if check else result
