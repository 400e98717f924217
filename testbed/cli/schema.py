"""``testbed schema``."""

from __future__ import annotations

import click

from testbed.cli import common

TOPOLOGY = "topology"
WALK = "walk"
OF_CATALOGUES = ("document", "catalogue", "sabotages", "translations")


@click.command("schema")
@click.argument("kind", type=click.Choice([TOPOLOGY, *OF_CATALOGUES, WALK]), default=TOPOLOGY)
@click.option("--markdown", is_flag=True, help="Print the keys of topology files as tables.")
def command(kind: str, markdown: bool) -> None:
    """Print a JSON Schema, for editors.

    It describes topology files, one KIND of file of a catalogue (docs/claims.md), or saved
    walks (docs/walk.md).
    """
    if markdown:
        if kind != TOPOLOGY:
            raise click.UsageError(f"--markdown is for topology files, not for {kind}")
        from testbed.topology.reference import reference

        click.echo(reference())
    elif kind == TOPOLOGY:
        from testbed.topology.schema import as_written

        common.print_json(as_written())
    elif kind == WALK:
        from testbed.walk.saved import schema

        common.print_json(schema())
    else:
        from testbed.claims.schema import schemas

        common.print_json(schemas()[kind])
