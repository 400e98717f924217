"""``testbed save``."""

from __future__ import annotations

from pathlib import Path

import click

from testbed.cli import common
from testbed.requirement import need_root

HELP = """Write a running lab, with what was changed by hand, as a topology file.

LAB is optional if only one lab is running.

\b
  testbed save two-node -o mine.yaml
  testbed plan mine.yaml
  testbed up mine.yaml --name mine

Saved are addresses of ports, routes, rules, forwarding and sysctls of nodes, containers
and Docker networks that were started or removed by hand, and active faults of links as
named faults (`testbed fault apply NAME` causes one). What a topology file cannot say,
such as further links, is listed in comments at its top. Files and packages that were
changed on a node are not looked for.
"""


@click.command("save", help=HELP)
@click.argument("lab", required=False, shell_complete=common.complete_labs)
@common.set_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    default="-", help="Write this file instead of standard output.",
)  # fmt: skip
@common.json_option
def command(lab: str | None, output: Path, as_json: bool) -> None:
    """See HELP."""
    need_root("`testbed save`")
    import json

    from testbed import files
    from testbed.faults.force import Faults
    from testbed.labs.save import save

    files.check(output)
    meant = common.lab_meant(common.make_settings(), lab)
    context = common.whole(meant)
    faults = [seen.fault for seen in Faults(meant).in_force()]
    saved = save(context, faults, file=meant.record().source)
    if as_json:
        value = {"topology": saved.data, "unsaid": saved.unsaid}
        files.write(output, json.dumps(value, indent=2, default=str) + "\n")
    else:
        files.write(output, saved.text())
    if saved.unsaid and not as_json:
        click.echo("testbed: comments in the file list what it cannot say", err=True)
