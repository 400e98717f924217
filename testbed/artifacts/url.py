"""Files downloaded from a URL of the user, and verified by their sha256."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.fetch import LIMIT, NotFetched, Sum, fetch
from testbed.artifacts.source import Job, Origin, Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


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
        wanted = Sum("sha256", self.sha256, "the configuration")
        try:
            fetch(job, self.url, got, wanted, limit=self.limit)
        except NotFetched as error:
            error.hint = "download it by other means and set `path` to the file"
            raise
        if self.member is None:
            got.rename(target)
        else:
            from testbed.artifacts.tarball import extract

            extract(job, got, {self.member: target}, self.url, limit=self.limit)
            got.unlink()
        target.chmod(0o755)
        return self.version()
