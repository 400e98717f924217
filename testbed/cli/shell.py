"""``testbed shell``."""

from __future__ import annotations

import sys

import click

from testbed.cli import common
from testbed.cli.exec_ import attach

# Bash where there is one; an image may have only sh.
SHELL = ["/bin/sh", "-c", "exec bash -l 2>/dev/null || exec sh"]


@click.command("shell")
@common.lab_option
@click.argument("where", metavar="NODE[/CONTAINER]", shell_complete=common.complete_nodes)
def command(lab_name: str | None, where: str) -> int:
    """Open a shell on a node or in a container."""
    common.need_root("`testbed shell`")
    shell = ["/bin/sh"] if "/" in where else ["/bin/bash", "--norc"]
    return attach(lab_name, where, shell, tty=sys.stdin.isatty())
