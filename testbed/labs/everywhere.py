"""Run a command on every node of a lab, side by side or one after the other."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from testbed.errors import LabError, MachineError, TestbedError
from testbed.labs.commands import Surroundings, on_node
from testbed.limits import at_once

if TYPE_CHECKING:
    from testbed.steps.context import Context


class Tell(Protocol):
    """Called with a line of a node's output, without its end."""

    def __call__(self, node: str, line: bytes, *, error: bool) -> None: ...


FILES_PER_NODE = 8  # two pipes, a connection and its files
AT_ONCE = 32
LINGER = 0.5  # seconds without a line after the end of the command


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a command on a node.

    ``status`` is as in a shell, 4 for a node that does not run. The outputs are empty if they
    were told line by line.
    """

    node: str
    status: int
    out: bytes = b""
    err: bytes = b""


@dataclass(frozen=True, slots=True)
class _Line:
    node: str
    text: bytes
    error: bool


def run(
    context: Context,
    argv: Sequence[str],
    given: Surroundings | None = None,
    *,
    serial: bool = False,
    tell: Tell | None = None,
) -> list[Ran]:
    """Run a command on every node; return the results in the order of the topology.

    ``tell`` is called in this thread with each line as it is written; without it, the results have
    the outputs. A failure on one node does not prevent the others. The commands end with this
    process.
    """
    names = list(context.topology.nodes)
    context.give_env()
    events: SimpleQueue[_Line | Ran] = SimpleQueue()
    width = 1 if serial else at_once(min(AT_ONCE, len(names)), files=FILES_PER_NODE)
    kept: dict[tuple[str, bool], list[bytes]] = {}
    results: dict[str, Ran] = {}
    waiting = iter(names)

    def begin() -> None:
        name = next(waiting, None)
        if name is not None:
            work = _Work(context, name, list(argv), given or Surroundings(), events.put)
            threading.Thread(target=work.run, daemon=True).start()

    for _ in range(width):
        begin()
    while len(results) < len(names):
        event = events.get()
        if isinstance(event, Ran):
            results[event.node] = event
            begin()
        elif tell is not None:
            tell(event.node, event.text, error=event.error)
        else:
            kept.setdefault((event.node, event.error), []).append(event.text + b"\n")
    return [
        Ran(name, results[name].status, *(b"".join(kept.get((name, e), ())) for e in (False, True)))
        for name in names
    ]


@dataclass(frozen=True, slots=True)
class _Work:
    """The command on one node, in a thread of its own."""

    context: Context
    node: str
    argv: list[str]
    given: Surroundings
    put: Callable[[_Line | Ran], None]

    def run(self) -> None:
        status = LabError.exit_code
        try:
            status = self._run()
        except TestbedError as error:
            hint = f"\n-> {error.hint}" if error.hint else ""
            for line in f"testbed: {error.message}{hint}".splitlines():
                self.put(_Line(self.node, line.encode(), error=True))
            status = error.exit_code
        except OSError as error:
            self.put(_Line(self.node, f"testbed: {error}".encode(), error=True))
            status = MachineError.exit_code
        finally:
            self.put(Ran(self.node, status))

    def _run(self) -> int:
        node = self.context.node(self.node)
        argv = on_node(node, self.argv, self.given)
        readers = []
        with contextlib.ExitStack() as stack:
            ends = []
            for error in (False, True):
                source, end = os.pipe2(os.O_CLOEXEC)
                stack.callback(os.close, end)
                ends.append(end)
                readers.append(_Reader(self, source, error=error))
            try:
                return node.pipe(argv, stdout=ends[0], stderr=ends[1])
            finally:
                stack.close()
                for reader in readers:
                    reader.finish()


class _Reader:
    """Tells the lines of an output, in a thread of its own."""

    def __init__(self, work: _Work, source: int, *, error: bool) -> None:
        self._work = work
        self._source = source
        self._error = error
        self._lines = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with os.fdopen(self._source, "rb") as file:
            for line in file:
                self._lines += 1
                self._work.put(_Line(self._work.node, line.removesuffix(b"\n"), self._error))

    def finish(self) -> None:
        """Wait for the end of the output; a process in the background may hold it open."""
        before = -1
        while self._thread.is_alive() and before != self._lines:
            before = self._lines
            self._thread.join(LINGER)
