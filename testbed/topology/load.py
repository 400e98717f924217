"""Load topologies by name, path, text or record, with optional overrides.

For any input the functions return a Topology, or raise TopologyError with every problem of the
file, or UsageError.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import TopologyError, UsageError
from testbed.spelling import is_a_path
from testbed.topology import source as syntax
from testbed.topology import tree
from testbed.topology.build import build
from testbed.topology.declare import keys_of
from testbed.topology.format import format_of, is_named_by_any
from testbed.topology.model import INCLUDE, Topology
from testbed.topology.tree import Problems, nearest, quote
from testbed.topology.variant import Overrides, vary

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.format import Format, GetStore
    from testbed.topology.tree import Tree
    from testbed.topology.variables import Variables

__all__ = [
    "STDIN",
    "Overrides",
    "beside",
    "file_of",
    "is_path",
    "load",
    "load_data",
    "load_text",
    "names",
    "vary",
]

STDIN = "-"  #: in the place of a path: standard input

_PACKAGE = Path(__file__).resolve().parent.parent


def names() -> dict[str, Path]:
    """Return the topologies that come with the package: name to file, sorted."""
    inside = _PACKAGE / "topologies"
    # In a source tree they are next to the package, in a wheel inside it.
    folder = inside if inside.is_dir() else _PACKAGE.parent / "topologies"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"), key=lambda p: p.stem)}


def load(
    name_or_path: str | os.PathLike[str],
    overrides: Overrides | None = None,
    *,
    store: GetStore | None = None,
    variables: abc.Mapping[str, str] | None = None,
) -> Topology:
    """Load a topology by its name, if it is shipped, or by its path; ``-`` is standard input.

    A text is a path if it contains a slash, ends in .yaml or .yml, or is an existing file. The file
    can be of another tool's format (:mod:`testbed.topology.format`), whose programs come from
    ``store``, by default the user's. ``variables`` are filled in, and then those of the
    environment. Raises UsageError for an unknown name, an override that does not apply or a given
    variable that the file does not have, TopologyError for a file with problems, ArtifactError for
    a missing program.
    """
    text = os.fspath(name_or_path)
    if text == STDIN:
        found = load_text(_read_stdin(), tree.STDIN, variables)
        return vary(found, overrides) if overrides else found
    if is_path(text):
        path, found = text, _load_file(text, store, variables)
    else:
        shipped = names()
        if text not in shipped:
            raise UsageError(f"no topology {quote(text)}", hint=_unknown(text, shipped))
        path = str(shipped[text])
        found = load_text(_read(path), path, variables)
    topology = replace(found, file=file_of(path))
    return vary(topology, overrides) if overrides else topology


def file_of(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file with symbolic links resolved.

    The file need not exist. Return an empty string if there is no permanent path: for a pipe, a
    deleted open file, or a relative path in a deleted folder.
    """
    try:
        file = os.path.realpath(path)
    except (OSError, ValueError):
        return ""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return file
    return file if stat.S_ISREG(mode) and Path(file).exists() else ""


def _load_file(
    path: str, store: GetStore | None, variables: abc.Mapping[str, str] | None
) -> Topology:
    text = _read(path)
    kind = format_of(Path(path), text)
    if kind is None:
        return load_text(text, path, variables)
    from testbed.topology.variables import Variables

    problems, values = Problems(path), Variables(variables)
    found = kind.read(Path(path), text, problems, store, values)
    if problems:
        raise problems.error()
    values.refuse_unused(path)
    found["foreign"] = {**found["foreign"], "format": kind.name}
    return replace(build(syntax.from_data(found, problems), problems), variables=values.used)


def format_at(path: str) -> Format | None:
    """Return the format of another tool that a file has; None for other topologies.

    Raises TopologyError if it is unreadable.
    """
    if path == STDIN or not is_path(path):
        return None
    return format_of(Path(path), _read(path))


def load_text(text: str, source: str, variables: abc.Mapping[str, str] | None = None) -> Topology:
    """Load a topology from YAML text.

    ``source`` names it in messages; files that it includes are beside this path. ``variables`` are
    filled in, and then those of the environment. Raises TopologyError, and UsageError for a given
    variable that the text does not have.
    """
    problems = Problems(source)
    parser = _Parser(problems, variables)
    root = parser.whole(text)
    keys = keys_of(Topology).own
    for name, entry in root.entries.items() if isinstance(root, tree.Mapping) else ():
        if name in keys and keys[name].own:
            hint = "remove it: testbed sets it for other tools' files"
            problems.add(entry.key, "a known key", quote(name), hint)
    topology = build(root, problems)
    used = parser.used
    if variables and any(node.compose for node in topology.nodes.values()):
        used = {**variables, **used}  # a Compose file can have variables of its own
    elif variables:
        parser.variables.refuse_unused(source)
    return replace(topology, variables=used) if used else topology


