"""``testbed plan``."""

from __future__ import annotations

import click

from testbed.cli import common
from testbed.cli.up import summary


@click.command("plan")
@click.argument("topology", shell_complete=common.complete_topologies)
@common.variant_options
@common.json_option
def command(topology: str, as_json: bool, **variant: str | int | None) -> None:
    """Show what `up` would do; nothing is touched, and no root is needed."""
    wanted = common.load_variant(topology, **variant)
    from testbed.lab.plan import make

    plan = make(wanted)
    if as_json:
        common.print_json(plan.to_dict())
        return
    click.echo(f"{click.style(wanted.name, bold=True)}: {summary(wanted)}")
    for step in plan.steps.values():
        click.echo(f"  {step.name:<34}  {step.about}")
        if step.needs:
            click.echo(click.style(f"  {'':<34}  after {', '.join(step.needs)}", dim=True))
