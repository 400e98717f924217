"""Commands for work by hand, called in this process on a lab in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed import cli
from testbed.cli import common
from testbed.labs.lab import Lab
from testbed.nodes.fake import FakeNode
from testbed.roles.container import ContainerProcess, Control
from testbed.roles.docker.glance import Glance
from testbed.testing.fakes import FakeEngine
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    import pytest

    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench

PLAIN = """\
name: plain
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [docker]}
  b: {networks: {lan: 10.168.0.3}}
containers:
  web: {node: a, image: nginx}
"""


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


class Hands:
    """A user of the command line, and the lab in memory that the commands see."""

    def __init__(
        self, bench: Bench, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.bench = bench
        self._capsys = capsys
        patch.setattr(common, "make_settings", lambda **_: bench.settings)
        patch.setattr(os, "geteuid", lambda: 0)
        patch.delenv("TESTBED_LAB", raising=False)

    def __call__(self, *argv: str) -> Said:
        self._capsys.readouterr()
        status = cli.run(list(argv))
        return Said(status, *self._capsys.readouterr())

    def up(self, text: str = PLAIN) -> Topology:
        """Create a lab; the calls until then are forgotten."""
        topology = load_text(text, "plain.yaml")
        Lab(topology.name, self.bench.settings).up(topology)
        self.bench.forget()
        return topology

    def node(self, name: str, lab: str = "plain") -> FakeNode:
        found = self.bench.provider.nodes(lab)[name]
        assert isinstance(found, FakeNode)
        return found

    def ran(self, node: str | None = None) -> list[tuple[str, ...]]:
        """The commands that ran on nodes, in order."""
        return self.bench.provider.asked("run", node)


class FakeControl(Control):
    """Containers of the engine in memory: to stop and start them by hand."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._here = FakeEngine._all.setdefault(node, {})

    def states(self) -> dict[str, str]:
        return {name: one.status for name, one in self._here.items()}

    def start(self, name: str) -> None:
        self._set(name, "running", running=True)

    def stop(self, name: str, grace: float) -> str:
        self._set(name, "exited", running=False)
        return f"exit status 0 of {grace:g}"

    def _set(self, name: str, status: str, *, running: bool) -> None:
        FakeEngine.log.append((self._node.name, f"{status} {name}"))
        self._here[name] = replace(self._here[name], status=status, running=running)

    @classmethod
    def install(cls, patch: pytest.MonkeyPatch) -> None:
        """Let `stop` and `status` see the containers in memory."""
        patch.setattr("testbed.roles.docker.control.DockerControl", cls)

        def seen(node: Node) -> dict[str, Glance]:
            here = FakeEngine._all.get(node, {})
            return {name: Glance(name, one.status, one.address, 0) for name, one in here.items()}

        patch.setattr("testbed.roles.docker.glance.containers", seen)


def runs(patch: pytest.MonkeyPatch, *names: str, pid: int = 4711) -> None:
    """Let containers run on every node with Docker, found by their processes."""
    found = {name: ContainerProcess(name, name * 12, pid, "172.17.0.2") for name in names}
    patch.setattr("testbed.roles.docker.processes.containers", lambda _: found)
