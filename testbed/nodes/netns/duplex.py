"""A program on a node whose standard input and output are one stream of bytes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.request import environment
from testbed.process import OnSocket

if TYPE_CHECKING:
    from testbed.nodes.netns.agent import Connection

ENDING = 2.0  # seconds for a program to end by itself once its stream is closed


class Duplex(OnSocket):
    """A running program of a node, the counterpart of :class:`testbed.process.Duplex`.

    ``connection`` is a new connection to the node's pid 1, and is closed with the stream.
    Raises LabError if the program cannot be started.
    """

    def __init__(self, connection: Connection, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self._connection = connection
        with contextlib.ExitStack() as failed:
            failed.callback(connection.close)
            self._errors = os.memfd_create("testbed")
            failed.callback(os.close, self._errors)
            self._ours, theirs = socket.socketpair()
            failed.callback(self._ours.close)
            with theirs:
                files = [theirs.fileno(), theirs.fileno(), self._errors]
                connection.send(["run", "/", "0", *environment(None), *argv], files)
            words, _ = connection.receive(30.0)
            if words[0] != "pid":
                raise LabError(f"{argv[0]} could not be started: {' '.join(words)}")
            failed.pop_all()

    @property
    def errors(self) -> str:
        """The standard error of the program so far; empty after :meth:`close`."""
        if self._errors < 0:
            return ""
        return os.pread(self._errors, 1 << 16, 0).decode(errors="replace")

    def close(self) -> None:
        """Close the stream and end the program.

        A program that ends by itself first cleans up what it has started.
        """
        with contextlib.suppress(OSError):  # the program has closed it
            self._ours.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        self._ours.close()
        if self._errors >= 0:
            with contextlib.suppress(LabError):  # it has not ended in time, or the node has
                self._connection.receive(ENDING)
            self._connection.close()
            errors, self._errors = self._errors, -1
            os.close(errors)
