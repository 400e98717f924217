"""A document as a tree of keys and values with their positions.

The names are those of YAML's representation graph: scalar, sequence, mapping. A tree is created
from a file's text (:mod:`testbed.topology.source`) or from plain data. :class:`Problems` collects
the errors in a document.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from testbed.errors import Problem, TopologyError
from testbed.spelling import nearest

if TYPE_CHECKING:
    from collections import abc

__all__ = [
    "Broken",
    "Entry",
    "Filled",
    "Mapping",
    "Path",
    "Problems",
    "Scalar",
    "Sequence",
    "Tree",
    "describe",
    "nearest",
    "quote",
]

STDIN = "<stdin>"  #: source of a text from standard input

#: The keys and indices that lead to a value from the root.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A position in a file.

    ``line`` and ``column`` count from 1; 0 means data without a file.
    """

    path: Path
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar(_Placed):
    """A value without parts.

    ``text`` is the original text. ``surprise`` describes how YAML 1.1 interprets a plain scalar
    that was probably meant as text: ``no``, ``1:30``.
    """

    value: str | int | float | bool | None
    text: str
    surprise: str = ""


@dataclass(frozen=True, slots=True)
class Filled(Scalar):
    """A value with variables filled in.

    It is text where a file wants text, and a number or a boolean where it wants one of these.
    ``variables`` has the names of the variables.
    """

    variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sequence(_Placed):
    """A list."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a mapping, and its value."""

    key: Scalar
    value: Tree


@dataclass(frozen=True, slots=True)
class Mapping(_Placed):
    """A mapping from text, in the order of the file."""

    entries: abc.Mapping[str, Entry] = field(default_factory=dict)

    def get(self, key: str) -> Tree | None:
        """Return the value of a key, or None."""
        entry = self.entries.get(key)
        return entry.value if entry else None


@dataclass(frozen=True, slots=True)
class Broken(_Placed):
    """A value that was already reported as invalid; further checks ignore it."""


Tree = Scalar | Sequence | Mapping | Broken


def value_at(root: Tree, *path: str | int) -> Tree:
    """Return the value at a path, or its nearest existing parent."""
    at = root
    for step in path:
        below: Tree | None = None
        if isinstance(at, Mapping) and isinstance(step, str):
            below = at.get(step)
        elif isinstance(at, Sequence) and isinstance(step, int) and step < len(at.items):
            below = at.items[step]
        if below is None:
            break
        at = below
    return at


def key_at(root: Tree, *path: str | int) -> Tree:
    """Return the key at the end of a path, or the nearest value above it."""
    above = value_at(root, *path[:-1])
    if isinstance(above, Mapping) and (entry := above.entries.get(str(path[-1]))):
        return entry.key
    return above


def keys_at(root: Tree, *path: str | int) -> tuple[str, ...]:
    """Return the keys of the mapping at a path; none if there is no mapping."""
    at = value_at(root, *path)
    return tuple(at.entries) if isinstance(at, Mapping) and at.path == path else ()


