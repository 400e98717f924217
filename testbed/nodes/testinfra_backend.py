"""testinfra's back end for nodes of labs, for all providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import testinfra.host
from testinfra.backend.base import BaseBackend, CommandResult

from testbed.errors import UsageError
from testbed.nodes import testinfra_modules as modules
from testbed.nodes.request import ENVIRONMENT

if TYPE_CHECKING:
    from testbed.nodes.base import Node

LIMIT = 3600.0  # timeout in seconds for one command: testinfra itself has none


@dataclass(frozen=True, slots=True)
class Place:
    """A place for commands: a node, or a container that the command ``prefix`` enters."""

    node: Node
    prefix: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)  #: of the container's commands


#: Arguments: PATH, the command, and the node's variables that the container does not have.
AS_IN_CONTAINER = 'PATH=$1; line=$2; shift 2; export PATH; unset "$@"; exec /bin/sh -c "$line"'


class NodeBackend(BaseBackend):  # type: ignore[misc]  # testinfra has no type information
    """Runs testinfra's commands at a place, and gives its host our modules for nodes."""

    NAME = "testbed"

    def __init__(self, place: Place | None, name: str, **kwargs: Any) -> None:
        self._given = place
        super().__init__(name, **kwargs)

    def _where(self) -> Place:
        assert self._given is not None
        return self._given

    @property
    def _is_container(self) -> bool:
        return self._given is not None and bool(self._given.prefix)

    @property
    def node(self) -> Node:
        """The node of the commands, or of their container."""
        return self._where().node

    def set_host(self, host: Any) -> None:
        """Set the host, and give it our modules for nodes and containers."""
        super().set_host(host)
        host.file = modules.StrictFile.get_module(host)
        host.pip = modules.StrictPip.get_module(host)
        host.socket = modules.RealSocket.get_module(host)
        if self._is_container:
            host.service = modules.ContainerService.get_module(host)
        else:
            host.service = modules.NodeService.get_module(host)
            host.package = modules.NodePackage.get_module(host)

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        line = self.get_command(command, *args)
        place = self._where()
        argv: Sequence[str] = ("/bin/sh", "-c", line)
        env = dict(place.env)
        if place.prefix:
            path = env.pop("PATH", ENVIRONMENT["PATH"])  # nsenter is found on the node's PATH
            lacking = [name for name in ENVIRONMENT if name not in {*env, "PATH", "HOME"}]
            argv = ("/bin/sh", "-c", AS_IN_CONTAINER, "sh", path, line, *lacking)
        result = place.node.run([*place.prefix, *argv], env=env, check=False, timeout=LIMIT)
        return self.result(
            rc=result.status, cmd=self.encode(line), stdout=result.out, stderr=result.err
        )

    def run_local(self, command: str, *args: str) -> CommandResult:
        """Refuse to run a command on this machine instead of the node."""
        del args
        raise UsageError(
            f"run_local({command!r}) on the host {self.get_hostname()} would run on this machine",
            hint="use host.run(), which runs on the node",
        )


def host_of(
    node: Node,
    *,
    container: str | None = None,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Any:
    """Return a testinfra Host for a node, or for a container that ``prefix`` enters."""
    name = f"{node.name}/{container}" if container else node.name
    backend = NodeBackend(Place(node, prefix, env or {}), name)
    host = testinfra.host.Host(backend)
    backend.set_host(host)
    return host
