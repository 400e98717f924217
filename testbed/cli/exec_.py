"""``testbed exec``."""

from __future__ import annotations

import sys

import click

from testbed.cli import common
from testbed.errors import UsageError

HELP = """Run a command on a node or in a container; exit with its status.

\b
  testbed exec node1 -- ip -d link show flannel.1
  testbed exec node1/container-1 -- curl -s 100.96.2.2
"""


@click.command("exec", help=HELP, context_settings={"ignore_unknown_options": True})
@common.lab_option
@click.option("-t", "--tty/--no-tty", default=None, help="Give it a terminal, or none.")
@click.argument("where", metavar="NODE[/CONTAINER]", shell_complete=common.complete_nodes)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(lab_name: str | None, where: str, argv: tuple[str, ...], tty: bool | None) -> int:
    """See HELP."""
    common.need_root("`testbed exec`")
    tty = bool(tty)
    if tty and not sys.stdin.isatty():
        raise UsageError("--tty: standard input is no terminal", hint="leave --tty out")
    return attach(lab_name, where, list(argv), tty=tty)


def attach(lab_name: str | None, where: str, argv: list[str], *, tty: bool) -> int:
    """Run ``argv`` at NODE or NODE/CONTAINER on our own terminal or pipes."""
    from testbed.lab.live import LiveLab

    lab = LiveLab(common.lab_meant(common.make_settings(), lab_name).context())
    node_name, slash, container = where.partition("/")
    node = lab.node(node_name)
    if slash:
        argv = lab.container(container, node=node_name).argv(argv, mounts=True)
    lab.close()
    return node.attach(argv, tty=tty)
