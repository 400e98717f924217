"""``testbed logs``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.logs import Log
    from testbed.roles.container import LogLine
    from testbed.topology.model import Topology

POLL_SECONDS = 0.2

HELP = """Show the logs of services and containers.

\b
  testbed logs node1                         all services of a node
  testbed logs node1/dockerd node2/dockerd   two services; a name before each line
  testbed logs -f node1/container-1          a container, and what it writes from now on
  testbed logs --all --since 5m              all services and containers

`logs NODE SERVICE` means NODE/SERVICE. Logs are read from files, also while a daemon is
dead, and of containers that have ended.
"""


@click.command("logs", help=HELP)
@common.lab_option
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), help="Show only the last N lines of each log."
)
@click.option("-f", "--follow", is_flag=True, help="Follow the logs until Ctrl-C.")
@click.option(
    "--since", metavar="TIME",
    help="Show lines since a duration ago, like 10m, or a date and time, like "
    "2026-11-30T04:00:00Z. Lines without a time belong to the line before.",
)  # fmt: skip
@click.option("--all", "everywhere", is_flag=True, help="All services and containers of the lab.")
@common.json_option
@click.argument(
    "targets", nargs=-1, metavar="[NODE[/SERVICE|/CONTAINER]]...",
    shell_complete=common.complete_parts,
)  # fmt: skip
def command(
    lab_name: str | None,
    targets: tuple[str, ...],
    lines: int | None,
    follow: bool,
    since: str | None,
    everywhere: bool,
    as_json: bool,
) -> None:
    """See HELP."""
    need_root("`testbed logs`")
    from testbed.labs import logs

    if everywhere == bool(targets):
        both = "NODE and --all exclude each other" if targets else "missing NODE"
        raise UsageError(both, hint="name a node, NODE/SERVICE or NODE/CONTAINER, or use --all")
    if as_json and follow:
        raise UsageError("--json and --follow exclude each other", hint="remove one of them")
    start = None if since is None else logs.since(since, time.time())
    with common.live_lab(lab_name) as lab:
        meant = _targets(targets, lab.topology)
        found = logs.everything(lab) if everywhere else logs.of_targets(lab, meant)
    if not found and not as_json:
        click.echo(f"{meant[0] if meant else lab.name} has no services", err=True)
    # The lines of one node are told apart by their services alone.
    one_node = len({log.node for log in found}) == 1
    names = {log: log.name if one_node else log.target for log in found}
    alone = len(found) == 1 and "/" in "".join(meant)
    rows = []
    for log in found:
        shown = _first(log, start, lines)
        rows += [{"log": log.target, "time": one.time, "line": one.text} for one in shown]
        if not as_json:
            _show(shown, "" if alone else names[log])
    if as_json:
        common.print_json(rows)
    while follow:
        time.sleep(POLL_SECONDS)
        for log in found:
            _show(log.fresh(), "" if alone else names[log])


def _targets(given: tuple[str, ...], topology: Topology) -> list[str]:
    """Return the targets; ``NODE SERVICE`` is one, unless the service is a node."""
    if len(given) == 2 and "/" not in given[0] and given[1].partition("/")[0] not in topology.nodes:
        return ["/".join(given)]
    return list(given)


def _first(log: Log, start: float | None, count: int | None) -> list[LogLine]:
    from testbed.labs.logs import newer

    lines = log.fresh()
    if start is not None:
        if lines and all(line.time is None for line in lines):
            click.echo(
                f"testbed: the log of {log.target} has no times: all of it follows", err=True
            )
        lines = newer(lines, start)
    return lines if count is None else lines[len(lines) - min(count, len(lines)) :]


def _show(lines: list[LogLine], name: str) -> None:
    for line in lines:
        click.echo(f"{click.style(name, bold=True)}: {line.text}" if name else line.text)
