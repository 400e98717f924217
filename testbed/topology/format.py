"""The contract of formats: topology files of other tools.

A distribution registers a format with an entry point of the group ``testbed.formats``. A file that
a format recognizes is read by it wherever a topology file is accepted; the tool itself creates the
lab, through the provider that the format names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from testbed.registry import FORMATS

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.topology.tree import Problems
    from testbed.topology.variables import Variables

#: Returns the store of programs and images; a format that runs no program does not call it.
GetStore: TypeAlias = "Callable[[], Store]"


@dataclass(frozen=True, slots=True)
class Option:
    """An option for files with values, such as ``--vars``, of the commands that read a file.

    The absolute paths of the files, joined as in PATH, are the value of ``variable``.
    """

    name: str
    variable: str
    help: str


class Format(ABC):
    """A format of topology files."""

    #: Name of the format, and of its entry point.
    name: ClassVar[str]
    #: Shell patterns (fnmatch) of the names of its files.
    patterns: ClassVar[tuple[str, ...]]
    #: Options for files with values.
    options: ClassVar[Sequence[Option]] = ()

    def recognizes(self, path: Path, text: str) -> bool:
        """Tell whether a file is of this format."""
        del text
        return self.is_named(path)

    def is_named(self, path: Path) -> bool:
        """Tell whether the file's name is one of this format's."""
        return any(fnmatchcase(path.name, pattern) for pattern in self.patterns)

    @abstractmethod
    def read(
        self,
        path: Path,
        text: str,
        problems: Problems,
        store: GetStore | None,
        variables: Variables,
    ) -> dict[str, Any]:
        """Return the topology of a file in plain form (:meth:`Topology.to_dict`).

        It has ``foreign``, with everything that the provider needs to create the lab; the name of
        the format is added. ``text`` is the content of the file at ``path``. ``store`` returns the
        caller's store; without one, the format uses the user's. ``variables`` are the caller's
        and those of the environment: the format asks for each variable of the file
        (:meth:`Variables.use`), so that the lab's record has their values.

        Raises TopologyError with every problem of the file, or the error for a missing program.
        """


def format_of(path: Path, text: str) -> Format | None:
    """Return the format of a file; None for testbed's own."""
    return next((one for one in FORMATS.usable().values() if one.recognizes(path, text)), None)


def is_named_by_any(path: Path) -> bool:
    """Tell whether a file's name is one of another tool's topology files."""
    return any(kind.is_named(path) for kind in FORMATS.usable().values())
