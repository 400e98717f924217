"""A topology by its name, path, text or record; and variants of it.

Whatever the bytes, nothing leaves this module but a Topology, a TopologyError
with every problem of the file, or a UsageError.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import UsageError
from testbed.spelling import is_a_path
from testbed.topology import source as syntax
from testbed.topology.build import build
from testbed.topology.tree import Problems, nearest, quote
from testbed.topology.variant import Overrides, vary

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.model import Topology

__all__ = ["Overrides", "file_of", "load", "load_data", "load_text", "names", "vary"]

_PACKAGE = Path(__file__).resolve().parent.parent


def names() -> dict[str, Path]:
    """The topologies that come with the package: name to file, sorted."""
    inside = _PACKAGE / "topologies"
    # In a source tree they lie beside the package, in a wheel inside it.
    folder = inside if inside.is_dir() else _PACKAGE.parent / "topologies"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"), key=lambda p: p.stem)}


def load(name_or_path: str | os.PathLike[str], overrides: Overrides | None = None) -> Topology:
    """A shipped topology by its name, or any by the path of its file.

    What holds a slash, ends in .yaml or .yml, or is a file that exists, is a
    path.  Raises UsageError for an unknown name or an override that does not
    apply, TopologyError for a file with problems.
    """
    text = os.fspath(name_or_path)
    if is_path(text):
        path = text
    else:
        shipped = names()
        if text not in shipped:
            raise UsageError(f"no topology {quote(text)}", hint=_unknown(text, shipped))
        path = str(shipped[text])
    topology = replace(load_text(_read(path), path), file=file_of(path))
    return vary(topology, overrides) if overrides else topology


def file_of(path: str | os.PathLike[str]) -> str:
    """The absolute path of a file with symbolic links resolved, whether it is there or not.

    Empty for what has no lasting path: a pipe, an open file that was deleted, and a relative
    path where the current folder was deleted.
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


def load_text(text: str, source: str) -> Topology:
    """The topology of a YAML text; ``source`` names it in messages.  Raises TopologyError."""
    problems = Problems(source)
    return build(syntax.from_text(text, problems), problems)


def load_data(data: abc.Mapping[str, object], source: str) -> Topology:
    """The topology of plain data, as ``Topology.to_dict`` gives it.  Raises TopologyError."""
    problems = Problems(source)
    return build(syntax.from_data(data, problems), problems)


def _unknown(name: str, shipped: abc.Mapping[str, Path]) -> str:
    close = nearest(name, shipped)
    everything = f"shipped: {', '.join(shipped) or 'none'}"
    hint = f"{close} {everything}" if close.startswith("did") else everything
    return f"{hint}; a file is named by its path, like ./{name or 'lab'}.yaml"


def is_path(text: str) -> bool:
    """Whether :func:`load` takes it for the path of a file, and not for a name."""
    if is_a_path(text):
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file name, or a NUL in it
        return False


def _read(path: str) -> str:
    """The text of a file.  Raises TopologyError when it cannot be read, or is no text."""
    problems = Problems(path)
    try:
        with Path(path).open("rb") as file:
            # One byte more than allowed tells a file that is too large, whatever its size.
            data = file.read(syntax.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        seen, hint = _why(error, path)
        problems.add_at(0, 0, "a topology file", seen, hint)
        raise problems.error() from None
    return syntax.to_text(data, problems)


def _why(error: OSError | ValueError, path: str) -> tuple[str, str]:
    """Seen and hint for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        hint = "check the path"
        shipped = names()
        if (stem := Path(path).stem) in shipped:
            hint = f"the shipped topology has the name {stem}, without folder and ending"
        return "no such file", hint
    if isinstance(error, IsADirectoryError):
        return "a folder", "name a file in it"
    if isinstance(error, PermissionError):
        return "a file that may not be read", "check its permissions"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return (reason or "an error").lower(), "check the path"
