"""Files of this machine for another one, copied once for each content."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = "/var/lib/testbed/provided"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib")  # folders of a distribution's packages
PACKED = ("/usr/local",)
FASTEST = 1  # programs shrink to 37 %; level 6 needs three times as long for 33 %
_compressing = threading.Lock()  # who waits for it mostly needs the same


def place(path: Path) -> str:
    """Return the path on a machine for the content of a file or folder."""
    path = path.resolve()
    total = hashlib.sha256()
    for file in _files(path):
        total.update(f"{file.relative_to(path)}\0{file.stat().st_mode & 0o111}\0".encode())
        total.update(bytes.fromhex(digest(file)))
    return f"{FOLDER}/{total.hexdigest()[:16]}/{path.name}"


def is_system(path: Path) -> bool:
    """Tell whether a path belongs to the system's packages, which a machine has by itself."""
    return _below(path, SYSTEM) and not _below(path, PACKED)


def packed(path: Path, known: Mapping[str, str]) -> bytes:
    """Pack a file or folder as a tar archive, with links followed and root as the owner.

    ``known`` are files that the machine has, by the sha256 of their content; the archive
    holds only links to these.
    """
    path = path.resolve()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", dereference=True) as tar:
        for file in sorted(_files(path)):
            name = str(Path(path.name) / file.relative_to(path))
            info = tar.gettarinfo(file, name)
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            there = known.get(digest(file))
            if there is not None:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, there, 0
                tar.addfile(info)
                continue
            with file.open("rb") as content:
                tar.addfile(info, content)
    return data.getvalue()


def compressed(path: Path) -> bytes:
    """Return :func:`packed` in gzip's format; kept, as other nodes need the same."""
    path = path.resolve()
    with _compressing:
        return _compressed(path, place(path))


@functools.lru_cache(maxsize=16)
def _compressed(path: Path, _content: str) -> bytes:
    return gzip.compress(packed(path, {}), compresslevel=FASTEST, mtime=0)


def _below(path: Path, folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def digest(file: Path) -> str:
    """Return the sha256 of a file's content; read again only if its time or size changes."""
    facts = file.stat()
    return _sum_of(file.resolve(), facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1024)
def _sum_of(file: Path, _changed: int, _size: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for one in sorted(path.iterdir()):
            yield from _files(one)
