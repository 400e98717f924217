"""The API's client, against a real server with TLS on a unix socket."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from testbed.errors import LabError
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import FakeProvider
from testbed.roles.kubernetes import certificates
from testbed.roles.kubernetes.api import Api, Refused, Unanswered
from testbed.roles.kubernetes.pki import Authority

AUTHORITY = Authority.new("testbed")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    there: ClassVar[dict[str, Any]] = {}

    def address_string(self) -> str:  # of a unix socket there is none
        return "client"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, code: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path
        if path == "/readyz":
            self._answer(200 if self.there else 500, b"ok")
        elif path in self.there:
            self._answer(200, self.there[path])
        else:
            self._answer(404, {"kind": "Status", "message": f'"{path}" not found'})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{self.path}/{body['metadata']['name']}"
        if path in self.there:
            self._answer(409, {"kind": "Status", "message": "already exists"})
        elif body.get("kind") == "Bad":
            self._answer(422, b"no JSON at all")
        else:
            self.there[path] = body
            self._answer(201, body)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # those whom it does not trust
        pass


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    Handler.there.clear()
    pair = AUTHORITY.issue("api", hosts=["kubernetes"])
    (tmp_path / "pair").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=AUTHORITY.pair.certificate.decode())
    context.load_cert_chain(tmp_path / "pair")
    place = str(tmp_path / "api.sock")
    with Server(place, Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield place
        server.shutdown()
        thread.join()


@pytest.fixture
def api(path: str) -> Api:
    return Api(path, AUTHORITY.pair.certificate, AUTHORITY.issue("admin"))


def test_it_is_ready_when_it_says_so(api: Api) -> None:
    assert not api.ready()
    Handler.there["/"] = {}
    assert api.ready()


def test_nobody_there_is_not_ready(tmp_path: Path) -> None:
    api = Api(str(tmp_path / "none"), AUTHORITY.pair.certificate, AUTHORITY.issue("admin"))
    assert not api.ready()
    with pytest.raises(Unanswered, match=r"GET /api: .*No such file"):
        api.ask("GET", "/api")


def test_made_once_and_found(api: Api) -> None:
    body = {"metadata": {"name": "node1"}}
    assert api.find("/api/v1/nodes/node1") is None
    assert api.create("/api/v1/nodes", body)
    assert not api.create("/api/v1/nodes", body)
    assert api.find("/api/v1/nodes/node1") == body


def test_a_no_says_to_what_and_why(api: Api) -> None:
    with pytest.raises(Refused, match='GET /x: "/x" not found') as refused:
        api.ask("GET", "/x")
    assert refused.value.code == 404
    with pytest.raises(Refused, match="POST /y: no JSON at all"):
        api.create("/y", {"kind": "Bad", "metadata": {"name": "z"}})


def test_a_server_of_another_authority_is_not_asked(path: str) -> None:
    other = Authority.new("testbed")
    api = Api(path, other.pair.certificate, other.issue("admin"))
    assert not api.ready()
    with pytest.raises(Unanswered, match="CERTIFICATE_VERIFY_FAILED"):
        api.ask("GET", "/api")


def test_a_client_of_another_authority_is_not_answered(path: str) -> None:
    api = Api(path, AUTHORITY.pair.certificate, Authority.new("x").issue("admin"))
    with pytest.raises(Unanswered):
        api.ask("GET", "/api")


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b"7", b"null", b"[" * 100_000, b"\xff"])
def test_an_answer_that_makes_no_sense(api: Api, body: bytes) -> None:
    Handler.there["/api"] = body
    with pytest.raises(Unanswered):
        api.ask("GET", "/api")
    with pytest.raises(Unanswered):
        api.find("/api")


def test_a_server_that_hangs(tmp_path: Path) -> None:
    place = str(tmp_path / "hangs.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        api = Api(place, AUTHORITY.pair.certificate, AUTHORITY.issue("admin"))
        with pytest.raises(Unanswered, match="timed out"):
            api.ask("GET", "/api", timeout=0.05)


@pytest.mark.parametrize("text", [None, "", "no JSON", "{}", '{"users": [], "clusters": []}', "[]"])
def test_a_cluster_whose_certificates_are_not_there(text: str | None) -> None:
    node = FakeProvider().create_one("lab", NodeSpec("node1", "-"))
    if text is not None:
        node.put(text.encode(), certificates.ADMIN)
    with pytest.raises(LabError, match="node1"):
        certificates.client(node)
