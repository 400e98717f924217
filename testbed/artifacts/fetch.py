"""Downloads with bounded waits, continued after a break, verified by a checksum.

A thread of its own talks to the server, because neither a name server nor a connection can be
interrupted: the caller gives up on it when its time is over or the work is cancelled.
"""

from __future__ import annotations

import hashlib
import io
import queue
import re
import shutil
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from testbed.errors import ArtifactError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.artifacts.source import Job

LIMIT = 2 << 30  # bytes; more than any artifact needs, less than a disk
LIST_LIMIT = 16 << 20  # bytes of a list of checksums
CHUNK = 1 << 20
STALL = 60.0  # seconds without a single byte
ATTEMPTS = 4  # in a row that bring no more than the ones before
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
POLL = 0.1  # seconds between two checks for a cancel
TELL = 1.0  # seconds between two lines of progress
BUSY = {408, 429}  # statuses of a request that can be repeated (RFC 9110, RFC 6585)
KIB, MIB = 1 << 10, 1 << 20


class NotFetched(ArtifactError):
    """A server cannot be reached, does not have the file, or does not send all of it."""


class _OtherPart(Exception):
    """A server sends another part of a file than the requested one."""


@dataclass(frozen=True, slots=True)
class Sum:
    """The checksum that a download must have; ``origin`` names where it was read."""

    algorithm: str  #: a name of :mod:`hashlib`, such as "sha256"
    digest: str
    origin: str = ""


def fetch(
    job: Job, url: str, target: Path, wanted: Sum, *, within: float = STALL, limit: int = LIMIT
) -> None:
    """Download a file and verify it; a broken download is continued where it ended.

    ``within`` is the time in seconds in which the server must begin its first answer.
    Raises NotFetched, ArtifactError for a wrong checksum, a file of more than ``limit`` bytes, or a
    disk that is too small, Interrupted, and OSError if ``target`` cannot be written.
    """
    with target.open("wb") as file:
        got = _Download(job, url, file, limit, algorithm=wanted.algorithm, place=target.parent)
        got.whole(within)
    if got.digest != wanted.digest:
        target.unlink()
        by = f" by {wanted.origin}" if wanted.origin else ""
        raise ArtifactError(
            f"{url} has the {wanted.algorithm} {got.digest}, expected{by} {wanted.digest}",
            hint="do not use the file; find out which checksum is right",
        )


def text(job: Job, url: str, *, within: float = STALL, limit: int = LIST_LIMIT) -> str:
    """Return a text document; a broken download is continued as by :func:`fetch`.

    Raises NotFetched, ArtifactError if it is too large, Interrupted.
    """
    found = io.BytesIO()
    _Download(job, url, found, limit).whole(within)
    return found.getvalue().decode(errors="replace")


class Meter:
    """Shows the bytes of a long task and its rate, once a second."""

    def __init__(self, job: Job, task: str) -> None:
        self._job = job
        self._task = task
        self._told = time.monotonic(), 0

    def show(self, done: int, total: int | None) -> None:
        """Show the progress if the last line is old enough.  Numbers are bytes."""
        at, before = self._told
        now = time.monotonic()
        if now - at < TELL:
            return
        self._told = now, done
        of = f" of {_size(total)}" if total else ""
        rate = max(0, done - before) / max(now - at, 0.001)
        self._job.say(f"{self._task}, {_size(done)}{of}, {_size(rate)}/s")


class _Download:
    """One file while it is downloaded, in as many attempts as it takes.

    ``place`` is the folder of ``file`` if it needs room on a disk.
    """

    def __init__(
        self,
        job: Job,
        url: str,
        file: IO[bytes],
        limit: int,
        *,
        algorithm: str = "sha256",
        place: Path | None = None,
    ) -> None:
        self.job = job
        self.url = url
        self.file = file
        self.limit = limit
        self.done = 0  # bytes
        self.total: int | None = None
        self._place = place
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._mark = ""  # identifies the version of the file on the server
        self._meter = Meter(job, "download")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def whole(self, within: float) -> None:
        """Download all of the file."""
        best, vain = 0, 0
        while True:
            try:
                return self._attempt(within if best == 0 else STALL)
            except NotFetched as error:
                vain = 1 if self.done > best else vain + 1
                best = max(best, self.done)
                if best == 0 or vain >= ATTEMPTS:
                    raise
                if _refuses_to_continue(error.__cause__):
                    self._again()
                self.job.say(f"{error.message}; trying again")
            if self.job.cancel.wait(PAUSE * 2 ** (vain - 1)):
                raise Interrupted(2)

    def _attempt(self, within: float) -> None:
        answer = _Answer(self.url, self.done, self._mark)
        try:
            parts = answer.parts(self.job, within, self._tell)
            next(parts)
            if answer.start != self.done:
                self._again()
            self.total, self._mark = answer.total, answer.mark
            self._room()
            for part in parts:
                self.done += len(part)
                self._bound(self.done)
                self._hash.update(part)
                self.file.write(part)
                self._tell()
        finally:
            answer.close()
        if answer.total not in (None, self.done):
            raise NotFetched(
                f"{self.url}: the connection ended after {self.done} of {answer.total} bytes"
            )

    def _again(self) -> None:
        """Begin again: the server sends the file from its beginning."""
        self.file.seek(0)
        self.file.truncate()
        self.done = 0
        self._hash = hashlib.new(self._algorithm)

    def _room(self) -> None:
        if self.total is None:
            return
        self._bound(self.total)
        if self._place is None:
            return
        free = shutil.disk_usage(self._place).free
        if self.total - self.done > free:
            raise ArtifactError(
                f"{self.url} has {_size(self.total)}, and only {_size(free)} are free in"
                f" {self._place.parent}",
                hint="free space there, or set TESTBED_CACHE to another folder",
            )

    def _bound(self, size: int) -> None:
        if size > self.limit:
            raise ArtifactError(f"{self.url} is larger than {self.limit} bytes")

    def _tell(self) -> None:
        self._meter.show(self.done, self.total)


