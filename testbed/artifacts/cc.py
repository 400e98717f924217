"""Small C programs of this package, compiled on this machine."""

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
    """The program ``name``, built from the C file ``source`` and ``more`` files and headers."""

    name: str
    source: Path
    more: tuple[Path, ...] = ()
    origin: ClassVar[Origin] = "cc"

    def version(self) -> str:
        """Return the first digits of its files' checksum, since it has no version number."""
        return self._sum()[:8]

    def brings(self) -> tuple[str, ...]:
        return (self.name,)

    def recipe(self) -> Mapping[str, object]:
        return {"source": self._sum(), "flags": list(FLAGS), "system": system()}

    def fill(self, job: Job) -> str:
        compiler = which("cc") or which("gcc")
        if not compiler:
            raise ArtifactError(
                "a C compiler is required to build it, and this machine has none",
                hint="apt-get install --no-install-recommends gcc libc6-dev",
            )
        (job.into / "bin").mkdir()
        job.say(f"compile {self.source.name}")
        files = [str(path) for path in (self.source, *self.more) if path.suffix == ".c"]
        command = [compiler, *FLAGS, "-o", str(job.into / "bin" / self.name), *files]
        try:
            job.run([*command, "-static"])
        except CommandError:  # not every system has a static C library
            job.run(command)
        return self.version()

    def _sum(self) -> str:
        total = sha256()
        for path in (self.source, *self.more):
            try:
                total.update(path.read_bytes())
            except OSError as error:
                raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
        return total.hexdigest()
