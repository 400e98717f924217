"""Programs of a node's own: commands at its start, and services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.topology import keys, reserved, tree
from testbed.topology.containers import Ready
from testbed.topology.declare import Block, Composed, Draft, Nested, key, schema_of
from testbed.topology.shapes import Choice, Duration, Name, Shape, Variables
from testbed.topology.shapes import Command as Words

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: A command line of a shell, or a program with its arguments.
Line = str | tuple[str, ...]
SECONDS = 60.0  # time limit of a command at start
SERVICE_NAME = Name("a service", keys.LABEL, keys.LABEL_MAX, reserved.CONTAINERS)
#: Values of ``restart``, as in Compose.
NEVER, ALWAYS, ON_FAILURE = "no", "always", "on-failure"


def argv(line: Line) -> tuple[str, ...]:
    """Return the program and arguments of a command.

    >>> argv("echo $HOME")
    ('sh', '-c', 'echo $HOME')
    """
    return ("sh", "-c", line) if isinstance(line, str) else line


def shown(line: Line) -> str:
    """Return a command on one line, shortened."""
    text = " ".join(line.split() if isinstance(line, str) else line).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


class CommandLine(Shape[Line]):
    """A command: a text for a shell, or a list."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, Words().schema()]}

    def read(self, read: Reader, at: Tree | None) -> Line | None:
        if isinstance(at, tree.Sequence):
            return Words("write a program and its arguments").read(read, at) or None
        text = read.text(at, "a command line of a shell, or a list")
        if at is not None and text is not None and not text.strip():
            read.problems.add(at, "a command", "an empty text", "write one, or remove it")
            return None
        return text

    def plain(self, value: Line) -> str | list[str]:
        return value if isinstance(value, str) else list(value)


@dataclass(frozen=True, slots=True)
class Command(Block):
    """A command at the start of a node.

    ``done`` succeeds once the command need not run; None if its own success is enough. ``timeout``
    is in seconds, of each of them.
    """

    line: Line = key(
        CommandLine(),
        "Command line of a shell, or a list: the program and its arguments.",
        name="command",
        required=True,
        default="",
    )
    done: Line | None = key(
        CommandLine(),
        "Command that succeeds once the other one is done. `up` then does not run it again.",
        default=None,
    )
    timeout: float = key(Duration(), "Time after which `up` fails.", default=SECONDS)


class Commands(Composed):
    """Commands, in order: texts for a shell, lists, or mappings."""

    def schema(self) -> dict[str, Any]:
        one = {"anyOf": [*CommandLine().schema()["anyOf"], schema_of(Command)]}
        return {"type": "array", "items": one}

    def read_in(self, draft: Draft, at: Tree) -> tuple[Command, ...]:
        hint = "write a list: ['first command', [second, command]]"
        found = []
        for item in draft.read.items(at, "a list of commands", hint):
            if isinstance(item, tree.Mapping):
                one = Nested(Command).read_in(draft, item)
            else:
                line = CommandLine().read(draft.read, item)
                one = None if line is None else Command(line)
            if one is not None and one.line:
                found.append(one)
        return tuple(found)

    def plain(self, value: tuple[Command, ...]) -> list[Any]:
        return [one.to_dict() for one in value]


@dataclass(frozen=True, slots=True)
class OwnService(Block):
    """A daemon of a node's own, kept by the node's init.

    ``restart`` is ``no``, ``always`` or ``on-failure``.
    """

    name: str
    line: Line = key(
        CommandLine(),
        "Command line of a shell, or a list: the program and its arguments. It must not go to the "
        "background.",
        name="command",
        required=True,
        default="",
    )
    env: Mapping[str, str] = key(
        Variables(), "Environment variables, besides those of the node.", default={}
    )
    ready: Ready | None = key(
        Nested(Ready), "Readiness condition that `up` waits for.", default=None
    )
    restart: str = key(
        Choice("a policy", (NEVER, ALWAYS, ON_FAILURE)),
        'Whether to start it again when it ends: "no", always or on-failure.',
        default=NEVER,
    )
