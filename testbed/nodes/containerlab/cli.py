"""``testbed image``: the image of nodes that are containers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click

from testbed.cli import common
from testbed.errors import ArtifactError, UsageError
from testbed.requirement import need_root

PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
#: Name of an image with or without a tag (github.com/distribution/reference, "Grammar").
TAG = r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
REGISTRY = r"[A-Za-z0-9.-]+(?::[0-9]+)?"
REFERENCE = rf"(?:{REGISTRY}/)?{PART}(?:/{PART})*{TAG}?"


@click.group("image")
def command() -> None:
    """Build or push the image of nodes that are containers.

    The image is a Debian machine without a kernel and systemd, built only from Debian packages.
    It is built once and kept in the cache folder.
    """


@command.command("build")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the archive to FILE.",
)
@click.option("--tag", metavar="NAME", help="Name of the image in the archive.")
def build(output: Path | None, tag: str | None) -> None:
    """Build the image as an archive for `docker load`, unless the same image exists.

    Labs load it by themselves. Outside of them, `testbed export --to containerlab` writes files
    that use it.
    """
    from testbed import files
    from testbed.artifacts.inventory import NODE_IMAGE
    from testbed.artifacts.node_image import IMAGE, PART

    need_root("image build")
    if output is not None:
        files.check(output)
    source = NODE_IMAGE if tag is None else replace(NODE_IMAGE, tag=_named(tag))
    archive = common.make_settings().store.keep(PART, source) / IMAGE
    if output is not None:
        files.copy(archive, output)
        archive = output
    size = archive.stat().st_size / 1e6
    click.echo(f"{source.tag}, {size:.0f} MB: docker load --input {archive}")


@command.command("push")
@click.argument("target", metavar="REGISTRY[/NAME]")
def push(target: str) -> None:
    """Push the image to a registry, for `testbed up --image`.

    Print its name with its digest. NAME is testbed/node:1 by default. Credentials are those that
    `docker login`, `podman login` and `skopeo login` keep; certificates and plain HTTP are set in
    the configuration file.
    """
    from testbed.artifacts.inventory import NODE_IMAGE
    from testbed.artifacts.node_image import IMAGE, PART

    name = _target(target)
    store = common.make_settings().store
    sources = (NODE_IMAGE, replace(NODE_IMAGE, tag=name))  # with --tag NAME, it is the same image
    built = next(filter(None, (store.kept(PART, source) for source in sources)), None)
    if built is None:
        raise ArtifactError("the image of nodes is not built yet", hint="sudo testbed image build")
    click.echo(store.push(built / IMAGE, name))


def _target(target: str) -> str:
    """Return the name with a tag to push to.  Raises UsageError for one without a registry."""
    from testbed.artifacts.node_image import NAME
    from testbed.artifacts.reference import is_registry

    registry, _, rest = target.partition("/")
    if not (is_registry(registry) and re.fullmatch(REGISTRY, registry)):
        raise UsageError(
            f"{registry!r} is not a registry",
            where="REGISTRY[/NAME]",
            hint="for example registry.example:5000, localhost:5000/node:1 or docker.io/USER/node",
        )
    return _named(f"{registry}/{rest or NAME}", "REGISTRY[/NAME]")


def _named(tag: str, where: str = "--tag") -> str:
    """Return an image's name with its tag.  Raises UsageError for one that Docker refuses."""
    found = re.fullmatch(REFERENCE, tag)
    if found is None:
        raise UsageError(
            f"{tag!r} is not the name of an image",
            where=where,
            hint="for example registry.example:5000/group/node:1, in lower case but for the tag",
        )
    return tag if found["tag"] else f"{tag}:latest"
