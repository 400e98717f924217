"""``testbed topologies``."""

from __future__ import annotations

import click

from testbed.cli import common


@click.command("topologies")
@click.argument("name", required=False, shell_complete=common.complete_topologies)
@common.json_option
def command(name: str | None, as_json: bool) -> None:
    """List the shipped topologies, or show the file of one."""
    from testbed.topology.load import load, names

    if name:
        topology = load(name)
        if as_json:
            common.print_json(topology.to_dict())
        else:
            from pathlib import Path

            click.echo(Path(topology.source).read_text(encoding="utf-8"), nl=False)
        return
    found = {n: load(n) for n in names()}
    if as_json:
        common.print_json({n: t.to_dict() for n, t in found.items()})
        return
    formatter = click.HelpFormatter(max_width=100)
    formatter.write_dl([(click.style(n, bold=True), t.description) for n, t in found.items()])
    click.echo(formatter.getvalue(), nl=False)
