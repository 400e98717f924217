"""Images whose layers are unpacked, as the file systems of nodes.

Each layer is a folder, and the node's kernel lays them on each other (overlayfs).
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from testbed.artifacts import archive
from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError

#: Folder with the layers of an entry, by number from the lowest on, and the image's configuration.
LAYERS, CONFIG = "layers", "config.json"
#: The kernel reads the names of all lower folders of an overlay as one page of options.
MOST = 100
#: Names in a layer for what it removes (OCI image specification, layer.md, "Whiteouts").
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
#: Options of tar(1) that keep owners and attributes as they are in the layer.
TAR = ("--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*")


@dataclass(frozen=True)
class ImageTree(Source):
    """The layers of an image, from its archive."""

    image: str
    path: Path  #: an archive of ``docker save``
    origin: ClassVar[Origin] = "image"

    @property
    def name(self) -> str:
        """The name of its entry in the cache."""
        return "tree-" + "".join(c if c.isalnum() or c in ".-" else "-" for c in self.image)[:60]

    def recipe(self) -> Mapping[str, object]:
        return {"image": archive.identity(self.path, self.image), "form": 1}

    def whole(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def fill(self, job: Job) -> str:
        # Owners are the image's (owner.give_tree), and other users must not reach setuid programs.
        job.into.chmod(0o700)
        with archive.layers(self.path, self.image) as (config, layers):
            if not 0 < len(layers) <= MOST:
                raise ArtifactError(
                    f"{self.image} has {len(layers)} layers; a node can have 1 to {MOST}",
                    hint="build it again with fewer layers",
                )
            for number, write in enumerate(layers):
                job.say(f"unpack {self.image}, layer {number + 1} of {len(layers)}")
                folder = job.into / LAYERS / str(number)
                folder.mkdir(parents=True)
                with tempfile.NamedTemporaryFile(dir=job.into) as plain:
                    write(plain, job.into)
                    plain.flush()
                    job.run(["tar", *TAR, "--directory", str(folder), "--file", plain.name])
                white_out(folder)
        (job.into / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return "1"


def white_out(folder: Path) -> None:
    """Replace a layer's marks of removed files by those of overlayfs (overlayfs.rst)."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if not name.startswith(WHITEOUT):
                continue
            path.unlink()
            if name == OPAQUE:
                os.setxattr(root, "trusted.overlay.opaque", b"y")
            elif not name.startswith(WHITEOUT * 2):
                target = path.with_name(name.removeprefix(WHITEOUT))
                if not os.path.lexists(target):
                    os.mknod(target, stat.S_IFCHR, os.makedev(0, 0))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of an image whose layers are in a folder."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    pairs = (config.get("config") or {}).get("Env") or ()
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
