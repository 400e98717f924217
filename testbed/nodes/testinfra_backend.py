"""testinfra's way to a node of a lab, whatever made the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import testinfra.host
from testinfra.backend.base import BaseBackend, CommandResult

if TYPE_CHECKING:
    from testbed.nodes.base import Node


class NodeBackend(BaseBackend):  # type: ignore[misc]  # testinfra has no type information
    """Runs testinfra's commands on a node, or in a container on it.

    ``prefix`` is put before every command: empty for the node itself.
    """

    NAME = "testbed"

    def __init__(self, node: Node, name: str, prefix: Sequence[str], **kwargs: Any) -> None:
        self._node = node
        self._prefix = tuple(prefix)
        super().__init__(name, **kwargs)

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        line = self.get_command(command, *args)
        argv = [*self._prefix, "/bin/sh", "-c", line]
        result = self._node.run(argv, check=False)
        return self.result(
            rc=result.status, cmd=self.encode(line), stdout=result.out, stderr=result.err
        )


def host_of(node: Node, *, container: str | None = None, prefix: Sequence[str] = ()) -> Any:
    """A testinfra Host for a node, or for a container that ``prefix`` leads into."""
    name = f"{node.name}/{container}" if container else node.name
    return testinfra.host.Host(NodeBackend(node, name, prefix))
