"""Programs built by their makers, in an archive with a checksum in another document."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.fetch import NotFetched, Sum, fetch, text
from testbed.artifacts.source import Job, Origin, Source
from testbed.artifacts.tarball import extract

if TYPE_CHECKING:
    from collections.abc import Mapping

REACH = 3.0  # seconds in which a maker's site must answer
#: The makers' names of the processors of uname(2).
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
SHA512 = r"`?\b([0-9a-f]{128})\b"


@dataclass(frozen=True)
class Official(Source):
    """Programs of an archive at ``url``, with the sha512 that the document ``sums`` prints for it.

    ``{version}`` and ``{machine}`` in ``url`` and ``programs`` stand for the release and the
    processor.  ``programs`` maps a program's name to its path in the archive.  ``sums`` is on
    another host than the archive: whoever can change one of them cannot change the other.
    """

    release: str
    url: str
    sums: str
    programs: Mapping[str, str]
    origin: ClassVar[Origin] = "release"

    @staticmethod
    def machine() -> str:
        """Return the makers' name of this machine's processor; empty for one without builds."""
        return MACHINES.get(os.uname().machine, "")

    @property
    def address(self) -> str:
        """The address of the archive for this machine."""
        return self._filled(self.url)

    def version(self) -> str:
        return self.release

    def recipe(self) -> Mapping[str, object]:
        # Without the checksum: only the document knows it, and a release never changes.
        return {"url": self.address, "programs": dict(self.programs)}

    def brings(self) -> tuple[str, ...]:
        return tuple(self.programs)

    def fill(self, job: Job) -> str:
        job.say(f"look for the checksum of {self.address}")
        wanted = self.listed(text(job, self.sums, within=REACH))
        archive = job.into / "download"
        fetch(job, self.address, archive, wanted, within=REACH)
        (job.into / "bin").mkdir()
        places = {
            self._filled(path): job.into / "bin" / name for name, path in self.programs.items()
        }
        extract(job, archive, places, self.address)
        archive.unlink()
        for place in places.values():
            place.chmod(0o755)
        note = f"{wanted.digest}  {self.address}\n"
        (job.into / "SHA512SUMS").write_text(note, encoding="utf-8")
        return self.release

    def listed(self, document: str) -> Sum:
        """Return the checksum of the archive in a document, from the line that links to it.

        Raises NotFetched if it has none, or several different ones.
        """
        link = re.escape(f"]({self.address})")
        found = set(re.findall(rf"{link}\s*\|\s*{SHA512}", document))
        if len(found) != 1:
            how_many = "no checksum" if not found else "several checksums"
            raise NotFetched(f"{self.sums} has {how_many} of {self.address}")
        return Sum("sha512", found.pop(), self.sums)

    def _filled(self, words: str) -> str:
        return words.replace("{version}", self.release).replace("{machine}", self.machine())
