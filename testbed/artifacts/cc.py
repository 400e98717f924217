"""Small C programs of our own, compiled on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source, system
from testbed.errors import ArtifactError, CommandError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FLAGS = ("-O2", "-Wall")


@dataclass(frozen=True)
class CProgram(Source):
    """The program ``name``, made of one C file."""

    name: str
    source: Path
    origin: ClassVar[Origin] = "cc"

    def version(self) -> str:
        """The first digits of the source's sum: it has no other version."""
        return self._sum()[:8]

    def brings(self) -> tuple[str, ...]:
        return (self.name,)

    def recipe(self) -> Mapping[str, object]:
        return {"source": self._sum(), "flags": list(FLAGS), "system": system()}

    def fill(self, job: Job) -> str:
        compiler = which("cc") or which("gcc")
        if not compiler:
            raise ArtifactError(
                "a C compiler is needed to build it, and none is on this machine",
                hint="apt-get install --no-install-recommends gcc libc6-dev",
            )
        (job.into / "bin").mkdir()
        job.say(f"compile {self.source.name}")
        command = [compiler, *FLAGS, "-o", str(job.into / "bin" / self.name), str(self.source)]
        try:
            job.run([*command, "-static"])
        except CommandError:  # not every system has a static C library
            job.run(command)
        return self.version()

    def _sum(self) -> str:
        try:
            return sha256(self.source.read_bytes()).hexdigest()
        except OSError as error:
            raise ArtifactError(f"{self.source} cannot be read: {error.strerror}") from error
