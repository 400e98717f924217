"""Unpack a tar stream of a lab into a folder of this machine.

The stream is not trusted: no entry gets out of the folder, no link is followed, and devices are
left out. A file is written under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from testbed import owner
from testbed.errors import LabError

CHUNK = 1 << 20  # bytes copied at once
PLAIN = 0o1777  # bits of a mode that are kept; those that give rights are kept by `archive` alone
PRIVATE = 0o700


class Unpacking:
    """Unpacks into ``folder``, which is created if it is missing; its parent must exist.

    ``names`` maps entries at the top to other names. New files belong to the owner of a user's
    folder (:mod:`testbed.owner`); with ``archive`` they keep owner, group and all bits of modes.
    """

    def __init__(
        self, folder: Path, *, archive: bool = False, names: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._archive = archive
        self._names = names or {}
        self._own = names is None  # the folder itself is in the stream, as "."
        self._top = -1
        self._late: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self.devices: list[str] = []  #: entries that were left out

    def all(self, stream: IO[bytes]) -> None:
        """Unpack a stream until its end.  Raises OSError, tarfile.TarError, LabError."""
        with (
            self._opened(),
            tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, errors="surrogateescape") as tar,
        ):
            for entry in tar:
                self._one(tar, entry)
            self._finish_folders()
        while stream.read(CHUNK):  # the writer must be able to end
            continue

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        if not self._folder.is_dir():
            owner.make(self._folder, PRIVATE)
        self._top = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(self._top)

    def _one(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        parts = self._parts(entry.name)
        if entry.isdir():
            os.close(self._enter(parts))
            if parts or self._own:
                self._late[parts] = entry
            return
        if not parts:
            raise LabError(f"the tar stream has an entry without a name: {entry.name!r}")
        place = self._enter(parts[:-1])
        try:
            self._file(tar, entry, place, parts[-1])
        finally:
            os.close(place)

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise LabError(f"the tar stream leads out of its folder: {name!r}")
        if parts:
            parts[0] = self._names.get(parts[0], parts[0])
        return tuple(parts)

    def _enter(self, parts: tuple[str, ...]) -> int:
        """Return a descriptor of a folder; create what is missing, follow no link."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        place = os.dup(self._top)
        try:
            for part in parts:
                try:
                    os.mkdir(part, PRIVATE, dir_fd=place)
                    made = True
                except FileExistsError:
                    made = False
                inner = os.open(part, flags, dir_fd=place)
                if made:
                    owner.give(inner, place)
                os.close(place)
                place = inner
        except BaseException:
            os.close(place)
            raise
        return place

    def _file(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, place: int, name: str) -> None:
        part = f".testbed-{secrets.token_hex(4)}.{os.getpid()}"
        try:
            if entry.isreg():
                self._regular(tar, entry, place, part, _at(place, name))
            elif entry.issym():
                os.symlink(entry.linkname, part, dir_fd=place)
                self._own_entry(entry, place, part)
            elif entry.islnk():
                self._hard_link(entry, place, part)
            elif entry.isfifo():
                os.mkfifo(part, PRIVATE, dir_fd=place)
                self._own_entry(entry, place, part)
                os.chmod(part, self._mode(entry), dir_fd=place)
            else:
                self.devices.append(entry.name)  # it would be one of this machine
                return
            os.rename(part, name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=place)
            raise

    def _regular(
        self,
        tar: tarfile.TarFile,
        entry: tarfile.TarInfo,
        place: int,
        part: str,
        before: os.stat_result | None,
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o600, dir_fd=place), "wb") as file:
            data = tar.extractfile(entry)
            if data is not None:
                shutil.copyfileobj(data, file, CHUNK)
            file.flush()
            number = file.fileno()
            if self._archive:
                os.fchown(number, entry.uid, entry.gid)
            elif before is not None and before.st_uid != owner.ROOT:
                os.fchown(number, before.st_uid, before.st_gid)  # the file that it replaces
            else:
                owner.give(number, place)
            os.fchmod(number, self._mode(entry))
            os.utime(number, (entry.mtime, entry.mtime))

    def _hard_link(self, entry: tarfile.TarInfo, place: int, part: str) -> None:
        parts = self._parts(entry.linkname)
        folder = self._enter(parts[:-1])
        try:
            os.link(parts[-1], part, src_dir_fd=folder, dst_dir_fd=place, follow_symlinks=False)
        finally:
            os.close(folder)

    def _own_entry(self, entry: tarfile.TarInfo, place: int, name: str) -> None:
        if self._archive:
            os.chown(name, entry.uid, entry.gid, dir_fd=place, follow_symlinks=False)
        else:
            owner.give_entry(name, place)

    def _mode(self, entry: tarfile.TarInfo) -> int:
        return stat.S_IMODE(entry.mode) & (0o7777 if self._archive else PLAIN)

    def _finish_folders(self) -> None:
        """Set modes and times of folders, the inner ones first: they may be read-only."""
        for parts, entry in sorted(self._late.items(), key=lambda one: -len(one[0])):
            folder = self._enter(parts)
            try:
                if self._archive:
                    os.fchown(folder, entry.uid, entry.gid)
                os.fchmod(folder, self._mode(entry))
                os.utime(folder, (entry.mtime, entry.mtime))
            finally:
                os.close(folder)


def _at(folder: int, name: str) -> os.stat_result | None:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
