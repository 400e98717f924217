"""``testbed plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.cli.up import summary

if TYPE_CHECKING:
    from testbed.artifacts.config import Policy


@click.command("plan", cls=common.VariantCommand)
@click.argument("topology", shell_complete=common.complete_topologies)
@common.variant_options
@common.image_options
@common.json_option
def command(
    topology: str,
    pull: Policy | None,
    images_from: tuple[str, ...],
    as_json: bool,
    **variant: str | int | None,
) -> None:
    """Show what `up` would do, without doing it. This requires no root.

    It lists all images that are not on this machine, with the sources that `up` asks for them. No
    source is asked. For images that are not available, it shows how to provide them.
    """
    wanted = common.load_variant(topology, (), **variant)
    from testbed.artifacts import Store
    from testbed.labs.existing import listed
    from testbed.labs.lab import all_images
    from testbed.labs.plan import make

    plan = make(wanted)
    store = Store(pull=pull, images_from=images_from)
    images = all_images(store, wanted, build=False)
    lacking = [name for name in images if store.lacking_images([name])]
    absent = store.absent_images(images)
    fetched = {name: places for name, places in absent.items() if name not in lacking}
    if as_json:
        missing = sorted({*lacking, *absent})
        more = {"missing_images": missing, "fetched_images": fetched}
        uplinks = [network.name for network in wanted.uplinks]
        installs = {"installs": listed(wanted, store)} if wanted.installs else {}
        common.print_json({**plan.to_dict(), **more, **installs, "uplinks": uplinks})
        return
    click.echo(f"{click.style(wanted.name, bold=True)}: {summary(wanted)}")
    common.show_uplinks(wanted)
    common.show_installed(listed(wanted, store))
    for step in plan.steps.values():
        click.echo(f"  {step.name:<34}  {step.about}")
        if step.needs:
            click.echo(click.style(f"  {'':<34}  after {', '.join(step.needs)}", dim=True))
        for path, text in step.files:
            click.echo(f"  {'':<34}  writes {path}:")
            click.echo("".join(f"  {'':<34}    {line}\n" for line in text.splitlines()), nl=False)
    for name, places in fetched.items():
        told = f"{name} is not on this machine: `up` asks {', '.join(places)}"
        click.echo(click.style("  image ", fg="yellow") + told)
    if fetched:
        click.echo(click.style("  -> ", fg="yellow") + store.image_hint(list(fetched)))
    if error := store.lacking_images(images):
        click.echo(click.style("  before `up`: ", fg="yellow") + error.message)
        click.echo(click.style("  -> ", fg="yellow") + (error.hint or ""))
