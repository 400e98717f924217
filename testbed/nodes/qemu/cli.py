"""``testbed box``: the boxes that virtual machines start from, and QEMU's snapshots of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.artifacts.store import Entry
    from testbed.labs.lab import Settings
    from testbed.vm.box import File


RELEASE = r"[a-z][a-z0-9-]*"
PACKAGE = r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]"  # apt would remove a package whose name ends in a minus


@click.group("box")
def command() -> None:
    """Build, list or remove boxes for virtual machines.

    A box is a disk, a kernel and an initramfs, built only from Debian packages.
    It is built once and kept in the cache folder.
    """


@command.command("build")
@click.option("--suite", metavar="NAME", help="Debian release; default: this machine's.")
@click.option("--size", type=click.IntRange(1024, 1 << 20), metavar="MIB", help="Size of the disk.")
@click.option(
    "--package", "packages", multiple=True, metavar="NAME", help="Add a package; repeatable."
)
@click.option(
    "--file", "files", multiple=True, metavar="FILE:PLACE", help="Add a file; repeatable."
)
def build(
    suite: str | None, size: int | None, packages: tuple[str, ...], files: tuple[str, ...]
) -> None:
    """Build a box, unless the same box exists."""
    from testbed.vm.box import SIZE, Box, box

    need_root("box build")
    for name in packages:
        _plain("--package", name, PACKAGE, "the name of a Debian package")
    source = Box(size=size or SIZE, packages=packages, files=_files(files))
    if suite is not None:
        source = replace(source, suite=_plain("--suite", suite, RELEASE, "a release of Debian"))
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
    """Package the labs' box for Vagrant in FOLDER.

    The default is the current folder. This writes testbed.box, and testbed.json with its version
    and SHA-256. `vagrant box add FOLDER/testbed.json` adds the box.
    """
    from testbed import files, owner
    from testbed.vm.box import box
    from testbed.vm.package import CATALOGUE, FILE
    from testbed.vm.package import package as pack

    need_root("box package")
    store = common.make_settings().store
    packed = pack(store, box(store))
    try:
        owner.make(folder)
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(folder)) from error
    files.copy(packed.file, folder / FILE)
    files.write(folder / CATALOGUE, packed.catalogue(folder / FILE))
    click.echo(f"{folder / CATALOGUE}: vagrant box add {folder / CATALOGUE}")


@command.command("ls")
@common.json_option
def ls(as_json: bool) -> None:
    """List the boxes in the cache with the snapshots of their machines.

    A snapshot is unused if it was made with another version of QEMU, the box or testbed:
    no machine can start from it.
    """
    settings = common.make_settings()
    entries = _entries(settings)
    used = _used(settings, entries)
    if as_json:
        common.print_json([_to_dict(entry, used=entry.key in used) for entry in entries])
        return
    if not entries:
        click.echo("no boxes; `testbed box build` creates one")
        return
    keys = {entry.key for entry in entries}
    rows = [
        (e.key, _what(e, keys), f"{e.size / 1e6:.0f} MB", "labs" if e.key in used else "-")
        for e in entries
    ]
    common.table(rows, ("KEY", "VERSION", "SIZE", "USED BY"))


@command.command("rm")
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove every box and snapshot.")
def remove(keys: tuple[str, ...], everything: bool) -> None:
    """Remove boxes with their snapshots, or single snapshots, by key."""
    if bool(keys) == everything:
        raise click.UsageError("name the keys of boxes (`testbed box ls` shows them), or use --all")
    settings = common.make_settings()
    there = {entry.key: entry for entry in _entries(settings)}
    unknown = [key for key in keys if key not in there]
    if unknown:
        raise UsageError(f"no box has the key {unknown[0]}", hint="see `testbed box ls`")
    freed = sum(settings.store.remove(there[key].name, key) for key in keys or there)
    left = {entry.key for entry in _entries(settings)}
    gone = [entry for key, entry in there.items() if key not in left]
    boxes = sum(not _is_snapshot(entry) for entry in gone)
    click.echo(f"removed {boxes} box(es) and {len(gone) - boxes} snapshot(s), {freed / 1e6:.0f} MB")


def _entries(settings: Settings) -> list[Entry]:
    """Return every box, followed by its snapshots.

    Snapshots without a box come last.
    """
    from testbed.vm.box import NAME

    there = settings.store.list()
    snapshots = [entry for entry in there if _is_snapshot(entry)]
    found = []
    for entry in there:
        if entry.name == NAME:
            found += [entry, *(one for one in snapshots if one.of == entry.key)]
    return [*found, *(one for one in snapshots if one not in found)]


def _is_snapshot(entry: Entry) -> bool:
    from testbed.nodes.qemu.snapshot import NAME

    return entry.name == NAME


def _used(settings: Settings, entries: list[Entry]) -> set[str]:
    """Return the keys of boxes and snapshots that machines can use now."""
    from testbed.errors import MachineError
    from testbed.nodes.qemu.provider import QemuProvider
    from testbed.vm.box import Box

    used = {entry.key for entry in entries if entry.key == Box().key()}
    provider = QemuProvider.of(settings.setup)
    if used:
        # Without QEMU no machine can start from a snapshot.
        with contextlib.suppress(MachineError):
            used |= {e.key for e in entries if _is_snapshot(e) and e.path and provider.fits(e.path)}
    return used


def _what(entry: Entry, there: set[str]) -> str:
    if not _is_snapshot(entry) or entry.path is None:
        return entry.version
    from testbed.nodes.qemu.snapshot import hardware_of

    made = hardware_of(entry.path)
    parts = f", {made.memory >> 20} MiB, {made.cpus} cpu, {made.interfaces} eth" if made else ""
    of = "  snapshot" if entry.of in there else "snapshot of a removed box"
    return f"{of}, QEMU {entry.version}{parts}"


def _to_dict(entry: Entry, *, used: bool) -> dict[str, object]:
    from testbed.vm.box import Built

    found: dict[str, object] = {
        "kind": "snapshot" if _is_snapshot(entry) else "box",
        "key": entry.key,
        "version": entry.version,
        "size": entry.size,
        "path": str(entry.path),
        "used": used,
    }
    if _is_snapshot(entry):
        return {**found, "box": entry.of}
    return {**found, **({"manifest": Built(entry.path).manifest()} if entry.path else {})}


def _plain(option: str, given: str, form: str, wanted: str) -> str:
    if not re.fullmatch(form, given):
        raise UsageError(f"wanted {wanted}, saw {given!r}", where=option)
    return given


def _files(given: tuple[str, ...]) -> tuple[File, ...]:
    files = [_file(one) for one in given]
    for one, other in itertools.combinations(sorted(file.place for file in files), 2):
        if f"{other}/".startswith(f"{one}/"):
            raise UsageError(f"{one} and {other} cannot both be files of the box", where="--file")
    return tuple(files)


def _file(given: str) -> File:
    from testbed.vm.box import File, bad_place

    source, colon, place = given.rpartition(":")
    if not colon or not source:
        raise UsageError("wanted FILE:PLACE", where=f"--file {given}")
    if wrong := bad_place(place):
        raise UsageError(wrong, where=f"--file {given}", hint=f"for example {source}:/opt/mine")
    if not Path(source).is_file():
        raise UsageError(f"the file {source} does not exist", where=f"--file {given}")
    if not os.access(source, os.R_OK):
        raise UsageError(f"{source} cannot be read", where=f"--file {given}")
    return File(Path(source), f"/{'/'.join(Path(place).parts[1:])}")


def _mb(files: dict[str, dict[str, int]]) -> str:
    return f"{sum(file['size'] for file in files.values()) / 1e6:.0f} MB"
