"""Connection tracking's events: the addresses of a connection, before and after translation."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.observe.trace import NFGENMSG, NLMSGHDR, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: linux/netfilter/nfnetlink_conntrack.h: enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto.
ORIGINAL, REPLY = 1, 2
TUPLE_IP, TUPLE_PROTO = 1, 2
SOURCES, TARGETS = (1, 3), (2, 4)  # of IPv4 and IPv6
NUMBER, SOURCE_PORT, TARGET_PORT = 1, 2, 3
ECHO_IDS = (4, 7)  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID
NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_NEW, as a message's type


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection.  An echo has its id as ``sport``."""

    src: str = ""
    dst: str = ""
    protocol: int = 0
    sport: int = 0
    dport: int = 0

    def __str__(self) -> str:
        if not self.dport:
            return f"{self.src} > {self.dst}"
        left, right = (f"[{one}]" if ":" in one else one for one in (self.src, self.dst))
        return f"{left}:{self.sport} > {right}:{self.dport}"


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection: the addresses of its first packet, and those of the expected answer."""

    original: Tuple
    reply: Tuple

    @property
    def translated(self) -> bool:
        """True if the answer is not the first packet turned round."""
        there, back = self.original, self.reply
        ports = (back.dport, back.sport) if there.dport else (back.sport, 0)
        return (there.src, there.dst, there.sport, there.dport) != (back.dst, back.src, *ports)


def connections(messages: bytes) -> Iterator[Connection]:
    """Yield the connections of the events in netlink messages, one after another."""
    at = 0
    while at + NLMSGHDR <= len(messages):
        length, kind = struct.unpack_from("=IH", messages, at)
        if length < NLMSGHDR or at + length > len(messages):
            return
        if kind == NEW:
            values = dict(attributes(messages[at + NLMSGHDR + NFGENMSG : at + length]))
            yield Connection(_tuple(values.get(ORIGINAL, b"")), _tuple(values.get(REPLY, b"")))
        at += (length + 3) & ~3


def _tuple(data: bytes) -> Tuple:
    values = dict(attributes(data))
    ip = dict(attributes(values.get(TUPLE_IP, b"")))
    proto = dict(attributes(values.get(TUPLE_PROTO, b"")))
    ident = next((_number(proto, kind) for kind in ECHO_IDS if kind in proto), 0)
    return Tuple(
        _address(ip, SOURCES),
        _address(ip, TARGETS),
        _number(proto, NUMBER),
        _number(proto, SOURCE_PORT) or ident,
        _number(proto, TARGET_PORT),
    )


def _number(values: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""), "big")


def _address(values: Mapping[int, bytes], kinds: tuple[int, int]) -> str:
    for kind, family in zip(kinds, (socket.AF_INET, socket.AF_INET6), strict=True):
        if kind in values:
            return socket.inet_ntop(family, values[kind])
    return ""
