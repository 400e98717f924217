"""Sources of images for tests: Debian's docker-registry on loopback, Podman, small images."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import io
import ipaddress
import json
import re
import socket
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from testbed.artifacts import Store, archive, release
from testbed.artifacts.debian import DebianPackages, DebianTree
from testbed.process import run

USER, PASSWORD = "tester", "secret of the test"
SECONDS = 60.0  # for hanging only
PROGRAM = DebianPackages(
    packages=("docker-registry",), programs={"docker-registry": "usr/bin/docker-registry"}
)

#: A library of Podman, which needs the one of its own release.
SUBID = "libsubid4" if release.this().suite == "bookworm" else "libsubid5"
PODMAN = DebianTree(
    packages=("podman", SUBID, "conmon", "crun", "netavark"),
    programs={
        **{name: f"usr/bin/{name}" for name in ("podman", "conmon", "crun")},
        "netavark": "usr/lib/podman/netavark",
    },
)
#: Podman with everything that it keeps in a folder. It has /var/lib and /run for itself: the cache
#: of layers, and sockets, have fixed places.
PODMAN_SCRIPT = """\
#!/bin/sh
export CONTAINERS_CONF={folder}/containers.conf
exec unshare --mount sh -ec '
    mount --make-rprivate /
    mount -n -t tmpfs tmpfs /var/lib
    mount -n -t tmpfs tmpfs /run
    exec "$@"
' sh {bin}/podman --root {folder}/root --runroot /run/containers --tmpdir /run/libpod \\
    --network-config-dir {folder}/net --storage-driver vfs --events-backend none \\
    --cgroup-manager cgroupfs --conmon {bin}/conmon --runtime {bin}/crun "$@"
"""


def podman(folder: Path) -> Path:
    """Write Debian's Podman, with a storage of its own, to a folder for PATH; return its path."""
    bin_ = Store().keep("podman", PODMAN) / "bin"
    path = folder / "bin" / "podman"
    path.parent.mkdir(parents=True)
    (folder / "containers.conf").write_text(f'[engine]\nhelper_binaries_dir = ["{bin_}"]\n')
    path.write_text(PODMAN_SCRIPT.format(bin=bin_, folder=folder))
    path.chmod(0o755)
    return path


@dataclass
class Registry:
    """A running registry with its own folder."""

    folder: Path
    port: int
    tls: bool
    realm: str = ""  #: address of the server that gives tokens; empty for a registry without one
    ca: Path = field(init=False)

    def __post_init__(self) -> None:
        self.ca = self.folder / "ca.crt"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def fetched(self) -> list[str]:
        """The digests of blobs that were asked for so far, in this order."""
        log = (self.folder / "log").read_text()
        return re.findall(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64}) HTTP\S+" 200', log)

    @property
    def requests(self) -> int:
        return (self.folder / "log").read_text().count('"GET /v2/')

    def blob(self, digest: str) -> Path:
        """The file of a blob in the registry's folder."""
        hex_ = digest.partition(":")[2]
        return self.folder / "data/docker/registry/v2/blobs/sha256" / hex_[:2] / hex_ / "data"

    def push(self, path: Path, name: str) -> str:
        """Push an archive under a name with its tag; return the digest of its manifest."""
        digest = self.folder / "digest"
        argv = ["skopeo", "copy", "-q", f"--digestfile={digest}"]
        argv += [f"--dest-cert-dir={self.folder}" if self.tls else "--dest-tls-verify=false"]
        argv += [f"--dest-creds={USER}:{PASSWORD}"] if self.tls or self.realm else []
        run([*argv, f"docker-archive:{path}", f"docker://{self.host}/{name}"])
        return digest.read_text().strip()

    def auth(self, path: Path, password: str = PASSWORD) -> Path:
        """Write the user's credentials as `skopeo login` does."""
        word = base64.b64encode(f"{USER}:{password}".encode()).decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {self.host: {"auth": word}}}))
        return path


