"""A web server on loopback that sends files well or badly, and is a proxy if it is asked as one."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class File:
    """A file of the server, and how it is sent."""

    data: bytes
    cuts: int = 0  #: answers that end in the middle of what is left
    reset: bool = False  #: those end with a reset of the connection
    ranges: bool = True  #: a part can be asked for
    status: int = 200
    stalls: bool = False  #: it is never sent to the end
    silent: bool = False  #: there is no answer at all
    sized: bool = True  #: its size is told
    tag: str = ""
    later: bytes = b""  #: the file as it is after the first cut


@dataclass
class Request:
    """A request that the server has had."""

    path: str
    start: int
    proxied: bool


@dataclass
class Server:
    """The server; a path of ``moved`` is redirected."""

    files: dict[str, File] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def put(self, data: bytes, **how: object) -> tuple[str, str]:
        """Add a file; return its address and its sha256."""
        name = f"/{len(self.files)}"
        self.files[name] = File(data, **how)  # type: ignore[arg-type]
        return self.url(name), hashlib.sha256(data).hexdigest()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}{name}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request; ``web`` is its server."""

    web: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
        self.web.requests.append(Request(parts.path, start, bool(parts.netloc)))
        if parts.path in self.web.moved:
            self.send_response(302)
            self.send_header("Location", self.web.moved[parts.path])
            self.end_headers()
            return
        file = self.web.files.get(parts.path)
        if file is None or file.status != 200:
            self.send_error(file.status if file else 404)
            return
        if file.silent:
            self.web.stop.wait(60)
            return
        self._send(file, start)

    def do_CONNECT(self) -> None:
        self.web.requests.append(Request(self.path, 0, proxied=True))
        self.send_error(403)

    def _send(self, file: File, start: int) -> None:
        if start > len(file.data):
            self.send_error(416)
            return
        same = self.headers.get("If-Range", file.tag) == file.tag
        start = start if file.ranges and same else 0
        data = file.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
            )
        if file.sized:
            self.send_header("Content-Length", str(len(data)))
        if file.tag:
            self.send_header("ETag", file.tag)
        self.end_headers()
        if file.stalls:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.web.stop.wait(60)
        elif file.cuts:
            file.cuts -= 1
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if file.later:
                file.data, file.tag = file.later, file.tag and '"later"'
            if file.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server of files, until the block ends."""
    web = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"web": web})) as http:
        web.port = http.server_address[1]
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield web
        finally:
            web.stop.set()
            http.shutdown()


def archive(files: dict[str, bytes]) -> bytes:
    """Return a tar archive, compressed, with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()
