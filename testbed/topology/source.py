"""Parse YAML text or plain data into a tree; check only the syntax.

See :mod:`testbed.topology.tree`. Topologies and catalogues of claims are read by it. Only the
part of YAML that they need is accepted: one document of mappings with text keys, sequences and
scalars, in topologies also anchors, aliases, merge keys and variables. Tags are errors, and so are
values that YAML 1.1 and 1.2 interpret differently. The parser's events are checked one by one. What
aliases stand for is copied, so the sum of these copies is limited: a short file could otherwise
stand for more than fits into memory.
"""

from __future__ import annotations

import math
import re
from collections import abc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed.errors import TopologyError
from testbed.topology.tree import (
    Broken,
    Entry,
    Filled,
    Mapping,
    Path,
    Problems,
    Scalar,
    Sequence,
    Tree,
    describe,
    nearest,
    quote,
)

if TYPE_CHECKING:
    import yaml

    from testbed.topology.variables import Variables

__all__ = ["MAX_BYTES", "MAX_DEPTH", "from_data", "from_text", "to_text"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
#: Characters of all copies for aliases and of all values of variables.
MAX_COPIED = MAX_BYTES
COPY = 10  #: for each of them; in memory it takes even more
MERGE = "<<"  # yaml.org/type/merge.html
#: Keys that are meant as text although YAML 1.1 has them as booleans: a node's.
PLAIN_KEYS = ("on",)

#: Characters that YAML 1.1 does not define as printable (section 5.1).
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\.[0-9]{0,18}")
#: Plain scalars that are not text in YAML 1.1 or YAML 1.2
#: (yaml.org/type, and the core schema of YAML 1.2, section 10.3).
_SURPRISES = (
    (re.compile(r"yes|Yes|YES|on|On|ON"), "the boolean true"),
    (re.compile(r"no|No|NO|off|Off|OFF"), "the boolean false"),
    (re.compile(r"[-+]?0o?[0-7_]+"), "an octal number"),
    (re.compile(r"[-+]?0x[0-9a-fA-F_]+"), "a hexadecimal number"),
    (re.compile(r"[-+]?0b[01_]+"), "a binary number"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "a number in base 60"),
    (re.compile(r"[-+]?[0-9][0-9_]*"), "a number"),
    (re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9_]+([eE][-+]?[0-9]+)?"), "a number"),
    (re.compile(r"[-+]?[0-9][0-9_]*\.([eE][-+]?[0-9]+)?"), "a number"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), "a number"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"), "a date"),
    (re.compile(r"="), "a default value"),
)


def to_text(data: bytes, problems: Problems) -> str:
    """Decode a file's bytes.

    Raises TopologyError for too many bytes or invalid UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise _too_big(problems)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode("utf-8", "replace"))
        problems.add_at(
            line,
            column,
            "UTF-8 text",
            f"the byte 0x{data[error.start]:02x}",
            "save the file as UTF-8",
        )
        raise problems.error() from None
    return text


#: Wanted and hint for an empty topology file.
EMPTY = ("a mapping with 'name' and 'nodes'", "write a topology")


def from_text(
    text: str,
    problems: Problems,
    *,
    empty: tuple[str, str] = EMPTY,
    plain: bool = False,
    variables: Variables | None = None,
) -> Tree:
    """Return the tree of a YAML text; ``empty`` is wanted and hint for a text without content.

    ``plain`` refuses anchors and aliases. ``variables`` are filled into scalars; without them, a
    dollar sign has no meaning. Errors that do not stop the parser are added to ``problems``. Raises
    TopologyError if the text is too long, not YAML, empty, nested too deeply, or if aliases and
    variables stand for too much.
    """
    if len(text) > MAX_BYTES:
        raise _too_big(problems)
    text = text.removeprefix("\ufeff")
    if bad := _UNPRINTABLE.search(text):
        line, column = _place(text[: bad.start()])
        what = "a NUL byte" if bad.group() == "\0" else f"the character U+{ord(bad.group()):04X}"
        problems.add_at(line, column, "printable text", what, "remove it")
        raise problems.error()

    import yaml

    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        return _Composer(events, problems, variables, plain=plain).document(empty)
    except TopologyError:  # a ValueError, too
        raise
    except yaml.MarkedYAMLError as error:
        _not_yaml(error, text, problems)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problems.add_at(0, 0, "a YAML file", str(error).split("\n", 1)[0], "correct the file")
    raise problems.error()


def _too_big(problems: Problems) -> TopologyError:
    problems.add_at(
        0,
        0,
        f"a file of at most {MAX_BYTES >> 20} MiB",
        "a larger one",
        "check the path: such a file usually has a few KiB",
    )
    return problems.error()


def _place(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of the position after a text."""
    breaks = list(_LINE_BREAK.finditer(before))
    return len(breaks) + 1, len(before) - (breaks[-1].end() if breaks else 0) + 1


def _not_yaml(error: yaml.MarkedYAMLError, text: str, problems: Problems) -> None:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    lines = _LINE_BREAK.split(text)
    here = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        column = here.index("\t") + 1
        problems.add_at(line, column, "spaces before a key", "a tab", "indent with spaces only")
        return
    what = error.problem or "something else"
    if error.context:
        what += f" {error.context}"
        if error.context_mark and error.context_mark.line + 1 != line:
            what += f" that begins in line {error.context_mark.line + 1}"
    hint = "look for a missing quote, bracket, comma or colon, or a wrong indentation"
    if "mapping values" in what:
        hint = "check the indentation, and quote a value that holds ': '"
    elif "while parsing a flow" in what and "${" in here:
        hint = "quote a value with ${...} inside of braces or brackets"
    elif "cannot start any token" in what:
        hint = "quote a value that begins with this character"
    problems.add_at(line, column, "YAML", what, hint)


class _Composer:
    """Builds a tree from a parser's events."""

    def __init__(
        self,
        events: abc.Iterator[yaml.Event],
        problems: Problems,
        variables: Variables | None,
        *,
        plain: bool,
    ) -> None:
        import yaml

        self._yaml = yaml
        self._events = events
        self._problems = problems
        self._variables = variables
        self._plain = plain
        self._anchors: dict[str, Tree | None] = {}  # None for a value that is not complete yet
        self._copied = 0

    def document(self, empty: tuple[str, str]) -> Tree:
        yaml = self._yaml
        root: Tree | None = None
        for event in self._events:
            if isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent)):
                continue
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._refuse(event, (), "one document", "a second one", "keep one per file")
                    raise self._problems.error()
            elif not isinstance(event, yaml.DocumentEndEvent):
                root = self._tree(event, ())
        if root is None:
            wanted, hint = empty
            self._problems.add_at(0, 0, wanted, "an empty file", hint)
            raise self._problems.error()
        return root

    def _refuse(self, event: Any, path: Path, wanted: str, seen: str, hint: str) -> None:
        mark = event.start_mark
        self._problems.add(Broken(path, mark.line + 1, mark.column + 1), wanted, seen, hint)

    def _tree(self, event: Any, path: Path, *, fills: bool = True) -> Tree:
        yaml = self._yaml
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        broken = event.tag is not None and self._tagged(event, path)
        anchor = event.anchor
        if anchor is not None:
            if self._plain:
                seen = f"the anchor &{anchor}"
                self._refuse(event, path, "a value without an anchor", seen, "remove the anchor")
            self._anchors[anchor] = None
        if len(path) > MAX_DEPTH:
            self._too_deep(Broken(path, line, column))
        if isinstance(event, yaml.ScalarEvent):
            tree: Tree = self._scalar(event, path, line, column, fills=fills)
        elif isinstance(event, yaml.SequenceStartEvent):
            tree = Sequence(path, line, column, tuple(self._items(path)))
        else:
            tree = Mapping(path, line, column, self._entries(path))
        if broken:
            tree = Broken(path, line, column)
        if anchor is not None:
            self._anchors[anchor] = tree
        return tree

    def _too_deep(self, at: Tree) -> None:
        wanted = f"at most {MAX_DEPTH} levels"
        self._problems.add(at, wanted, "one more", "remove levels")
        raise self._problems.error()

    def _tagged(self, event: Any, path: Path) -> bool:
        """Report a tag, which makes a value unusable."""
        seen = f"the tag {quote(event.tag.replace('tag:yaml.org,2002:', '!!'))}"
        self._refuse(event, path, "a value without a tag", seen, "remove the tag")
        return True

    def _alias(self, event: Any, path: Path) -> Tree:
        """Return a copy of the value that an alias stands for."""
        name = event.anchor
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        found = self._anchors.get(name)
        if self._plain:
            self._refuse(event, path, "a plain value", f"the alias *{name}", "write the value out")
        elif found is not None:
            return self._copy(found, path, f"used by *{name} in line {line}")
        elif name in self._anchors:
            seen = f"*{name} inside of &{name}"
            hint = "write the value out, or move the anchor"
            self._refuse(event, path, "a value that does not contain itself", seen, hint)
        else:
            known = [f"*{one}" for one in self._anchors]
            hint = nearest(f"*{name}", known, f"write &{name} before the value, or quote the text")
            self._refuse(event, path, "an alias of an anchor above it", f"*{name}", hint)
        return Broken(path, line, column)

    def _copy(self, tree: Tree, path: Path, use: str = "") -> Tree:
        """Return a value at another path; ``use`` says by what alias."""
        if len(path) > MAX_DEPTH:
            self._too_deep(tree)
        self._copies(len(tree.text) if isinstance(tree, Scalar) else 0, tree)
        made: Tree
        if isinstance(tree, Mapping):
            entries = {}
            for name, entry in tree.entries.items():
                below = (*path, name)
                key, value = self._copy(entry.key, below, use), self._copy(entry.value, below, use)
                assert isinstance(key, Scalar), "a key is a scalar, and so is its copy"
                entries[name] = Entry(key, value)
            made = Mapping(path, tree.line, tree.column, entries)
        elif isinstance(tree, Sequence):
            items = tuple(self._copy(one, (*path, i), use) for i, one in enumerate(tree.items))
            made = Sequence(path, tree.line, tree.column, items)
        else:
            made = replace(tree, path=path)
        self._problems.stands_for(made, tree)
        if use:
            self._problems.is_used(made, use)
        return made

    def _copies(self, size: int, at: Tree) -> None:
        """Count a copied value.  Raises TopologyError if there are too many."""
        self._copied += size + COPY
        if self._copied > MAX_COPIED:
            wanted = f"at most {MAX_COPIED >> 20} MiB of values by aliases and variables"
            self._problems.add(at, wanted, "more", "use fewer of them")
            raise self._problems.error()

    def _scalar(self, event: Any, path: Path, line: int, column: int, *, fills: bool) -> Tree:
        text = event.value
        if "$" in text and fills and self._variables is not None:
            return self._filled(event, path, line, column)
        if event.style:  # quoted, or a block: always text
            return Scalar(path, line, column, text, text)
        value, surprise = resolve(text)
        return Scalar(path, line, column, value, text, surprise)

    def _filled(self, event: Any, path: Path, line: int, column: int) -> Tree:
        """Return a scalar with its variables filled in."""
        from testbed.topology.variables import Unfilled

        at = Broken(path, line, column)
        assert self._variables is not None, "else a dollar sign has no meaning"
        try:
            text, names = self._variables.fill(event.value)
        except Unfilled as error:
            self._problems.add(at, error.wanted, error.seen, error.hint)
            return at
        self._copies(len(text), at)
        if not names:
            return Scalar(path, line, column, text, text)
        return Filled(path, line, column, resolve(text)[0], text, variables=names)

    def _items(self, path: Path) -> abc.Iterator[Tree]:
        index = 0
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            yield self._tree(event, (*path, index))
            index += 1

    def _entries(self, path: Path) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        merged: set[str] = set()
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            # A key that is not text has a depth, too.
            key = self._tree(event, (*path, "?"), fills=False)
            name = key.value if isinstance(key, Scalar) else None
            below = (*path, name) if isinstance(name, str) else (*path, "?")
            value = self._tree(next(self._events), below)
            if name == MERGE and not (self._plain or getattr(event, "style", None)):
                self._merge(value, path, entries, merged)
            elif self._good_key(key, event, path, entries, merged) and isinstance(key, Scalar):
                made = Scalar(below, key.line, key.column, key.value, key.text)
                if self._anchors:
                    self._problems.stands_for(made, key)
                entries[key.text] = Entry(made, value)
                merged.discard(key.text)
        return entries

    def _merge(self, value: Tree, path: Path, entries: dict[str, Entry], merged: set[str]) -> None:
        """Add the entries of a merge key's mappings, except for keys that are there already.

        ``merged`` are the keys that were added so; the mapping's own entries replace them.
        """
        if MERGE in merged:
            hint = f"write one: {MERGE}: [*a, *b]"
            self._problems.add(value, f"one {MERGE} in a mapping", "another", hint)
        merged.add(MERGE)
        for one in value.items if isinstance(value, Sequence) else (value,):
            if isinstance(one, Mapping):
                for name, entry in one.entries.items():
                    if name not in entries:
                        below = (*path, name)
                        key, made = self._copy(entry.key, below), self._copy(entry.value, below)
                        assert isinstance(key, Scalar), "a key is a scalar, and so is its copy"
                        entries[name] = Entry(key, made)
                        merged.add(name)
            elif not isinstance(one, Broken):
                wanted = f"a mapping to merge, or a list of mappings, for {MERGE}"
                self._problems.add(one, wanted, describe(one), f"write {MERGE}: *NAME")

    def _good_key(
        self,
        key: Tree,
        event: Any,
        path: Path,
        seen: abc.Mapping[str, Entry],
        merged: abc.Collection[str],
    ) -> bool:
        if isinstance(key, Broken):
            return False
        if not isinstance(key, Scalar):
            self._refuse(event, path, "text for a key", describe(key), "use a name")
        elif key.text == MERGE and self._plain and not event.style:
            self._refuse(event, path, "a key", f"the merge key {MERGE}", "write the keys out")
        elif not isinstance(key.value, str) or (key.surprise and key.text not in PLAIN_KEYS):
            hint = f'quote it: "{key.text}"' if key.surprise else "use a name"
            if isinstance(key.value, (int, float)):
                hint = f'quote it: "{key.text}", or use a name'
            self._refuse(event, path, "text for a key", describe(key), hint)
        elif key.text in seen and key.text not in merged:
            first = seen[key.text].key.line
            what = f"{quote(key.text)} again, first in line {first}"
            self._refuse(event, path, "each key once", what, "remove or rename one")
        else:
            return True
        return False


