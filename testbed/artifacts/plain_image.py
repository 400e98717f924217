"""Images of a few programs that need nothing else: statically linked ones, and plain files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from testbed.artifacts.cache import remove_tree
from testbed.artifacts.image import docker_archive
from testbed.artifacts.source import Job, Origin, Source


@dataclass(frozen=True)
class PlainImage(Source):
    """A docker-archive of one part's programs.

    ``part`` names the part in the catalogue, ``source`` is what it is made from; ``programs``
    maps each place in the image to the program's name there.
    """

    tag: str
    part: str
    source: Source
    programs: Mapping[str, str]
    command: Sequence[str]
    folders: Sequence[str] = field(default=("etc", "tmp"))
    origin: ClassVar[Origin] = "image"

    def recipe(self) -> Mapping[str, object]:
        return {
            "tag": self.tag,
            "of": self.source.key(),
            "programs": dict(self.programs),
            "command": list(self.command),
            "folders": list(self.folders),
            "form": 1,  # of what docker_archive writes
        }

    def version(self) -> str | None:
        return self.source.version()

    def whole(self, folder: Path) -> bool:
        return (folder / "image.tar").exists()

    def fill(self, job: Job) -> str:
        made = job.part(self.part)
        root = job.into / "root"
        for name in self.folders:
            (root / name).mkdir(parents=True)
        for place, name in self.programs.items():
            target = root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / "bin" / name, target)
            target.chmod(0o755)
        job.say("write the image")
        config = {"Entrypoint": list(self.command), "Env": ["PATH=/bin"], "WorkingDir": "/"}
        docker_archive(root, job.into / "image.tar", tag=self.tag, config=config)
        remove_tree(root)
        return self.version() or ""
