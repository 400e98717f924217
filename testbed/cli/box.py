"""``testbed box``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.artifacts.store import Entry
    from testbed.vm.box import File


@click.group("box")
def command() -> None:
    """Build, list or remove the boxes that virtual machines start from.

    A box is a disk, a kernel and an initramfs, made of Debian packages alone.
    It is built once and kept in the cache folder.
    """


@command.command("build")
@click.option("--suite", metavar="NAME", help="Debian's release: bookworm.")
@click.option("--size", type=click.IntRange(1024, 1 << 20), metavar="MIB", help="Of the disk.")
@click.option(
    "--package", "packages", multiple=True, metavar="NAME", help="One more package; repeatable."
)
@click.option(
    "--file", "files", multiple=True, metavar="FILE:PLACE", help="One more file; repeatable."
)
def build(
    suite: str | None, size: int | None, packages: tuple[str, ...], files: tuple[str, ...]
) -> None:
    """Build a box, unless there is one of just this kind."""
    from testbed.vm.box import SIZE, SUITE, Box, box

    common.need_root("box build")
    source = Box(suite or SUITE, size or SIZE, packages, tuple(_file(given) for given in files))
    store = common.make_settings().store
    made = box(store, source)
    manifest = made.manifest()
    click.echo(
        f"{made.folder}: Debian {manifest['suite']}, Linux {manifest['kernel']},"
        f" {len(manifest['packages'])} packages, {_mb(manifest['files'])}"
    )


@command.command("package")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def package(folder: Path) -> None:
    """Pack the labs' box for Vagrant, into FOLDER or the current one.

    Writes testbed.box and testbed.json, which names its version and sha256:
    `vagrant box add FOLDER/testbed.json` takes both.
    """
    import shutil

    from testbed.vm.box import box
    from testbed.vm.package import CATALOGUE, FILE
    from testbed.vm.package import package as pack

    common.need_root("box package")
    store = common.make_settings().store
    packed = pack(store, box(store))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(packed.file, folder / FILE)
        (folder / CATALOGUE).write_text(packed.catalogue(folder / FILE), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there: {error.strerror}") from error
    click.echo(f"{folder / CATALOGUE}: vagrant box add {folder / CATALOGUE}")


@command.command("ls")
@common.json_option
def ls(as_json: bool) -> None:
    """List the boxes that are in the cache."""
    from testbed.vm.box import Box, Built

    entries = _entries()
    labs = Box().key()
    if as_json:
        common.print_json(
            [
                {
                    "key": entry.key,
                    "version": entry.version,
                    "size": entry.size,
                    "path": str(entry.path),
                    "used": entry.key == labs,
                    **({"manifest": Built(entry.path).manifest()} if entry.path else {}),
                }
                for entry in entries
            ]
        )
        return
    if not entries:
        click.echo("no box is there; `testbed box build` makes one")
        return
    rows = [
        (e.key, e.version, f"{e.size / 1e6:.0f} MB", "labs" if e.key == labs else "-")
        for e in entries
    ]
    common.table(rows, ("KEY", "VERSION", "SIZE", "USED BY"))


@command.command("rm")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every box.")
def remove(keys: tuple[str, ...], everything: bool) -> None:
    """Remove boxes, by key."""
    if bool(keys) == everything:
        raise click.UsageError("name boxes by their keys, as `testbed box ls` shows them, or --all")
    there = {entry.key for entry in _entries()}
    unknown = [key for key in keys if key not in there]
    if unknown:
        raise UsageError(f"no box has the key {unknown[0]}", hint="see `testbed box ls`")
    from testbed.vm.box import NAME

    store = common.make_settings().store
    freed = sum(store.remove(NAME, key) for key in keys or there)
    click.echo(f"removed {len(keys or there)} box(es), {freed / 1e6:.0f} MB")


def _entries() -> list[Entry]:
    from testbed.vm.box import NAME

    return [entry for entry in common.make_settings().store.list() if entry.name == NAME]


def _file(given: str) -> File:
    from testbed.vm.box import File

    source, colon, place = given.rpartition(":")
    if not colon or not place.startswith("/") or ".." in Path(place).parts:
        raise UsageError(f"--file {given}: want FILE:PLACE, with an absolute place in the box")
    if not Path(source).is_file():
        raise UsageError(f"--file {given}: there is no file {source}")
    return File(Path(source), place)


def _mb(files: dict[str, dict[str, int]]) -> str:
    return f"{sum(file['size'] for file in files.values()) / 1e6:.0f} MB"
