"""A folder of links to programs in several places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Links(Source):
    """One ``bin`` for cached programs and the user's, so that PATH contains no others."""

    programs: Mapping[str, Path]
    origin: ClassVar[Origin] = "path"

    def recipe(self) -> Mapping[str, object]:
        return {name: str(path) for name, path in self.programs.items()}

    def brings(self) -> tuple[str, ...]:
        return tuple(self.programs)

    def fill(self, job: Job) -> str:
        (job.into / "bin").mkdir()
        for name, path in self.programs.items():
            (job.into / "bin" / name).symlink_to(path)
        return "links"
