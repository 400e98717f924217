"""``testbed ls``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from testbed.cli import common
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.labs.state import Record


@click.command("ls")
@common.json_option
def command(as_json: bool) -> None:
    """List the labs on this machine that belong to this state folder."""
    need_root("`testbed ls`")
    from testbed.labs.lab import labs

    settings = common.make_settings()
    rows: list[dict[str, Any]] = []
    records = {name: settings.state.read(name) for name in labs(settings)}
    common.tell_unseen(settings.silent.values())
    for name, record in records.items():
        running = _running(settings, name, record)
        asked = len(record.topology.get("nodes", {})) if record else 0
        rows.append(
            {
                "lab": name,
                "nodes": running,
                "asked": asked,
                "source": record.source if record else "",
                "attached": record.attached if record else "",
                "snapshots": _snapshots(settings, name),
                "uplinks": _uplinks(record),
                "created": record.created if record else None,
                "seconds": record.seconds if record else None,
            }
        )
    if as_json:
        common.print_json(rows)
    elif not rows:
        click.echo("no lab is up")
    else:
        lines: list[tuple[str, ...]] = [
            (
                str(row["lab"]),
                _nodes(row["nodes"], row["asked"]),
                common.age(row["created"]),
                _origin(records[str(row["lab"])]),
            )
            for row in rows
        ]
        header: tuple[str, ...] = ("LAB", "NODES", "AGE", "FROM")
        if any(row["snapshots"] for row in rows):
            header = (*header, "SNAPSHOTS")
            kept = (", ".join(row["snapshots"]) for row in rows)
            lines = [(*line, words) for line, words in zip(lines, kept, strict=True)]
        common.table(lines, header)


def _snapshots(settings: Settings, name: str) -> list[str]:
    """Return the names of a lab's snapshots; none of a lab whose nodes do not answer."""
    from testbed.errors import LabError, MachineError, UsageError
    from testbed.labs.lab import Lab
    from testbed.labs.snapshots import found

    with contextlib.suppress(LabError, MachineError, UsageError):  # `status` tells
        return [one.name for one in found(Lab(name, settings))]
    return []


def _running(settings: Settings, name: str, record: Record | None) -> int | None:
    """Return the number of running nodes; None if the place of a lab does not answer."""
    from testbed.errors import LabError, MachineError, UsageError
    from testbed.labs.lab import Lab

    try:
        if record is None or not record.attached:
            return sum(len(p.nodes(name)) for p in settings.providers.values())
        return len(Lab(name, settings).remains().nodes)
    except (LabError, MachineError, UsageError):  # `status` tells
        return None


def _nodes(running: object, asked: object) -> str:
    number = "?" if running is None else str(running)
    return f"{number} of {asked}" if asked else number


def _origin(record: Record | None) -> str:
    from testbed.labs import origin

    words = origin.words(record)
    words += ", attached" if record and record.attached else ""
    return f"{words}, has a way out" if _uplinks(record) else words


def _uplinks(record: Record | None) -> list[str]:
    """Return the names of a lab's networks with an uplink."""
    networks = record.topology.get("networks") if record else None
    return [name for name, one in (networks or {}).items() if one and one.get("uplink")]
