"""Frames and events as sightings of one request's packets.

A :class:`Signature` says by what a request is recognised, wherever it is and whatever carries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal

from testbed.observe.capture import (
    FLANNEL_UDP_PORT,
    ICMP,
    ICMPV6,
    IN_IP,
    LINK_ETHERNET,
    LINK_RAW,
    PROTOCOLS,
    TCP,
    UDP,
    Packet,
    decode,
)
from testbed.observe.taps import ETHERNET, OUTGOING
from testbed.walk.model import View

if TYPE_CHECKING:
    from testbed.walk.drops import Drop

Direction = Literal["there", "back", "error"]
"""``there``: the request. ``back``: its answer. ``error``: an ICMP error that cites the request."""

#: Types of ICMP and ICMPv6 errors, which cite the packet that caused them (RFC 792, RFC 4443).
#: A redirect (5) cites one that was forwarded all the same, and is left out.
ERRORS = {ICMP: {3, 4, 11, 12}, ICMPV6: {1, 2, 3, 4}}
REQUEST = {ICMP: 8, ICMPV6: 128}
#: Offsets of the packet inside, from the outer IP header: IP in IP, GRE, flannel's udp backend,
#: VXLAN; each over IPv4 and over IPv6.
CARRIED = (20, 24, 28, 50, 40, 44, 48, 70)
SYN, ECN = 0x02, 0xC0  # flags of TCP; both of ECN ask for it (RFC 3168)
OTHERHOST = 3  # PACKET_OTHERHOST, linux/if_packet.h


@dataclass(frozen=True, slots=True)
class Signature:
    """By what the packets of a request are recognised.

    ``number`` is the token in the data of an echo or a datagram, and the sequence number of a
    TCP connection's first packet. ``sport`` is the source port, or the id of an echo.
    """

    protocol: Literal["icmp", "tcp", "udp"]
    family: Literal[4, 6]
    number: int
    sport: int

    def marks(self) -> list[list[Any]]:
        """Return offsets from the outer IP header, sizes and values, for :mod:`watch`."""
        header = 20 if self.family == 4 else 40
        cited = header + 8  # within an ICMP error
        starts = sorted({0, *CARRIED, cited, *(one + cited for one in CARRIED)})
        found = []
        for start in starts:
            if self.protocol == "tcp":
                found.append([start + header + 4, 4, [self.number]])
                found.append([start + header + 8, 4, [self.number + 1]])
            else:
                found.append([start + header + 8, 4, [self.number]])
                if self.protocol == "udp":
                    found.append([start + header + 2, 2, [self.sport]])
        return found

    @staticmethod
    def opening(address: str, port: int) -> list[Any]:
        """Return the mark of the packets that open a TCP connection to an address and port."""
        packed = ip_address(address).packed
        header, kind, start = (20, 9, 16) if len(packed) == 4 else (40, 6, 24)
        words = [[start + at, 4, int.from_bytes(packed[at : at + 4], "big")]
                 for at in range(0, len(packed), 4)]  # fmt: skip
        return [header + 13, 1, [SYN, SYN | ECN], [kind, 1, TCP], *words, [header + 2, 2, port]]

    def tell(self, packet: Packet) -> Direction | None:
        """Tell what a packet is to the request; None for a packet of others."""
        number = self.number.to_bytes(4, "big")
        if packet.protocol in REQUEST and self.protocol == "icmp":
            echo = _icmp(packet)
            if echo is not None and packet.payload[4:8] == number:
                return "there" if echo[0] == REQUEST[packet.protocol] else "back"
        if self.protocol == "tcp" and packet.protocol == TCP:
            if packet.seq == self.number and "SYN" in packet.flags:
                return "there"
            # Data of the server acknowledge the same number, but they are no copies of its answer.
            answers = packet.ack == self.number + 1 and packet.flags & {"SYN", "RST"}
            return "back" if answers else None
        if self.protocol == "udp" and packet.protocol == UDP:
            if packet.dport == self.sport:
                return "back"
            return "there" if packet.payload[:4] == number else None
        cited = cited_by(packet)
        return "error" if cited is not None and self.tell(cited) == "there" else None


def _icmp(packet: Packet) -> tuple[int, int] | None:
    """Return type and code of a packet of ICMP or ICMPv6."""
    if packet.icmp is None:
        return None
    return packet.icmp.type, packet.icmp.code


def cited_by(packet: Packet) -> Packet | None:
    """Return the packet that an ICMP error cites, as far as it is there."""
    found = _icmp(packet)
    if found is None or found[0] not in ERRORS.get(packet.protocol, ()):
        return None
    return decode(packet.payload[4:], LINK_RAW[0]) if len(packet.payload) > 24 else None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet of the request at a device, as a capture saw it."""

    machine: str
    space: str
    device: str
    point: Literal["in", "out"]
    stamp: int  #: nanoseconds since the epoch, on the machine's clock
    order: int  #: within its namespace
    direction: Direction
    view: View
    packets: tuple[Packet, ...] = field(repr=False)  #: the outermost first
    foreign: bool = False  #: addressed to another machine (PACKET_OTHERHOST)

    @property
    def packet(self) -> Packet:
        """The request's own packet."""
        return self.packets[-1]

    @property
    def place(self) -> tuple[str, str]:
        return self.machine, self.space


