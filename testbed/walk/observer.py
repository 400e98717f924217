"""The eyes of a lab: every network namespace, on this kernel or on a node with its own.

Namespaces of this machine's kernel are watched from here. On another kernel the program
:mod:`testbed.walk.watch` runs on the node.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from testbed import process
from testbed.errors import LabError, MachineError
from testbed.observe import taps
from testbed.observe.capture import wait_for_sign
from testbed.observe.places import way_in
from testbed.observe.taps import INTERPRETER
from testbed.walk import drops, watch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Running
    from testbed.observe.inventory import Inventory, Machine, Space

QUIET = 0.02  # seconds without an event
SETTLE = 1.0
PAUSE = 0.004
START = 30.0  # for a program to end; long, for a busy machine
LONGEST = 120.0  # seconds; a program on a node ends then by itself
#: A program, and the modules of testbed that it imports from.
BUNDLE = """
import sys, types
for name, text in {needed!r}:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        word = ".".join(parts[:end])
        sys.modules.setdefault(word, types.ModuleType(word))
        if end > 1:
            setattr(sys.modules[".".join(parts[:end - 1])], parts[end - 1], sys.modules[word])
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
exec(compile({text!r}, "program", "exec"), {{"__name__": "__main__"}})
"""


@dataclass(frozen=True, slots=True)
class Post:
    """A network namespace that is watched.

    ``path`` enters it from this machine; "" if only its node can.
    """

    machine: Machine
    space: Space
    path: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.machine.name, self.space.name

    @property
    def name(self) -> str:
        return f"{self.machine.name}/{self.space.name}" if self.space.name else self.machine.name


def posts(lab: LiveLab, inventory: Inventory) -> Iterator[Post]:
    """Yield each network namespace of a lab once.

    A namespace has its number on one kernel; nodes with their own may have the same ones.
    """
    known: set[tuple[str, int]] = set()
    for machine in inventory.machines:
        for space in machine.spaces:
            if not space.path:
                continue
            way = way_in(lab, machine, space)
            number = ("" if way else machine.name, space.inode)
            if not (space.inode and number in known):
                known.add(number)
                yield Post(machine, space, way)


def run(lab: LiveLab, post: Post, argv: Sequence[str]) -> str:
    """Run a command in a namespace and return its output; its status is ignored."""
    if post.path:
        command = process.in_network(post.path, argv)
        return process.run(command, timeout=START, check=False).stdout
    enter = [] if post.space.kind == "own" else ["nsenter", f"--net={post.space.path}"]
    return lab.node(post.machine.name).run([*enter, *argv], check=False).stdout


def program(module: str) -> str:
    """Return a module as the text of a program for a node, with what it needs of testbed."""
    text = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    needed = [(one.__name__, Path(one.__file__ or "").read_text("utf-8")) for one in (taps, drops)]
    return BUNDLE.format(needed=needed, text=text)


class Watch:
    """The eyes of namespaces, open for a ``with`` block.

    After it, ``found`` has what each has seen (:meth:`watch.Eye.to_dict`, with octets as bytes),
    and ``warnings`` tell what could not be seen. ``drops`` are what each kernel reported, and
    ``no_drops`` tells why one does not; "" is this machine's, a node's own has its name.
    """

    def __init__(self, lab: LiveLab, given: Iterable[Post], marks: list[list[Any]]) -> None:
        self._lab = lab
        self._marks = marks
        self._eyes: dict[str, watch.Eye] = {}
        self._there: dict[str, tuple[Running, list[Post]]] = {}
        self.found: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.drops: dict[str, Sequence[drops.Drop]] = {}
        self.no_drops: dict[str, str] = {}
        self.warnings: list[str] = []
        self._reports: drops.Drops | None = None
        self._by_name = {post.name: post for post in given}

    def __enter__(self) -> Self:
        near = [[post.name, post.path] for post in self._by_name.values() if post.path]
        try:
            self._eyes, errors = watch.open_eyes(near, self._marks)
            for name, error in errors.items():
                self.warnings.append(f"{name} cannot be watched: {error}")
            self._reports, self.no_drops[""] = drops.opened(self._marks)
            self._start_programs()
        except BaseException:
            self._close()
            raise
        if not self._eyes and not self._there:
            raise MachineError("no place of the lab can be watched", hint="run it as root")
        return self

    def _start_programs(self) -> None:
        far: dict[str, list[Post]] = {}
        for post in self._by_name.values():
            if not post.path:
                far.setdefault(post.machine.name, []).append(post)
        for machine, posts in far.items():
            given = {"spaces": [[one.name, one.space.path] for one in posts],
                     "marks": self._marks, "seconds": LONGEST}  # fmt: skip
            argv = [*INTERPRETER, program("watch"), json.dumps(given)]
            self._there[machine] = (self._lab.node(machine).spawn(argv), posts)
        for machine, (running, _) in [*self._there.items()]:
            try:
                wait_for_sign(running, b"ready\n", f"watch {machine}")
            except LabError as error:
                running.kill()
                del self._there[machine]
                self.warnings.append(f"{machine} cannot be watched: {error.message}")

    def settle(self) -> None:
        """Wait until no more events come, and read them."""
        deadline = time.monotonic() + SETTLE
        quiet = time.monotonic()
        while time.monotonic() - quiet < QUIET and time.monotonic() < deadline:
            if sum(eye.read() for eye in self._eyes.values()):
                quiet = time.monotonic()
            time.sleep(PAUSE)
        for machine, (running, _) in self._there.items():
            self._lab.node(machine).run(["kill", "-TERM", str(running.pid)], check=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._collect()
        finally:
            self._close()

    def _collect(self) -> None:
        self.drops[""] = self._reports.read() if self._reports else []
        for name, eye in self._eyes.items():
            self.found[self._by_name[name].key] = {
                "names": eye.names,
                "bridged": eye.bridged,
                "warnings": eye.warnings,
                "frames": eye.frames,
                "events": eye.events,
                "tracks": eye.tracks,
                "logs": eye.logs,
                "legacy": eye.legacy,
            }
        for machine, (running, posts) in self._there.items():
            result = running.wait(START)
            if not result.ok:
                self.warnings.append(f"{machine} was not watched: {result.stderr.strip()}")
                continue
            data = json.loads(result.out)
            self.drops[machine] = [(*rest, bytes.fromhex(text)) for *rest, text in data["drops"]]
            self.no_drops[machine] = data["no_drops"]
            for post in posts:
                if post.name in data["spaces"]:
                    self.found[post.key] = _decoded(data["spaces"][post.name])
                else:
                    error = data["errors"].get(post.name, "")
                    self.warnings.append(f"{post.name} cannot be watched: {error}")

    def _close(self) -> None:
        if self._reports:
            self._reports.close()
        watch.close_eyes([*self._eyes.values()])
        for running, _ in self._there.values():
            running.kill()


def _decoded(data: dict[str, Any]) -> dict[str, Any]:
    data["frames"] = [[*rest, bytes.fromhex(text)] for *rest, text in data["frames"]]
    for key in ("events", "tracks", "logs"):
        data[key] = [bytes.fromhex(text) for text in data[key]]
    return data
