"""Images that contain only a few programs of one part and their libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from testbed.artifacts.cache import remove_tree
from testbed.artifacts.debian import Apt
from testbed.artifacts.image import copy_in, docker_archive, libraries, merge
from testbed.artifacts.source import Job, Origin, Source, system


@dataclass(frozen=True)
class PlainImage(Source):
    """A docker-archive of one part's programs.

    ``part`` names the part in the inventory, ``source`` is its source; ``programs`` maps a path
    in the image to the program's name in the part.  Libraries of dynamically linked programs
    come from the Debian packages ``packages``, which must contain all of them.
    """

    tag: str
    part: str
    source: Source
    programs: Mapping[str, str]
    command: Sequence[str]
    folders: Sequence[str] = field(default=("etc", "tmp"))
    packages: Sequence[str] = ()
    origin: ClassVar[Origin] = "image"

    def recipe(self) -> Mapping[str, object]:
        return {
            "tag": self.tag,
            "of": self.source.key(),
            "programs": dict(self.programs),
            "command": list(self.command),
            "folders": list(self.folders),
            "form": 1,  # version of the format that docker_archive writes
            **({"packages": list(self.packages), "system": system()} if self.packages else {}),
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
        programs = {place: made / "bin" / name for place, name in self.programs.items()}
        copy_in(programs, root)
        if self.packages:
            debian = job.into / "debian"
            Apt(job).unpack(self.packages, debian, depends=True)
            merge(debian, root)
            copy_in(libraries(job, debian, list(programs.values())), root)
            remove_tree(debian)
        job.say("write the image")
        config = {"Entrypoint": list(self.command), "Env": ["PATH=/bin"], "WorkingDir": "/"}
        docker_archive(root, job.into / "image.tar", tag=self.tag, config=config)
        remove_tree(root)
        return self.version() or ""
