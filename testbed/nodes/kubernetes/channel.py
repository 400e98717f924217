"""The stream of bytes of one exec in a Pod: standard input and output of its program.

The connection is a websocket with the subprotocol ``v5.channel.k8s.io`` or ``v4.channel.k8s.io``
(k8s.io/apimachinery, pkg/util/remotecommand): the first byte of a message is the number of a
channel.  The websocket is opened by the Kubernetes client, and read and written here: that client
reads and writes a connection from one thread only, and nothing of it ends a silent connection.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from websocket import WebSocket

STDIN, STDOUT, STDERR, STATUS = range(4)
CHUNK = 32 * 1024  # bytes of a message
READ = 64 * 1024
WAIT = 0.25  # seconds between two looks whether the channel was closed meanwhile
QUIET = 15.0  # seconds without data from the server after which it is pinged
DEAD = 60.0  # seconds without data from the server after which the connection is lost


class _Incomplete(Exception):
    """The rest of a frame has not arrived."""


class ExecChannel:
    """A program in a Pod: what is sent is its input, what is received its output.

    ``websocket`` is connected, and used by nobody else.  One thread may receive while others send.
    ``errors`` is the standard error of the program, ``status`` the words of the server on its end.
    """

    def __init__(self, websocket: WebSocket, *, quiet: float = QUIET, dead: float = DEAD) -> None:
        from websocket import frame_buffer

        self.errors = ""
        self.status = ""
        assert websocket.sock is not None, "the websocket is connected"
        self._socket = websocket.sock
        self._socket.setblocking(False)  # noqa: FBT003  (no keyword)
        self._arrived = bytearray()
        self._out = bytearray()
        self._frames = frame_buffer(self._take, skip_utf8_validation=True)
        self._timeout: float | None = None
        self._ended = False  # no more output will come
        self._closed = False
        # OpenSSL allows one thread at a time to use a connection (SSL_read(3), "Thread safety").
        self._using = threading.Lock()
        self._sending = threading.Lock()
        self._control: deque[bytes] = deque()  # frames to send before the next one
        self._quiet, self._dead = quiet, dead
        self._heard = self._asked = time.monotonic()

    def settimeout(self, timeout: float | None) -> None:
        """Set the time that :meth:`recv` waits, in seconds."""
        self._timeout = timeout

    def unread(self, data: bytes) -> None:
        """Let the next :meth:`recv` begin with these bytes."""
        self._out[:0] = data

    # -- receiving ------------------------------------------------------------

    def recv(self, nbytes: int) -> bytes:
        """Return output, at most ``nbytes``; b"" at its end.  Raises TimeoutError, OSError."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._out:
            if self._ended or self._closed:
                self._release()
                return b""
            left = WAIT if deadline is None else min(WAIT, max(0.0, deadline - time.monotonic()))
            if self._wait(select.POLLIN, left):
                self._receive()
            elif deadline is not None and time.monotonic() >= deadline:
                self._mind()
                raise TimeoutError
            else:
                self._mind()
        data = bytes(self._out[:nbytes])
        del self._out[:nbytes]
        return data

    def _mind(self) -> None:
        """Ping a silent server; end the connection if it stays silent."""
        now = time.monotonic()
        silent = now - self._heard
        if silent > self._dead:
            self.errors += f"the API server has sent nothing for {silent:.0f} s"
            self._ended = True
        elif silent > self._quiet and now - self._asked > self._quiet:
            from websocket import ABNF

            self._asked = now
            self._control.append(ABNF.create_frame(b"", ABNF.OPCODE_PING).format())
        if self._control and self._sending.acquire(blocking=False):
            try:
                if self._wait(select.POLLOUT, 0):
                    self._send_all(b"")
            except OSError:
                self._ended = True
            finally:
                self._sending.release()

    def _wait(self, what: int, seconds: float) -> bool:
        with self._using:
            if self._closed:
                return True
            tls = self._socket if isinstance(self._socket, ssl.SSLSocket) else None
            if what == select.POLLIN and tls and tls.pending():
                return True  # decrypted already, so unseen by poll(2)
            number = self._socket.fileno()
        waiting = select.poll()
        waiting.register(number, what)
        return bool(waiting.poll(seconds * 1000))

    def _receive(self) -> None:
        with self._using:
            if self._closed:
                return
            try:
                data = self._socket.recv(READ)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return
            except ssl.SSLError as error:
                raise OSError(str(error)) from error
        if not data:
            self._ended = True
            return
        self._heard = time.monotonic()
        self._arrived += data
        from websocket import WebSocketException

        try:
            while True:
                frame = self._frames.recv_frame()
                self._handle(frame.opcode, cast("bytes", frame.data))
        except _Incomplete:
            return
        except WebSocketException as error:  # such as words of a proxy
            self.errors += f"the API server sent no valid websocket frame: {error}"
            raise OSError(str(error)) from error

    def _take(self, size: int) -> bytes:
        """Return bytes that have arrived, for the parser of frames."""
        if not self._arrived:
            raise _Incomplete
        data = bytes(self._arrived[:size])
        del self._arrived[:size]
        return data

    def _handle(self, opcode: int, data: bytes) -> None:
        from websocket import ABNF

        if opcode == ABNF.OPCODE_CLOSE:
            self._ended = True
        elif opcode == ABNF.OPCODE_PING:
            self._control.append(ABNF.create_frame(data, ABNF.OPCODE_PONG).format())
        elif opcode != ABNF.OPCODE_PONG and data:
            channel, content = data[0], data[1:]
            if channel == STDOUT:
                self._out += content
            elif channel == STDERR:
                self.errors += content.decode(errors="replace")
            elif channel == STATUS:
                self.status += content.decode(errors="replace")

    @property
    def failure(self) -> str:
        """The reason of the end in the server's words; empty for a program that exited with 0."""
        with contextlib.suppress(ValueError, AttributeError):
            said: dict[str, Any] = json.loads(self.status)
            return "" if said.get("status") == "Success" else str(said.get("message") or "")
        return self.status

    # -- sending --------------------------------------------------------------

    def send(self, s: bytes) -> int:
        """Send input, and return the number of bytes sent.  Raises OSError."""
        from websocket import ABNF

        piece = s[:CHUNK]
        frame = ABNF.create_frame(bytes([STDIN]) + piece, ABNF.OPCODE_BINARY).format()
        with self._sending:
            self._send_all(frame)
        return len(piece)

    def _send_all(self, frame: bytes) -> None:
        """Send a whole frame: a part of one would end the connection."""
        while self._control:
            frame = self._control.popleft() + frame
        view = memoryview(frame)
        moved = time.monotonic()
        while view:
            with self._using:
                if self._closed or self._ended:
                    raise BrokenPipeError("the exec channel is closed")
                try:
                    view = view[self._socket.send(view) :]
                    moved = time.monotonic()
                    continue
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                    pass
                except ssl.SSLError as error:
                    raise OSError(str(error)) from error
            # Nobody may receive meanwhile, and find that the server is silent.
            if time.monotonic() - moved > self._dead:
                self._ended = True
                raise OSError(f"the API server takes nothing for {self._dead:.0f} s")
            self._wait(select.POLLOUT, WAIT)

    # -- closing --------------------------------------------------------------

    def close(self) -> None:
        """End the connection, and so the program.  A thread that receives gets the end."""
        with self._using:
            if not self._closed:
                self._closed = True
                with contextlib.suppress(OSError):  # it may have ended
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _release(self) -> None:
        with self._using:
            self._closed = True
            self._socket.close()

    def __del__(self) -> None:
        if getattr(self, "_socket", None) is not None:
            self._socket.close()
