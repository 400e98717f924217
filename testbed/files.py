"""Output files that a user requested: reports, packed boxes, kubeconfigs.

A regular file is written completely or not at all: to a temporary file, which is flushed and
then renamed.  A device, a FIFO, a socket or an open descriptor of this process
(``/dev/stdout``, ``>(...)`` of a shell) is written to and never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from testbed import owner, signals
from testbed.errors import MachineError, TestbedError, UsageError

STDOUT = "-"
CHUNK = 1 << 20  # bytes copied at once
LINKS = 40  # as many as the kernel follows (path_resolution(7))
PRIVATE = 0o600
#: Paths of open files of a process (proc(5)).
DESCRIPTORS = re.compile(r"/proc/\d+(/task/\d+)?/fd")
WRONG_PLACE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EBADF
}  # fmt: skip
#: Errors for a writable file in a folder that is not writable, and for a mount point.
ONLY_IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}

Chunks = Callable[[], Iterator[bytes]]


def fingerprint(path: Path) -> str:
    """Return a text that changes with a file: its path, size in bytes, modification time in ns.

    It is the path alone if there is no such file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return str(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def write(path: Path | str, data: str | bytes, *, private: bool = False) -> None:
    """Write ``data`` to a path; ``-`` is standard output.

    An existing file keeps its mode and owner (one of root is given to the owner of the folder,
    see :mod:`testbed.owner`).  A symbolic link stays, and its target is replaced.  A ``private``
    file always gets mode 0600.  Writing to a FIFO waits for its reader.  After an interrupt, a
    regular file is unchanged.

    Raises UsageError if the path cannot be a file, MachineError with the kernel's reason if
    writing fails, Interrupted.
    """
    # YAML and JSON may contain a lone surrogate, which UTF-8 cannot encode.
    octets = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    _write(Path(path), lambda: iter((octets,)), len(octets), private=private)


def append(path: Path, data: str | bytes) -> None:
    """Write ``data`` to the end of a file, like :func:`write` and with the same errors.

    A regular file has all of it or nothing, also if the writer is killed.
    """
    before = b""
    if would_replace(path):
        with _told(path):
            before = path.read_bytes()
    octets = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    write(path, before + octets)


def keep(path: Path, data: str) -> None:
    """Write a private file of this tool and replace whatever has its name.

    No link is followed, because another user may be able to write to the folder.  Raises the
    errors of :func:`write`.
    """
    octets = data.encode("utf-8", "backslashreplace")
    with _told(path):
        place = _real(path.parent) / path.name
        _replace(place, lambda: iter((octets,)), len(octets), private=True)


def copy(source: Path, path: Path) -> None:
    """Write the content of a file to a path, like :func:`write` and with the same errors."""

    def chunks() -> Iterator[bytes]:
        with source.open("rb") as file:
            while data := file.read(CHUNK):
                yield data

    _write(path, chunks, source.stat().st_size, private=False)


def check(path: Path) -> None:
    """Raise the errors that :func:`write` would raise, without opening or changing anything.

    It is called before a long run.
    """
    if leads_to_stdout(path):
        return
    with _told(path):
        if (number := _descriptor(path)) is not None:
            os.fstat(number)
            return
        found = _stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if found is not None and os.access(path, os.W_OK):
            return
        folder = _real(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"the folder {folder} does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def would_replace(path: Path) -> bool:
    """Tell whether :func:`write` would replace the content of a regular file."""
    if leads_to_stdout(path) or _is_of_a_process(path):
        return False
    with _told(path):
        found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise UsageError if :func:`write` would replace one of these files."""
    if there := [str(path) for path in paths if would_replace(path)]:
        verb = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"{', '.join(there)} {verb}", hint="--force overwrites existing files")


def abandoned(folder: Path) -> list[Path]:
    """Return the temporary files in a folder whose writers have ended, sorted."""
    found = [path for path in folder.glob(".*") if path.suffix[1:].isdigit() and path.is_file()]
    return sorted(path for path in found if not Path("/proc", path.suffix[1:]).exists())


def leads_to_stdout(path: Path) -> bool:
    """Tell whether a path is our standard output: ``-``, or a name such as ``/dev/stdout``."""
    return str(path) == STDOUT or _descriptor(path) == 1


def _write(path: Path, chunks: Chunks, size: int, *, private: bool) -> None:
    if leads_to_stdout(path):
        _to_stdout(chunks)
        return
    with _told(path):
        if (number := _descriptor(path)) is not None:
            sys.stderr.flush()
            _pour_all(number, chunks)
            return
        found = _stat(path)
        if found is None or (stat.S_ISREG(found.st_mode) and not _is_of_a_process(path)):
            _replace(_real(path), chunks, size, private=private)
        elif stat.S_ISSOCK(found.st_mode):
            _send(path, chunks)
        else:
            # Not truncated: if it is a regular file, another process has it open.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
            with _opened(os.open(path, flags)) as into:
                _pour_all(into, chunks)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Convert OSError to our errors."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TestbedError):
            raise
        reason = error.strerror or str(error)
        if error.errno in WRONG_PLACE:
            raise UsageError(
                f"cannot write {path}: {reason}", hint="name a file in a folder that exists"
            ) from error
        if error.errno == errno.EPIPE:
            reason = "the reader has closed it"
        raise MachineError(
            f"cannot write {path}: {reason}",
            hint="check free space and permissions there, or choose another file",
        ) from error


# -- where a path leads --------------------------------------------------------------------


def _stat(path: Path) -> os.stat_result | None:
    # The kernel follows the links here, with its rules for folders that anybody may write to
    # (fs.protected_symlinks).
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _last_link(path: Path) -> tuple[str, str] | None:
    """Return folder and name of the link in /proc that a path ends in, or None."""
    there = str(path)
    for _ in range(LINKS):
        folder, name = os.path.split(there)
        folder = os.path.realpath(folder)
        if DESCRIPTORS.fullmatch(folder):
            return folder, name
        try:
            there = str(Path(folder, Path(folder, name).readlink()))
        except OSError:  # not a link
            return None
    return None


def _is_of_a_process(path: Path) -> bool:
    return _last_link(path) is not None


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor of this process that a path names, or None.

    It is used directly: opening the path again would start at the beginning of a regular file,
    and fail for a socket.
    """
    found = _last_link(path)
    if found is None or not found[1].isdigit():
        return None
    ours = os.path.realpath("/proc/self")
    return int(found[1]) if found[0].startswith(f"{ours}/") else None


# -- into what is no regular file ----------------------------------------------------------


def _to_stdout(chunks: Chunks) -> None:
    sys.stdout.flush()
    for data in chunks():
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _pour(into: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(into, view) :]


def _pour_all(into: int, chunks: Chunks) -> None:
    for data in chunks():
        _pour(into, data)


def _send(path: Path, chunks: Chunks) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        there.connect(str(path))
        for data in chunks():
            there.sendall(data)


@contextlib.contextmanager
def _opened(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


# -- regular files -------------------------------------------------------------------------


def _replace(path: Path, chunks: Chunks, size: int, *, private: bool) -> None:
    """Replace the file at ``path``, which must not be a link, atomically."""
    with (
        signals.held() as held,  # checked at points where the temporary file can be removed
        _opened(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as folder,
    ):
        before = _at(folder, path.name)
        if before is not None and not stat.S_ISREG(before.st_mode):
            before = None
        try:
            _beside(folder, path.name, before, chunks, held, private=private)
        except OSError as error:
            if before is None or error.errno not in ONLY_IN_PLACE:
                raise
            _in_place(folder, path.name, chunks, size, private=private)
        held.check()


def _at(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _beside(
    folder: int,
    name: str,
    before: os.stat_result | None,
    chunks: Chunks,
    held: signals.Held,
    *,
    private: bool,
) -> None:
    part = f".testbed-{secrets.token_hex(4)}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    mode = 0o666 if before is None and not private else PRIVATE  # minus the umask
    number = os.open(part, flags, mode, dir_fd=folder)
    try:
        with _opened(number):
            if before is not None:
                _like(number, before)
            if before is None or before.st_uid == owner.ROOT:
                owner.give(number, folder)
            if before is not None and not private:
                os.fchmod(number, stat.S_IMODE(before.st_mode) & 0o777)
            for data in chunks():
                held.check()
                _pour(number, data)
            os.fsync(number)
        held.check()
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(part, dir_fd=folder)
        raise


def _like(number: int, before: os.stat_result) -> None:
    """Give a file the owner of the previous one, if permitted."""
    ours = os.fstat(number)
    if (ours.st_uid, ours.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(number, before.st_uid, before.st_gid)


def _in_place(folder: int, name: str, chunks: Chunks, size: int, *, private: bool) -> None:
    """Overwrite a file that cannot be replaced, after reserving all the disk space it needs."""
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with _opened(os.open(name, flags, dir_fd=folder)) as number:
        before = os.fstat(number).st_size
        if private:
            os.fchmod(number, PRIVATE)
        try:
            if size:
                os.posix_fallocate(number, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # not supported here
                os.ftruncate(number, before)
                raise
        _pour_all(number, chunks)
        os.ftruncate(number, size)
        os.fsync(number)
