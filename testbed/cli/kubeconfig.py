"""``testbed kubeconfig``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

import click

from testbed import files
from testbed.cli import common
from testbed.errors import UsageError

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
SIZE = 1 << 16


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
    common.need_root("`testbed kubeconfig`")
    if output and argv:
        raise UsageError("--output goes without a command", hint="the command has KUBECONFIG set")
    from testbed.roles.kubernetes import certificates, client, config, pki

    context = common.lab_meant(common.make_settings(), lab_name).context()
    node = client.control_plane(context)
    authority, pair = certificates.client(node)
    socket = node.socket(config.API_SOCKET)

    async def run() -> int:
        server = await _listen(port, socket)
        async with server:
            number = server.sockets[0].getsockname()[1]
            text = pki.kubeconfig(f"https://127.0.0.1:{number}", authority, pair)
            if argv:
                return await _with(text, argv)
            if output:
                files.write(output, text, private=True)
                click.echo(f"{output} names https://127.0.0.1:{number}; Ctrl-C closes it", err=True)
            else:
                click.echo(text)
            await server.serve_forever()
        return 0

    return asyncio.run(run())


async def _listen(port: int, socket: str) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_unix_connection(socket)
        except OSError:  # the API is gone: the caller sees the connection end
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # we end, and so does all that is open
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    try:
        return await asyncio.start_server(serve, "127.0.0.1", port)
    except OSError as error:
        raise UsageError(
            f"--port {port}: {error.strerror}", hint="choose another, or 0 for any"
        ) from None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes, until its end; then that end is passed on."""
    with contextlib.suppress(OSError):
        while data := await reader.read(SIZE):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()


async def _with(text: bytes, argv: tuple[str, ...]) -> int:
    """Run a command that finds the file by KUBECONFIG; its status, as a shell would say it."""
    with tempfile.TemporaryDirectory(prefix="testbed-") as folder:
        path = Path(folder, "kubeconfig")
        files.write(path, text, private=True)
        environment = {**os.environ, "KUBECONFIG": str(path)}
        try:
            process = await asyncio.create_subprocess_exec(*argv, env=environment)
        except OSError as error:
            raise UsageError(
                f"{argv[0]}: {error.strerror}", hint="name a program of this machine"
            ) from None
        status = await process.wait()
        return status if status >= 0 else 128 - status
