"""Seeds: a daemon's loaded images, cached for the next daemon.

To load an image takes about as much of a node's CPU as to start its daemon. So the files that a
daemon creates below its data root from its images are kept in the cache, and installed below the
data root of the next daemon before its first start. Small files are copied. Large files that are
only read, mainly layers, are linked. A seed belongs to one version of the daemon and one set of
images. It is only for nodes that can read this machine's files: to copy it to another machine
would cost as much as it saves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, LabError
from testbed.nodes.engine import DATA
from testbed.nodes.marks import is_marked, mark

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node

LINKED = "/run/testbed/layers"  # a node's path of the files that its seed links to
SEEDED = "image-seed"

#: tar's options to keep a layer unchanged: owners by number, and all extended attributes, with
#: which overlayfs marks a folder as opaque and the kernel stores a program's capabilities.
FAITHFUL = ("--numeric-owner", "--format=posix", "--acls", "--xattrs", "--xattrs-include=*")

#: tar's warning about an absolute name, which it stores relative to the folder; nothing is lost.
STRIPPED = "tar: Removing leading"

#: Writes the files to keep to a path, as a tar.
Harvest: TypeAlias = "Callable[[Job, Path], None]"

#: Arguments: a file for standard output, a command.
TO_FILE = 'file=$1; shift; exec "$@" > "$file"'

# Arguments: the seed, the data root.  Only two programs, because each node of a lab runs them.
INSTALL = f'mkdir -p "$2" && ln -sfn "$1/layers" {LINKED} && cp -a "$1/root/." "$2"'


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a daemon's image files.

    ``parts`` are the paths below the data root ``root`` to keep, except ``without``, which
    depends on the file system. Files that match ``linked`` are linked instead of copied.
    """

    root: str
    parts: Sequence[str]
    linked: Sequence[str]
    without: Sequence[str] = ()


#: Docker's images, with the overlay2 driver.
DOCKER = Layout(
    root=DATA,
    parts=("image", "overlay2"),
    linked=("overlay2/*/diff",),
    without=("overlay2/backingFsBlockDev",),  # depends on the file system below the driver
)


@dataclass(frozen=True)
class Seed(Source):
    """The files of one daemon version for a set of images.

    ``harvest`` takes them from a daemon; without it, the seed can be looked for only.
    """

    daemon: str
    layout: Layout
    archives: Sequence[Path]
    harvest: Harvest | None = field(default=None, compare=False)
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self.archives]
        layout = self.layout
        return {
            "engine": self.daemon,
            "archives": files,
            "layers": LINKED,
            "root": layout.root,
            "parts": [list(layout.parts), list(layout.linked), list(layout.without)],
            "form": 4,
        }

    def whole(self, folder: Path) -> bool:
        return (folder / "layers").is_dir() and (folder / "root").is_dir()

    def fill(self, job: Job) -> str:
        assert self.harvest is not None
        job.say("store the engine's layers of the image")
        # The mode of the data root: other users must not reach setuid programs and devices.
        job.into.chmod(0o700)
        root, layers, packed = (job.into / name for name in ("root", "layers", "layers.tar"))
        root.mkdir()
        layers.mkdir()
        self.harvest(job, packed)
        # tar itself, because a layer's owners, modes, devices and absolute links must not change.
        argv = ["tar", "-C", str(root), "-xpf", str(packed), "--warning=no-timestamp", *FAITHFUL]
        said = job.run(argv, env={**os.environ, "LC_ALL": "C"}).stderr.splitlines()
        packed.unlink()
        # tar only warns about an attribute that the file system does not support.
        if lost := [line for line in said if not line.startswith(STRIPPED)]:
            raise ArtifactError(f"cannot copy the layers unchanged: {lost[0]}")
        found = [path for pattern in self.layout.linked for path in sorted(root.glob(pattern))]
        for path in found:
            place = path.relative_to(root)
            if path.resolve() != job.into.resolve() / "root" / place:
                raise ArtifactError(f"{path} is a link, or below one: no daemon makes such layers")
            (layers / place).parent.mkdir(parents=True, exist_ok=True)
            path.rename(layers / place)
            path.symlink_to(f"{LINKED}/{place}")
        return self.daemon


def install(store: Store, node: Node, seed: Seed) -> None:
    """Install a seed into a daemon's data root before its first start.

    Nothing happens without a seed. The node must share this machine's files.
    """
    found = store.kept(SEEDED, seed)
    if found is not None:
        node.run(["sh", "-c", INSTALL, "sh", node.provide(found), seed.layout.root])
        mark(node, SEEDED)


def keep(store: Store, seed: Seed) -> str:
    """Keep a seed for the next daemon.

    Return why this failed, or an empty string. The current lab works without it. A cache on
    overlayfs cannot store whiteouts (mknod(2) of device 0:0 fails with EPERM there); other file
    systems may lack extended attributes.
    """
    try:
        store.keep(SEEDED, seed)
    except (ArtifactError, LabError) as error:
        return error.message
    return ""


def is_seeded(node: Node) -> bool:
    """Tell whether the node's daemon started with a seed."""
    return is_marked(node, SEEDED)


def harvest(node: Node, layout: Layout) -> Harvest:
    """Return how to take the files to keep from an idle daemon.

    They can be larger than the memory, so they go to a file right away. The node must share this
    machine's files. tar runs with the node's files as its root, so that no link of the node leads
    to those of this machine.
    """
    without = [f"--exclude={path}" for path in layout.without]
    tar = ["tar", "-C", layout.root, "-cf", "-", *FAITHFUL, *without, *layout.parts]

    def write(job: Job, target: Path) -> None:
        job.run(["sh", "-c", TO_FILE, "sh", target, "chroot", node.socket("/"), *tar])

    return write
