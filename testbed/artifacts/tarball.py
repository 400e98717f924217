"""Single files of a tar archive from another source."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from typing import IO, TYPE_CHECKING

from testbed.artifacts.fetch import CHUNK, LIMIT, Meter
from testbed.errors import ArtifactError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.artifacts.source import Job

SHOWN = 20  # names of an archive in an error


def extract(
    job: Job, archive: Path, wanted: Mapping[str, Path], shown: str, *, limit: int = LIMIT
) -> None:
    """Write members of an archive, each to its own path; no other member is ever written.

    ``shown`` names the archive in messages.  Raises ArtifactError for a missing or odd member and
    a broken archive, Interrupted, OSError if a path cannot be written.
    """
    open_ones = {_plain(name): path for name, path in wanted.items()}
    seen = []
    for item, content in _files(archive, shown, open_ones):
        seen.append(item.name)
        if content is None:
            continue
        if item.size > limit:
            raise ArtifactError(f"{shown} is larger than {limit} bytes")
        job.say(f"unpack {item.name}")
        meter = Meter(job, f"unpack {item.name}")
        with open_ones.pop(_plain(item.name)).open("wb") as file:
            for part in _parts(content, shown):
                if job.cancel.is_set():
                    raise Interrupted(2)
                file.write(part)
                meter.show(file.tell(), item.size)
        if not open_ones:
            return
    missing = ", ".join(sorted(name for name in wanted if _plain(name) in open_ones))
    files = ", ".join(name if name.isprintable() else repr(name) for name in seen[:SHOWN])
    raise ArtifactError(f"{shown}: {missing} is not in the archive; it has {files or 'no files'}")


def _files(
    archive: Path, shown: str, wanted: Mapping[str, Path]
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield each member, those that are wanted with their content."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            for item in tar:
                if item.name.startswith("/") or ".." in item.name.split("/"):
                    raise ArtifactError(
                        f"{shown}: the archive has a path outside of it: {item.name!r}"
                    )
                if _plain(item.name) not in wanted:
                    yield item, None
                    continue
                if not item.isreg():
                    raise ArtifactError(f"{shown}: {item.name} is not a regular file")
                yield item, tar.extractfile(item)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _broken(shown, error) from error


def _parts(content: IO[bytes], shown: str) -> Iterator[bytes]:
    while True:
        try:
            part = content.read(CHUNK)
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise _broken(shown, error) from error
        if not part:
            return
        yield part


def _broken(shown: str, error: Exception) -> ArtifactError:
    # tarfile tells each compression in a line of its own.
    return ArtifactError(f"{shown} cannot be unpacked: {' '.join(str(error).split())}")


def _plain(name: str) -> str:
    return name.removeprefix("./")
