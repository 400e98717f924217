"""The network of a container, for the programs of its cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.nodes.base import Result, Running
    from testbed.nodes.netns.node import NetnsNode


@dataclass(frozen=True, slots=True)
class Entered:
    """The network of a container, with the programs of its cell.

    ``pid`` is its first process in the cell's pid namespace.
    """

    cell: NetnsNode
    name: str
    pid: int
    slowness: float = 1.0

    def spawn(self, argv: Sequence[str]) -> Running:
        return self.cell.spawn([*self._enter(), *argv])

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        argv = [*self._enter(), *argv]
        return self.cell.run(argv, input=input, timeout=timeout, check=check)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
