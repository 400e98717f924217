"""``testbed schema``."""

from __future__ import annotations

import click

from testbed.cli import common

TOPOLOGY = "topology"
OF_CATALOGUES = ("document", "catalogue", "sabotages", "translations")


@click.command("schema")
@click.argument("kind", type=click.Choice([TOPOLOGY, *OF_CATALOGUES]), default=TOPOLOGY)
def command(kind: str) -> None:
    """Print a JSON Schema, for editors.

    It describes topology files, or one KIND of file of a catalogue (docs/claims.md).
    """
    if kind == TOPOLOGY:
        from testbed.topology.schema import schema

        common.print_json(schema())
        return
    from testbed.claims.schema import schemas

    common.print_json(schemas()[kind])
