"""``testbed kubeconfig``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from testbed import files
from testbed.cli import common
from testbed.errors import UsageError
from testbed.requirement import need_root

HELP = """Let tools of this machine ask a lab's cluster, for as long as this runs.

A port of 127.0.0.1 is forwarded to the API, and a file with an
administrator's certificate names it. With a command, that command is run with
KUBECONFIG set, and its exit status is ours. Without one, the file is written
to --output or printed, and the port stays open until Ctrl-C.

All that follows COMMAND's name belongs to it, options included; `--` before it
is allowed.

\b
  testbed kubeconfig k8s-two-node helm list -A
  testbed kubeconfig k8s-two-node -o cluster.conf &
"""


class _Command(common.RunsCommand):
    options_follow = True  # the command may be left out, and the options then come last


@click.command("kubeconfig", help=HELP, cls=_Command)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, allow_dash=True), help="Write the file there."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1; 0: any.")
@click.argument("lab_name", metavar="LAB", shell_complete=common.complete_labs)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]")
def command(output: Path | None, port: int, lab_name: str, argv: tuple[str, ...]) -> int:
    """See HELP."""
    need_root("`testbed kubeconfig`")
    if output and argv:
        raise UsageError("--output goes without a command", hint="the command has KUBECONFIG set")
    from testbed.roles.kubernetes import api_port

    context = common.lab_meant(common.make_settings(), lab_name).context()
    if argv:
        return api_port.run(context, argv, port=port)

    async def wait() -> None:
        async with api_port.opened(context, port) as api:
            if output:
                files.write(output, api.kubeconfig, private=True)
                click.echo(f"{output} names {api.address}; Ctrl-C closes it", err=True)
            else:
                click.echo(api.kubeconfig)
            await asyncio.Event().wait()

    asyncio.run(wait())
    return 0
