"""Packets as lines of text, like those of tcpdump, and as data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from testbed.observe.capture import (
    FLANNEL_UDP_PORT,
    ICMP,
    ICMPV6,
    IN_IP,
    LINK_RAW,
    PROTOCOLS,
    TCP,
    UDP,
    VXLAN_PORT,
    Packet,
    decode,
)

if TYPE_CHECKING:
    from testbed.observe.listen import Seen

#: Types of ICMP and ICMPv6 in tcpdump's words.
TYPES = {
    (ICMP, 0): "echo reply", (ICMP, 3): "unreachable", (ICMP, 5): "redirect",
    (ICMP, 8): "echo request", (ICMP, 11): "time exceeded",
    (ICMPV6, 1): "unreachable", (ICMPV6, 2): "packet too big", (ICMPV6, 3): "time exceeded",
    (ICMPV6, 128): "echo request", (ICMPV6, 129): "echo reply",
    (ICMPV6, 133): "router solicitation", (ICMPV6, 134): "router advertisement",
    (ICMPV6, 135): "neighbor solicitation", (ICMPV6, 136): "neighbor advertisement",
    (ICMPV6, 143): "multicast listener report v2",
}  # fmt: skip
LETTERS = {"FIN": "F", "SYN": "S", "RST": "R", "PSH": "P", "ACK": ".", "URG": "U"}
VXLAN_PORTS = (VXLAN_PORT, 4789)


def line(seen: Seen, width: int = 0) -> str:
    """Return a packet as a line: local time, place in ``width`` columns, direction, and words."""
    seconds, nanoseconds = divmod(seen.stamp, 10**9)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    words = text(_packet(seen))
    return f"{clock}.{nanoseconds // 1000:06} {seen.place:<{width}} {seen.direction:<3} {words}"


def text(packet: Packet) -> str:
    """Return a packet in words, with those that it carries."""
    if packet.arp:
        arp = packet.arp
        if arp.op == 1:
            return f"ARP, Request who-has {arp.target} tell {arp.sender}"
        return f"ARP, Reply {arp.sender} is-at {arp.sender_mac}"
    if not packet.src:
        return f"{packet.src_mac} > {packet.dst_mac}, ethertype {packet.ethertype:#06x}"
    family = "IP6" if ":" in packet.src else "IP"
    ports = packet.protocol in {TCP, UDP}
    ends = [
        f"{address}.{port}" if ports else address
        for address, port in ((packet.src, packet.sport), (packet.dst, packet.dport))
    ]
    return f"{family} {ends[0]} > {ends[1]}: {_about(packet)}"


def _about(packet: Packet) -> str:
    inside = carried(packet)
    if inside is not None:
        name, inner = inside
        return f"{name} | {text(inner)}"
    length = len(packet.payload)
    if packet.protocol == TCP:
        flags = "".join(LETTERS[flag] for flag in LETTERS if flag in packet.flags) or "none"
        ack = f", ack {packet.ack}" if "ACK" in packet.flags else ""
        return f"Flags [{flags}], seq {packet.seq}{ack}, length {length}"
    if packet.protocol == UDP:
        return f"UDP, length {length}"
    if packet.icmp is not None:
        kind = (packet.protocol, packet.icmp.type)
        words = TYPES.get(kind, f"type {packet.icmp.type} code {packet.icmp.code}")
        echo = f", id {packet.icmp.id}, seq {packet.icmp.seq}" if "echo" in words else ""
        return f"{'ICMP6' if packet.protocol == ICMPV6 else 'ICMP'} {words}{echo}"
    return f"protocol {packet.protocol}, length {length}"


def carried(packet: Packet) -> tuple[str, Packet] | None:
    """Return the packet that another one carries, and the name of the encapsulation."""
    if packet.protocol == UDP:
        for port in VXLAN_PORTS:
            if found := packet.vxlan(port):
                return f"VXLAN {found[0]}", found[1]
        if (inner := packet.inner_ip(FLANNEL_UDP_PORT)) is not None:
            return "flannel udp", inner
    if packet.protocol in IN_IP and packet.payload:
        return "IP in IP", decode(packet.payload, LINK_RAW[0])
    return None


def data(seen: Seen) -> dict[str, Any]:
    """Return a packet as data for JSON; ``time`` is in seconds since the epoch."""
    return {
        "time": f"{seen.stamp // 10**9}.{seen.stamp % 10**9:09}",
        "place": seen.place,
        "direction": seen.direction,
        "length": seen.length,
        **_fields(_packet(seen)),
    }


def _fields(packet: Packet) -> dict[str, Any]:
    inside = carried(packet) if packet.src else None
    found: dict[str, Any] = {
        "text": text(packet),
        "src_mac": packet.src_mac,
        "dst_mac": packet.dst_mac,
        "src": packet.src,
        "dst": packet.dst,
        "protocol": PROTOCOLS.get(packet.protocol, str(packet.protocol)) if packet.src else "",
        "sport": packet.sport,
        "dport": packet.dport,
        "flags": sorted(packet.flags),
        "ttl": packet.ttl,
    }
    if packet.arp:
        found["protocol"] = "arp"
    if inside is not None:
        found |= {"carrier": inside[0], "inside": _fields(inside[1])}
    return found


def _packet(seen: Seen) -> Packet:
    return decode(seen.frame, seen.link, seen.stamp / 1e9)
