"""What a daemon has made of images, kept and given to the next one as its own files.

Loading an image costs a node about as much CPU as starting its daemon.  What a
daemon has made of its images is therefore kept in the cache, as files below its
data root, and put under the data root of the next daemon before that starts:
the small files are copied; what is large and only ever read, layers first of all,
is linked to.  A seed belongs to one version of the daemon and one set of images, and
is for nodes that read this machine's files: to another it would have to be
copied, which costs what it saves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError
from testbed.process import run
from testbed.steps.marks import is_marked, mark

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node

LINKED = "/run/testbed/layers"  # where a node finds what its seed links to
SEEDED = "image-seed"

#: How tar keeps a layer as the daemon made it: owners by number, and all extended attributes, by
#: which overlayfs marks a folder as opaque and the kernel gives a program capabilities.
FAITHFUL = ("--numeric-owner", "--format=posix", "--acls", "--xattrs", "--xattrs-include=*")

#: What tar says of a name that it takes as one below the folder; nothing is lost.
STRIPPED = "tar: Removing leading"

# Arguments: the seed, the data root.  Two programs, since every node of a large lab pays for them.
INSTALL = f'mkdir -p "$2" && ln -sfn "$1/layers" {LINKED} && cp -a "$1/root/." "$2"'


@dataclass(frozen=True, slots=True)
class Layout:
    """How a daemon keeps images.

    ``parts`` of its data root ``root`` are kept, without ``without``, which is of the file
    system; what matches ``linked`` is linked to.
    """

    root: str
    parts: Sequence[str]
    linked: Sequence[str]
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Seed(Source):
    """What one version of a daemon makes of a set of images; ``harvest`` gives it as a tar."""

    daemon: str
    layout: Layout
    archives: Sequence[Path]
    harvest: Callable[[], bytes] = field(compare=False)
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
        job.say("keep what the engine made of the image")
        # As below its data root: an image's setuid programs and devices are not for every user.
        job.into.chmod(0o700)
        root, layers = job.into / "root", job.into / "layers"
        root.mkdir()
        layers.mkdir()
        # tar itself: owners, modes, devices and absolute links of a layer must stay as they are.
        argv = ["tar", "-C", str(root), "-xpf", "-", "--warning=no-timestamp", *FAITHFUL]
        env = {**os.environ, "LC_ALL": "C"}
        said = run(argv, env=env, input=self.harvest(), cancel=job.cancel).stderr.splitlines()
        # An attribute that the file system does not have is a warning to tar, and no more.
        if lost := [line for line in said if not line.startswith(STRIPPED)]:
            raise ArtifactError(f"the layers cannot be kept as they are: {lost[0]}")
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
    """Put the seed under the data root of a daemon that has never run; none yet is fine.

    For a node that shares this machine's files.
    """
    found = store.kept(SEEDED, seed)
    if found is not None:
        node.run(["sh", "-c", INSTALL, "sh", node.provide(found), seed.layout.root])
        mark(node, SEEDED)


def keep(store: Store, seed: Seed) -> str:
    """Keep a seed for the next daemon; return why that cannot be, or an empty string.

    The lab at hand does not need it.  A cache on overlayfs has no whiteouts (mknod(2) of device
    0:0 fails with EPERM there), others may have no extended attributes.
    """
    try:
        store.keep(SEEDED, seed)
    except ArtifactError as error:
        return error.message
    return ""


def is_seeded(node: Node) -> bool:
    """Whether the node's daemon has begun with a seed."""
    return is_marked(node, SEEDED)


def harvest(node: Node, layout: Layout) -> bytes:
    """A tar of what is to be kept, from a daemon that is busy with nothing."""
    without = [f"--exclude={path}" for path in layout.without]
    argv = ["tar", "-C", layout.root, "-cf", "-", *FAITHFUL, *without, *layout.parts]
    return node.run(argv).out
