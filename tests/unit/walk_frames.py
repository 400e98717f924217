"""Frames of one request, made by hand, for tests of a walk without a lab."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from testbed.observe.inventory import Link, Peer
from testbed.walk.follow import Seen
from testbed.walk.frames import Signature, sightings
from testbed.walk.rules import Ruleset

if TYPE_CHECKING:
    from testbed.observe.trace import TraceEvent

NUMBER, IDENT, SPORT = 0x5EADBEEF, 4711, 61234
ECHO = Signature("icmp", 4, NUMBER, SPORT)
OUT, IN, OTHER = 4, 0, 3
A, B, C, D = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c", "02:00:00:00:00:0d"


def ip(src: str, dst: str, data: bytes, *, protocol: int = 1, ttl: int = 64, ident: int = IDENT
       ) -> bytes:  # fmt: skip
    """An IPv4 or IPv6 packet."""
    pair = ip_address(src).packed + ip_address(dst).packed
    if ":" in src:
        return struct.pack(">IHBB", 6 << 28, len(data), protocol, ttl) + pair + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), ident, 0x4000, ttl, protocol, 0)
    return head + pair + data


def frame(src: str, dst: str, packet: bytes) -> bytes:
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return bytes.fromhex((dst + src).replace(":", "")) + kind + packet


def echo(kind: int = 8, number: int = NUMBER) -> bytes:
    return struct.pack(">BBHHHI", kind, 0, 0, SPORT, 1, number) + bytes(52)


def tcp(*, seq: int, ack: int = 0, flags: int = 2, sport: int = SPORT, dport: int = 80) -> bytes:
    return struct.pack(">HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 1000, 0, 0)


def udp(data: bytes, sport: int = SPORT, dport: int = 53) -> bytes:
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def vxlan(src: str, dst: str, inner: bytes, vni: int = 1, ttl: int = 64) -> bytes:
    data = udp(struct.pack(">II", 8 << 24, vni << 8) + inner, 40000, 8472)
    return ip(src, dst, data, protocol=17, ttl=ttl, ident=99)


def link(name: str, index: int, peer: str = "", **other: Any) -> Link:
    """A device; ``peer`` is "machine/space/device"."""
    machine, _, rest = peer.partition("/")
    space, _, device = rest.partition("/")
    return Link(name, index, peer=Peer(machine, space, device) if peer else None, up=True, **other)


def seen(
    machine: str,
    space: str,
    links: Sequence[Link],
    frames: Sequence[tuple[int, str, int, bytes]],
    signature: Signature = ECHO,
    *,
    events: Sequence[TraceEvent] = (),
    rules: Ruleset | None = None,
    **other: Any,
) -> Seen:
    """A namespace with its frames: of each a time, device, packet type and the octets."""
    made = [(stamp, device, kind, 1, data) for stamp, device, kind, data in frames]
    return Seen(
        machine,
        space,
        links={one.name: one for one in links},
        sightings=tuple(sightings((machine, space), made, signature)),
        events=events,
        rules=rules or Ruleset(),
        **other,
    )


def keyed(*all_seen: Seen) -> Mapping[tuple[str, str], Seen]:
    return {one.place: one for one in all_seen}
