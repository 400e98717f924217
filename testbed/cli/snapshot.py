"""``testbed snapshot``."""

from __future__ import annotations

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

HELP = """Save the state of a running lab, to return to it with `testbed restore`.

Of virtual machines, the memory with all running processes and the disk are saved, of all
nodes at the same moment. Not saved are parts outside of the machines, such as active
faults of links, and the topology file. Processes of nodes on this machine's kernel cannot
be saved: a lab with such nodes is refused. `testbed save` writes its configuration.

Snapshots are a part of the running lab: `testbed down` removes them, and so does the `up`
that creates a node again. `testbed status` shows them.

The nodes stand still while they are saved. If the command is killed then, `testbed up`
continues them.

\b
  testbed snapshot lab              under the next free number
  testbed snapshot lab before-bgp
  testbed snapshot lab before-bgp --replace
  testbed snapshot lab before-bgp --delete
"""


@click.command("snapshot", help=HELP)
@click.argument("lab", shell_complete=common.complete_labs)
@click.argument("name", required=False, shell_complete=common.complete_snapshots)
@common.set_option
@click.option("--replace", is_flag=True, help="Replace a snapshot of this name.")
@click.option("--delete", is_flag=True, help="Delete the snapshot NAME.")
@common.json_option
def command(lab: str, name: str | None, replace: bool, delete: bool, as_json: bool) -> None:
    """See HELP."""
    need_root("`testbed snapshot`")
    from testbed.cli.up import tell
    from testbed.labs import snapshots
    from testbed.labs.run import Watch

    if delete and (replace or name is None):
        raise UsageError("--delete requires a NAME, and excludes --replace")
    meant = common.lab_meant(common.make_settings(), lab)
    watch = Watch(words=tell)
    if delete:
        assert name is not None
        made = snapshots.drop(meant, name, watch=watch)
    else:
        made = snapshots.take(meant, name, replace=replace, watch=watch)
    if as_json:
        common.print_json({"lab": meant.name, **made.to_dict()})
    elif delete:
        click.echo(f"{click.style(made.name, bold=True)}: deleted")
    else:
        size = f"{made.size >> 20} MiB"
        click.echo(f"{click.style(made.name, bold=True)}: {', '.join(made.nodes)}, {size}")
        back = f"  testbed restore {meant.name} {made.name}"
        click.echo(click.style(back, dim=True))
