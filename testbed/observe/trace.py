"""Netfilter's reports of packets: TRACE events of both iptables, and NFLOG.

The two variants of iptables trace in two ways, and neither needs the kernel's
log (to which only the initial network namespace may write):

- ``iptables-legacy`` passes each event to the logger of the packet's family.
  With ``nfnetlink_log`` as that logger (``/proc/sys/net/netfilter/nf_log/2``)
  they go to NFLOG group 0, with the text of the kernel's log as prefix.
- ``iptables-nft`` marks the packet, and nftables sends an event to the netlink
  group NFNLGRP_NFTRACE for each rule that the packet meets, each return and
  each policy.

Both end as :class:`TraceEvent`, and :func:`ways` groups them by packet.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from testbed.errors import LabError
from testbed.observe.capture import (
    LINK_ETHERNET,
    LINK_RAW,
    START_SECONDS,
    Packet,
    decode,
    wait_for_sign,
)
from testbed.observe.taps import INTERPRETER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from testbed.nodes.base import Running
    from testbed.nodes.place import Place

Kind = Literal["rule", "return", "policy"]

LEGACY_GROUP = 0  # where the kernel's nf_log_trace logs to, when nfnetlink_log is the logger
LOGGER = "net.netfilter.nf_log.2"  # the sysctl that names the logger of family 2, IPv4
NFNETLINK_LOG = "nfnetlink_log"
ETHERNET_HEADER = 14
TIMESTAMP = 16  # octets: two numbers of 64 bits
PREFIX = "TRACE: "

#: linux/netfilter/nfnetlink_log.h, enum nfulnl_attr_type; LINKTYPE_NFLOG has the same.
NFULA_TIMESTAMP, NFULA_INDEV, NFULA_OUTDEV, NFULA_PHYSINDEV, NFULA_PHYSOUTDEV = 3, 4, 5, 6, 7
NFULA_PAYLOAD, NFULA_PREFIX, NFULA_HWHEADER = 9, 10, 16

#: linux/netfilter/nf_tables.h, enum nft_trace_attributes and nft_trace_types.
NFTA_TABLE, NFTA_CHAIN, NFTA_RULE_HANDLE, NFTA_TYPE, NFTA_ID = 1, 2, 3, 4, 6
NFTA_VERDICT, NFTA_MARK, NFTA_POLICY = 5, 14, 16
NFTA_ALWAYS = (NFTA_TABLE, NFTA_CHAIN, NFTA_TYPE, NFTA_ID)
VERDICT_CODE, VERDICT_CHAIN = 1, 2  # enum nft_verdict_attributes
#: enum nft_verdicts, and linux/netfilter.h.
VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat",
            -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}  # fmt: skip
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
NFTA_LL_HEADER, NFTA_NETWORK_HEADER, NFTA_TRANSPORT_HEADER = 7, 8, 9
NFTA_IIF, NFTA_OIF = 10, 12
KINDS: Mapping[int, Kind] = {1: "policy", 2: "return", 3: "rule"}
#: linux/netfilter/nfnetlink.h: NFNL_SUBSYS_NFTABLES and NFT_MSG_TRACE, as a message's type.
TRACE_MESSAGE = 10 << 8 | 17
NLMSGHDR, NFGENMSG = 16, 4
ATTRIBUTE_TYPE = 0x3FFF  # the upper two bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)


@dataclass(frozen=True, slots=True)
class Logged:
    """A packet at a hook.  Fields that the kernel leaves out are empty: "", 0, None.

    ``physindev`` and ``physoutdev`` are the bridge's ports of a bridged
    packet; ``hwheader`` is the frame's header; ``stamp`` is in microseconds.
    """

    prefix: str = ""
    indev: str = ""
    outdev: str = ""
    physindev: str = ""
    physoutdev: str = ""
    hwheader: bytes = b""
    packet: Packet | None = None
    stamp: int = 0

    def __str__(self) -> str:
        words = [f"IN={self.indev} OUT={self.outdev}"]
        words += [f"PHYSIN={self.physindev}"] if self.physindev else []
        words += [f"PHYSOUT={self.physoutdev}"] if self.physoutdev else []
        words += [f"MAC={self.hwheader.hex(':')}"] if self.hwheader else []
        packet = self.packet
        if packet is not None:
            words.append(
                f"SRC={packet.src} DST={packet.dst} LEN={packet.ip_length} "
                f"TTL={packet.ttl} ID={packet.ip_id}"
            )
            if packet.icmp:
                echo = packet.icmp
                words.append(f"TYPE={echo.type} CODE={echo.code} ID={echo.id} SEQ={echo.seq}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A traced packet at one rule, return or policy.

    ``number`` is the entry's number within its chain, from 1, as
    iptables-legacy counts; nftables has a ``handle`` instead, and an
    ``id`` for the packet, which it shows (``seen``) once in each base chain.
    ``family`` is that of the table: "inet" also where the packet is of IPv4. nftables adds
    ``verdict`` ("accept", "drop", "jump X", ...) and the packet's ``mark``.
    """

    table: str
    chain: str
    kind: Kind
    number: int = 0
    handle: int = 0
    id: int = 0
    seen: Logged | None = None
    verdict: str = ""
    family: str = ""
    mark: int = 0

    @property
    def packet(self) -> Packet | None:
        return self.seen.packet if self.seen else None

    def __str__(self) -> str:
        where = f"{self.table}:{self.chain}:{self.kind}"
        where += f":{self.number}" if self.number else ""
        where += f" handle {self.handle}" if self.handle else ""
        return f"{where} {self.seen}" if self.seen else where


