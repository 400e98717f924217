"""``testbed artifacts``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.registry import ROLES
from testbed.spelling import counted

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.artifacts.config import Policy
    from testbed.artifacts.source import Preference


@click.group("artifacts", invoke_without_command=True)
@common.json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, build or remove binaries and images.

    Artifacts are unpacked or built once into the cache folder. They are never installed.
    """
    if ctx.invoked_subcommand is not None:
        return
    entries = common.make_settings().store.list()
    if as_json:
        common.print_json(
            [
                {
                    "name": e.name,
                    "version": e.version,
                    "origin": e.origin,
                    "state": e.state,
                    "size": e.size,
                    "path": str(e.path) if e.path else None,
                }
                for e in entries
            ]
        )
        return
    rows = [(e.name, e.version or "-", e.origin, e.state, _size(e.size)) for e in entries]
    common.table(rows, ("NAME", "VERSION", "FROM", "STATE", "SIZE"))


@command.command("build")
@click.argument("names", nargs=-1)
@common.way_option
@common.artifact_option
@common.image_options
def build(
    names: tuple[str, ...],
    way: Preference | None,
    artifacts: tuple[str, ...],
    pull: Policy | None,
    images_from: tuple[str, ...],
) -> None:
    """Build artifacts, by default all that are missing.

    NAMES are listed by `testbed artifacts`, or are names of programs, images or network plugins.
    Images of a registry are written with their tag, like redis:7, and pulled. Your own files are
    downloaded and checked instead. Kubernetes is downloaded if its makers' site can be reached
    (see docs/artifacts.md).
    """
    settings = common.make_settings(
        artifacts=artifacts, pull=pull, images_from=images_from, way=way
    )
    store = settings.store
    if way == "download":
        store.refuse_unpublished(names)
    wanted = names or [e.name for e in store.list() if e.state == "missing"]
    store.bring(name for name in wanted if store.is_reference(name))
    for name in wanted:
        _fetch(store, name)
    click.echo(f"built: {', '.join(wanted)}" if wanted else "all artifacts are in the cache")


def _fetch(store: Store, name: str) -> None:
    """Build an artifact, or all of an optional part of a role, such as a network plugin.

    The user's own files are checked instead.
    """
    if not any(role.fetch_part(store, name) for role in ROLES.usable().values()):
        store.fetch(name)


@command.command("rm")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove everything from the cache.")
def remove(names: tuple[str, ...], everything: bool) -> None:
    """Remove artifacts from the cache."""
    if bool(names) == everything:
        raise click.UsageError("name artifacts, or use --all")
    store = common.make_settings().store
    freed = store.remove() if everything else sum(store.remove(name) for name in names)
    click.echo(f"freed {_size(freed)}")


@command.command("prune")
@click.option("--yes", "-y", "remove_them", is_flag=True, help="Remove them.")
def prune(remove_them: bool) -> None:
    """List artifacts that are no longer used, or remove them with --yes.

    They are of an earlier version of testbed, were built from an artifact that has been removed,
    or are programs of the origin that is not in use (see docs/artifacts.md).
    """
    store = common.make_settings().store
    old = [entry for entry in store.list() if entry.state == "old"]
    if not old:
        click.echo("no old artifacts")
    elif remove_them:
        click.echo(f"freed {_size(store.prune())}")
    else:
        rows = [(e.name, e.version or "-", e.origin, _size(e.size)) for e in old]
        common.table(rows, ("NAME", "VERSION", "FROM", "SIZE"))
        size = _size(sum(entry.size for entry in old))
        words = counted(len(old), "old artifact")
        click.echo(f"{words}, {size}: `testbed artifacts prune --yes` removes them")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count else "-"
