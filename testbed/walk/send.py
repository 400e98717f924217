"""Send one real request, whose packets can be told from all others.

An echo request and a UDP datagram carry a token of 4 octets. A TCP connection begins with a known
sequence number (TCP_REPAIR, tcp(7)), which neither NAT nor an encapsulation changes, and which the
answer acknowledges.

This module needs the standard library alone. It also runs as a program on nodes whose namespaces
cannot be entered from this machine; its argument is the JSON text of :func:`main`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

REPAIR, REPAIR_QUEUE, QUEUE_SEQ = 19, 20, 21  # linux/tcp.h
SEND_QUEUE = 2
ECHO = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}  # request, reply
DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
DO_NOT_FRAGMENT = 2  # IP_PMTUDISC_DO
REPLY = 1 << 16
TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}  # by bind(2), and by connect(2) for a same pair


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo(kind: int, ident: int, token: bytes, size: int) -> bytes:
    """Return an echo request with a token and ``size`` octets of data."""
    data = (token + bytes(range(256)) * (size // 256 + 1))[: max(size, len(token))]
    header = struct.pack(">BBHHH", kind, 0, 0, ident, 1)
    return struct.pack(">BBHHH", kind, 0, checksum(header + data), ident, 1) + data


def send(given: dict[str, Any], opened: Any = None) -> dict[str, Any]:
    """Send a request and wait for its answer.

    ``given`` has "protocol" ("icmp", "tcp", "udp"), "family" (4, 6), "address", "port", "sport",
    "number" (token or sequence number), "size" of the data in octets, "http" (a path, or ""),
    "host", and "seconds" to wait. Return "outcome": "answered", "refused", "silent" or "error"
    with "error"; "sent" (nanoseconds since the epoch), "source", "seconds" and "text"; and
    "taken", which tells that nothing was sent because the source port is in use. ``opened`` is
    called with the socket of a TCP connection as soon as this is open; it takes none of "seconds".
    """
    family = socket.AF_INET if given["family"] == 4 else socket.AF_INET6
    connect = functools.partial(_connect, opened)
    works: dict[str, Any] = {"icmp": _echo, "tcp": connect, "udp": _datagram}
    work = works[given["protocol"]]
    found: dict[str, Any] = {"outcome": "silent", "error": "", "text": "", "source": ""}
    found["taken"] = False
    found["sent"] = time.time_ns()
    begin = time.monotonic()
    try:
        found.update(work(family, given))
    except (TimeoutError, socket.timeout):  # noqa: UP041  not the same before Python 3.10
        found["outcome"] = "silent"
    except OSError as error:
        found["outcome"] = "refused" if error.errno == errno.ECONNREFUSED else "error"
        found["error"] = os.strerror(error.errno or 0)
        found["taken"] = error.errno in TAKEN
    found["seconds"] = time.monotonic() - begin - found.pop("held", 0.0)
    return found


def _echo(family: Any, given: dict[str, Any]) -> dict[str, Any]:
    request, reply = ECHO[family]
    proto = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    token = struct.pack(">I", given["number"])
    with socket.socket(family, socket.SOCK_RAW, proto) as sock:
        sock.setsockopt(*DISCOVER[family], DO_NOT_FRAGMENT)
        _report_errors(family, sock)
        sock.connect((given["address"], 0))
        source = sock.getsockname()[0]
        sock.send(echo(request, given["sport"], token, given["size"]))
        deadline = time.monotonic() + given["seconds"]
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([sock], [], [], left)
            if not ready:
                break
            data = sock.recv(REPLY)
            data = data[(data[0] & 15) * 4 :] if family == socket.AF_INET else data
            if data[0] == reply and data[8:12] == token:
                return {"outcome": "answered", "source": source}
    return {"source": source}


def _report_errors(family: Any, sock: socket.socket) -> None:
    """Have errors that ICMP reports raised by the next call of the socket."""
    with contextlib.suppress(OSError):
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR


def _connect(opened: Any, family: Any, given: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", given["sport"]))
        sock.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, REPAIR_QUEUE, SEND_QUEUE)
        sock.setsockopt(socket.IPPROTO_TCP, QUEUE_SEQ, given["number"])
        sock.setsockopt(socket.IPPROTO_TCP, REPAIR, 0)
        sock.settimeout(given["seconds"])
        sock.connect((given["address"], given["port"]))
        found = {"outcome": "answered", "source": sock.getsockname()[0], "text": ""}
        if opened is not None:
            since = time.monotonic()
            opened(sock)
            found["held"] = time.monotonic() - since
        if given["http"]:
            lines = [f"GET {given['http']} HTTP/1.1", f"Host: {given['host']}",
                     "User-Agent: testbed-walk", "Connection: close"]  # fmt: skip
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            try:
                answer = sock.recv(REPLY)
            except (TimeoutError, socket.timeout):  # noqa: UP041  not the same before Python 3.10
                found["text"] = "accepts the connection, and does not answer the HTTP request"
            else:
                line = answer.split(b"\r\n")[0].decode(errors="replace")[:200]
                found["text"] = line or "closes the connection without an answer"
        return found


def _datagram(family: Any, given: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", given["sport"]))
        _report_errors(family, sock)
        sock.setsockopt(*DISCOVER[family], DO_NOT_FRAGMENT)
        sock.settimeout(given["seconds"])
        sock.connect((given["address"], given["port"]))
        source = sock.getsockname()[0]
        token = struct.pack(">I", given["number"])
        sock.send((token + b"testbed walk\n" + bytes(given["size"]))[: max(given["size"], 16)])
        try:
            sock.recv(REPLY)
        except (TimeoutError, socket.timeout):  # noqa: UP041  not the same before Python 3.10
            return {"source": source}
        return {"outcome": "answered", "source": source}


def main(text: str) -> None:
    """Send the request of a JSON text and print the outcome as JSON."""
    sys.stdout.write(json.dumps(send(json.loads(text))))


if __name__ == "__main__":
    main(sys.argv[1])
