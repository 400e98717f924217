"""The record of a lab and its lock, in the state folder.

A record contains the requested topology and the result of ``up``. What runs is read from the
machine instead. A record is replaced atomically; an unreadable record counts as missing. The lock
is the kernel's (flock(2)), so it is released when its holder ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed import files, owner, registry
from testbed.errors import LabBusy, MachineError, UsageError

VERSION = 1
LOCK = ".lock"
PIECE = re.compile(r"\.(?P<lab>.+?)(\.lock|\.part-[^.]*)", re.DOTALL)
UNSIGNED = 0.5  # seconds after which a lock without a holder's name never gets one


def folder() -> Path:
    """Return the state folder.

    It is ``$TESTBED_STATE``, or ``testbed`` in ``$XDG_STATE_HOME`` or ``~/.local/state``.
    """
    given = os.environ.get("TESTBED_STATE")
    if given:
        return Path(given).absolute()
    return owner.base("XDG_STATE_HOME", ".local/state") / "testbed"


@dataclass(frozen=True, slots=True)
class Record:
    """The topology of the last ``up`` and its result.

    Points in time are Unix seconds, durations are seconds. ``source`` is the topology's file
    (:attr:`Topology.file`), empty if there was none. Versions before 0.2 recorded the path as it
    was typed. ``variables`` are the values of the file's variables, ``stopped`` what was stopped by
    hand: NODE, NODE/SERVICE or NODE/CONTAINER.
    """

    lab: str
    topology: dict[str, Any]
    source: str = ""
    created: float = 0.0
    seconds: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    @property
    def attached(self) -> str:
        """The place where the lab exists already; empty for a lab that testbed has created."""
        foreign = self.topology.get("foreign")
        if isinstance(foreign, dict):
            return str(foreign.get("attached") or "")
        return registry.existing([self.topology.get("provider")])

    @property
    def existing(self) -> bool:
        """True if its file names machines that exist already (:attr:`Topology.existing`)."""
        return not isinstance(self.topology.get("foreign"), dict) and bool(self.attached)


class State:
    """The state folder: one record and one lock per lab."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _record(self, lab: str) -> Path:
        return self.path / f"{lab}.json"

    def _lock(self, lab: str) -> Path:
        return self.path / f".{lab}{LOCK}"

    def ensure(self) -> None:
        """Create the folder, accessible only to its owner.  Raises MachineError."""
        try:
            owner.make(self.path, 0o700)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            if isinstance(error, MachineError):
                raise
            raise MachineError(
                f"cannot write to the state folder {self.path}: {error.strerror}",
                hint=(
                    "check permissions and free space there, or set TESTBED_STATE to another folder"
                ),
            ) from error

    def labs(self) -> list[str]:
        """Return the labs that have a record, even an unreadable one."""
        try:
            return sorted(p.stem for p in self.path.glob("*.json"))
        except OSError:
            return []

    def read(self, lab: str) -> Record | None:
        """Return the record of a lab; None if it is missing or invalid."""
        try:
            data = json.loads(self._record(lab).read_text())
            if data.pop("version") != VERSION:
                return None
            record = Record(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        whole = (
            isinstance(record.topology, dict)
            and isinstance(record.source, str)
            and isinstance(record.variables, dict)
            and all(isinstance(value, str) for value in record.variables.values())
        )
        return record if record.lab == lab and whole else None

    def write(self, record: Record) -> None:
        """Replace a lab's record atomically."""
        self.ensure()
        values = {name: getattr(record, name) for name in record.__dataclass_fields__}
        data = json.dumps({"version": VERSION, **values}, indent=1)
        try:
            files.keep(self._record(record.lab), data)
        except (MachineError, UsageError) as error:
            raise MachineError(
                f"cannot write the record of lab {record.lab}: {error.message}",
                hint="free space there, or set TESTBED_STATE to another folder",
            ) from error

    def remove(self, lab: str) -> None:
        """Remove the record, and temporary files of a killed writer.

        Raises MachineError for a record that cannot be removed.
        """
        self.sweep(lab)
        try:
            self._record(lab).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise MachineError(
                f"cannot remove the record of lab {lab}, {self._record(lab)}: {error.strerror}",
                hint="check the permissions of the folder, or remove the file",
            ) from error

    def sweep(self, lab: str) -> None:
        """Remove temporary files of killed writers: of this lab, or named after no lab.

        The caller must hold the lab's lock.
        """
        halves = [
            path
            for piece_of, path in self.pieces()
            if piece_of == lab and not path.name.endswith(LOCK)
        ]
        for path in (*halves, *files.abandoned(self.path)):
            with contextlib.suppress(OSError):
                path.unlink()

    def pieces(self) -> list[tuple[str, Path]]:
        """Return locks and unfinished records, each with the name of its lab."""
        try:
            names = sorted(path.name for path in self.path.iterdir())
        except OSError:
            return []
        found = [PIECE.fullmatch(name) for name in names]
        return [(one["lab"], self.path / one.string) for one in found if one]

    def holder(self, lab: str) -> str:
        """Describe the holder of the lab's lock; empty if the lock is free."""
        try:
            fd = os.open(self._lock(lab), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(fd, 200, 0).decode(errors="replace").strip() or "another testbed"
        finally:
            os.close(fd)
        return ""

    @staticmethod
    def _open_lock(path: Path, lab: str) -> int:
        try:
            return owner.create(path, 0o600)
        except OSError as error:
            raise MachineError(
                f"cannot lock lab {lab[:40]} in {path.parent}: {error.strerror}",
                hint="check the lab's name (`testbed ls`) and the permissions there",
            ) from error

    @contextlib.contextmanager
    def lock(
        self,
        lab: str,
        purpose: str,
        *,
        timeout: float = 120.0,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> Iterator[None]:
        """Hold a lab's lock.

        ``waiting`` is called once with the current holder if the lock is not free. Raises LabBusy
        after ``timeout`` seconds.
        """
        self.ensure()
        path = self._lock(lab)
        deadline = time.monotonic() + timeout
        told = False
        while True:
            fd = self._open_lock(path, lab)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    break
                os.close(fd)  # the last holder removed the file when it released the lock
                continue
            except BlockingIOError:
                holder = os.pread(fd, 200, 0).decode(errors="replace").strip()
                os.close(fd)
            # A new holder has no name until it has written the file.
            if not told and (holder or time.monotonic() > deadline - timeout + UNSIGNED):
                waiting(holder)
                told = True
            if time.monotonic() > deadline:
                raise LabBusy(lab, holder, timeout)
            time.sleep(0.02)
        try:
            with contextlib.suppress(OSError):  # a full disk: the lock is held without a name
                os.truncate(fd, 0)
                os.pwrite(fd, f"testbed {purpose} (pid {os.getpid()})\n".encode(), 0)
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
