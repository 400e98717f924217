"""``testbed plan``."""

from __future__ import annotations

import click

from testbed.cli import common
from testbed.cli.up import summary


@click.command("plan", cls=common.VariantCommand)
@click.argument("topology", shell_complete=common.complete_topologies)
@common.variant_options
@common.json_option
def command(topology: str, as_json: bool, **variant: str | int | None) -> None:
    """Show what `up` would do, without doing it. This requires no root.

    For images that are not available, it shows how to provide them.
    """
    wanted = common.load_variant(topology, (), **variant)
    from testbed.artifacts import Store
    from testbed.labs.plan import make

    plan = make(wanted)
    store = Store()
    lacking = [name for name in wanted.images if store.lacking_images([name])]
    if as_json:
        common.print_json({**plan.to_dict(), "missing_images": lacking})
        return
    click.echo(f"{click.style(wanted.name, bold=True)}: {summary(wanted)}")
    for step in plan.steps.values():
        click.echo(f"  {step.name:<34}  {step.about}")
        if step.needs:
            click.echo(click.style(f"  {'':<34}  after {', '.join(step.needs)}", dim=True))
    if error := store.lacking_images(wanted.images):
        click.echo(click.style("  before `up`: ", fg="yellow") + error.message)
        click.echo(click.style("  -> ", fg="yellow") + (error.hint or ""))
