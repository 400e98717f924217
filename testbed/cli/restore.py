"""``testbed restore``."""

from __future__ import annotations

import click

from testbed.cli import common
from testbed.requirement import need_root

HELP = """Return a running lab to a snapshot of `testbed snapshot`.

All nodes return at the same moment: what has changed on them since then is lost. NAME is
the newest snapshot by default. The clocks of the nodes are set to the present. Active
faults of links stay, and so does the record of the lab: after an `up` of an edited file,
`testbed status` shows what differs, and `testbed up` changes it again.
"""


@click.command("restore", help=HELP)
@click.argument("lab", shell_complete=common.complete_labs)
@click.argument("name", required=False, shell_complete=common.complete_snapshots)
@common.set_option
@common.json_option
def command(lab: str, name: str | None, as_json: bool) -> None:
    """See HELP."""
    need_root("`testbed restore`")
    from testbed.cli.up import tell
    from testbed.labs import snapshots
    from testbed.labs.run import Watch

    meant = common.lab_meant(common.make_settings(), lab)
    made = snapshots.restore(meant, name, watch=Watch(words=tell))
    if as_json:
        common.print_json({"lab": meant.name, **made.to_dict()})
    else:
        click.echo(f"{click.style(meant.name, bold=True)}: as in snapshot {made.name}")
