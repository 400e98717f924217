"""Images of programs from Debian packages and from other parts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.cache import remove_tree
from testbed.artifacts.debian import Apt
from testbed.artifacts.image import Content, build_root, docker_archive
from testbed.artifacts.source import Job, Origin, Source

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class PackageImage(Source):
    """A docker-archive of one layer, named ``tag``.

    ``config`` is the image's configuration (OCI image specification, "Properties", the field
    config).  ``copied`` maps a path in the image to a file's path in the part ``part``;
    ``source`` is the source of that part.
    """

    tag: str
    content: Content
    config: Mapping[str, object]
    part: str = ""
    source: Source | None = None
    copied: Mapping[str, str] = field(default_factory=dict)
    origin: ClassVar[Origin] = "image"

    def recipe(self) -> Mapping[str, object]:
        return {
            "tag": self.tag,
            "content": self.content.recipe(),
            "config": dict(self.config),
            "of": self.source.key() if self.source else "",
            "copied": dict(self.copied),
        }

    def version(self) -> str:
        return self.tag.rpartition(":")[2]

    def whole(self, folder: Path) -> bool:
        return (folder / "image.tar").exists()

    def fill(self, job: Job) -> str:
        made = job.part(self.part) if self.part else job.into
        debian, root = job.into / "debian", job.into / "root"
        versions = Apt(job).unpack(list(self.content.programs), debian, depends=True)
        job.say("select the files of the image")
        build_root(job, debian, root, self.content)
        for place, path in self.copied.items():
            shutil.copyfile(made / path, root / place)
            (root / place).chmod(0o755 if path.startswith("bin/") else 0o644)
        job.say("write the image")
        config = {**self.config, "Labels": self.content.labels(versions)}
        docker_archive(root, job.into / "image.tar", tag=self.tag, config=config)
        remove_tree(debian)
        remove_tree(root)
        return self.version()
