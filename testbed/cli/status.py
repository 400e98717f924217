"""``testbed status``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.labs.state import Record
    from testbed.labs.status import NodeStatus, Status
    from testbed.roles.part import Part

EXIT_NOT_OK = 1


@click.command("status")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@common.set_option
@common.json_option
def command(lab: str | None, as_json: bool) -> int:
    """Show the current state of a lab.

    LAB is optional if only one lab is running. Exit status 1 if a part of the lab
    does not run.
    """
    need_root("`testbed status`")
    from testbed.labs import snapshots
    from testbed.labs.status import BY_HAND, STOPPED, status

    meant = common.lab_meant(common.make_settings(), lab)
    by_hand = meant.record().stopped
    context = meant.remains()
    topology = context.topology
    found = status(context, meant.stopped(), by_hand)
    record = meant.record()
    kept = snapshots.found(meant)
    if as_json:
        more = {
            "variables": record.variables,
            "snapshots": [one.to_dict() for one in kept],
            "uplinks": [network.name for network in topology.uplinks],
        }
        common.print_json({**found.to_dict(), **more})
    else:
        state = click.style("up", fg="green") if found.ok else click.style("not whole", fg="red")
        place = f", attached at {meant.attached}" if meant.attached else ""
        click.echo(f"{click.style(found.lab, bold=True)}: {state}{place}")
        mixed = len({node.provider for node in found.nodes if node.provider}) > 1
        common.show_uplinks(topology)
        for network in found.networks:
            if not network.ok:
                click.echo(f"  network    {_part(network)}")
        _show_variables(record)
        for one in kept:
            lacking = f", not of {', '.join(one.missing)}" if one.missing else ""
            words = f"{one.name:<16} {common.age(one.created)} old, {one.size >> 20} MiB{lacking}"
            click.echo(f"  snapshot   {words}")
        for node in found.nodes:
            _show(node, node.provider if mixed else "")
        states = {state for node in found.nodes for state in _states(node)}
        if STOPPED in states:
            click.echo(f"  -> `testbed fault heal -l {found.lab} stop` continues it")
        elif BY_HAND in states:
            targets = " ".join(by_hand)
            click.echo(f"  -> `testbed start -l {found.lab} {targets}` starts what was stopped")
        elif not found.ok:
            click.echo(f"  -> {_remedy(meant, found)}")
    return 0 if found.ok else EXIT_NOT_OK


def _show_variables(record: Record) -> None:
    """Show the values of the file's variables, and those of a later `up` of the file."""
    if not record.variables:
        return
    from testbed.labs import origin

    later = origin.later(record)
    for name, value in record.variables.items():
        words = f"{name}={value}"
        if name in later:
            now = later[name]
            keep = f"--set {shlex.quote(words)} keeps it"
            other = "no value" if now is None else f"the value {now!r}"
            words += f"  (without options, `up` of the file gives it {other} now; {keep})"
        click.echo(f"  variable   {words}")


def _states(node: NodeStatus) -> list[str]:
    return [node.state, *(part.state for part in (*node.services, *node.containers))]


def _remedy(lab: Lab, found: Status) -> str:
    """Return what to do about a lab that is not whole."""
    if not lab.attached:
        return f"`testbed up -l {found.lab}` restores it"
    if any(node.state == "up" for node in found.nodes):
        return (
            "testbed is only attached to it: restore it with the tool that created it, "
            "or attach again to what there is now"
        )
    return f"it does not run any more: `testbed down {found.lab}` forgets it"


def _show(node: NodeStatus, provider: str) -> None:
    name = f"{node.name:<12}"
    state = click.style(node.state, fg="green" if node.state == "up" else "red")
    by = f"  by {provider}" if provider else ""
    about = f"{', '.join(node.addresses)}{by}"
    click.echo(f"  {name} {state}{f'  {about}' if about else ''}")
    for line in node.words.splitlines():
        click.echo(click.style(f"    {line}", dim=True))
    kinds = (
        ("link", node.links),
        ("route", node.routes),
        ("sysctl", node.settings),
        ("service", node.services),
        ("container", node.containers),
        *node.more.items(),
    )
    for kind, parts in kinds:
        for part in parts:
            click.echo(f"    {kind:<9}  {_part(part)}")


def _part(part: Part) -> str:
    state = click.style(part.state, fg="green" if part.ok else "red")
    space = f"{'':<{8 - len(part.state)}}" if len(part.state) < 8 else ""
    return f"{part.name:<16} {state}{f'{space} {part.detail}' if part.detail else ''}"
