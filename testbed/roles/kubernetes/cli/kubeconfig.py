"""``testbed kubeconfig``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from testbed import files
from testbed.cli import common
from testbed.errors import Interrupted, UsageError
from testbed.requirement import need_root

HELP = """Give this machine's tools access to a lab's cluster.

A port of 127.0.0.1 is forwarded to the API. A kubeconfig file names the port and
has an administrator's certificate. With a COMMAND, run it with KUBECONFIG set, and
exit with its status. Without one, write the file to --output or print it, and keep
the port open until Ctrl-C.

Everything after COMMAND belongs to it, including options. A `--` before it is
optional.

\b
  testbed kubeconfig k8s-two-node helm list -A
  testbed kubeconfig k8s-two-node -o cluster.conf &
"""


class _Command(common.RunsCommand):
    options_follow = True  # without a command the options may come last


@click.command("kubeconfig", help=HELP, cls=_Command)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, allow_dash=True), help="Write the file here."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1; 0: any.")
@common.set_option
@click.argument("lab_name", metavar="LAB", shell_complete=common.complete_labs)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]")
def command(output: Path | None, port: int, lab_name: str, argv: tuple[str, ...]) -> int:
    """See HELP."""
    need_root("`testbed kubeconfig`")
    if output and argv:
        raise UsageError(
            "--output cannot be combined with a command", hint="the command has KUBECONFIG set"
        )
    from testbed.roles.kubernetes import api_port

    context = common.lab_meant(common.make_settings(), lab_name).context()
    if argv:
        return api_port.run(context, argv, port=port)

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def came(signum: int) -> None:
            if not ended.done():
                ended.set_result(signum)

        # asyncio drops an exception that a handler raises in the middle of a callback.
        for signum in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, came, signum)
        async with api_port.opened(context, port) as api:
            if output:
                files.write(output, api.kubeconfig, private=True)
                click.echo(f"{output} written for {api.address}; Ctrl-C closes the port", err=True)
            else:
                click.echo(api.kubeconfig)
            raise Interrupted(await ended)

    asyncio.run(wait())
    return 0