class _Answer:
    """One answer of a server, read by a thread of its own.

    ``start`` is its offset in the file, ``total`` the size of the file, and ``mark`` identifies
    the version of the file; all are known with the first part.
    """

    def __init__(self, url: str, start: int, mark: str) -> None:
        self.url = url
        self.start = 0
        self.total: int | None = None
        self.mark = ""
        self._parts: queue.Queue[bytes | Exception | None] = queue.Queue(8)
        self._gone = threading.Event()
        name = f"download {url}"
        threading.Thread(target=self._run, args=(start, mark), name=name, daemon=True).start()

    def close(self) -> None:
        """Give up on the server, if it still sends."""
        self._gone.set()

    def parts(self, job: Job, within: float, idle: Any = lambda: None) -> Iterator[bytes]:
        """Yield the parts of the file; ``idle`` is called while there is none.

        The first is empty, and comes with the headers, after ``within`` seconds at most.
        Raises NotFetched, Interrupted.
        """
        patience = within
        while True:
            began = time.monotonic()
            while True:
                if job.cancel.is_set():
                    raise Interrupted(2)
                try:
                    part = self._parts.get(timeout=POLL)
                    break
                except queue.Empty:
                    idle()
                    if time.monotonic() - began > patience:
                        raise NotFetched(
                            f"{self.url} cannot be downloaded: no answer in {patience:.0f} s"
                        ) from None
            if part is None:
                return
            if isinstance(part, Exception):
                raise NotFetched(f"{self.url} cannot be downloaded: {_reason(part)}") from part
            patience = STALL
            yield part

    def _run(self, start: int, mark: str) -> None:
        try:
            self._read(start, mark)
        except Exception as error:  # noqa: BLE001 - raised in the thread that reads the parts
            self._put(error)
        else:
            self._put(None)

    def _read(self, start: int, mark: str) -> None:
        import urllib.request

        headers = {"User-Agent": "testbed", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if mark:
                headers["If-Range"] = mark
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - http(s) only, as the configuration is checked for
        opener = urllib.request.build_opener(_redirects())
        with opener.open(request, timeout=STALL) as answer:
            self._head(answer, start)
            self._put(b"")
            while (data := answer.read1(CHUNK)) and self._put(data):
                pass

    def _head(self, answer: Any, start: int) -> None:
        """Read the answer's headers."""
        length = answer.headers.get("Content-Length") or ""
        size = int(length) if length.isdigit() else None
        if answer.status == 206:
            covers = re.match(r"bytes (\d+)-\d+/(\d+)$", answer.headers.get("Content-Range") or "")
            if covers is None or int(covers[1]) != start:
                raise _OtherPart("the server sends another part of the file than the missing one")
            self.start, self.total = start, int(covers[2])
        else:
            self.total = size
        tag = answer.headers.get("ETag") or ""
        weak = tag.startswith("W/")  # of the same meaning only, not of the same bytes
        self.mark = (answer.headers.get("Last-Modified") or "") if weak or not tag else tag

    def _put(self, part: bytes | Exception | None) -> bool:
        """Hand over a part; tell whether anybody waits for it."""
        while not self._gone.is_set():
            try:
                self._parts.put(part, timeout=POLL)
            except queue.Full:
                continue
            return True
        return False


def _redirects() -> Any:
    """Return a handler of redirects to https, and from http to http."""
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(  # noqa: PLR0917 - the parameters are urllib's
            self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> Any:
            allowed = ["https"] if req.type == "https" else ["http", "https"]
            if newurl.partition(":")[0].lower() not in allowed:
                raise URLError(f"redirected to {newurl}, expected {' or '.join(allowed)}")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return Redirects()


def _refuses_to_continue(cause: BaseException | None) -> bool:
    """Tell whether a server may not like to send the rest of a file, and is not only busy."""
    if isinstance(cause, HTTPError):
        return cause.code < 500 and cause.code not in BUSY
    return isinstance(cause, _OtherPart)


def _reason(error: Exception) -> str:
    """Return why a request failed, without the name of an error's class where it says enough."""
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code} {error.reason}"
    if isinstance(error, URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _size(count: float) -> str:
    """Return a number of bytes in words.

    >>> _size(300), _size(5 << 10), _size(3.25 * (1 << 20))
    ('300 bytes', '5 KiB', '3.2 MiB')
    """
    if count < KIB:
        return f"{count:.0f} bytes"
    if count < MIB:
        return f"{count / KIB:.0f} KiB"
    return f"{count / MIB:.{0 if count >= 100 * MIB else 1}f} MiB"
