"""``testbed down``."""

from __future__ import annotations

import time

import click

from testbed.cli import common
from testbed.errors import TestbedError
from testbed.requirement import need_root


@click.command("down")
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@click.option("--all", "everything", is_flag=True, help="Take every lab down.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def command(lab: str | None, everything: bool, quiet: bool) -> int:
    """Take a lab down, or all of them.

    LAB may be left out when one lab is up.  Whatever state the lab is in, all
    of it goes: nodes are found on the machine, not in a file.  A lab that is
    not there is fine.
    """
    need_root("`testbed down`")
    from testbed.labs.lab import Lab, labs
    from testbed.labs.lab import Watch as LabWatch

    settings = common.make_settings()
    if everything and lab:
        raise click.UsageError("a lab's name and --all exclude each other")
    if everything:
        wanted = [Lab(name, settings) for name in labs(settings)]
    elif lab is None and not labs(settings):
        wanted = []
    else:
        wanted = [common.lab_meant(settings, lab)]
    if not wanted and not quiet:
        click.echo("no lab is up")
    worst = 0
    for one in wanted:
        began = time.monotonic()
        try:
            there = one.down(LabWatch(words=lambda words: click.echo(f"  {words} ...", err=True)))
        except TestbedError as error:
            from testbed.cli import complain

            complain(error)  # and go on: the others are to go all the same
            worst = max(worst, error.exit_code)
            continue
        if not quiet:
            done = f"gone ({time.monotonic() - began:.2f} s)" if there else "was not up"
            click.echo(f"{click.style(one.name, bold=True)}: {done}")
    return worst
