"""``testbed schema``."""

from __future__ import annotations

import click

from testbed.cli import common


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of topology files, for editors."""
    from testbed.topology.schema import schema

    common.print_json(schema())
