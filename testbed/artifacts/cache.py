"""Cache folders, each filled once by the first process and visible only when complete.

An entry is a folder ``<name>-<version>-<key>``.  It is filled under the name
``.tmp-<name>-<key>.*`` and renamed when complete.  The process that fills it holds an
flock on ``.lock-<name>-<key>``, which the kernel releases when the process ends; so a
temporary folder found while holding the lock has no owner, and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import owner
from testbed.errors import ArtifactError, Interrupted, TestbedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from testbed.artifacts.source import Origin

RECORD = "artifact.json"  # in each entry: its Record
LOCK_POLL = 0.05  # seconds between two attempts to take a lock that another process holds


@dataclass(frozen=True, slots=True)
class Record:
    """The metadata stored in an entry."""

    name: str
    version: str
    key: str
    origin: Origin
    size: int  #: bytes of all its files
    path: Path
    of: str = ""  #: key of the entry that it was built from and is removed with


def _read(path: Path) -> Record | None:
    """Return the record in a file; None if its entry has been removed meanwhile."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: data[name] for name in ("name", "version", "key", "origin", "size")}
        return Record(**fields, path=path.parent, of=data.get("of", ""))
    return None


class Cache:
    """The entries below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def shared(self) -> Path:
        """The folder for data that builds share, such as package lists."""
        return self.folder / ".shared"

    def find(self, name: str, key: str) -> Path | None:
        """Return the complete entry of that name and key, or None.  Reads one folder only."""
        start, end = f"{name}-", f"-{key}"
        with (
            contextlib.suppress(FileNotFoundError, PermissionError),
            os.scandir(self.folder) as items,
        ):
            for item in items:
                if item.name.startswith(start) and item.name.endswith(end):
                    return Path(item.path)
        return None

    def record(self, name: str, key: str) -> Record | None:
        """Return the record of the complete entry of that name and key, or None."""
        found = self.find(name, key)
        return None if found is None else _read(found / RECORD)

    @staticmethod
    def chosen(entry: Path) -> int:
        """Return when an entry was filled or last chosen, in nanoseconds; 0 if it has gone."""
        with contextlib.suppress(OSError):
            return (entry / RECORD).stat().st_mtime_ns
        return 0

    def choose(self, entry: Path, others: Iterable[Path]) -> None:
        """Prefer an entry to others with the same programs, from now on.

        Raises ArtifactError if the cache cannot be written.
        """
        latest = max(map(self.chosen, others), default=-1)
        if self.chosen(entry) > latest:
            return
        at = max(time.time_ns(), latest + 1)  # clocks are coarse, and can be set back
        with self.writing():
            os.utime(entry / RECORD, ns=(at, at))

    def records(self) -> list[Record]:
        """Return the records of all complete entries, sorted by name."""
        found = (_read(path) for path in self.folder.glob(f"[!.]*/{RECORD}"))
        return sorted(
            (record for record in found if record),
            key=lambda record: (record.name, record.version),
        )

    def fill(
        self,
        name: str,
        key: str,
        origin: Origin,
        build: Callable[[Path], str],
        *,
        of: str = "",
        valid: Callable[[Path], bool] = lambda _: True,
        say: Callable[[str], None],
        cancel: threading.Event,
    ) -> Path:
        """Return the entry of that name and key; build it first if it is missing.

        ``build`` fills the folder and returns the version.  Of several processes one
        builds and the others wait.  An existing entry that is not ``valid`` is built
        again.  When ``build`` raises, an existing entry stays, and nothing else is left.
        Raises ArtifactError if the cache cannot be written.
        """
        with self.writing():
            owner.make(self.folder)
            with self.lock(f"{name}-{key}", say=say, cancel=cancel):
                found = self.find(name, key)
                if found and valid(found):
                    return found
                self.sweep(f"{name}-{key}")
                return self._build(name, key, origin, build, of, old=found)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Convert the errors of writing to the cache.  Raises ArtifactError for OSError."""
        try:
            yield
        except OSError as error:
            if isinstance(error, TestbedError):  # some of which are OSError too
                raise
            raise ArtifactError(
                f"cannot write to the cache folder {self.folder}: {error}",
                hint="check permissions and free space there,"
                " or set TESTBED_CACHE to another folder",
            ) from error

    def remove(self, record: Record, *, cancel: threading.Event) -> None:
        """Remove an entry; wait first for a process that is filling it."""
        with self.lock(f"{record.name}-{record.key}", say=lambda _: None, cancel=cancel):
            if record.path.exists():
                self._discard(record.path, record.name, record.key)

    @contextlib.contextmanager
    def lock(
        self, slug: str, *, say: Callable[[str], None], cancel: threading.Event
    ) -> Iterator[None]:
        """Hold the lock of that name, against other processes and other threads.

        Raises Interrupted when ``cancel`` is set while another holds it.
        """
        with os.fdopen(owner.create(self.folder / f".lock-{slug}"), "r+b") as file:
            # The file is never removed: two locks must not have the same name.
            waiting = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        say("waiting for another process that builds it")
                        waiting = True
                    if cancel.wait(LOCK_POLL):
                        raise Interrupted(signal.SIGINT) from None
            yield

    def _build(
        self,
        name: str,
        key: str,
        origin: Origin,
        build: Callable[[Path], str],
        of: str,
        *,
        old: Path | None,
    ) -> Path:
        folder = self._temporary(name, key)
        folder.mkdir()
        try:
            version = build(folder)
            record = {
                "name": name,
                "version": version,
                "key": key,
                "origin": origin,
                "of": of,
                "size": size(folder),
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            text = json.dumps(record, indent=2, sort_keys=True) + "\n"
            (folder / RECORD).write_text(text, encoding="utf-8")
            _flush(folder)
            owner.give_tree(folder)
            whole = self.folder / f"{name}-{re.sub(r'[^A-Za-z0-9.+~_-]', '_', version)}-{key}"
            if old:
                self._discard(old, name, key)
            folder.rename(whole)
        except BaseException:
            remove_tree(folder)
            raise
        return whole

    def _temporary(self, name: str, key: str) -> Path:
        # A new name each time: orphans of a killed builder must not write into it.
        return self.folder / f".tmp-{name}-{key}.{os.getpid()}.{time.monotonic_ns()}"

    def _discard(self, entry: Path, name: str, key: str) -> None:
        doomed = self._temporary(name, key)
        entry.rename(doomed)  # atomic, so that no process sees half an entry
        remove_tree(doomed)

    def leftovers(self) -> list[Path]:
        """Return the leftovers of killed builders."""
        return [folder for folder, lock in self._temporaries() if _is_free(lock)]

    def sweep(self, held: str = "") -> None:
        """Remove leftovers of killed builders, for the lock ``held`` and all free locks."""
        for folder, lock in self._temporaries():
            if lock.name == f".lock-{held}":
                remove_tree(folder)
                continue
            with contextlib.suppress(BlockingIOError), os.fdopen(owner.create(lock), "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(folder)

    def _temporaries(self) -> Iterator[tuple[Path, Path]]:
        """Yield each temporary folder with its lock."""
        for folder in sorted(self.folder.glob(".tmp-*")):
            slug = folder.name.removeprefix(".tmp-").rsplit(".", 2)[0]
            yield folder, self.folder / f".lock-{slug}"


def _is_free(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    return sum(
        (Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names
    )


def remove_tree(folder: Path) -> None:
    """Remove a folder, even with read-only subfolders (Go's module cache)."""
    import shutil

    if folder.exists():
        for _, _, _, place in os.fwalk(folder):
            os.fchmod(place, 0o700)
        shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    # The rename must not reach the disk before the data: a power cut would leave empty files.
    # Only regular files have data; opening a FIFO would wait for a writer, and reading a device may
    # have side effects.
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