def resolve(text: str) -> tuple[str | int | float | bool | None, str]:
    """Return the value of a plain scalar, and its meaning in YAML 1.1.

    The latter is empty unless it is different.

    >>> resolve("8080"), resolve("no")
    ((8080, ''), ('no', 'the boolean false'))
    """
    if text in _NULL:
        return None, ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE, ""
    if text[0] not in "+-.=0123456789yYnNoO":  # most texts: no pattern below can match
        return text, ""
    if _INTEGER.fullmatch(text):
        return int(text), ""
    if _FLOAT.fullmatch(text):
        return float(text), ""
    for pattern, what in _SURPRISES:
        if pattern.fullmatch(text):
            return text, what
    return text, ""


def from_data(data: object, problems: Problems) -> Tree:
    """Return the tree of plain data from a JSON decoder.

    Positions are paths, not lines.
    """
    return _from_data(data, (), problems)


def _from_data(data: object, path: Path, problems: Problems) -> Tree:
    if len(path) > MAX_DEPTH:
        at = Broken(path, 0, 0)
        problems.add(at, f"at most {MAX_DEPTH} levels", "more", "remove levels")
        return at
    if isinstance(data, abc.Mapping):
        entries: dict[str, Entry] = {}
        for key, value in data.items():
            if not isinstance(key, str):
                at = Broken((*path, "?"), 0, 0)
                problems.add(at, "text for a key", f"a {type(key).__name__}", "use a string")
                continue
            below = (*path, key)
            entries[key] = Entry(Scalar(below, 0, 0, key, key), _from_data(value, below, problems))
        return Mapping(path, 0, 0, entries)
    if isinstance(data, (list, tuple)):
        items = tuple(_from_data(item, (*path, i), problems) for i, item in enumerate(data))
        return Sequence(path, 0, 0, items)
    if data is None or isinstance(data, (str, bool)):
        return Scalar(path, 0, 0, data, str(data))
    if isinstance(data, int) and abs(data) < 10**18:
        return Scalar(path, 0, 0, data, str(data))
    if isinstance(data, float) and math.isfinite(data):
        return Scalar(path, 0, 0, data, repr(data))
    at = Broken(path, 0, 0)
    seen = f"a {type(data).__name__}"
    problems.add(at, "text, a number, a boolean, a list or a mapping", seen, "use plain data")
    return at
