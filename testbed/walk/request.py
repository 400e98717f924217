"""The request of a walk, and the words that choose it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from testbed.errors import UsageError

HTTP = 80  # the port of a URL without one
PORT_MAX = 65535  # of TCP and UDP
OCTETS = 56  # data of an echo or a datagram, as ping(8) sends


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a walk.

    ``port`` is that of TCP and UDP. ``http`` is the path of an HTTP request, "" for none, and
    ``host`` its Host header. ``size`` is the data of an echo or a datagram in octets, and
    ``seconds`` the time to wait for an answer.
    """

    protocol: Literal["icmp", "tcp", "udp"] = "icmp"
    port: int = 0
    http: str = ""
    host: str = ""
    size: int = OCTETS
    seconds: float = 1.0

    def __str__(self) -> str:
        if self.http:
            return f"http {self.http} (tcp {self.port})"
        return "icmp echo" if self.protocol == "icmp" else f"{self.protocol} {self.port}"


def request_of(
    *,
    icmp: bool = False,
    tcp: int | None = None,
    udp: int | None = None,
    http: str | None = None,
    size: int | None = None,
    seconds: float = 1.0,
) -> Request | None:
    """Return the request that at most one of the first four chooses; None without any.

    ``tcp`` and ``udp`` are ports, ``http`` is a URL, or a path on port 80.  ``size`` is the data
    of an echo or a datagram in octets.  Raises UsageError.
    """
    chosen = {"icmp": icmp, "tcp": tcp, "udp": udp, "http": http}
    given = [name for name, value in chosen.items() if value not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", where="request")
    for name, port in (("tcp", tcp), ("udp", udp)):
        if port is not None and not 0 < port <= PORT_MAX:
            raise UsageError(f"a port is 1 to {PORT_MAX}", where=f"{name} {port}")
    if size is not None and (tcp or http is not None):
        raise UsageError("only an echo and a datagram have a size", where="size")
    octets = OCTETS if size is None else size
    if http is not None:
        return _http(http, seconds)
    if tcp:
        return Request("tcp", tcp, seconds=seconds)
    if udp:
        return Request("udp", udp, size=octets, seconds=seconds)
    return Request(size=octets, seconds=seconds) if icmp or size is not None else None


def _http(url: str, seconds: float) -> Request:
    if not url.strip():
        raise UsageError("wanted a URL, or a path such as /", where="http")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}" if url[:1] != "/" else url)
        port = parts.port or HTTP
    except ValueError as error:
        raise UsageError(f"wanted a URL: {error}", where=f"http {url}") from error
    if parts.scheme not in {"", "http"}:
        raise UsageError("only http is supported", where=f"http {url}", hint="use TCP, port 443")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isprintable() or " " in path or not path.isascii():
        raise UsageError("wanted a URL without blanks", where=f"http {url}")
    host = parts.netloc.rpartition("@")[2]  # with its port (RFC 9110, section 7.2)
    return Request("tcp", port, http=path, host=host, seconds=seconds)