@dataclass(frozen=True, slots=True)
class Way:
    """The events of one packet, in their order."""

    events: tuple[TraceEvent, ...]

    @property
    def packet(self) -> Packet:
        """The packet as it was at the first event."""
        return next(event.packet for event in self.events if event.packet)

    @property
    def chains(self) -> list[tuple[str, str]]:
        """Table and chain of the events that show the packet, without repetition.

        For nftables these are the base chains, for iptables-legacy all.
        """
        shown = [(event.table, event.chain) for event in self.events if event.seen]
        return list(dict.fromkeys(shown))

    def at(self, table: str, chain: str) -> list[TraceEvent]:
        """Return the events in a chain."""
        return [event for event in self.events if (event.table, event.chain) == (table, chain)]

    def lines(self) -> str:
        """Return all events as text, a line each, to keep as evidence."""
        return "\n".join(map(str, self.events))


def ways(events: Iterable[TraceEvent]) -> list[Way]:
    """Group events by packet, packets in the order of their first event.

    Where the packet is shown, addresses, ports and ICMP header identify it; the
    IP id is not used.  Where nftables does not show it, its ``id`` does: it stays
    the same within a base chain, but changes once a bridge has passed the packet
    up, and may be reused for a later packet.
    """
    found: dict[object, list[TraceEvent]] = {}
    latest: dict[int, list[TraceEvent]] = {}
    for event in events:
        packet = event.packet
        if packet is not None:
            key = (packet.flow, packet.protocol, packet.seq, packet.icmp)
            latest[event.id] = found.setdefault(key, [])
        if event.id in latest:  # otherwise it was in transit when listening began
            latest[event.id].append(event)
    return [Way(tuple(one)) for one in found.values()]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return netlink attributes: length and type in native order, padded to 4 octets."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            raise LabError(f"a netlink attribute of {length} octets at {at} of {len(data)}")
        yield kind & ATTRIBUTE_TYPE, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")  # both of netfilter's senders use network order


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _packet(hwheader: bytes, payload: bytes) -> Packet | None:
    if not payload:
        return None
    if len(hwheader) == ETHERNET_HEADER:
        return decode(hwheader + payload, LINK_ETHERNET)
    return decode(payload, LINK_RAW[0])


# -- NFLOG and iptables-legacy --------------------------------------------------


def logged(record: bytes, names: Mapping[int, str]) -> Logged:
    """Decode a record of LINKTYPE_NFLOG (tcpdump.org/linktypes/LINKTYPE_NFLOG).

    ``names`` maps interface numbers to names.  Raises LabError for any other record.
    """
    values = dict(attributes(record[4:]))  # after family, version and group

    def device(kind: int) -> str:
        number = _number(values.get(kind, b""))
        return names.get(number, f"if{number}") if number else ""

    stamp = 0
    if NFULA_TIMESTAMP in values:
        if len(values[NFULA_TIMESTAMP]) != TIMESTAMP:
            raise LabError(f"a time stamp of {len(values[NFULA_TIMESTAMP])} octets")
        seconds, microseconds = struct.unpack(">QQ", values[NFULA_TIMESTAMP])
        stamp = seconds * 1_000_000 + microseconds
    hwheader = values.get(NFULA_HWHEADER, b"")
    return Logged(
        prefix=_text(values.get(NFULA_PREFIX, b"")),
        indev=device(NFULA_INDEV),
        outdev=device(NFULA_OUTDEV),
        physindev=device(NFULA_PHYSINDEV),
        physoutdev=device(NFULA_PHYSOUTDEV),
        hwheader=hwheader,
        packet=_packet(hwheader, values.get(NFULA_PAYLOAD, b"")),
        stamp=stamp,
    )


def legacy_event(seen: Logged) -> TraceEvent | None:
    """Parse the iptables-legacy event in a record: "TRACE: raw:PREROUTING:policy:2 "."""
    if not seen.prefix.startswith(PREFIX):
        return None
    table, _, rest = seen.prefix.removeprefix(PREFIX).strip().partition(":")
    # A chain's name may have a colon.
    chain, kind, number = ["", "", *rest.rsplit(":", 2)][-3:]
    if kind not in KINDS.values() or not number.isdecimal():
        raise LabError(f"a trace event of an unknown kind: {seen.prefix!r}")
    family = "ip6" if seen.packet is not None and ":" in seen.packet.src else "ip"
    return TraceEvent(
        table, chain, cast("Kind", kind), number=int(number), seen=seen, family=family
    )


