"""Files downloaded from a URL of the user, and verified by their sha256."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, Interrupted

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Mapping
    from pathlib import Path

LIMIT = 2 << 30  # bytes; more than any artifact needs, less than a disk
CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a single byte
MIB = 1 << 20


@dataclass(frozen=True)
class Download(Source):
    """One file, or one file from a tar archive, stored at ``place`` in the entry."""

    url: str
    sha256: str
    place: str
    member: str | None = None
    limit: int = LIMIT
    origin: ClassVar[Origin] = "url"

    def version(self) -> str:
        """Return the first digits of the checksum: no other version is known."""
        return f"sha256.{self.sha256[:8]}"

    def recipe(self) -> Mapping[str, object]:
        # Without the URL: the same bytes from another mirror are the same artifact.
        return {"sha256": self.sha256, "place": self.place, "member": self.member}

    def whole(self, folder: Path) -> bool:
        return (folder / self.place).exists()

    def fill(self, job: Job) -> str:
        target = job.into / self.place
        target.parent.mkdir(parents=True, exist_ok=True)
        got = job.into / "download"
        self._fetch(job, got)
        if self.member is None:
            got.rename(target)
        else:
            job.say(f"unpack {self.member}")
            self._unpack(job, got, target, self.member)
            got.unlink()
        target.chmod(0o755)
        return self.version()

    def _fetch(self, job: Job, target: Path) -> None:
        import http.client
        import urllib.error
        import urllib.request

        digest = hashlib.sha256()
        request = urllib.request.Request(self.url, headers={"User-Agent": "testbed"})  # noqa: S310 - http(s) only, as the configuration is checked for
        try:
            with (
                urllib.request.urlopen(request, timeout=TIMEOUT) as answer,  # noqa: S310 - as above
                target.open("wb") as file,
            ):
                length = answer.headers.get("Content-Length", "")
                total = int(length) if length.isdigit() else None
                self._bound(total or 0)
                done, told = 0, time.monotonic()
                while data := answer.read(CHUNK):
                    if job.cancel.is_set():
                        raise Interrupted(2)
                    done += len(data)
                    self._bound(done)
                    digest.update(data)
                    file.write(data)
                    if time.monotonic() - told >= 1:
                        told = time.monotonic()
                        of = f" of {total / MIB:.0f}" if total else ""
                        job.say(f"download, {done / MIB:.0f}{of} MiB")
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            raise ArtifactError(
                f"{self.url} cannot be downloaded: {error}",
                hint="download it by other means and set `path` to the file",
            ) from error
        if total is not None and done != total:
            raise ArtifactError(f"{self.url}: the connection ended after {done} of {total} bytes")
        if digest.hexdigest() != self.sha256:
            raise ArtifactError(
                f"{self.url} has the sha256 {digest.hexdigest()}, expected {self.sha256}",
                hint="find out which checksum is right before you change the configuration",
            )

    def _unpack(self, job: Job, archive: Path, target: Path, member: str) -> None:
        import tarfile

        try:
            with tarfile.open(archive, "r:*") as tar:
                content = self._find(tar, member)
                # One file, to our own path: no other file of the archive is ever written.
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, CHUNK)
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{self.url} cannot be unpacked: {error}") from error
        job.say(f"unpacked {member}")

    def _find(self, tar: tarfile.TarFile, member: str) -> IO[bytes]:
        names = []
        for item in tar:
            parts = item.name.split("/")
            if item.name.startswith("/") or ".." in parts:
                raise ArtifactError(
                    f"{self.url}: the archive has a path outside of it: {item.name!r}"
                )
            names.append(item.name)
            if item.name.removeprefix("./") == member.removeprefix("./"):
                if not item.isreg():
                    raise ArtifactError(f"{self.url}: {member} is not a regular file")
                self._bound(item.size)
                content = tar.extractfile(item)
                assert content
                return content
        files = ", ".join(names[:20])
        raise ArtifactError(f"{self.url}: {member} is not in the archive; it has {files}")

    def _bound(self, size: int) -> None:
        if size > self.limit:
            raise ArtifactError(f"{self.url} is larger than {self.limit} bytes")
