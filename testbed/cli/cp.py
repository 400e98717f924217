"""``testbed cp``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from testbed.nodes.base import Node

HELP = """Copy a file or folder between this machine and a node or container.

One of SRC and DST is NODE:PATH or NODE/CONTAINER:PATH, and its PATH begins at /.
The other is a path of this machine, or - for a tar stream on standard input or
output. A path of this machine with a colon begins with ./ or /.

\b
  testbed cp node1:/etc/docker ./config
  testbed cp page.html node1/container-1:/srv/
  testbed cp node1:/var/log - | tar -tv
  tar -c site | testbed cp - node2:/srv

The rules are those of `docker cp`: a file gets the name DST, or goes into the folder
DST; a folder goes into a folder DST that exists, and otherwise gets the name DST;
`folder/.` means its contents; a name with / at its end must be a folder. The parent
of DST must exist. Links are copied as links. Modes and times are kept; files belong
to root in the lab, and to the owner of your folder here. Devices are left out here.

Containers are found by their processes, so this works while their daemon is dead.
An interrupted copy leaves no half file.
"""


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete NODE: and NODE/CONTAINER:, and paths of this machine."""
    from click.shell_completion import CompletionItem

    names = [f"{name}:" for name in common.complete_nodes(ctx, param, incomplete)]
    return [*(CompletionItem(name) for name in names), CompletionItem(incomplete, type="file")]


@click.command("cp", help=HELP)
@common.lab_option
@click.option("-a", "--archive", is_flag=True, help="Keep owners, groups and all bits of modes.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Copy the target of a link SRC.")
@click.argument("source", metavar="SRC", shell_complete=complete)
@click.argument("target", metavar="DST", shell_complete=complete)
def command(lab_name: str | None, source: str, target: str, archive: bool, follow: bool) -> None:
    """See HELP."""
    from testbed.labs.copying import STREAM, Options, copy, split

    need_root("`testbed cp`")
    if target == STREAM and split(source) and sys.stdout.isatty():
        raise UsageError("DST is -, and standard output is a terminal", hint="redirect it")
    if source == STREAM and split(target) and sys.stdin.isatty():
        raise UsageError("SRC is -, and standard input is a terminal", hint="redirect it")

    with common.live_lab(lab_name) as lab:

        def place(where: str) -> tuple[Node, str]:
            node, container = common.place(lab, where)
            return node, f"/proc/{container.pid}/root" if container else ""

        copy(source, target, place, Options(archive, follow))
