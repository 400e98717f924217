"""Parse YAML text or plain data into a tree; check only the syntax.

See :mod:`testbed.topology.tree`. Topologies and catalogues of claims are read by it. Only the
part of YAML that they need is accepted: one document of mappings with text keys, sequences and
scalars. Anchors, aliases, merge keys and tags are errors, and so are values that YAML 1.1 and 1.2
interpret differently. The parser's events are checked one by one, so nothing is expanded or built
before it has been checked.
"""

from __future__ import annotations

import math
import re
from collections import abc
from typing import TYPE_CHECKING, Any

from testbed.errors import TopologyError
from testbed.topology.tree import (
    Broken,
    Entry,
    Mapping,
    Path,
    Problems,
    Scalar,
    Sequence,
    Tree,
    describe,
    quote,
)

if TYPE_CHECKING:
    import yaml

__all__ = ["MAX_BYTES", "MAX_DEPTH", "from_data", "from_text", "to_text"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20

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


def from_text(text: str, problems: Problems, *, empty: tuple[str, str] = EMPTY) -> Tree:
    """Return the tree of a YAML text; ``empty`` is wanted and hint for a text without content.

    Errors that do not stop the parser are added to ``problems``. Raises TopologyError if the text
    is too long, not YAML, empty, or nested too deeply.
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
        return _Composer(events, problems).document(empty)
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
    elif "cannot start any token" in what:
        hint = "quote a value that begins with this character"
    problems.add_at(line, column, "YAML", what, hint)


class _Composer:
    """Builds a tree from a parser's events."""

    def __init__(self, events: abc.Iterator[yaml.Event], problems: Problems) -> None:
        import yaml

        self._yaml = yaml
        self._events = events
        self._problems = problems

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

    def _tree(self, event: Any, path: Path) -> Tree:
        yaml = self._yaml
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            seen, hint = f"the alias *{event.anchor}", "write the value out"
            self._refuse(event, path, "a plain value", seen, hint)
            return Broken(path, line, column)
        broken = self._decorated(event, path)
        if len(path) > MAX_DEPTH:
            wanted = f"at most {MAX_DEPTH} levels"
            self._refuse(event, path, wanted, "one more", "remove levels")
            raise self._problems.error()
        if isinstance(event, yaml.ScalarEvent):
            tree: Tree = self._scalar(event, path, line, column)
        elif isinstance(event, yaml.SequenceStartEvent):
            tree = Sequence(path, line, column, tuple(self._items(path)))
        else:
            tree = Mapping(path, line, column, self._entries(path))
        return Broken(path, line, column) if broken else tree

    def _decorated(self, event: Any, path: Path) -> bool:
        """Report an anchor or a tag.

        Return True if the value is unusable because of it.
        """
        if event.anchor is not None:
            seen = f"the anchor &{event.anchor}"
            self._refuse(event, path, "a value without an anchor", seen, "remove the anchor")
        if event.tag is not None:
            seen = f"the tag {quote(event.tag.replace('tag:yaml.org,2002:', '!!'))}"
            self._refuse(event, path, "a value without a tag", seen, "remove the tag")
        return event.tag is not None

    def _scalar(self, event: Any, path: Path, line: int, column: int) -> Scalar:
        if event.style:  # quoted, or a block: always text
            return Scalar(path, line, column, event.value, event.value)
        value, surprise = resolve(event.value)
        return Scalar(path, line, column, value, event.value, surprise)

    def _items(self, path: Path) -> abc.Iterator[Tree]:
        index = 0
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            yield self._tree(event, (*path, index))
            index += 1

    def _entries(self, path: Path) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            # A key that is not text has a depth, too.
            key = self._tree(event, (*path, "?"))
            name = key.value if isinstance(key, Scalar) else None
            below = (*path, name) if isinstance(name, str) else (*path, "?")
            value = self._tree(next(self._events), below)
            if self._good_key(key, event, path, entries) and isinstance(key, Scalar):
                key = Scalar(below, key.line, key.column, key.value, key.text)
                entries[key.text] = Entry(key, value)
        return entries

    def _good_key(self, key: Tree, event: Any, path: Path, seen: abc.Mapping[str, Entry]) -> bool:
        if isinstance(key, Broken):
            return False
        if not isinstance(key, Scalar):
            self._refuse(event, path, "text for a key", describe(key), "use a name")
        elif key.text == "<<" and not event.style:
            self._refuse(event, path, "a key", "the merge key <<", "write the keys out")
        elif not isinstance(key.value, str) or key.surprise:
            hint = f'quote it: "{key.text}"' if key.surprise else "use a name"
            if isinstance(key.value, (int, float)):
                hint = f'quote it: "{key.text}", or use a name'
            self._refuse(event, path, "text for a key", describe(key), hint)
        elif key.text in seen:
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