def image(target: Path, *texts: str, processor: str = "") -> Path:
    """Write a small image that has a layer for each text, with the file ``text`` in it."""
    layers = [_layer(text) for text in texts]
    config = {
        "architecture": processor or archive.processor(),
        "os": "linux",
        "config": {"Cmd": ["/text"], "Healthcheck": {"Test": ["CMD", "/text"]}},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers],
        },
    }
    opened = [_opener(one) for one in layers]
    archive.write(target, [([], json.dumps(config).encode(), opened)])
    return target


def _opener(data: bytes):  # type: ignore[no-untyped-def]
    return lambda: io.BytesIO(data)


def _layer(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("text")
        info.size = len(text.encode())
        tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


SERVICE, ISSUER = "registry of the test", "issuer of the test"


class Tokens(ThreadingHTTPServer):
    """A server of tokens for a registry (distribution.github.io, "Token Authentication").

    It knows one user, and gives nobody else a token. The registry trusts its certificate.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.given: list[str] = []  # scopes for which it has given tokens
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens of the test")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        (folder / "tokens.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._der = certificate.public_bytes(serialization.Encoding.DER)

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/token"

    def token(self, scopes: list[str]) -> str:
        """A token for some scopes such as ``repository:web:pull`` (RFC 7519, ES256)."""
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": ISSUER, "aud": SERVICE, "sub": USER, "jti": uuid.uuid4().hex,
            "iat": now, "nbf": now - 60, "exp": now + 600, "access": access,
        }  # fmt: skip
        signed = ".".join(_encoded(json.dumps(one).encode()) for one in (head, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encoded(r.to_bytes(32) + s.to_bytes(32))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Answer(BaseHTTPRequestHandler):
    server: Tokens

    def do_GET(self) -> None:
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {word}"
        scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
        body: dict[str, object] = {"details": "incorrect username or password"}
        if known:
            self.server.given += scopes
            body = {"token": self.server.token(scopes), "expires_in": 600}
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@contextlib.contextmanager
def with_tokens(folder: Path) -> Iterator[tuple[Registry, Tokens]]:
    """A registry on loopback that wants a token for everything, and its server of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    with Tokens(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            with registry(folder, realm=server.realm) as found:
                yield found, server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def registry(folder: Path, *, tls: bool = False, realm: str = "") -> Iterator[Registry]:
    """A registry on loopback: with TLS and a password, with tokens of a realm, or without both."""
    folder.mkdir(parents=True, exist_ok=True)
    program = Store().keep("docker-registry", PROGRAM) / "bin/docker-registry"
    for _ in range(3):  # the port may be taken in between
        found = Registry(folder, _free_port(), tls, realm)
        _configure(found)
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [program, "serve", folder / "config.yml"], stdout=log, stderr=log
            )
        try:
            if _answers(found, child):
                yield found
                return
        finally:
            child.kill()
            child.wait()
    pytest.fail((folder / "log").read_text())


def _configure(found: Registry) -> None:
    # JSON is YAML, too.
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"accesslog": {"disabled": False}, "level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(found.folder / "data")}},
        "http": {"addr": found.host, "secret": "of the test"},
    }
    if found.tls:
        _certify(found.folder)
        certificate, key = (
            str(found.folder / "server/cert.pem"),
            str(found.folder / "server/key.pem"),
        )
        config["http"] = {
            "addr": found.host,
            "secret": "of the test",
            "tls": {"certificate": certificate, "key": key},
        }
        word = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (found.folder / "htpasswd").write_text(f"{USER}:{word}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(found.folder / "htpasswd")}}
    if found.realm:
        config["auth"] = {
            "token": {
                "realm": found.realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(found.folder / "tokens.pem"),
            }
        }
    (found.folder / "config.yml").write_text(json.dumps(config))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(found: Registry, child: subprocess.Popen[bytes]) -> bool:
    """Wait until the registry accepts connections; False if it has ended."""
    deadline = time.monotonic() + SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", found.port), 5):
            return True
        time.sleep(0.02)
    return False


def _certify(folder: Path) -> None:
    """Write a certificate for 127.0.0.1 of an authority that nobody else trusts."""
    now = dt.datetime.now(dt.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the test")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    ca = build(ca_name, ca_key.public_key()).add_extension(is_ca, critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = build(name, key.public_key()).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    (folder / "server").mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "server/cert.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "server/key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
