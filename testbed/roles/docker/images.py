"""Images of a node: the first daemon loads them, later nodes share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from testbed.nodes.engine import version_of
from testbed.nodes.marks import note, noted
from testbed.nodes.seed import DOCKER, Harvest, Seed, harvest, install, is_seeded, keep
from testbed.roles.base import files
from testbed.roles.docker import network_steps
from testbed.roles.docker.daemon_json import remapped
from testbed.roles.docker.engine import LAB, Engine
from testbed.roles.docker.section import DockerSection, daemon_of, engine_of
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

LOADED = "docker-image-files"  # mark: the archives that images were loaded from, by image name


def images_step(node: str) -> str:
    """Return the name of the step after which a daemon has all its images."""
    return f"images {node}"


def wanted(topology: Topology, node: str) -> list[str]:
    """Return the images of a node's containers, and those of the section, without duplicates."""
    given = DockerSection.of(topology).images
    return sorted({*given, *(c.image for c in topology.containers_on(node))})


def install_seed(context: Context, node: Node, engine: str) -> None:
    """Install the seed into the data root of a daemon.

    The daemon must not have run yet. Nothing happens without a seed.
    """
    if node.shares_files and _is_plain(context, node.name):
        install(context.store, node, _seed(context, node.name, engine))


def _is_plain(context: Context, node: str) -> bool:
    """Tell whether a daemon's images are where a seed has them: not with remapped user IDs."""
    return not remapped(daemon_of(context.topology, node))


def _seed(context: Context, node: str, engine: str, taken: Harvest | None = None) -> Seed:
    archives = [context.store.image(name) for name in wanted(context.topology, node)]
    return Seed(engine, DOCKER, archives, taken)


def images_steps(topology: Topology, node: str, docker: str) -> Iterable[Step]:
    """Yield the step for missing images and unwanted containers.

    It loads the images and removes the containers, and the networks of a node whose file has
    none any more. An image is loaded again if its archive is
    another one than that of the image on the node.
    """
    names = wanted(topology, node)

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node)
        with Engine(machine) as engine:
            changed = _remove_others(context, engine, machine)
            changed |= network_steps.remove_all(context, engine, node)
            missing, others = load(context, engine, machine, names, LOADED)
            unkept = ""
            fresh = not (changed or others)  # else layers of other images are left there
            if missing and fresh and not is_seeded(machine):
                unkept = _keep(context, node, engine)
        how = "loaded" if missing else "present"
        words = f"{', '.join(names) or 'none'} {how}{unkept and f'; not kept: {unkept}'}"
        return words, changed or bool(missing)

    about = f"images: {', '.join(names) or 'none'}"
    yield Step(images_step(node), about, (docker,), ahead=True, act=act)


def load(
    context: Context, engine: Engine, node: Node, names: Sequence[str], mark: str
) -> tuple[list[str], set[str]]:
    """Load images that a node does not have, or that come from another archive now.

    Return both, and the latter. The mark notes the archives.
    """
    images = {name: engine.image_id(name) for name in names}
    archives = files(context.store.image(name) for name in names)
    sources = dict(zip(names, archives, strict=True))
    before = noted(node, mark)
    others = {name for name in names if before.get(name, sources[name]) != sources[name]}
    missing = [name for name, image in images.items() if not image or name in others]
    for name in missing:
        context.waiting(f"dockerd on {node.name} to load the image {name}")
        images[name] = engine.load(context.store.image(name), name)
    for name, image in images.items() if missing else ():
        engine.name_image(image, name)  # another archive may have the same image name
    if before != sources:
        note(node, mark, sources)
    return missing, others


def _remove_others(context: Context, engine: Engine, node: Node) -> bool:
    label = f"{LAB}={context.lab}"
    wanted = {c.name for c in context.topology.containers_on(node.name)}
    others = engine.names(label=label) - wanted
    if not others:
        return False
    from testbed.roles.docker import compose

    kept = compose.kept(engine, context.topology, node)
    for name in sorted(engine.names(label=label) - wanted - kept):
        engine.remove(name)
    return bool(others - kept)


def _keep(context: Context, node: str, engine: Engine) -> str:
    """Create the seed from a daemon with images and no containers.

    Return the reason why this is impossible, or an empty string.
    """
    machine = context.node(node)
    if engine.names() or not machine.shares_files or not _is_plain(context, node):
        return ""
    version = version_of(context.store, machine, engine_of(context.topology, node))
    seed = _seed(context, node, version, harvest(machine, DOCKER))
    return keep(context.store, seed)
