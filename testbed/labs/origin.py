"""Map a lab to its topology file, and a file to its lab.

A record contains the file's absolute path with symbolic links resolved (:attr:`Topology.file`).
Earlier versions recorded the path as it was typed. A relative path does not identify a file,
because its folder is unknown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import NoSuchLab, TestbedError, TopologyError, UsageError
from testbed.spelling import is_a_path
from testbed.topology.load import file_of, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.labs.lab import Settings
    from testbed.labs.state import Record, State
    from testbed.topology.model import Topology


def is_same(recorded: str, file: str) -> bool:
    """Tell whether a record's path and a resolved path name the same file.

    Two names of one file (hard links, bind mounts) are the same. An unknown path matches nothing.
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
    """Tell whether a record's file exists.

    It may then describe another lab.
    """
    return Path(recorded).is_absolute() and Path(recorded).exists()


def words(record: Record | None) -> str:
    """Describe the origin of a lab, as a phrase after "from".

    ``None`` stands for a lost record.

    >>> words(None)
    'an unknown file (its record is missing)'
    """
    if record is None:
        return "an unknown file (its record is missing)"
    if not record.source:
        return "a topology without a file"
    if not Path(record.source).is_absolute():
        return f"{record.source} in an unknown folder (recorded by an earlier version)"
    return record.source if is_known(record.source) else f"{record.source} (which no longer exists)"


def later(record: Record) -> dict[str, str | None]:
    """Return the variables of a lab to which its file gives another value now, with that value.

    None stands for a variable without a value now. An unreadable file gives none.
    """
    if not (record.variables and is_known(record.source)):
        return {}

    from testbed.topology.variables import changed

    def loaded(variables: Mapping[str, str]) -> Mapping[str, str] | None:
        try:
            return load(record.source, variables=variables).variables
        except TestbedError:
            return None

    now = loaded({})
    unset = {name: value for name, value in record.variables.items() if name not in os.environ}
    lacking: dict[str, str] = {}
    if now is None and loaded(unset) is not None:  # some have no default
        lacking = {
            name: value
            for name, value in unset.items()
            if loaded({other: unset[other] for other in unset if other != name}) is None
        }
        now = loaded(lacking)
    found: dict[str, str | None] = dict.fromkeys(lacking)
    return found | {name: new for name, (_, new) in changed(record.variables, now or {}).items()}


def named(settings: Settings, name: str, variables: Mapping[str, str] | None = None) -> str:
    """Return the lab's name for a name or for the path of a topology file.

    A path selects the lab that was created from this file, with ``variables`` the one that was
    created with these values. Raises UsageError if the lab with the file's name was created from
    another file or with other values, or if several labs were created from this file; NoSuchLab if
    there is none and variables have no values, TopologyError for an unreadable file.
    """
    from testbed.labs.lab import labs
    from testbed.topology.variables import UNSET

    state = settings.state
    if not is_a_path(name):
        # A word without "/" or suffix is a lab's name first, else a file that a lab came from.
        came = [] if name in state.labs() else _came_from(state, name)
        if len(came) != 1:
            refuse_other_values(state.read(name), variables)
            return name
    else:
        came = _came_from(state, name)  # the file may be deleted or edited
    if variables:
        alike = [lab for lab in came if _has_values(state.read(lab), variables)]
        _refuse_unknown(name, alike, state, variables)
        came = alike
    if len(came) == 1:
        return came[0]
    if came:
        own = _name_in(name, variables)
        if own in came:
            return own
        raise UsageError(
            f"several labs were created from {name}: {', '.join(came)}",
            hint="use the name of the lab, or --set with the values of its variables",
        )
    try:
        topology = load(name, variables=variables)
    except TopologyError as error:
        if all(problem.wanted.startswith(UNSET) for problem in error.problems):
            raise NoSuchLab(
                f"no lab was created from {name}",
                name=name,
                known=labs(settings),
                hint=f"`testbed up {name}` creates it; with --set for its variables",
            ) from error
        raise
    record = state.read(topology.name)
    if record or topology.name in labs(settings):
        refuse_other(topology, record)
        refuse_other_values(record, variables)
    return topology.name


def refuse_other_values(record: Record | None, variables: Mapping[str, str] | None) -> None:
    """Raise UsageError if a lab was created with other values of variables than given ones."""
    if record is None:
        return
    for name, value in (variables or {}).items():
        if record.variables.get(name) != value:
            has = record.variables.get(name)
            made = f"without a variable {name}" if has is None else f"with {name}={has}"
            raise UsageError(
                f"lab {record.lab} was created {made}, not with {name}={value}",
                where="--set",
                hint=f"to use that lab, give its name without --set: {record.lab}",
            )


def _has_values(record: Record | None, variables: Mapping[str, str]) -> bool:
    """Tell whether a lab was created with these values, as far as its file needed them."""
    return record is not None and all(
        record.variables.get(name, value) == value for name, value in variables.items()
    )


def _refuse_unknown(path: str, came: list[str], state: State, variables: Mapping[str, str]) -> None:
    """Raise UsageError for a variable that the file does not have.

    A record has only the variables whose value was needed; the file has all of them.
    """
    records = [record for lab in came if (record := state.read(lab))]
    if any(name not in record.variables for record in records for name in variables):
        load(path, variables=variables)


def refuse_other(topology: Topology, record: Record | None) -> None:
    """Raise UsageError if the lab of that name was created from another file."""
    if record is None or not is_same(record.source, topology.file):
        raise UsageError(
            f"lab {topology.name} was created from {words(record)}, "
            f"not from {topology.file or topology.source}",
            hint=f"to use that lab, give its name instead of a file: {topology.name}",
        )


def _came_from(state: State, path: str) -> list[str]:
    """Return the labs whose records contain this file.

    The file need not exist.
    """
    file = file_of(path)
    found = []
    for lab in state.labs():
        record = state.read(lab)
        if record and is_same(record.source, file):
            found.append(lab)
    return found


def _name_in(path: str, variables: Mapping[str, str] | None) -> str | None:
    """Return the lab's name in a file, or None if the file is unreadable."""
    try:
        return load(path, variables=variables).name
    except TestbedError:
        return None
