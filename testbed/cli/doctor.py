"""``testbed doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import MachineError, UsageError
from testbed.registry import ROLES
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.artifacts.source import Preference
    from testbed.labs.lab import Settings
    from testbed.leftover import Leftover
    from testbed.requirement import Requirement


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Install Debian packages and build artifacts.")
@click.option("--quick", is_flag=True, help="Skip slow checks (a KVM guest).")
@click.option("--provider", metavar="NAME", help="Require what this provider needs: qemu.")
@click.option(
    "--role",
    metavar="NAME",
    help="Require what labs with this role need; also an add-on (ingress), a network"
    " plugin (calico), or conformance.",
)
@click.option("--leaks", is_flag=True, help="Show leftovers of removed labs (--fix removes them).")
@common.way_option
@common.json_option
def command(
    fix: bool,
    quick: bool,
    provider: str | None,
    role: str | None,
    leaks: bool,
    way: Preference | None,
    as_json: bool,
) -> int:
    """Check this machine's requirements and show how to fix what is missing.

    Every requirement is tested in practice. Nothing is changed without --fix.
    Exit status 3 if a requirement of every lab is missing, or one of every lab
    with the --provider or the --role.

    With --leaks, show leftovers of removed labs instead, each with the command
    that removes it. --fix removes them. Running labs of any user are never
    changed. Exit status 1 if there are leftovers.
    """
    if way and not fix:
        raise click.UsageError("--from needs --fix")
    if leaks:
        if way or provider or role or quick:
            raise click.UsageError("--leaks can be combined with --fix and --json only")
        return _leaks(fix=fix, as_json=as_json)
    from testbed import doctor

    settings = common.make_settings(way=way)
    store, of = settings.store, settings.provider(provider) if provider else None
    known = sorted({*ROLES, *doctor.parts(), *store.roles})
    if role and role not in known:
        raise UsageError(f"no role {role!r}", hint=f"known: {', '.join(known)}")

    def look(*, full: bool) -> list[Requirement]:
        return doctor.findings(
            store, full=full, state=settings.state.path, provider=of, role=role or ""
        )

    if fix:
        found = look(full=False)
        doctor.fix(found, store, role=role or "", provider=of, tell=common.tell_fix)
    found = look(full=not quick)
    if as_json:
        common.print_json([_to_dict(item) for item in found])
    else:
        for item in found:
            _show(item)
    missing = [item for item in found if not item.ok and item.required]
    if missing and not as_json:
        names = ", ".join(item.name for item in missing)
        asked = [
            f"--{name} {value} "
            for name, value in (("provider", provider), ("role", role))
            if value
        ]
        # Requirements that --fix could not fix have their own instructions, shown above.
        how = "" if fix else f"; `testbed doctor {''.join(asked)}--fix`"
        click.echo(f"{len(missing)} required but missing: {names}{how}", err=True)
    return MachineError.exit_code if missing else 0


def _leaks(*, fix: bool, as_json: bool) -> int:
    need_root("`testbed doctor --leaks`")
    from testbed import leaks
    from testbed.labs.state import folder
    from testbed.settings import settings

    def of(state: Path) -> Settings:
        return settings(state_folder=state)

    found = leaks.leftovers(of, folder())
    failed: dict[Leftover, str] = {}
    removed: list[Leftover] = []
    if fix and any(not one.theirs for one in found):
        failed = dict(leaks.fix(found))
        before, found = found, leaks.leftovers(of, folder())
        removed = [one for one in before if one not in found]
    left = [one for one in found if not one.theirs]
    if as_json:
        rows = [{**one.to_dict(), "removed": False, "error": failed.get(one, "")} for one in found]
        rows += [{**one.to_dict(), "removed": True, "error": ""} for one in removed]
        common.print_json(rows)
        return 1 if left else 0
    for one in removed:
        click.echo(f"  {click.style('removed', fg='green')}  {one.kind:<7} {one.name}")
    for one in found:
        mark = click.style("theirs ", dim=True) if one.theirs else click.style("left   ", fg="red")
        click.echo(f"  {mark}  {one.kind:<7} {one.name}\n           {'':<7} {one.about}")
        if one in failed:
            click.echo(f"           {'':<7} not removed: {failed[one]}")
        if one.command:
            click.echo(f"           {'':<7} -> {one.command}")
    click.echo(f"{len(left)} left" if left else "no leftovers")
    return 1 if left else 0


def _show(item: Requirement) -> None:
    if item.ok:
        mark = click.style("ok     ", fg="green")
    elif item.required:
        mark = click.style("missing", fg="red")
    else:
        mark = click.style("without", fg="yellow")
    click.echo(f"  {mark}  {item.name:<22} {item.detail}")
    if not item.ok and item.fix:
        click.echo(f"           {'':<22} -> {item.fix}")
    if not item.ok and item.needed_by and not item.required:
        click.echo(
            click.style(f"           {'':<22} only for {', '.join(item.needed_by)}", dim=True)
        )


def _to_dict(item: Requirement) -> dict[str, object]:
    return {
        "name": item.name,
        "ok": item.ok,
        "required": item.required,
        "detail": item.detail,
        "fix": item.fix,
        "packages": list(item.packages),
        "needed_by": list(item.needed_by),
    }
