"""A document as a tree in which every key and value knows its place.

The names are those of YAML's representation graph: scalar, sequence, mapping.
A tree comes from a file's text (:mod:`testbed.topology.source`) or from plain
data; :class:`Problems` collects what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import Problem, TopologyError
from testbed.spelling import closest

if TYPE_CHECKING:
    from collections import abc

__all__ = [
    "Broken",
    "Entry",
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

#: The keys and indices that lead to a value from the root.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """``line`` and ``column`` count from 1; 0 is data that never was a file."""

    path: Path
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar(_Placed):
    """A value without parts.

    ``text`` is what was written.  ``surprise`` says what YAML 1.1 makes of a
    plain scalar that its writer most likely meant as text: ``no``, ``1:30``.
    """

    value: str | int | float | bool | None
    text: str
    surprise: str = ""


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
        """The value of a key, or None."""
        entry = self.entries.get(key)
        return entry.value if entry else None


@dataclass(frozen=True, slots=True)
class Broken(_Placed):
    """A value that was refused already, and of which nothing more is said."""


Tree = Scalar | Sequence | Mapping | Broken


def value_at(root: Tree, *path: str | int) -> Tree:
    """The value at a path, or the nearest one above it that the file holds."""
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
    """The key at the end of a path, or the nearest value above it that the file holds."""
    above = value_at(root, *path[:-1])
    if isinstance(above, Mapping) and (entry := above.entries.get(str(path[-1]))):
        return entry.key
    return above


def keys_at(root: Tree, *path: str | int) -> tuple[str, ...]:
    """The keys of the mapping at a path; none if there is no mapping."""
    at = value_at(root, *path)
    return tuple(at.entries) if isinstance(at, Mapping) and at.path == path else ()


def quote(text: str, limit: int = 60) -> str:
    """A text as part of a sentence: in quotes, on one line, not too long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def describe(at: Tree) -> str:  # noqa: PLR0911  a table in the form of a match
    """What a value is, in words: for the ``seen`` of a problem."""
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


def nearest(word: str, known: abc.Iterable[str]) -> str:
    """A hint: the known word most like one that is not known, else some of the known ones.

    >>> nearest("dokcer", ["docker", "etcd"])
    "did you mean 'docker'?"
    """
    words = list(known)
    if close := closest(word, words):
        return f"did you mean {close!r}?"
    if not words:
        return "there is none yet: add it"
    return "known: " + ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


class Problems:
    """What is wrong with one document, collected into one error."""

    #: More help nobody, and a file of garbage could have a hundred thousand.
    LIMIT = 500

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: dict[Problem, None] = {}
        self._touched: set[Path] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, at: Tree, wanted: str, seen: str, hint: str) -> None:
        """Note a problem with a value.  Raises TopologyError at one too many."""
        if not at.line and at.path:
            wanted = f"{wanted} at {'.'.join(map(str, at.path))}"
        self.add_at(at.line, at.column, wanted, seen, hint)
        self._touched.update(at.path[:i] for i in range(len(at.path) + 1))

    def add_at(self, line: int, column: int, wanted: str, seen: str, hint: str) -> None:
        """Note a problem with a place of the text; lines and columns count from 1."""
        self._found[Problem(line, column, wanted, seen, hint)] = None
        if len(self._found) >= self.LIMIT:
            more = Problem(
                0, 0, f"fewer than {self.LIMIT} problems", "more", "here are the first ones found"
            )
            raise TopologyError(self.source, [more, *self._found])

    def touched(self, *path: str | int) -> bool:
        """Has a problem been noted at a path, or below it?  Then nothing more need be said."""
        return path in self._touched

    def snapshot(self) -> frozenset[Path]:
        """The paths at which, or below which, a problem has been noted so far."""
        return frozenset(self._touched)

    def error(self) -> TopologyError:
        """All problems found so far, to be raised."""
        return TopologyError(self.source, list(self._found))
