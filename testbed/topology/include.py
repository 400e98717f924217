"""Topology files that include others.

Mappings merge by key, at every depth. Anything else is replaced: by that of a later file of the
list, and finally by that of the including file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from testbed.errors import TopologyError
from testbed.topology.load import why_unreadable
from testbed.topology.model import INCLUDE
from testbed.topology.read import Reader
from testbed.topology.tree import Entry, Mapping, Problems, Sequence, Tree, describe

MAX_FILES = 100  # in all lists; one file can be included several times

Parse: TypeAlias = Callable[[Path], Tree]
#: Files from the first one to the one that is read: resolved path, and as the user wrote it.
Chain: TypeAlias = tuple[tuple[str, str], ...]


def whole(root: Mapping, problems: Problems, parse: Parse) -> Mapping:
    """Return a file's tree with the files that it includes.

    ``parse`` returns the tree of a file; it may raise TopologyError, OSError and ValueError. Raises
    TopologyError for a file with a syntax error. Other problems are added to ``problems``.
    """
    source = problems.source
    return _Includes(problems, parse).of(root, ((os.path.realpath(source), source),))


class _Includes:
    def __init__(self, problems: Problems, parse: Parse) -> None:
        self._problems = problems
        self._parse = parse
        self._read = Reader(problems)
        self._count = 0

    def of(self, root: Mapping, chain: Chain) -> Mapping:
        """Return the tree of the last file of the chain, with the files that it includes."""
        entries = {name: entry for name, entry in root.entries.items() if name != INCLUDE}
        own = Mapping(root.path, root.line, root.column, entries)
        self._problems.stands_for(own, root)
        at = root.get(INCLUDE)
        found: Mapping | None = None
        if isinstance(at, (Sequence, Mapping)):
            items = self._read.items(at, "a list of files")
        else:
            items = (at,) if at is not None else ()
        for item in items:
            part = self._part(item, chain)
            if part is not None:
                found = part if found is None else self._merged(found, part)
        return own if found is None else self._merged(found, own)

    def _part(self, item: Tree, chain: Chain) -> Mapping | None:
        """Return the tree of an included file; None after a problem."""
        name = self._read.text(item, "the path of a file to include")
        if name is None:
            return None
        path = Path(self._problems.folder_of(item), name)
        real = os.path.realpath(path)
        self._count += 1
        if self._count > MAX_FILES:
            self._problems.add(item, f"at most {MAX_FILES} included files", "more", "use fewer")
            raise self._problems.error()
        longer = (*chain, (real, str(path)))
        if real in [file for file, _ in chain]:
            seen = ", which includes ".join(shown for _, shown in longer)
            hint = "remove one of these includes"
            self._problems.add(item, "files that do not include each other", seen, hint)
            return None
        before, self._problems.file = self._problems.file, str(path)
        try:
            root = self._parse(path)
        except TopologyError:  # a ValueError, too
            raise
        except (OSError, ValueError) as error:
            self._problems.file = before
            seen, _ = why_unreadable(error, str(path))
            hint = f"check the path, which is relative to {self._problems.folder_of(item)}"
            self._problems.add(item, "a topology file to include", f"{path}: {seen}", hint)
            return None
        finally:
            self._problems.file = before
        for one in _all(root):
            self._problems.is_from(one, str(path))
        if not isinstance(root, Mapping):
            hint = "write keys of a topology, such as 'nodes'"
            self._problems.add(root, "a mapping", describe(root), hint)
            return None
        return self.of(root, longer)

    def _merged(self, base: Mapping, over: Mapping) -> Mapping:
        """Return a mapping with the entries of both; those of ``over`` win."""
        entries = dict(base.entries)
        for name, entry in over.entries.items():
            below = entries.get(name)
            if below and isinstance(below.value, Mapping) and isinstance(entry.value, Mapping):
                entries[name] = Entry(entry.key, self._merged(below.value, entry.value))
            else:
                entries[name] = entry
        made = Mapping(over.path, over.line, over.column, entries)
        self._problems.stands_for(made, over)
        return made


def _all(tree: Tree) -> Iterator[Tree]:
    """Yield all values and keys of a tree."""
    yield tree
    if isinstance(tree, Mapping):
        for entry in tree.entries.values():
            yield entry.key
            yield from _all(entry.value)
    elif isinstance(tree, Sequence):
        for item in tree.items:
            yield from _all(item)
