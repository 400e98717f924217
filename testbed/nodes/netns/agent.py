"""The client of ``testbed-init``, pid 1 of a namespace node (see ``init.c``).

One connection carries one request at a time.  Files travel with the request,
so a command writes straight into ours and nothing has to be copied.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from testbed.errors import LabError, NodeNotRunning, TimeoutExpired
from testbed.limits import no_more_files
from testbed.nodes.base import Result, Running
from testbed.nodes.request import LIMIT, environment, request

SOCKET = "/run/testbed/init.sock"
CONNECT_SECONDS = 30  # for a pid 1 that serves as many clients as it can, and others wait


class Connection:
    """One connection to a node's pid 1.

    ``node`` is the name for error messages, ``pid`` the pid of pid 1 on this machine.
    """

    def __init__(self, node: str, pid: int) -> None:
        self._node = node
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A message is sent whole or not at all: room for the longest one.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LIMIT)
        # socket(7): connect(2) then ends with EAGAIN.
        patience = struct.pack("ll", CONNECT_SECONDS, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            self._socket.connect(f"/proc/{pid}/root{SOCKET}")
        except BlockingIOError:
            self._socket.close()
            raise TimeoutExpired(
                f"{node} has accepted no connection for {CONNECT_SECONDS} s: it already "
                "runs as many "
                "commands as its pid 1 can serve at once",
                hint="wait until some of them have ended",
            ) from None
        except OSError as error:
            self._socket.close()
            raise self._gone() from error

    def _gone(self) -> NodeNotRunning:
        return NodeNotRunning(
            f"node {self._node} does not run: its pid 1 does not answer",
            name=self._node,
            hint="`testbed status LAB` shows the lab, `testbed up -l LAB` restarts its nodes",
        )

    def send(self, fields: Iterable[str], files: Sequence[int] = ()) -> None:
        """Send one request.  Raises ValueError if a field contains a NUL."""
        data = request(self._node, fields)
        try:
            if files:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
                self._socket.sendmsg([data], [rights])
            else:
                self._socket.send(data)
        except OSError as error:
            raise self._gone() from error

    def receive(self, timeout: float | None = None) -> tuple[list[str], list[int]]:
        """Receive the next answer: its words and the file descriptors sent with it.

        Raises NoSuchNode when the node ends, TimeoutExpired after ``timeout`` seconds.
        """
        text, files = self.receive_text(timeout)
        return text.split(), files

    def receive_text(self, timeout: float | None = None) -> tuple[str, list[int]]:
        self._socket.settimeout(timeout)
        try:
            data, control, flags, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4))
        except TimeoutError:
            raise TimeoutExpired(f"{self._node}: no answer within {timeout:g} s") from None
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        files: list[int] = []
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files += array.array("i", payload[: len(payload) // 4 * 4])
        if flags & socket.MSG_CTRUNC:  # recvmsg(2): there was no free descriptor for its file
            for fd in files:
                os.close(fd)
            raise no_more_files()
        return data.decode(errors="replace"), files

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def status_of(words: Sequence[str]) -> int:
    """Return N for ``exit N`` and -N for ``signal N``."""
    number = int(words[1])
    return -number if words[0] == "signal" else number


def _memory_file(data: bytes | None = None) -> int:
    fd = os.memfd_create("testbed")
    if data:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _close(*files: int) -> None:
    """Close file descriptors; -1 stands for one that was never opened."""
    for fd in files:
        if fd >= 0:
            os.close(fd)


def _contents(fd: int) -> bytes:
    # pread: the offset is shared with the command that writes.
    return os.pread(fd, os.fstat(fd).st_size, 0)


class Command(Running):
    """A command that pid 1 of a node runs; its output is collected in memory."""

    def __init__(
        self,
        node: str,
        connect: Callable[[], Connection],
        argv: Sequence[str],
        *,
        input: bytes | None,
        env: Mapping[str, str] | None,
    ) -> None:
        self.argv = tuple(argv)
        self._node = node
        self._result: Result | None = None
        self._began = time.monotonic()
        self._out = self._err = stdin = -1
        try:
            self._out = _memory_file()
            self._err = _memory_file()
            stdin = _memory_file(input) if input is not None else os.open(os.devnull, os.O_RDONLY)
            self._connection = connect()
            try:
                self._connection.send(
                    ["run", "/", "0", *environment(env), *self.argv],
                    [stdin, self._out, self._err],
                )
                self.pid = self._begun(*self._connection.receive(30.0))
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            _close(self._out, self._err)
            self._out = self._err = -1
            raise
        finally:
            _close(stdin)

    def _begun(self, words: list[str], _: list[int]) -> int:
        if words[0] != "pid":
            raise LabError(f"{self._node}: {' '.join(words)}")
        return int(words[1])

    @property
    def out(self) -> bytes:
        return self._result.out if self._result else _contents(self._out)

    @property
    def err(self) -> bytes:
        return self._result.err if self._result else _contents(self._err)

    def wait(self, timeout: float | None = None) -> Result:
        if self._result is None:
            try:
                words, _ = self._connection.receive(timeout)
            except TimeoutExpired:
                raise self.still_running(self._node, timeout) from None
            self._finish(status_of(words))
        assert self._result is not None
        return self._result

    def kill(self) -> None:
        if self._result is None:
            # Hanging up is enough: pid 1 kills what it ran for us.
            self._finish(-signal.SIGKILL)

    def _finish(self, status: int) -> None:
        seconds = time.monotonic() - self._began
        out, err = _contents(self._out), _contents(self._err)
        self._result = Result(self.argv, status, out, err, seconds)
        self._connection.close()
        os.close(self._out)
        os.close(self._err)

    def __del__(self) -> None:
        if self._result is None and getattr(self, "_out", -1) >= 0:
            self.kill()


def wait_readable(fd: int, timeout: float) -> bool:
    """Return True as soon as ``fd`` is readable, False after ``timeout`` seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, int(timeout * 1000))))
