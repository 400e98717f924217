"""``testbed shell``."""

from __future__ import annotations

import sys

import click

from testbed.cli import common
from testbed.cli.exec_ import attach
from testbed.requirement import need_root


@click.command("shell")
@common.lab_option
@click.argument("where", metavar="NODE[/CONTAINER]", shell_complete=common.complete_nodes)
def command(lab_name: str | None, where: str) -> int:
    """Open a shell on a node or in a container."""
    need_root("`testbed shell`")
    # An image may have no bash.  No shell reads start-up files: they would be this machine's.
    shell = ["/bin/bash", "--norc"]
    if "/" in where or common.has_image(lab_name, where):
        shell = ["/bin/sh"]
    prompt = f"PS1={where}:\\w# " if shell[0].endswith("bash") else f"PS1={where}# "
    return attach(lab_name, where, ["env", prompt, *shell], tty=sys.stdin.isatty())
