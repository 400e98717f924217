"""``testbed exec``."""

from __future__ import annotations

import sys

import click

from testbed.cli import common
from testbed.errors import NoSuchNode, UsageError
from testbed.requirement import need_root

HELP = """Run a command on a node or in a container; exit with its status.

Everything after NODE belongs to the command, including options. A `--` before it
is optional. Options of testbed itself go before NODE.

\b
  testbed exec node1 ip -d link show flannel.1
  testbed exec node1/container-1 -- curl -s 100.96.2.2
  testbed exec -it node1 bash

With -t the command gets a terminal of the node or container. It has a name there
(/dev/pts/N), job control, and the size of your terminal. Programs such as sudo,
tmux and top require one.

Exit status 127: the command does not exist. 126: it cannot be run. 128 + N: signal N
ended it. 2 and 4 are also testbed's own: wrong use, and a lab or node that does not exist.
"""
NOT_FOUND = 127  # as in a shell


@click.command("exec", help=HELP, cls=common.RunsCommand)
@common.lab_option
@click.option("-t", "--tty/--no-tty", default=False, help="Allocate a terminal on the node.")
@click.option(
    "-i",
    "--interactive",
    is_flag=True,
    expose_value=False,
    help="Accepted for `-it`; standard input is always connected.",
)
@click.argument("where", metavar="NODE[/CONTAINER]", shell_complete=common.complete_nodes)
@click.argument(
    "argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]..."
)  # fmt: skip
def command(lab_name: str | None, where: str, argv: tuple[str, ...], tty: bool) -> int:
    """See HELP."""
    need_root("`testbed exec`")
    if tty and not sys.stdin.isatty():
        raise UsageError("--tty: standard input is not a terminal", hint="remove --tty")
    status = attach(lab_name, where, list(argv), tty=tty)
    if status == NOT_FOUND and argv[0].startswith("-"):
        words = f"{argv[0]} is taken as the command; options of testbed go before NODE"
        click.echo(f"testbed: {words}", err=True)
    return status


def attach(lab_name: str | None, where: str, argv: list[str], *, tty: bool) -> int:
    """Run ``argv`` on NODE or in NODE/CONTAINER, on our terminal or pipes."""
    from testbed.labs.lab import labs
    from testbed.labs.live import LiveLab

    settings = common.make_settings()
    lab = LiveLab(common.lab_meant(settings, lab_name).context())
    node_name, slash, container = where.partition("/")
    try:
        node = lab.node(node_name)
    except NoSuchNode as error:
        if node_name in labs(settings):
            command = click.get_current_context().info_name
            error.hint = f"{node_name} is a lab: `testbed {command} -l {node_name} NODE ...`"
        raise
    place = lab.container(container, node=node_name) if slash else node
    lab.close()
    return place.attach(argv, tty=tty)