def quote(text: str, limit: int = 60) -> str:
    """Return a text for use in a message: in quotes, on one line, shortened."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def describe(at: Tree) -> str:  # noqa: PLR0911  a table in the form of a match
    """Describe a value, for the ``seen`` of a problem."""
    match at:
        case Mapping():
            return "a mapping" if at.entries else "an empty mapping"
        case Sequence():
            return "a list" if at.items else "an empty list"
        case Broken():
            return "something else"
    if at.surprise:
        return f"{quote(at.text)}, in YAML 1.1 {at.surprise}"
    match at.value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {at.text}"
        case int():
            return f"the integer {at.text}"
        case float():
            return f"the number {at.text}"
    return quote(at.value)


class Problems:
    """Collects the problems of a document into one error."""

    #: More problems help nobody, and a garbage file could have a hundred thousand.
    LIMIT = 500

    def __init__(self, source: str) -> None:
        self.source = source
        self.about = ""  #: the entry that is read, to begin messages with; see :meth:`within`
        self.file = ""  #: the included file that is read; empty for the source itself
        self._found: dict[Problem, Problem] = {}  # by the problem without the use of an alias
        self._touched: set[Path] = set()
        self._files: dict[int, tuple[Tree, str]] = {}
        self._uses: dict[int, tuple[Tree, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, at: Tree, wanted: str, seen: str, hint: str) -> None:
        """Add a problem with a value.

        Raises TopologyError after the last permitted one.
        """
        path = ".".join(map(str, at.path)) if not at.line else ""
        if isinstance(at, Filled):
            names = (f"${{{name}}}" for name in at.variables)
            seen = f"{seen}, from {' and '.join(names)}"
        _, file = self._files.get(id(at), (at, self.file))
        _, use = self._uses.get(id(at), (at, ""))
        self._add(Problem(at.line, at.column, self._begin(wanted), seen, hint, file, path), use)
        self._touched.update(at.path[:i] for i in range(len(at.path) + 1))

    def add_at(self, line: int, column: int, wanted: str, seen: str, hint: str) -> None:
        """Add a problem at a position in the text; lines and columns count from 1."""
        self._add(Problem(line, column, self._begin(wanted), seen, hint, self.file))

    def _begin(self, wanted: str) -> str:
        return f"{self.about}: {wanted}" if self.about else wanted

    def _add(self, problem: Problem, use: str = "") -> None:
        """Add a problem; a value with several uses is reported once."""
        shown = replace(problem, seen=f"{problem.seen}, {use}") if use else problem
        self._found.setdefault(problem, shown)
        if len(self._found) >= self.LIMIT:
            more = Problem(
                0,
                0,
                f"fewer than {self.LIMIT} problems",
                "more",
                "only the first problems are shown",
            )
            raise TopologyError(self.source, [more, *self._found.values()])

    def is_from(self, at: Tree, file: str) -> None:
        """Note that a value was read from an included file."""
        self._files[id(at)] = at, file  # with the value, whose identity nothing else can get then

    def file_of(self, at: Tree) -> str:
        """Return the file that a value was read from: the source, or an included file."""
        return self._files.get(id(at), (at, ""))[1] or self.source

    def folder_of(self, at: Tree) -> str:
        """Return the folder that relative paths in a value begin at.

        It is that of the file itself, if the path of the file is a symbolic link.
        """
        file = self.file_of(at)
        path = FilePath(file)
        return str((path.resolve() if path.is_symlink() else path).parent)

    def beside(self, at: Tree, path: str) -> str:
        """Return a path that was read from a value, for :attr:`Topology.folder`.

        It is absolute if the value is in an included file or comes from standard input.
        """
        if path.startswith("~") or (self.file_of(at) == self.source and self.source != STDIN):
            return path
        return os.path.abspath(FilePath(self.folder_of(at), path))  # noqa: PTH100  keeps links

    def is_used(self, at: Tree, use: str) -> None:
        """Note the use of a value, such as that by an alias, for its problems."""
        self._uses[id(at)] = at, use

    def stands_for(self, new: Tree, old: Tree) -> None:
        """Note that a value has the origin of another one."""
        for notes in (self._files, self._uses):
            if id(old) in notes:
                notes[id(new)] = new, notes[id(old)][1]

    @contextmanager
    def within(self, about: str) -> abc.Iterator[None]:
        """Begin the messages of the block with the name of an entry."""
        before, self.about = self.about, about
        try:
            yield
        finally:
            self.about = before

    def found(self) -> list[Problem]:
        """Return the problems found so far."""
        return list(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    def touched(self, *path: str | int) -> bool:
        """Tell whether a path, or one below it, already has a problem."""
        return path in self._touched

    def snapshot(self) -> frozenset[Path]:
        """Return the paths that have a problem at or below them so far."""
        return frozenset(self._touched)

    def error(self) -> TopologyError:
        """Return an error with all problems found so far."""
        return TopologyError(self.source, self.found())
