"""A web server on loopback that sends files well or badly, and is a proxy if it is asked as one."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import re
import socket
import ssl
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


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
    busy: int = 0  #: requests for a part that are answered with status 503
    covers: str | None = None  #: what an answer with a part says that it is
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
    tunnel: int = 0  #: where a proxy's tunnels end, whatever was asked for; 0 refuses them

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
        if start and file.busy:
            file.busy -= 1
            self.send_error(503)
            return
        if file.silent:
            self.web.stop.wait(60)
            return
        self._send(file, start)

    def do_CONNECT(self) -> None:
        self.web.requests.append(Request(self.path, 0, proxied=True))
        if not self.web.tunnel:
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.web.tunnel)) as far:
            back = threading.Thread(target=_pass, args=(far, self.connection), daemon=True)
            back.start()
            _pass(self.connection, far)
            back.join(60)
        self.close_connection = True

    def _send(self, file: File, start: int) -> None:
        if start > len(file.data):
            self.send_error(416)
            return
        same = self.headers.get("If-Range", file.tag) == file.tag
        start = start if file.ranges and same else 0
        data = file.data[start:]
        self.send_response(206 if start else 200)
        if start:
            covers = f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
            self.send_header("Content-Range", covers if file.covers is None else file.covers)
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


def _pass(one: socket.socket, other: socket.socket) -> None:
    """Pass on what one side of a tunnel sends."""
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has gone


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server of files, until the block ends."""
    web = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"web": web})) as http:
        web.port = http.server_address[1]
        if tls:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
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


def certified(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """Return the TLS context of a server with these names, and a file with its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, secret = folder / "tls.pem", folder / "tls.key"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    return context, public
