"""The file that a lab came from, and the lab that a file means.

A record keeps a file's absolute path with symbolic links resolved
(:attr:`Topology.file`).  An earlier version kept the path as typed: a relative
one names no folder, so no file is known to be that one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import TestbedError, UsageError
from testbed.spelling import is_a_path
from testbed.topology.load import file_of, load

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.labs.state import Record, State
    from testbed.topology.model import Topology


def is_same(recorded: str, file: str) -> bool:
    """Tell whether a record's path and a file's resolved path name the same file.

    Two names of one file (hard links, bind mounts) are the same, an unknown one never is.
    """
    if not (file and Path(recorded).is_absolute()):
        return False
    if os.path.realpath(recorded) == file:
        return True
    try:
        return Path(recorded).samefile(file)
    except OSError:
        return False


def is_known(recorded: str) -> bool:
    """Tell whether the file of a record is there and could be another lab's."""
    return Path(recorded).is_absolute() and Path(recorded).exists()


def words(record: Record | None) -> str:
    """Where a lab came from, to follow "from"; ``None`` stands for a lost record.

    >>> words(None)
    'an unknown file (its record is lost)'
    """
    if record is None:
        return "an unknown file (its record is lost)"
    if not record.source:
        return "a topology without a file"
    if not Path(record.source).is_absolute():
        return f"{record.source} in an unknown folder (recorded by an earlier version)"
    return record.source if is_known(record.source) else f"{record.source} (no longer there)"


def named(settings: Settings, name: str) -> str:
    """The name of the lab that a name, or the path of a topology file, means.

    A path means the lab that came from this file.  Raises UsageError when a lab of the file's
    name came from another one, or when several labs came from this one; TopologyError for a
    file that cannot be read.
    """
    from testbed.labs.lab import labs

    state = settings.state
    if not is_a_path(name):
        # Without "/" and ending a name stands first; only a file that a lab came from is meant.
        came = [] if name in state.labs() else _came_from(state, name)
        return came[0] if len(came) == 1 else name
    came = _came_from(state, name)  # the file may be gone, or edited
    if len(came) == 1:
        return came[0]
    if came:
        own = _name_in(name)
        if own in came:
            return own
        raise UsageError(
            f"several labs came from {name}: {', '.join(came)}", hint="give the lab's name instead"
        )
    topology = load(name)
    record = state.read(topology.name)
    if record or topology.name in labs(settings):
        refuse_other(topology, record)
    return topology.name


def refuse_other(topology: Topology, record: Record | None) -> None:
    """Raise UsageError unless the record of the lab of that name names the topology's file."""
    if record is None or not is_same(record.source, topology.file):
        raise UsageError(
            f"lab {topology.name} came from {words(record)}, "
            f"not from {topology.file or topology.source}",
            hint=f"if you mean that lab, give its name instead of a file: {topology.name}",
        )


def _came_from(state: State, path: str) -> list[str]:
    """The labs whose records name this file, whether it is still there or not."""
    file = file_of(path)
    found = []
    for lab in state.labs():
        record = state.read(lab)
        if record and is_same(record.source, file):
            found.append(lab)
    return found


def _name_in(path: str) -> str | None:
    """The lab's name that a file gives, if it can be read."""
    try:
        return load(path).name
    except TestbedError:
        return None
