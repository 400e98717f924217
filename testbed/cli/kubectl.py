"""``testbed kubectl``."""

from __future__ import annotations

import sys

import click

from testbed.cli import common

HELP = """Run kubectl on a lab's cluster, with all rights; exit with its status.

It runs on the node of the control plane, which sees this machine's files.

All that follows LAB belongs to kubectl, options included; `--` before it is
allowed.

\b
  testbed kubectl k8s-two-node get pods -A -o wide
  testbed kubectl k8s-two-node -- apply -f deployment.yaml
"""


@click.command("kubectl", help=HELP, cls=common.RunsCommand)
@click.argument("lab_name", metavar="LAB", shell_complete=common.complete_labs)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="WORD...")
def command(lab_name: str, words: tuple[str, ...]) -> int:
    """See HELP."""
    common.need_root("`testbed kubectl`")
    from testbed.roles.kubernetes import client

    context = common.lab_meant(common.make_settings(), lab_name).context()
    node = client.control_plane(context)
    # With a pipe behind it, its output is data: a terminal would end lines in CR LF.
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    return node.attach(client.kubectl(context, *words), tty=tty)
