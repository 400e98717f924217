"""The API server of a cluster, in memory."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs


@dataclass
class Api:
    """An API server in memory: objects by path, and what was asked."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    refuse: Callable[[str, str], tuple[int, dict[str, Any]] | None] = lambda method, path: None
    allowed: bool = True
    age: float = 0.0  # seconds of objects when they are created
    ahead: float = 0.0  # seconds of its clock
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)  # of Pods, from the first version on

    def tell(self, kind: str, one: dict[str, Any]) -> None:
        """Let watches know of a change."""
        version = str(len(self.events) + 1)
        one = {**one, "metadata": {**one["metadata"], "resourceVersion": version}}
        self.events.append({"type": kind, "object": one})

    def watched(self, query: str) -> list[dict[str, Any]]:
        """The events since a version.  A watch ends at once."""
        (version,) = parse_qs(query)["resourceVersion"]
        new = self.events[int(version) :]
        return [event for event in new if self.chosen(event["object"], query)]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        plain, _, query = path.partition("?")
        self.asked.append((method, path))
        self.bodies.append(body)
        if refused := self.refuse(method, path):
            return refused
        if plain.endswith("selfsubjectreviews"):
            return 201, {"status": {"userInfo": {"username": "jane"}}}
        if plain.endswith("selfsubjectaccessreviews"):
            return 201, {"status": {"allowed": self.allowed}}
        if method == "POST":
            return self.create(plain, query, body)
        last = plain.rpartition("/")[2]
        if method == "GET" and last in {"pods", "jobs", "namespaces", "nodes"}:
            return 200, self.listed(plain, query)
        if plain not in self.objects:
            return 404, {"reason": "NotFound", "message": f"{plain} not found"}
        there = self.objects[plain]
        if method == "DELETE":
            if body["preconditions"]["uid"] != there["metadata"]["uid"]:
                return 409, {"reason": "Conflict", "message": "another one"}
            self.delete(plain, there)
        if method == "PATCH":
            there["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        return 200, there

    def delete(self, plain: str, there: dict[str, Any]) -> None:
        before = self.objects
        self.objects = {
            p: o for p, o in self.objects.items()
            if p != plain and not p.startswith(f"{plain}/") and f"{plain}/" not in p
            and not (there["kind"] == "Namespace" and f"/{there['metadata']['name']}/" in p)
        }  # fmt: skip
        for path, one in before.items():
            if path not in self.objects and one["kind"] == "Pod":
                self.tell("DELETED", one)

    def listed(self, plain: str, query: str) -> dict[str, Any]:
        if "watch=1" in query:
            return {"events": self.watched(query)}
        found = [o for p, o in self.objects.items() if p.rpartition("/")[0] == plain]
        items = [one for one in found if self.chosen(one, query)]
        return {"items": items, "metadata": {"resourceVersion": str(len(self.events))}}

    @staticmethod
    def chosen(one: dict[str, Any], query: str) -> bool:
        (selector,) = parse_qs(query).get("labelSelector", [""])
        pairs = (word.split("=") for word in selector.split(",") if word)
        return all(one["metadata"]["labels"].get(name) == value for name, value in pairs)

    def create(self, plain: str, query: str, body: Any) -> tuple[int, dict[str, Any]]:
        name = f"{plain}/{body['metadata']['name']}"
        if name in self.objects:
            return 409, {"reason": "AlreadyExists", "message": "exists"}
        born = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - self.age))
        meta = {**body["metadata"], "uid": f"uid-{len(self.asked)}", "creationTimestamp": born}
        made = {**body, "metadata": meta}
        if body["kind"] == "Pod":
            made["spec"].setdefault("nodeName", "worker-1")
            running = [{"name": "node", "state": {"running": {}}}]
            made["status"] = {
                "phase": "Running", "podIP": f"10.244.0.{len(self.objects)}",
                "containerStatuses": running,
            }  # fmt: skip
        if "dryRun" not in query:
            self.objects[name] = made
            if body["kind"] == "Pod":
                self.tell("ADDED", made)
        return 201, made


@contextlib.contextmanager
def served() -> Iterator[Api]:
    """An API server at a port of this machine."""
    made = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer's second part waits for 40 ms

        def reply(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, answer = made.answer(self.command, self.path, body)
            text = json.dumps(answer).encode()
            if "events" in answer:
                text = b"".join(json.dumps(one).encode() + b"\n" for one in answer["events"])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp or time.time() + made.ahead)

        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "POST", "DELETE", "PATCH"):
        setattr(Handler, f"do_{method}", Handler.reply)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(folder: Path, server: str) -> str:
    """Write a kubeconfig with the context ``here``, and return its path."""
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )  # fmt: skip
    return str(path)
