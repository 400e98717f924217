"""``testbed logs``."""

from __future__ import annotations

import time

import click

from testbed.cli import common
from testbed.requirement import need_root

POLL_SECONDS = 0.2


@click.command("logs")
@common.lab_option
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Show only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until Ctrl-C.")
@click.argument("node", shell_complete=common.complete_nodes)
@click.argument("service", required=False)
def command(
    lab_name: str | None,
    node: str,
    service: str | None,
    lines: int | None,
    follow: bool,
) -> None:
    """Show the logs of a node's daemons, or of one SERVICE."""
    need_root("`testbed logs`")
    machine = common.lab_meant(common.make_settings(), lab_name).node(node)
    names = [service] if service else sorted(machine.services())
    if not names:
        click.echo(f"{node} has no services", err=True)
    shown = dict.fromkeys(names, 0)
    while True:
        for name in names:
            text = machine.logs(name)
            fresh = text[shown[name] :].splitlines()
            if shown[name] == 0 and lines is not None:
                fresh = fresh[len(fresh) - min(lines, len(fresh)) :]
            shown[name] = len(text)
            for line in fresh:
                click.echo(line if service else f"{click.style(name, bold=True)}: {line}")
        if not follow:
            return
        time.sleep(POLL_SECONDS)
