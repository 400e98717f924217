"""``testbed exec``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from testbed.labs.commands import Surroundings
    from testbed.labs.everywhere import Ran

HELP = """Run a command on a node or in a container; exit with its status.

Everything after NODE belongs to the command, including options. A `--` before it
is optional. Options of testbed itself go before NODE.

\b
  testbed exec node1 ip -d link show flannel.1
  testbed exec node1/container-1 -- curl -s 100.96.2.2
  testbed exec -it node1 bash
  testbed exec --all ip route
  testbed exec --env A=b --user nobody --workdir /tmp node1 sh -c 'id; pwd; echo $A'

With -t the command gets a terminal of the node or container. It has a name there
(/dev/pts/N), job control, and the size of your terminal. Programs such as sudo,
tmux and top require one.

With --all there is no NODE: the command runs on every node of the lab at the same
time, and the name of its node is before each line of output. --serial runs it on
one node after the other. It has no input.

Exit status 127: the command does not exist. 126: it cannot be run. 128 + N: signal N
ended it. 2 and 4 are also testbed's own: wrong use, and a lab or node that does not exist.
With --all it is the highest status of all nodes, 4 for a node that does not run.
"""


class Exec(common.RunsCommand):
    """Without NODE, after ``--all``, all words belong to the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, rest = self.split(ctx, args)
        if "--all" not in own:
            return super().parse_args(ctx, args)
        if not rest and not ctx.resilient_parsing and not {*own} & {*ctx.help_option_names}:
            raise UsageError("missing COMMAND", hint="with --all, all words are the command")
        return click.Command.parse_args(self, ctx, [*(word for word in own if word != "--"),
                                                    "--", *rest])  # fmt: skip


@click.command("exec", help=HELP, cls=Exec)
@common.lab_option
@click.option("-t", "--tty/--no-tty", default=False, help="Allocate a terminal on the node.")
@click.option(
    "-i",
    "--interactive",
    is_flag=True,
    expose_value=False,
    help="Accepted for `-it`; standard input is always connected.",
)
@click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE",
    help="Set an environment variable; NAME alone takes your own value. Repeatable.",
)  # fmt: skip
@click.option(
    "-u", "--user", metavar="USER[:GROUP]", default="",
    help="Run as this user, by name or number; of the container's own files in a container.",
)  # fmt: skip
@click.option(
    "-w", "--workdir", metavar="FOLDER", default="",
    help="Run in this folder, an absolute path. Default: /.",
)  # fmt: skip
@click.option("--all", "everywhere", is_flag=True, help="Run on every node, without NODE.")
@click.option("--serial", is_flag=True, help="With --all: one node after the other.")
@click.option(
    "--json", "as_json", is_flag=True, help="With --all: print status and output as JSON."
)
@click.argument("where", metavar="NODE[/CONTAINER]", shell_complete=common.complete_nodes)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def command(
    lab_name: str | None,
    where: str,
    argv: tuple[str, ...],
    tty: bool,
    env: tuple[str, ...],
    user: str,
    workdir: str,
    everywhere: bool,
    serial: bool,
    as_json: bool,
) -> int:
    """See HELP."""
    from testbed.labs.commands import NOT_FOUND, Surroundings

    need_root("`testbed exec`")
    if workdir and not workdir.startswith("/"):
        raise UsageError("wanted an absolute path", where=f"--workdir {workdir}")
    given = Surroundings(_variables(env), user, workdir)
    if everywhere:
        if tty:
            raise UsageError("--all and --tty exclude each other", hint="name one node for --tty")
        return _on_all(lab_name, [where, *argv], given, serial=serial, as_json=as_json)
    if serial or as_json:
        raise UsageError(f"--{'serial' if serial else 'json'} requires --all")
    if not argv:
        raise click.UsageError("Missing argument 'COMMAND [ARG]...'.", click.get_current_context())
    if tty and not sys.stdin.isatty():
        raise UsageError("--tty: standard input is not a terminal", hint="remove --tty")
    status = attach(lab_name, where, list(argv), tty=tty, given=given)
    if status == NOT_FOUND and argv[0].startswith("-"):
        words = f"{argv[0]} is taken as the command; options of testbed go before NODE"
        click.echo(f"testbed: {words}", err=True)
    return status


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    """Return variables of the form NAME=VALUE, or NAME with the value that it has here."""
    import os

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError("wanted NAME=VALUE", where=f"--env {text}")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def attach(
    lab_name: str | None,
    where: str,
    argv: list[str],
    *,
    tty: bool,
    given: Surroundings | None = None,
) -> int:
    """Run ``argv`` on NODE or in NODE/CONTAINER, on our terminal or pipes."""
    from testbed.labs.commands import Surroundings, in_container, on_node

    given = given or Surroundings()
    with common.live_lab(lab_name) as lab:
        node, container = common.place(lab, where)
    if container is None:
        return node.attach(on_node(node, argv, given), tty=tty)
    words = in_container(container, argv, given, tty=tty)
    return node.attach(words, tty=tty, inside=container.pid)


def _on_all(
    lab_name: str | None, argv: list[str], given: Surroundings, *, serial: bool, as_json: bool
) -> int:
    from testbed.labs.everywhere import run

    context = common.lab_meant(common.make_settings(), lab_name).context()
    width = max(len(name) for name in context.topology.nodes)

    def tell(node: str, line: bytes, *, error: bool) -> None:
        name = click.style(f"{node:<{width}} | ", dim=True)
        click.echo(name + line.decode(errors="replace"), err=error)

    ran = run(context, argv, given, serial=serial, tell=None if as_json else tell)
    if as_json:
        common.print_json([_to_dict(one) for one in ran])
    return max(one.status for one in ran)


def _to_dict(ran: Ran) -> dict[str, object]:
    return {
        "node": ran.node,
        "status": ran.status,
        "stdout": ran.out.decode(errors="replace"),
        "stderr": ran.err.decode(errors="replace"),
    }
