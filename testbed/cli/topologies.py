"""``testbed topologies``."""

from __future__ import annotations

from typing import Any

import click

from testbed.cli import common
from testbed.errors import UsageError


@click.command("topologies")
@click.argument("name", required=False, shell_complete=common.complete_topologies)
@common.variables_option
@common.json_option
def command(name: str | None, as_json: bool, **variant: Any) -> None:
    """List the shipped topologies, or show the file of one."""
    from testbed.topology.load import load, names

    if name:
        topology = load(name, variables=variant["set"])
        if as_json:
            common.print_json(topology.to_dict())
        else:
            from pathlib import Path

            click.echo(Path(topology.source).read_text(encoding="utf-8"), nl=False)
        return
    if variant["set"]:
        raise UsageError("--set requires the name of a file", hint="remove it")
    found = {n: load(n) for n in names()}
    if as_json:
        common.print_json({n: t.to_dict() for n, t in found.items()})
        return
    formatter = click.HelpFormatter(max_width=100)
    formatter.write_dl([(click.style(n, bold=True), t.description) for n, t in found.items()])
    click.echo(formatter.getvalue(), nl=False)
