"""testinfra's way to a node of a lab, whatever made the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import testinfra.host
from testinfra.backend.base import BaseBackend, CommandResult

from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.nodes.base import Node

LIMIT = 3600.0  # seconds for one command: testinfra itself has no limit


class NodeBackend(BaseBackend):  # type: ignore[misc]  # testinfra has no type information
    """Runs testinfra's commands on a node, or in a container on it.

    ``prefix`` is put before every command: empty for the node itself.
    """

    NAME = "testbed"

    def __init__(self, node: Node | None, name: str, prefix: Sequence[str], **kwargs: Any) -> None:
        self._node = node
        self._prefix = tuple(prefix)
        super().__init__(name, **kwargs)

    def _where(self) -> tuple[Node, Sequence[str]]:
        """The node, and what leads into the container on it."""
        assert self._node is not None
        return self._node, self._prefix

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        line = self.get_command(command, *args)
        node, prefix = self._where()
        result = node.run([*prefix, "/bin/sh", "-c", line], check=False, timeout=LIMIT)
        return self.result(
            rc=result.status, cmd=self.encode(line), stdout=result.out, stderr=result.err
        )

    def run_local(self, command: str, *args: str) -> CommandResult:
        """Refuse testinfra's way to a command on this machine: it is not the node's."""
        del args
        raise UsageError(
            f"run_local({command!r}) on the host {self.get_hostname()} would run on this machine",
            hint="use host.run(), which runs on the node",
        )


def host_of(node: Node, *, container: str | None = None, prefix: Sequence[str] = ()) -> Any:
    """A testinfra Host for a node, or for a container that ``prefix`` leads into."""
    name = f"{node.name}/{container}" if container else node.name
    backend = NodeBackend(node, name, prefix)
    host = testinfra.host.Host(backend)
    backend.set_host(host)
    return host