def places(topology: Topology) -> tuple[Tree, Problems]:
    """Return the tree of a topology's file, and a collection for problems with its values.

    The tree has no lines if the file cannot be read any more.
    """
    source = topology.source or topology.name
    problems = Problems(source)
    try:
        root = _Parser(problems, topology.variables).whole(_read(topology.file))
        if not problems:
            return root, problems
    except TopologyError:
        pass
    problems = Problems(source)
    return syntax.from_data(topology.to_dict(), problems), problems


def place(topology: Topology, *path: str | int) -> str:
    """Return FILE:LINE of a value of the topology file; empty if it has none.

    ``path`` are the keys and indices that lead to it.
    """
    if not topology.file or topology.foreign is not None:
        return ""
    root, problems = places(topology)
    at = tree.value_at(root, *path)
    return f"{problems.file_of(at)}:{at.line}" if at.line and at.path == path else ""


class _Parser:
    """Parses the texts of a topology and of the files that it includes."""

    def __init__(self, problems: Problems, given: abc.Mapping[str, str] | None) -> None:
        self._problems = problems
        self._given = given
        self._variables: Variables | None = None

    @property
    def variables(self) -> Variables:
        """The variables of all texts."""
        if self._variables is None:
            from testbed.topology.variables import Variables

            self._variables = Variables(self._given)
        return self._variables

    @property
    def used(self) -> dict[str, str]:
        """The values of the variables that were filled in."""
        return self._variables.used if self._variables else {}

    def whole(self, text: str) -> Tree:
        """Return the tree of a topology, with the files that it includes."""
        root = self.tree(text)
        if isinstance(root, tree.Mapping) and INCLUDE in root.entries:
            from testbed.topology.include import whole

            return whole(root, self._problems, self.file)
        return root

    def tree(self, text: str) -> Tree:
        """Return the tree of a text alone."""
        return syntax.from_text(
            text, self._problems, variables=self.variables if "$" in text else None
        )

    def file(self, path: Path) -> Tree:
        """Return the tree of an included file.  Raises TopologyError, OSError, ValueError."""
        with path.open("rb") as file:
            data = file.read(syntax.MAX_BYTES + 1)
        return self.tree(syntax.to_text(data, self._problems))


def beside(folder: Path) -> list[Path]:
    """Return the topology files in a folder, sorted: testbed's own, and those of other tools."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []
    return [path for path in files if _is_topology(path) or is_named_by_any(path)]


def _is_topology(path: Path) -> bool:
    """Tell whether a YAML file looks like a topology: it has ``nodes`` at its top."""
    if path.suffix != ".yaml":
        return False
    try:
        return bool(re.search(r"^nodes\s*:", path.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return False


def load_data(data: abc.Mapping[str, object], source: str) -> Topology:
    """Load a topology from the data of ``Topology.to_dict``.

    Raises TopologyError.
    """
    problems = Problems(source)
    return build(syntax.from_data(data, problems), problems)


def _unknown(name: str, shipped: abc.Mapping[str, Path]) -> str:
    close = nearest(name, shipped)
    everything = f"shipped: {', '.join(shipped) or 'none'}"
    hint = f"{close} {everything}" if close.startswith("did") else everything
    return f"{hint}; for a file use its path, like ./{name or 'lab'}.yaml"


def is_path(text: str) -> bool:
    """Tell whether :func:`load` interprets a text as a path, not as a name."""
    if text == STDIN or is_a_path(text):
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file name, or it contains NUL
        return False


def _read(path: str) -> str:
    """Return the text of a file.

    Raises TopologyError if it is unreadable or not text.
    """
    problems = Problems(path)
    try:
        with Path(path).open("rb") as file:
            # One byte more than allowed is enough to detect a file that is too large.
            data = file.read(syntax.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        seen, hint = why_unreadable(error, path)
        problems.add_at(0, 0, "a topology file", seen, hint)
        raise problems.error() from None
    return syntax.to_text(data, problems)


def _read_stdin() -> str:
    """Return the text of standard input.

    Raises TopologyError if it is closed, unreadable or not text.
    """
    problems = Problems(tree.STDIN)
    try:
        data = sys.stdin.buffer.read(syntax.MAX_BYTES + 1) if sys.stdin else None
    except (OSError, ValueError):
        data = None
    if data is None:
        problems.add_at(0, 0, "a topology", "a closed standard input", "pipe a topology into it")
        raise problems.error()
    return syntax.to_text(data, problems)


def why_unreadable(error: OSError | ValueError, path: str) -> tuple[str, str]:
    """Return seen and hint for an unreadable file."""
    if isinstance(error, FileNotFoundError):
        hint = "check the path"
        shipped = names()
        if (stem := Path(path).stem) in shipped:
            hint = f"use the name of the shipped topology, {stem}, without folder and suffix"
        return "no such file", hint
    if isinstance(error, IsADirectoryError):
        return "a folder", "name a file in this folder"
    if isinstance(error, PermissionError):
        return "a file without read permission", "check its permissions"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return (reason or "an error").lower(), "check the path"
