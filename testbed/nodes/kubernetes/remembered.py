"""Where the labs of a state folder run: a cluster and a namespace for each, in a file."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import files, owner

if TYPE_CHECKING:
    from testbed.leftover import Judge, Leftover

FOLDER = "kubernetes"  #: in the state folder


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a lab: how its cluster is reached, and its namespace there.

    ``own`` tells that the namespace is the lab's own, and goes with it.  ``owner`` is the value of
    the label with which the lab's objects are found.
    """

    kubeconfig: str
    context: str
    namespace: str
    own: bool
    owner: str


class Remembered:
    """The places of the labs of one state folder, in a folder there with this name.

    What runs is read from the cluster.  Without a file, no cluster is asked, so labs of other
    providers pay nothing for this one.
    """

    def __init__(self, state: Path, folder: str = FOLDER) -> None:
        self._folder = state / folder

    def labs(self) -> list[str]:
        with contextlib.suppress(OSError):
            return sorted(path.stem for path in self._folder.glob("*.json"))
        return []

    def file(self, lab: str) -> Path:
        """Return the file with the place of a lab."""
        return self._folder / f"{lab}.json"

    def place(self, lab: str) -> Place | None:
        """Return the place of a lab; None if it has none here, or its file cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Place(**json.loads(self.file(lab).read_text("utf-8")))
        return None

    def keep(self, lab: str, place: Place) -> None:
        owner.make(self._folder)
        files.keep(self.file(lab), json.dumps(asdict(place)))

    def folder(self, lab: str) -> Path:
        """Return the folder for files of a lab's nodes on this machine."""
        return self._folder / lab

    def forget(self, lab: str) -> None:
        self.file(lab).unlink(missing_ok=True)
        shutil.rmtree(self._folder / lab, ignore_errors=True)
        with contextlib.suppress(OSError):  # of other labs, or not there
            self._folder.rmdir()

    def __iter__(self) -> Iterator[tuple[str, Place]]:
        for lab in self.labs():
            if (place := self.place(lab)) is not None:
                yield lab, place

    def leftovers(self, judge: Judge) -> Iterator[Leftover]:
        """Yield what labs without a record have left in clusters."""
        for lab, place in self:
            if not judge.fate(lab, judge.own):
                about = f"of lab {lab}, in {place.context or 'a cluster'}"
                yield judge.whole("Pods", place.namespace, about, lab, judge.own)
