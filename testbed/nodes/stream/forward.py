"""Unix sockets of a node, forwarded to paths of this machine while this process runs."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from testbed import owner
from testbed.errors import LabError
from testbed.nodes.stream.wire import Link, Pipe

LONGEST = 107  # bytes of a unix socket's path, unix(7)
_numbers = itertools.count(1)


class Forward:
    """Listens on a socket below ``folder`` and connects each client to ``target`` on a node."""

    def __init__(self, folder: Path, name: str, target: str, link: Callable[[], Link]) -> None:
        owner.make(folder)
        _sweep(folder)
        self._target = target
        self._link = link
        plain = folder / f"{name}.{os.getpid()}.{next(_numbers)}.sock"
        self.path = str(plain)
        self._folder = -1
        if len(os.fsencode(plain)) > LONGEST:
            # A path through our file descriptor is short, and works for every process here.
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = f"/proc/{os.getpid()}/fd/{self._folder}/{plain.name}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        plain.chmod(0o600)
        self._listener.listen(64)
        atexit.register(_unlink_own, plain, os.getpid())
        self._plain = plain
        self._thread = threading.Thread(target=self._accept, name="testbed-forward", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        if self._folder >= 0:
            os.close(self._folder)
        _unlink(self._plain)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(ours,), daemon=True).start()

    def _join(self, ours: socket.socket) -> None:
        def sink(kind: str, data: bytes) -> None:
            with contextlib.suppress(OSError):  # the client has hung up
                if kind == "o":
                    ours.sendall(data)
                else:
                    ours.shutdown(socket.SHUT_RDWR)

        with contextlib.closing(ours), contextlib.suppress(OSError, LabError):
            stream = Pipe(self._link(), sink)
            stream.send("c", os.fsencode(self._target))
            while data := ours.recv(1 << 16):
                stream.feed(data)
            stream.send("i")
            with contextlib.suppress(LabError):
                stream.wait(None)
            stream.poured.wait()


def _unlink_own(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        _unlink(path)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # its machine may have ended, and the folder with it
        path.unlink()


def _sweep(folder: Path) -> None:
    """Remove sockets that killed processes have left."""
    for path in folder.glob("*.*.*.sock"):
        pid = path.name.split(".")[-3]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _unlink(path)
