"""``testbed down``."""

from __future__ import annotations

import time

import click

from testbed.cli import common
from testbed.errors import TestbedError
from testbed.requirement import need_root


@click.command("down")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@common.set_option
@click.option("--all", "everything", is_flag=True, help="Remove all labs.")
@click.option("-q", "--quiet", is_flag=True, help="Show only errors.")
def command(lab: str | None, everything: bool, quiet: bool) -> int:
    """Remove a lab, or all labs.

    LAB is optional if only one lab is running. The whole lab is removed in any
    state, because its nodes are found on the machine, not in a file. It is no
    error if the lab does not exist. A lab of `testbed attach` stays as it is, and
    is only forgotten. Of machines that exist already, what `up` has installed is
    removed.
    """
    need_root("`testbed down`")
    from testbed.labs.lab import Lab, labs
    from testbed.labs.run import Watch as LabWatch

    settings = common.make_settings()
    if everything and (lab or common.values_given()):
        raise click.UsageError("--all cannot be combined with the name of a lab, or with --set")
    if everything:
        wanted = [Lab(name, settings) for name in labs(settings)]
    elif lab is None and not labs(settings):
        wanted = []
    else:
        wanted = [common.lab_meant(settings, lab)]
    if not wanted and not quiet:
        click.echo("no lab is up")
    unseen = [] if lab else list(settings.silent.values())
    common.tell_unseen(unseen)
    worst = max((error.exit_code for error in unseen), default=0)
    for one in wanted:
        began = time.monotonic()
        try:
            attached = one.attached and not one.installs
            there = one.down(LabWatch(words=lambda words: click.echo(f"  {words} ...", err=True)))
        except TestbedError as error:
            from testbed.cli import complain

            complain(error)  # and continue with the other labs
            worst = max(worst, error.exit_code)
            continue
        if not quiet:
            done = f"removed ({time.monotonic() - began:.2f} s)" if there else "was not up"
            done = "forgotten; the lab itself stays" if there and attached else done
            click.echo(f"{click.style(one.name, bold=True)}: {done}")
    return worst
