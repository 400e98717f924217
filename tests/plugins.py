"""Plug-ins that are registered for the length of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from testbed.faults import means
from testbed.nodes.base import Service
from testbed.nodes.fake import FakeProvider
from testbed.registry import PROVIDERS, ROLES
from testbed.roles.base import Role, start
from testbed.steps.step import Step, node_step
from testbed.testing.fakes import declare
from testbed.topology.declare import Block, Section, key
from testbed.topology.shapes import Flag, Integer, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pytest

    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Node as NodeModel
    from testbed.topology.model import Topology


class Elsewhere(FakeProvider):
    """A provider whose nodes are on a fabric of its own."""

    name = "elsewhere"
    fabric_of = ""


class Overseas(FakeProvider):
    """Another one."""

    name = "overseas"
    fabric_of = ""


def declare_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both providers above."""
    for kind in (Elsewhere, Overseas):
        declare(monkeypatch, PROVIDERS, kind.name, f"{__name__}:{kind.__name__}")


class Greetings(means.Breakage):
    """The greeting of a node, which can be hidden."""

    def look(self, node: Node, what: str) -> means.Look:
        del node, what
        return means.Look(("greeting",), ("hello",), (("greeting", "-d"),), (("greeting", "-a"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice(Block):
    """Greeting of one node."""

    about: ClassVar[str] = "The greeting of this node."

    loud: bool = key(Flag(), "Does it shout?", default=False)
    times: int = key(Integer("a number of times", 1, 3), "How often it greets.", default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreeterSection(Section):
    """Greeting of all nodes."""

    role: ClassVar[str] = "greeter"
    about: ClassVar[str] = "The greeting."

    words: str = key(Text(), "Its words.", default="hello")


class Greeter(Role):
    """A role that writes a greeting, and starts a daemon."""

    name = "greeter"
    section = GreeterSection
    node_section = Voice
    services: ClassVar[tuple[str, ...]] = ("greetd",)
    breakable: ClassVar[dict[str, str]] = {"greeting": "hide the greeting"}

    def breakage(self, topology: Topology, nodes: Callable[[], Sequence[Node]]) -> Greetings:
        del topology, nodes
        return Greetings()

    def steps(self, topology: Topology, node: NodeModel) -> Iterable[Step]:
        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            machine.put(f"hello from {topology.name}\n".encode(), "/run/greeting")
            changed = start(machine, Service("greetd", ("greetd",)), context=context)
            return "it greets", changed

        yield Step(f"greeter {node.name}", "a greeting", (node_step(node.name),), act=act)


def declare_greeter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the role above."""
    declare(monkeypatch, ROLES, Greeter.name, f"{__name__}:{Greeter.__name__}")
