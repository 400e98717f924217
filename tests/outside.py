"""A namespace that stands for this machine's network: a web server and a DNS server in it.

Run as a program, it serves in the namespaces that it is in, and prints a line when it is ready.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: The servers' address (RFC 5737), which every name has here.
ADDRESS = "203.0.113.1"
NAME = "web.example"
LOOPBACK_PORT = 8080  # of a web server on loopback alone
TYPE_A = 1


@dataclass(frozen=True, slots=True)
class Outside:
    """Namespaces with the servers; ``pid`` is their process."""

    pid: int

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command that runs another one with this network."""
        process = f"/proc/{self.pid}"
        spaces = [f"--{name}={process}/ns/{kind}" for name, kind in SPACES.items()]
        # The root of a mount namespace is another one if this machine is in a chroot.
        return ["nsenter", *spaces, f"--root={process}/root", f"--wd={process}/cwd", *argv]

    def run(self, argv: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this network."""
        return subprocess.run(
            self.enter(argv), capture_output=True, text=True, check=False,
            env={**os.environ, **env}, timeout=120,
        )  # fmt: skip


SPACES = {"net": "net", "mount": "mnt"}


@contextlib.contextmanager
def outside(folder: Path) -> Iterator[Outside]:
    """Serve in new namespaces; ``folder`` is for the file of the resolver."""
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {ADDRESS}\n", encoding="utf-8")
    argv = ["unshare", "--net", "--mount", sys.executable, __file__, str(resolver)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Outside(process.pid)
        finally:
            process.kill()


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"for {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _answer(question: bytes) -> bytes:
    """The answer of a DNS server for which each name has one address (RFC 1035, section 4)."""
    end = question.index(0, 12) + 5
    (kind,) = struct.unpack("!H", question[end - 4 : end - 2])
    record = b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, 1, 5, 4) + socket.inet_aton(ADDRESS)
    found = record if kind == TYPE_A else b""
    counts = struct.pack("!HHHH", 1, bool(found), 0, 0)
    return question[:2] + b"\x81\x80" + counts + question[12:end] + found


def _serve(resolver: str) -> None:
    lines = ["link set dev lo up", f"address add {ADDRESS}/32 dev lo"]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    target = os.path.realpath("/etc/resolv.conf")
    subprocess.run(["mount", "-n", "--bind", resolver, target], check=True)
    for place in ((ADDRESS, 80), ("127.0.0.1", LOOPBACK_PORT)):
        threading.Thread(target=ThreadingHTTPServer(place, _Pages).serve_forever).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind((ADDRESS, 53))
        os.write(1, b"ready\n")
        while True:
            question, peer = door.recvfrom(512)
            door.sendto(_answer(question), peer)


if __name__ == "__main__":
    _serve(sys.argv[1])
