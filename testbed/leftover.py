"""Parts of labs on this machine, leftovers of removed labs, and questions about their labs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

#: Age in seconds at which a part without an owner's name is a leftover: a live lab's part gets its
#: first process, or is removed by its creator, in less time.
AGE = 60.0
FIX = "testbed doctor --leaks --fix"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One leftover.  ``about`` tells its owner, or the reason that it has none."""

    kind: str
    name: str
    about: str
    command: str = ""  #: removes it; empty if it is ``theirs``
    theirs: bool = False
    state: Path | None = None  #: the state folder of the lab, if known
    remove: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "about": self.about,
            "command": self.command,
            "theirs": self.theirs,
        }


@dataclass(frozen=True, slots=True)
class LabPart:
    """A part of a lab that exists on this machine, such as a cgroup or pid 1 of a node.

    ``state`` is the state folder of the lab; None if the part does not tell.  ``pid`` is the
    process whose pid namespace holds the node's processes.
    """

    kind: str
    name: str
    state: Path | None
    pid: int | None = None


class Judge(ABC):
    """Answers questions of providers about the labs of a part that they have found.

    ``state`` is the state folder of a lab, ``own`` is ours.
    """

    own: Path

    @abstractmethod
    def holder(self, lab: str, state: Path) -> str:
        """Return the command that holds the lab's lock; empty if there is none."""

    @abstractmethod
    def fate(self, lab: str, state: Path) -> str:
        """Return the reason that a lab is live; empty if it is not."""

    @abstractmethod
    def whole(self, kind: str, name: str, about: str, lab: str, state: Path) -> Leftover:
        """Return a leftover that is removed like ``testbed down``, with the whole lab."""

    @abstractmethod
    def locked(self, lab: str, state: Path) -> AbstractContextManager[object]:
        """Return a context in which nobody else changes the lab; entering it raises LabBusy."""
