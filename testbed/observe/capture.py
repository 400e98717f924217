"""Packets on an interface: tcpdump on a node or in a container, decoded.

::

    with capture(node, "docker0", "tcp port 80") as seen:
        container.run(["curl", "-s", "http://172.17.0.3/"])
    assert [p.dport for p in seen.packets if p.flags == {"SYN"}] == [80]

A capture listens before the ``with`` block begins, and ends when no more
packets come.  Several places at once: :func:`captures`.
"""

from __future__ import annotations

import contextlib
import io
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dpkt

from testbed.errors import LabError, TimeoutExpired
from testbed.polling import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from testbed.nodes.base import Running
    from testbed.nodes.place import Place

VXLAN_PORT = 8472  # the Linux kernel's own, and flannel's; RFC 7348 has 4789
FLANNEL_UDP_PORT = 8285
POLL_SECONDS = 0.005
QUIET_SECONDS = 0.04
EMULATED_QUIET_SECONDS = 0.4  # a packet may take that long on an emulated machine
MAX_SETTLE_SECONDS = 2.0
IDLE_SECONDS = 30.0  # for tcpdump to be scheduled on a busy machine
START_SECONDS = 60.0
#: KiB of a capture's buffer, for tcpdump that is not scheduled at once.  libpcap gives each packet
#: 64 KiB of it where devices split segments, so that its own 2 MiB have room for 32 packets.
BUFFER = 8192
STOP_SECONDS = 30.0
FLAGS = {
    dpkt.tcp.TH_FIN: "FIN",
    dpkt.tcp.TH_SYN: "SYN",
    dpkt.tcp.TH_RST: "RST",
    dpkt.tcp.TH_PUSH: "PSH",
    dpkt.tcp.TH_ACK: "ACK",
    dpkt.tcp.TH_URG: "URG",
}
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58  #: protocols of IP
PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6"}
IN_IP = {4: "ipip", 41: "sit"}  #: protocols of IP that carry IP
ECHO6 = {128, 129}  # ICMPv6 echo request and reply, RFC 4443
LINK_ETHERNET = 1
LINK_RAW = (101, 12, 14, 228)  # packets without a frame: tun devices
LINK_NFLOG = 239  # packets logged by netfilter, read by testbed.observe.trace
NFLOG = "nflog:"  # tcpdump's name for it, followed by the group's number
BAD = (dpkt.UnpackError, struct.error, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class Icmp:
    """An ICMP header; ``id`` and ``seq`` are 0 unless it is an echo."""

    type: int
    code: int
    id: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4; ``op`` is 1 for who-has, 2 for is-at."""

    op: int
    sender_mac: str
    sender: str
    target_mac: str
    target: str


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet.  Fields that it does not have are empty: "", 0, None."""

    time: float = 0.0  #: seconds since the epoch, as the kernel stamped it
    length: int = 0  #: octets on the wire, frame header included
    src_mac: str = ""
    dst_mac: str = ""
    ethertype: int = 0
    src: str = ""
    dst: str = ""
    protocol: int = 0  #: of IP: 1 ICMP, 6 TCP, 17 UDP
    ttl: int = 0
    ip_id: int = 0
    ip_length: int = 0  #: the IP header's total length
    df: bool = False  #: don't fragment
    sport: int = 0
    dport: int = 0
    flags: frozenset[str] = frozenset()
    seq: int = 0
    ack: int = 0
    icmp: Icmp | None = None
    arp: Arp | None = None
    payload: bytes = b""  #: payload of TCP or UDP, otherwise of IP
    frame: bytes = b""  #: the whole frame, as captured

    @property
    def flow(self) -> tuple[str, int, str, int]:
        """Source and destination, each with its port."""
        return (self.src, self.sport, self.dst, self.dport)

    @property
    def is_echo_request(self) -> bool:
        return self.icmp is not None and self.icmp.type == 8

    @property
    def is_echo_reply(self) -> bool:
        return self.icmp is not None and self.icmp.type == 0

    @property
    def is_syn(self) -> bool:
        """True for the first packet of a TCP connection."""
        return self.flags >= {"SYN"} and "ACK" not in self.flags

    def vxlan(self, port: int = VXLAN_PORT) -> tuple[int, Packet] | None:
        """VNI and inner packet of a VXLAN datagram (RFC 7348 section 5), or None."""
        if self.protocol != socket.IPPROTO_UDP or self.dport != port or len(self.payload) < 8:
            return None
        if not self.payload[0] & 0x08:  # the I flag: "the VNI is valid"
            return None
        vni = int.from_bytes(self.payload[4:7], "big")
        return vni, decode(self.payload[8:], LINK_ETHERNET, self.time)

    def inner_ip(self, port: int = FLANNEL_UDP_PORT) -> Packet | None:
        """The bare IP packet in a datagram of flannel's udp backend, or None."""
        if self.protocol != socket.IPPROTO_UDP or port not in (self.sport, self.dport):
            return None
        if not self.payload or self.payload[0] >> 4 != 4:
            return None
        return decode(self.payload, LINK_RAW[0], self.time)

    def __str__(self) -> str:
        frame = f"{self.src_mac} > {self.dst_mac} " if self.src_mac else ""
        if self.arp:
            words = (
                f"ARP who-has {self.arp.target} tell {self.arp.sender}"
                if self.arp.op == 1
                else f"ARP {self.arp.sender} is-at {self.arp.sender_mac}"
            )
            return f"{self.time:.6f} {frame}{words}"
        if not self.src:
            return f"{self.time:.6f} {frame}ethertype {self.ethertype:#06x}"
        ends = f"{self.src}:{self.sport} > {self.dst}:{self.dport}"
        if self.icmp:
            ends = f"{self.src} > {self.dst}"
            what = f"ICMP {self.icmp.type}/{self.icmp.code} id {self.icmp.id} seq {self.icmp.seq}"
        elif self.protocol == socket.IPPROTO_TCP:
            what = f"TCP {'+'.join(sorted(self.flags))}"
        elif self.protocol == socket.IPPROTO_UDP:
            what = "UDP"
        else:
            what = f"protocol {self.protocol}"
        return (
            f"{self.time:.6f} {frame}{ends} {what} "
            f"ttl {self.ttl} ip-id {self.ip_id} length {self.ip_length}"
        )


def decode(data: bytes, link: int = LINK_ETHERNET, at: float = 0.0) -> Packet:
    """Decode one packet; fields that are truncated or unknown are left empty.

    An NFLOG record is left undecoded, in ``frame``.  Raises ValueError for a
    link type other than that, Ethernet and raw IP.
    """
    if link == LINK_NFLOG:
        return Packet(time=at, length=len(data), frame=data)
    if link not in (LINK_ETHERNET, *LINK_RAW):
        raise ValueError(f"link type {link}, expected Ethernet or raw IP")
    fields: dict[str, Any] = {"time": at, "length": len(data), "frame": data}
    inner: Any = None
    with contextlib.suppress(*BAD):
        if link == LINK_ETHERNET:
            ethernet = dpkt.ethernet.Ethernet(data)
            fields |= {
                "src_mac": _mac(ethernet.src),
                "dst_mac": _mac(ethernet.dst),
                "ethertype": ethernet.type,
            }
            inner = ethernet.data
        else:
            inner = dpkt.ip6.IP6(data) if data[:1] and data[0] >> 4 == 6 else dpkt.ip.IP(data)
            fields["ethertype"] = 0x0800 if isinstance(inner, dpkt.ip.IP) else 0x86DD
        fields |= _network(inner)
    return Packet(**fields)


def _network(inner: Any) -> dict[str, Any]:
    if isinstance(inner, dpkt.arp.ARP) and inner.pln == 4:
        arp = Arp(
            inner.op, _mac(inner.sha), _address(inner.spa), _mac(inner.tha), _address(inner.tpa)
        )
        return {"arp": arp}
    if isinstance(inner, dpkt.ip6.IP6):
        fields = {"src": _address(inner.src), "dst": _address(inner.dst), "ttl": inner.hlim}
        fields |= {"protocol": inner.nxt, "ip_length": inner.plen + 40}
        return fields | _transport(inner.data)
    if not isinstance(inner, dpkt.ip.IP):
        return {}
    fields = {
        "src": _address(inner.src),
        "dst": _address(inner.dst),
        "protocol": inner.p,
        "ttl": inner.ttl,
        "ip_id": inner.id,
        "ip_length": inner.len,
        "df": bool(inner.df),
    }
    return fields | _transport(inner.data)


def _transport(data: Any) -> dict[str, Any]:
    if isinstance(data, dpkt.tcp.TCP):
        return {
            "sport": data.sport,
            "dport": data.dport,
            "seq": data.seq,
            "ack": data.ack,
            "flags": frozenset(name for bit, name in FLAGS.items() if data.flags & bit),
            "payload": bytes(data.data),
        }
    if isinstance(data, dpkt.udp.UDP):
        return {"sport": data.sport, "dport": data.dport, "payload": bytes(data.data)}
    if isinstance(data, dpkt.icmp.ICMP):
        echo = data.data
        if isinstance(echo, dpkt.icmp.ICMP.Echo):
            icmp = Icmp(data.type, data.code, echo.id, echo.seq)
        else:
            icmp = Icmp(data.type, data.code)
        return {"icmp": icmp, "payload": bytes(echo)}
    if isinstance(data, dpkt.icmp6.ICMP6):
        return _icmp6(bytes(data))
    return {"payload": bytes(data)}


def _icmp6(data: bytes) -> dict[str, Any]:
    kind, code, ident, seq = data[0], data[1], 0, 0
    if kind in ECHO6 and len(data) >= 8:
        ident, seq = struct.unpack_from(">HH", data, 4)
    return {"icmp": Icmp(kind, code, ident, seq), "payload": data[4:]}


def _mac(data: bytes) -> str:
    return data.hex(":")


def _address(data: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def read(data: bytes) -> list[Packet]:
    """Read the packets of a capture file that may still grow.

    An unfinished last packet is left out.  Raises LabError for an unknown link type, and
    for a file that is not a capture.
    """
    if len(data) < 24:
        return []
    try:
        reader = dpkt.pcap.Reader(io.BytesIO(data))
    except ValueError as error:
        raise LabError(f"cannot parse the capture of tcpdump: {error}") from error
    link = reader.datalink()
    if link not in (LINK_ETHERNET, LINK_NFLOG, *LINK_RAW):
        raise LabError(f"the capture has link type {link}, expected Ethernet or raw IP")
    packets, end = [], dpkt.pcap.FileHdr.__hdr_len__
    order = "<I" if data[:1] in b"\xd4\x4d" else ">I"  # the magic number's, as it was written
    with contextlib.suppress(dpkt.UnpackError, ValueError):
        for at, frame in reader:
            # dpkt returns partial records; the record's header has the full length.
            (captured,) = struct.unpack_from(order, data, end + 8)
            end += dpkt.pcap.PktHdr.__hdr_len__ + captured
            if end > len(data):
                break
            packets.append(decode(frame, link, float(at)))
    return packets


class Capture:
    """A tcpdump process, running or ended.  :attr:`packets` are those seen so far."""

    def __init__(self, place: Place, interface: str, filter: str = "") -> None:
        self.place = place
        self.interface = interface
        self.filter = filter
        argv = [
            "tcpdump",
            "-i",
            interface,
            "-n",
            "-U",
            "-w",
            "-",
            "--immediate-mode",
            "-B",
            str(BUFFER),
        ]
        if not interface.startswith(NFLOG):  # which has only microseconds
            argv.append("--time-stamp-precision=nano")
        argv += [filter] if filter else []
        self._running = place.spawn(argv)
        self._decoded: tuple[int, list[Packet]] = (0, [])

    def __str__(self) -> str:
        return f"{self.place.name}:{self.interface}"

    @property
    def packets(self) -> list[Packet]:
        data = self._running.out
        if len(data) != self._decoded[0]:
            self._decoded = (len(data), read(data))
        return self._decoded[1]

    def lines(self) -> str:
        """Return all packets as text, a line each, to keep as evidence."""
        return "\n".join(map(str, self.packets)) or "no packets"

    def wait_for(self, seen: Callable[[list[Packet]], object], seconds: float = 30.0) -> bool:
        """Wait until ``seen(packets)`` is true; return False after ``seconds``."""
        return until(lambda: seen(self.packets), seconds, pause=POLL_SECONDS)

    def wait_listening(self) -> None:
        """Wait until tcpdump listens.  Raises LabError if it can't, TimeoutExpired if late."""
        try:
            wait_for_sign(self._running, b"listening on", f"capture on {self}")
        except TimeoutExpired:
            self.kill()
            raise

    def size(self) -> int:
        """Octets captured so far."""
        return len(self._running.out)

    def is_idle(self) -> bool:
        """True if tcpdump sleeps, and so has written all packets that passed before.

        A packet makes it runnable at once; on a busy machine it may be scheduled much later.
        """
        argv = ["cat", f"/proc/{self._running.pid}/stat"]
        fields = self.place.run(argv, check=False).stdout.rpartition(")")[2].split()
        return not fields or fields[0] == "S"  # proc(5); without a file it has ended

    def stop(self) -> None:
        """End tcpdump.  Raises LabError if the kernel dropped packets."""
        self.place.run(["kill", "-INT", str(self._running.pid)], check=False)
        try:
            result = self._running.wait(STOP_SECONDS)
        except TimeoutExpired:
            self.kill()
            raise
        dropped = re.search(r"(\d+) packets? dropped by kernel", result.stderr)
        if dropped and int(dropped[1]):
            raise LabError(f"the capture on {self} missed {dropped[1]} packets")

    def kill(self) -> None:
        self._running.kill()


@contextlib.contextmanager
def capture(place: Place, interface: str, filter: str = "") -> Iterator[Capture]:
    """Capture while the ``with`` block runs, and until no more packets come.

    When it ends, tcpdump has written all packets that passed.
    """
    with captures((place, interface, filter)) as (one,):
        yield one


@contextlib.contextmanager
def captures(*points: tuple[Place, str, str]) -> Iterator[list[Capture]]:
    """Capture at several points at once, each a place, an interface and a filter."""
    started: list[Capture] = []
    try:
        started.extend(Capture(*point) for point in points)
        for one in started:
            one.wait_listening()
        yield started
        _settle(started)
        for one in started:
            one.stop()
    finally:
        for one in started:
            one.kill()


def wait_for_sign(running: Running, sign: bytes, what: str) -> None:
    """Wait until a listener writes ``sign`` to its standard error.

    ``what`` is its task, as a phrase after "cannot".  Raises LabError with its output when it
    ends, TimeoutExpired if the sign is late.
    """
    deadline = time.monotonic() + START_SECONDS
    while sign not in running.err:
        with contextlib.suppress(TimeoutExpired):
            result = running.wait(POLL_SECONDS)
            raise LabError(f"cannot {what}: {result.stderr.strip()}")
        if time.monotonic() > deadline:
            raise TimeoutExpired(f"cannot {what}: not ready after {START_SECONDS:g} s")


def _settle(started: Sequence[Capture]) -> None:
    """Wait until no capture has grown for a moment and each has written all packets."""
    deadline = time.monotonic() + MAX_SETTLE_SECONDS
    quick = all(one.place.slowness <= 1 for one in started)
    quiet = QUIET_SECONDS if quick else EMULATED_QUIET_SECONDS
    sizes, since = [one.size() for one in started], time.monotonic()
    while time.monotonic() - since < quiet and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = [one.size() for one in started]
        if now != sizes:
            sizes, since = now, time.monotonic()
    busy = list(started)

    def written() -> bool:
        busy[:] = [one for one in busy if not one.is_idle()]
        return not busy

    until(written, IDLE_SECONDS, pause=POLL_SECONDS)
