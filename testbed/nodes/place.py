"""Places where commands run: a node, a container, a Pod, a network namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from testbed.nodes.base import Result, Running


class Runs(Protocol):
    """A place that runs commands to their end."""

    @property
    def name(self) -> str: ...

    @property
    def slowness(self) -> float:
        """Slowdown factor, see :attr:`testbed.nodes.base.Node.slowness`."""

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = ...,
        timeout: float = ...,
        check: bool = ...,
    ) -> Result: ...


class Place(Runs, Protocol):
    """A place that also starts commands and does not wait for them."""

    def spawn(self, argv: Sequence[str]) -> Running: ...