def layers(
    packet: Packet, signature: Signature
) -> tuple[list[Packet], list[str], Direction] | None:
    """Return a packet and those inside it, down to the request's own, and what carries each.

    None for a packet that is not the request's.
    """
    direction = signature.tell(packet)
    if direction is not None:
        return [packet], [], direction
    for inner, carrier in _inside(packet):
        found = layers(inner, signature)
        if found is not None:
            packets, carriers, direction = found
            return [packet, *packets], [carrier, *carriers], direction
    return None


def _inside(packet: Packet) -> Iterator[tuple[Packet, str]]:
    """Yield what may be inside a packet, and the name of the encapsulation."""
    data = packet.payload
    if packet.protocol in IN_IP:
        yield decode(data, LINK_RAW[0]), IN_IP[packet.protocol]
    if packet.protocol == 47 and len(data) > 4:  # GRE without options, RFC 2784
        yield decode(data[4:], LINK_RAW[0]), "gre"
    if packet.protocol != UDP:
        return
    if len(data) > 22 and data[0] == 8:  # VXLAN: the flag of a valid VNI, RFC 7348
        vni = int.from_bytes(data[4:7], "big")
        yield decode(data[8:], LINK_ETHERNET), f"vxlan {vni}"
    if data and data[0] >> 4 in {4, 6}:
        ours = FLANNEL_UDP_PORT in {packet.sport, packet.dport}
        yield decode(data, LINK_RAW[0]), "flannel-udp" if ours else "udp"


def view(packets: Sequence[Packet], carriers: Sequence[str], mark: int = 0) -> View:
    """Return the headers of a packet with all that it carries."""
    packet = packets[0]
    inside = view(packets[1:], carriers[1:]) if len(packets) > 1 else None
    sport = packet.icmp.id if packet.icmp else packet.sport
    return View(
        packet.src_mac,
        packet.dst_mac,
        packet.src,
        packet.dst,
        PROTOCOLS.get(packet.protocol, str(packet.protocol)),
        sport,
        packet.dport,
        tuple(sorted(packet.flags)),
        packet.ttl,
        packet.ip_id,
        mark,
        packet.length,
        carriers[0] if carriers else "",
        inside,
        packet.frame,
    )


def sightings(
    place: tuple[str, str], frames: Sequence[Sequence[Any]], signature: Signature
) -> Iterator[Sighting]:
    """Yield the sightings among the frames that an eye has kept (:class:`watch.Eye`)."""
    for order, (stamp, device, kind, hardware, data) in enumerate(frames):
        link = LINK_ETHERNET if hardware in ETHERNET else LINK_RAW[0]
        found = layers(decode(data, link, stamp / 1e9), signature)
        if found is None:
            continue
        packets, carriers, direction = found
        yield Sighting(
            *place,
            device,
            "out" if kind == OUTGOING else "in",
            stamp,
            order,
            direction,
            view(packets, carriers),
            tuple(packets),
            kind == OTHERHOST,
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """A packet of the request that the kernel dropped, as its tracepoint reported it.

    ``space`` is the inode of the network namespace and ``device`` an index there, 0 if not known.
    ``reason`` has the kernel's word, ``function`` is that of the kernel if it has no better word.
    """

    direction: Direction
    space: int
    device: int
    reason: str
    function: str


def dropped(drops: Sequence[Drop], signature: Signature) -> Iterator[Dropped]:
    """Yield the drops of the request's packets."""
    for space, device, reason, function, data in drops:
        found = layers(decode(data, LINK_RAW[0]), signature)
        if found is not None:
            yield Dropped(found[2], space, device, reason, function)
