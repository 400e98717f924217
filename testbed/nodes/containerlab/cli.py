"""``testbed image``: the image of nodes that are containers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
#: Name of an image with or without a tag (github.com/distribution/reference, "Grammar").
TAG = r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
REFERENCE = rf"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{PART}(?:/{PART})*{TAG}?"


@click.group("image")
def command() -> None:
    """Build the image of nodes that are containers.

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


def _named(tag: str) -> str:
    """Return an image's name with its tag.  Raises UsageError for one that Docker refuses."""
    found = re.fullmatch(REFERENCE, tag)
    if found is None:
        raise UsageError(
            f"{tag!r} is not the name of an image",
            where="--tag",
            hint="for example registry.example:5000/group/node:1, in lower case but for the tag",
        )
    return tag if found["tag"] else f"{tag}:latest"
