"""``testbed ls``."""

from __future__ import annotations

import time

import click

from testbed.cli import common
from testbed.requirement import need_root


@click.command("ls")
@common.json_option
def command(as_json: bool) -> None:
    """List the labs on this machine that belong to this state folder."""
    need_root("`testbed ls`")
    from testbed.labs import origin
    from testbed.labs.lab import labs

    settings = common.make_settings()
    rows = []
    records = {name: settings.state.read(name) for name in labs(settings)}
    for name, record in records.items():
        running = sum(len(p.nodes(name)) for p in settings.providers.values())
        asked = len(record.topology.get("nodes", {})) if record else 0
        rows.append(
            {
                "lab": name,
                "nodes": running,
                "asked": asked,
                "source": record.source if record else "",
                "created": record.created if record else None,
                "seconds": record.seconds if record else None,
            }
        )
    if as_json:
        common.print_json(rows)
    elif not rows:
        click.echo("no lab is up")
    else:
        lines = [
            (
                str(row["lab"]),
                f"{row['nodes']} of {row['asked']}" if row["asked"] else f"{row['nodes']}",
                _age(row["created"]),
                origin.words(records[str(row["lab"])]),
            )
            for row in rows
        ]
        common.table(lines, ("LAB", "NODES", "AGE", "FROM"))


def _age(created: object) -> str:
    if not isinstance(created, int | float):
        return "?"
    seconds = max(0, int(time.time() - created))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
