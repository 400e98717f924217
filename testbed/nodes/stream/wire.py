"""The client of ``testbed-agent`` (see ``agent.c``): many requests over one stream of bytes."""

from __future__ import annotations

import contextlib
import itertools
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from testbed.errors import LabError, TimeoutExpired
from testbed.nodes.base import Result, Running
from testbed.nodes.request import environment, request

CHUNK = 32 * 1024
WINDOW = 512 * 1024  # maximum bytes of a stream's input that the agent buffers
ALIVE = 0.25  # seconds between two checks that a silent machine still runs
HEADER = struct.Struct("!III")
NUMBER = struct.Struct("!i")


class Channel(Protocol):
    """The part of paramiko's Channel that is used here."""

    def send(self, s: bytes) -> int: ...
    def recv(self, nbytes: int) -> bytes: ...
    def settimeout(self, timeout: float | None) -> None: ...
    def close(self) -> None: ...


class Stream:
    """One request in progress on the machine.

    When it is over, ``end`` is its result number, or None if the connection was lost before.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.changed = threading.Condition()
        self.pid = 0
        self.out = bytearray()
        self.err = bytearray()
        self.room = WINDOW
        self.end: int | None = None
        self.over = False  # True when no more output will come
        self.number = link.new(self)

    def frame(self, kind: str, data: bytes) -> None:
        """Handle one frame; called by the link's reader, so it must not block."""
        with self.changed:
            if kind == "o":
                self.out += data
            elif kind == "e":
                self.err += data
            elif kind == "p":
                (self.pid,) = NUMBER.unpack(data)
            elif kind == "a":
                self.room += NUMBER.unpack(data)[0]
            elif kind == "x":
                (self.end,) = NUMBER.unpack(data)
                self.over = True
            self.changed.notify_all()

    def lost(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def send(self, kind: str, data: bytes = b"") -> None:
        self.link.send(self.number, kind, data)

    def feed(self, data: bytes) -> None:
        """Send input as fast as the window allows; return when all is sent or the stream ended."""
        view = memoryview(data)
        while view:
            piece = view[:CHUNK]
            with self.changed:
                self.changed.wait_for(lambda: self.over or self.room >= CHUNK)
                if self.over:
                    return
                self.room -= len(piece)
            self.send("i", bytes(piece))
            view = view[len(piece) :]

    def finish(self, data: bytes) -> None:
        """Send all input and its end."""
        self.feed(data)
        self.send("i")

    def wait(self, timeout: float | None) -> int:
        """Wait for the result number.

        ``timeout`` is in seconds.  Raises TimeoutError, or the link's error if the link is lost.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: self.over, timeout):
                raise TimeoutError
            end = self.end
        if end is None:
            raise self.link.lost_error()
        return end

    def forget(self) -> None:
        """Tell the machine to end the stream, and ignore its further output."""
        self.link.drop(self.number)
        with self.changed:
            over, self.over = self.over, True
            self.changed.notify_all()
        if not over and not self.link.closed:
            try:
                self.send("k")
            except LabError:
                return  # the agent ends it when its channel closes


class Link:
    """A channel with an agent at the other end.

    ``alive`` tells whether the machine still runs: one that is gone does not close the channel.
    ``lost_error`` returns the error for waiting threads when the link is lost.
    """

    def __init__(
        self, channel: Channel, alive: Callable[[], bool], lost_error: Callable[[], LabError]
    ) -> None:
        self._channel = channel
        self._alive = alive
        self.lost_error = lost_error
        self.closed = False
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closing = threading.Lock()
        self._rest = bytearray()
        self._abandoned: deque[int] = deque()
        self._reader = threading.Thread(target=self._read, name="testbed-link", daemon=True)
        channel.settimeout(ALIVE)

    def greet(self, timeout: float) -> bool:
        """Return True when the agent has sent its greeting, False if the channel ends before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._alive():
            try:
                data = self._channel.recv(HEADER.size - len(self._rest))
            except TimeoutError:
                continue
            if not data:
                return False
            self._rest += data
            if len(self._rest) == HEADER.size:
                hello = HEADER.unpack(self._rest) == (0, ord("h"), 0)
                self._rest.clear()
                if hello:
                    self._reader.start()
                return hello
        raise self.lost_error()

    def new(self, stream: Stream) -> int:
        with self._lock:
            if not self.closed:
                number = next(self._numbers)
                self._streams[number] = stream
                return number
        raise self.lost_error()

    def drop(self, number: int) -> None:
        with self._lock:
            self._streams.pop(number, None)

    def send(self, number: int, kind: str, data: bytes = b"") -> None:
        try:
            with self._sending:
                frame = self._kills() + HEADER.pack(number, ord(kind), len(data)) + data
                self._send_all(frame)
        except (OSError, EOFError) as error:
            self.close()
            raise self.lost_error() from error

    def _send_all(self, data: bytes) -> None:
        while data:
            try:
                sent = self._channel.send(data)
            except TimeoutError:  # the timeout is meant for reading; here the window was full
                if not self._alive():
                    raise
                continue
            if not sent:
                raise EOFError("the channel is closed")
            data = data[sent:]

    def abandon(self, number: int) -> None:
        """End a stream with the next message that is sent, without waiting."""
        self._streams.pop(number, None)
        self._abandoned.append(number)

    def _kills(self) -> bytes:
        kills = b""
        while self._abandoned:
            kills += HEADER.pack(self._abandoned.popleft(), ord("k"), 0)
        return kills

    def close(self) -> None:
        with self._lock:
            self.closed = True
            streams = list(self._streams.values())
            self._streams.clear()
        # The reader closes, too; a file descriptor that is closed twice may be somebody else's.
        with self._closing, contextlib.suppress(OSError, EOFError):  # it may be broken already
            self._channel.close()
        for stream in streams:
            stream.lost()

    def join(self) -> None:
        """Wait for the end of the reader thread, after ``close``."""
        self._reader.join()

    def _read(self) -> None:
        try:
            while True:
                try:
                    data = self._channel.recv(1 << 16)
                except TimeoutError:
                    if self._alive():
                        continue
                    return
                if not data:
                    return
                self._take(data)
        except (OSError, EOFError):
            return
        finally:
            self.close()

    def _take(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= HEADER.size:
            number, kind, size = HEADER.unpack_from(rest, at)
            end = at + HEADER.size + size
            if len(rest) < end:
                break
            with self._lock:
                stream = self._streams.get(number)
            if stream is not None:
                stream.frame(chr(kind), bytes(rest[at + HEADER.size : end]))
                if kind == ord("x"):
                    self.drop(number)
            at = end
        del rest[:at]


class Command(Running):
    """A command that the agent runs; its output is collected in memory."""

    def __init__(
        self,
        node: str,
        link: Callable[[], Link],
        argv: Sequence[str],
        *,
        input: bytes | None,
        env: Mapping[str, str] | None,
    ) -> None:
        self.argv = tuple(argv)
        self._node = node
        self._result: Result | None = None
        has_input = "1" if input is not None else "0"
        data = request(node, [has_input, *environment(env), *self.argv])
        self._began = time.monotonic()
        self._stream = stream = Stream(link())
        stream.send("r", data)
        self._feed(input)
        with stream.changed:
            began = stream.changed.wait_for(lambda: stream.pid or stream.over, 30.0)
        if not began:
            stream.forget()
            raise TimeoutExpired(f"{node}: no answer within 30 s")
        if not stream.pid:
            number = stream.wait(0)  # raises when the link was lost
            raise LabError(f"{node}: {' '.join(self.argv)[:200]}: cannot be run (error {number})")
        self.pid = stream.pid

    def _feed(self, input: bytes | None) -> None:
        if input is None:
            return
        if len(input) < WINDOW - CHUNK:  # all of it fits into the window
            self._stream.finish(input)
        else:
            threading.Thread(target=self._feed_on, args=(input,), daemon=True).start()

    def _feed_on(self, input: bytes) -> None:
        try:
            self._stream.finish(input)
        except LabError:
            return  # the thread that waits for the command gets the error

    @property
    def out(self) -> bytes:
        with self._stream.changed:
            return self._result.out if self._result else bytes(self._stream.out)

    @property
    def err(self) -> bytes:
        with self._stream.changed:
            return self._result.err if self._result else bytes(self._stream.err)

    def wait(self, timeout: float | None = None) -> Result:
        if self._result is None:
            try:
                status = self._stream.wait(timeout)
            except TimeoutError:
                raise self.still_running(self._node, timeout) from None
            self._finish(status)
        assert self._result is not None
        return self._result

    def kill(self) -> None:
        if self._result is None:
            with self._stream.changed:
                end = self._stream.end
            self._stream.forget()
            self._finish(-signal.SIGKILL if end is None else end)

    def _finish(self, status: int) -> None:
        seconds = time.monotonic() - self._began
        out, err = bytes(self._stream.out), bytes(self._stream.err)
        self._result = Result(self.argv, status, out, err, seconds)

    def __del__(self) -> None:
        # May be called at any point, even while sending, so nothing here may block.
        if getattr(self, "pid", 0) and self._result is None:
            self._stream.link.abandon(self._stream.number)


class Pipe(Stream):
    """A stream whose output goes to ``sink``, in order, from a separate thread.

    ``sink`` is called with each piece of output, and with b"" at the end.  If it raises OSError,
    the error is kept in :attr:`failed` and the command is ended.
    """

    def __init__(self, link: Link, sink: Callable[[str, bytes], None]) -> None:
        super().__init__(link)
        self._sink = sink
        self._pieces: deque[tuple[str, bytes]] = deque()
        self.poured = threading.Event()  #: the sink has received all output
        self.failed: OSError | None = None
        threading.Thread(target=self._pour, daemon=True).start()

    def frame(self, kind: str, data: bytes) -> None:
        if kind in ("o", "e"):
            with self.changed:
                self._pieces.append((kind, data))
                self.changed.notify_all()
        else:
            super().frame(kind, data)

    def _pour(self) -> None:
        try:
            self._pour_all()
        except OSError as error:
            self.failed = error
            self.forget()
        finally:
            self.poured.set()

    def _pour_all(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._pieces or self.over)
                if not self._pieces:
                    break
                kind, data = self._pieces.popleft()
            self._sink(kind, data)
        self._sink("x", b"")
