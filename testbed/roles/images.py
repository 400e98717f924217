"""Images on a node: loaded by its daemon once, then shared by every node after it.

Loading an image costs a node about as much CPU as starting its daemon.  What a
daemon has made of its images is therefore kept in the cache, as its own files
below the data root, and put under the data root of the next daemon before that
starts: the small files are copied; the layers, which overlayfs only ever
reads, are linked to.  A seed belongs to one engine version and one set of images,
and is for nodes that read this machine's files: to another it would have to be
copied, which costs what it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError
from testbed.lab.marks import is_marked, mark
from testbed.lab.step import Step
from testbed.process import run
from testbed.roles.engine import LAB, Engine, engine_version

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

DATA_ROOT = "/var/lib/docker"
PARTS = ("image", "overlay2")  # of the data root, as the overlay2 driver lays it out
OWN = "overlay2/backingFsBlockDev"  # the driver's, of the file system that it is on
LAYERS = "/run/testbed/layers"  # where a node finds the layers of its seed
SEEDED = "image-seed"

# Argument 1 is the seed.  Two programs, since every node of a large lab pays for them.
INSTALL = f'ln -sfn "$1/layers" {LAYERS} && cp -a "$1/root/." {DATA_ROOT}'


def images_step(node: str) -> str:
    """The name of the step after which the node's daemon has all images it needs."""
    return f"images {node}"


def wanted(topology: Topology, node: str) -> list[str]:
    """The images of a node's containers, each once."""
    return sorted({c.image for c in topology.containers_on(node)})


@dataclass(frozen=True)
class Seed(Source):
    """What one engine makes of a set of images; ``harvest`` gives it as a tar of its data root."""

    engine: str
    archives: Sequence[Path]
    harvest: Callable[[], bytes] = field(compare=False)
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self.archives]
        return {"engine": self.engine, "archives": files, "layers": LAYERS, "form": 2}

    def whole(self, folder: Path) -> bool:
        return (folder / "layers").is_dir() and (folder / "root").is_dir()

    def fill(self, job: Job) -> str:
        job.say("keep what the engine made of the image")
        # As below /var/lib/docker: an image's setuid programs and devices are not for every user.
        job.into.chmod(0o700)
        (job.into / "root").mkdir()
        (job.into / "layers").mkdir()
        # tar itself: owners, modes and absolute links of a layer must stay as they are.
        run(["tar", "-C", job.into / "root", "-xpf", "-", "--numeric-owner"], input=self.harvest())
        for diff in sorted((job.into / "root" / "overlay2").glob("*/diff")):
            layer = diff.parent.name
            if diff.resolve() != job.into.resolve() / "root" / "overlay2" / layer / "diff":
                raise ArtifactError(f"{diff} is a link, or below one: no daemon makes such layers")
            (job.into / "layers" / layer).mkdir()
            diff.rename(job.into / "layers" / layer / "diff")
            diff.symlink_to(f"{LAYERS}/{layer}/diff")
        return self.engine


def install_seed(context: Context, node: Node, engine: str) -> None:
    """Put the seed under the data root of a daemon that has never run; none yet is fine."""
    if not node.shares:
        return
    found = context.store.kept(SEEDED, _seed(context, node.name, engine, bytes))
    if found is not None:
        node.run(["sh", "-c", INSTALL, "sh", node.provide(found)])
        mark(node, SEEDED)


def _seed(context: Context, node: str, engine: str, harvest: Callable[[], bytes]) -> Seed:
    names = wanted(context.topology, node)
    return Seed(engine, [context.store.image(name) for name in names], harvest)


def images_steps(topology: Topology, node: str, docker: str) -> Iterable[Step]:
    """The step that makes sure of the images, and ends containers that are not asked for."""
    names = wanted(topology, node)

    def act(context: Context) -> tuple[str, bool]:
        with Engine(context.node(node)) as engine:
            changed = _remove_others(context, engine, node)
            missing = [name for name in names if not engine.has_image(name)]
            for name in missing:
                engine.load(context.store.image(name))
            if missing and not is_marked(context.node(node), SEEDED) and not changed:
                _keep(context, node, engine)
        how = "loaded" if missing else "there"
        return f"{', '.join(names) or 'none'} {how}", changed or bool(missing)

    about = f"images: {', '.join(names) or 'none'}"
    yield Step(images_step(node), about, (docker,), ahead=True, act=act)


def _remove_others(context: Context, engine: Engine, node: str) -> bool:
    keep = {c.name for c in context.topology.containers_on(node)}
    others = engine.names(label=f"{LAB}={context.lab}") - keep
    for name in sorted(others):
        engine.remove(name)
    return bool(others)


def _keep(context: Context, node: str, engine: Engine) -> None:
    """Make the seed from a daemon that has the images and no container yet."""
    machine = context.node(node)
    if engine.names() or not machine.shares:
        return

    def harvest() -> bytes:
        argv = ["tar", "-C", DATA_ROOT, "-cf", "-", "--numeric-owner", f"--exclude={OWN}", *PARTS]
        return machine.run(argv).out

    version = engine_version(context.store, machine, context.topology.docker.engine)
    context.store.keep(SEEDED, _seed(context, node, version, harvest))
