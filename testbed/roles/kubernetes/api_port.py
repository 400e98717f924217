"""Forward a port of this machine to a cluster's API, for programs.

A program runs like any other command of the caller: in the current folder, on the caller's
terminal, with the caller's files. KUBECONFIG tells it the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from testbed import files
from testbed.errors import UsageError
from testbed.signals import ENDING

if TYPE_CHECKING:
    from testbed.steps.context import Context

SIZE = 1 << 16


def run(context: Context, argv: Sequence[str], *, port: int = 0) -> int:
    """Run a program as a client of the cluster; return its exit status.

    The status is as in a shell. ``port`` is a port of 127.0.0.1; 0 selects any free one. Signals
    that would end testbed are passed on to the program. Raises UsageError if the lab has no
    cluster, or if the program cannot be started.
    """

    async def begin() -> int:
        async with opened(context, port) as api:
            return await _with(api.kubeconfig, argv)

    return asyncio.run(begin())


class Opened(NamedTuple):
    """The forwarded port, and a kubeconfig for it."""

    address: str
    kubeconfig: bytes  #: a file for clients, with an administrator's certificate


@contextlib.asynccontextmanager
async def opened(context: Context, port: int) -> AsyncIterator[Opened]:
    """Forward a port of 127.0.0.1 to the API while the block runs.

    Raises UsageError if the lab has no cluster, or if the port is in use.
    """
    from testbed.roles.kubernetes import certificates, client, config, pki

    node = client.control_plane(context)
    authority, pair = certificates.client(node)
    async with _forwarded(port, node.socket(config.API_SOCKET)) as number:
        address = f"https://127.0.0.1:{number}"
        yield Opened(address, pki.kubeconfig(address, authority, pair))


@contextlib.asynccontextmanager
async def _forwarded(port: int, socket: str) -> AsyncIterator[int]:
    """Forward a port of 127.0.0.1 to a unix socket; yield the port's number."""
    serving: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_serve(socket, reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    try:
        server = await asyncio.start_server(begin, "127.0.0.1", port)
    except OSError as error:
        raise UsageError(
            f"--port {port}: {error.strerror}", hint="choose another port, or 0 for any"
        ) from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        # Close all connections that are still open.
        ended = [*serving]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


async def _serve(socket: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there = await asyncio.open_unix_connection(socket)
    except OSError:  # the API is gone: the client's connection is closed
        writer.close()
        return
    ways = [
        asyncio.ensure_future(_copy(reader, there[1])),
        asyncio.ensure_future(_copy(there[0], writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        there[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy data until the end of the stream, and signal that end.

    Raises OSError.
    """
    while data := await reader.read(SIZE):
        writer.write(data)
        await writer.drain()
    writer.write_eof()  # keep the other direction open for the rest of an answer


async def _with(text: bytes, argv: Sequence[str]) -> int:
    """Run a command with KUBECONFIG set; return a shell's exit status."""
    with tempfile.TemporaryDirectory(prefix="testbed-") as folder:
        path = Path(folder, "kubeconfig")
        files.write(path, text, private=True)
        environment = {
            **os.environ,
            "KUBECONFIG": str(path),
            # kubectl's cache is per port, and the next run has another port.
            "KUBECACHEDIR": str(Path(folder, "cache")),
        }
        with _passed_on() as pass_to:
            try:
                process = await asyncio.create_subprocess_exec(*argv, env=environment)
            except OSError as error:
                raise UsageError(
                    f"{argv[0]}: {error.strerror}", hint="name a program of this machine"
                ) from None
            pass_to(process)
            status = await process.wait()
        return status if status >= 0 else 128 - status


class _Passing:
    """Passes signals on to a process, even those from before its start."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._early: list[int] = []

    def came(self, signum: int) -> None:
        if signum == signal.SIGINT and _in_foreground():
            return  # Ctrl-C: the terminal has sent it to the process, too
        if self._process is None:
            self._early.append(signum)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signum)

    def __call__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        for signum in self._early:
            self.came(signum)


@contextlib.contextmanager
def _passed_on() -> Iterator[_Passing]:
    """Pass signals that would end testbed on to a process while it runs."""
    loop = asyncio.get_running_loop()
    passing = _Passing()
    before = {signum: signal.getsignal(signum) for signum in ENDING}
    for signum in ENDING:
        loop.add_signal_handler(signum, passing.came, signum)
    try:
        yield passing
    finally:
        for signum, handler in before.items():
            loop.remove_signal_handler(signum)
            signal.signal(signum, handler)


def _in_foreground() -> bool:
    """Tell whether this process is in the foreground of its terminal.

    It then gets signals such as from Ctrl-C.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