def legacy_events(packets: Iterable[Packet], names: Mapping[int, str]) -> list[TraceEvent]:
    """Return the events in a capture of :data:`LEGACY_GROUP`."""
    found = (legacy_event(logged(packet.frame, names)) for packet in packets)
    return [event for event in found if event]


# -- nftables ---------------------------------------------------------------------


def nft_events(messages: bytes, names: Mapping[int, str]) -> list[TraceEvent]:
    """Decode netlink messages of NFNLGRP_NFTRACE, one after another."""
    found, at = [], 0
    while at + NLMSGHDR <= len(messages):
        length, kind = struct.unpack_from("=IH", messages, at)
        if length < NLMSGHDR or at + length > len(messages):
            raise LabError(f"a netlink message of {length} octets at {at} of {len(messages)}")
        if kind == TRACE_MESSAGE:
            body = messages[at + NLMSGHDR + NFGENMSG : at + length]
            # The header has the family of the table (net/netfilter/nf_tables_trace.c).
            family = FAMILIES.get(_number(messages[at + NLMSGHDR : at + NLMSGHDR + 1]), "")
            found.append(_nft_event(dict(attributes(body)), family, names))
        at += (length + 3) & ~3
    return found


def _nft_event(values: Mapping[int, bytes], family: str, names: Mapping[int, str]) -> TraceEvent:
    missing = [kind for kind in NFTA_ALWAYS if kind not in values]
    if missing or _number(values[NFTA_TYPE]) not in KINDS:
        raise LabError(f"a trace event of nftables without {missing or 'a known kind'}")
    event = TraceEvent(
        table=_text(values[NFTA_TABLE]),
        chain=_text(values[NFTA_CHAIN]),
        kind=KINDS[_number(values[NFTA_TYPE])],
        handle=_number(values.get(NFTA_RULE_HANDLE, b"")),
        id=_number(values[NFTA_ID]),
        verdict=_verdict(values),
        family=family,
        mark=_number(values.get(NFTA_MARK, b"")),
    )
    if NFTA_NETWORK_HEADER not in values:
        return event
    devices = [_number(values.get(kind, b"")) for kind in (NFTA_IIF, NFTA_OIF)]
    indev, outdev = (names.get(number, f"if{number}") if number else "" for number in devices)
    hwheader = values.get(NFTA_LL_HEADER, b"")
    headers = values[NFTA_NETWORK_HEADER] + values.get(NFTA_TRANSPORT_HEADER, b"")
    seen = Logged(indev=indev, outdev=outdev, hwheader=hwheader, packet=_packet(hwheader, headers))
    return replace(event, seen=seen)


def _verdict(values: Mapping[int, bytes]) -> str:
    if NFTA_POLICY in values:
        return VERDICTS.get(_number(values[NFTA_POLICY]), "")
    verdict = dict(attributes(values.get(NFTA_VERDICT, b"")))
    code = int.from_bytes(verdict.get(VERDICT_CODE, b""), "big", signed=True)
    word = VERDICTS.get(code, str(code)) if verdict else ""
    return f"{word} {_text(verdict[VERDICT_CHAIN])}" if VERDICT_CHAIN in verdict else word


#: Prints the group's messages, each as a line of hex.  SIGTERM ends it after all messages
#: received by then are printed.  270 and 1 are SOL_NETLINK and NETLINK_ADD_MEMBERSHIP, 12 is
#: NETLINK_NETFILTER, 9 is NFNLGRP_NFTRACE.
READER = """
import os, signal, socket
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netlink.bind((0, 0))
netlink.setsockopt(270, 1, 9)
signal.signal(signal.SIGTERM, lambda *_: netlink.setblocking(False))
os.write(2, b"ready\\n")
try:
    while True:
        os.write(1, netlink.recv(1 << 16).hex().encode() + b"\\n")
except BlockingIOError:
    pass
"""


class NftTrace:
    """A listener for nftables' trace events; ``messages`` is set when it has ended."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._running: Running = place.spawn([*INTERPRETER, READER])
        self.messages = b""

    def wait_listening(self) -> None:
        """Wait until it listens.  Raises LabError if it can't."""
        wait_for_sign(self._running, b"ready\n", f"listen to nftables on {self._place.name}")

    def stop(self) -> None:
        """Stop, and keep the events received.  Raises LabError if any were lost."""
        self._place.run(["kill", "-TERM", str(self._running.pid)])
        result = self._running.wait(START_SECONDS)
        if not result.ok:
            raise LabError(f"trace events were missed: {result.stderr.strip()}")
        self.messages = b"".join(map(bytes.fromhex, result.stdout.split()))

    def kill(self) -> None:
        self._running.kill()


@contextlib.contextmanager
def nft_trace(place: Place) -> Iterator[NftTrace]:
    """Listen to nftables' trace events while the ``with`` block runs."""
    listener = NftTrace(place)
    try:
        listener.wait_listening()
        yield listener
        listener.stop()
    finally:
        listener.kill()
