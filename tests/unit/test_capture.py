"""Decoding: packets built octet by octet, and what is seen of them."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import dpkt
import pytest

from testbed.errors import LabError, TimeoutExpired
from testbed.nodes.base import Result
from testbed.observe.capture import (
    LINK_ETHERNET,
    LINK_RAW,
    Arp,
    Capture,
    Icmp,
    Packet,
    captures,
    decode,
    read,
)

if TYPE_CHECKING:
    from testbed.nodes.base import Running
    from testbed.nodes.place import Place

ONE, TWO = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHERNET = bytes.fromhex("020000000002 020000000001")  # to TWO, from ONE
TCPDUMP_HEADER = 24


def address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def ip(protocol: int, data: bytes, *, flags: int = 0x4000, **more: int) -> bytes:
    """An IPv4 packet from 10.0.0.1 to 10.0.0.2, by default not to be fragmented."""
    length = more.get("length", 20 + len(data))
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45, 0, length, 0x1234, flags, 63, protocol, 0, address("10.0.0.1"), address("10.0.0.2"),
    )  # fmt: skip
    return head + data


def udp(data: bytes, sport: int = 4711, dport: int = 53) -> bytes:
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def tcp(flags: int, data: bytes = b"", options: bytes = b"") -> bytes:
    offset = (5 + len(options) // 4) << 4
    head = struct.pack(">HHIIBBHHH", 40000, 80, 1000, 2000, offset, flags, 65535, 0, 0)
    return head + options + data


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    return struct.pack(">BBH", kind, code, 0) + rest


def ethernet(data: bytes, ethertype: int = 0x0800) -> bytes:
    return ETHERNET + struct.pack(">H", ethertype) + data


def vxlan(data: bytes, vni: int = 1, flags: int = 0x08) -> bytes:
    return bytes((flags, 0, 0, 0)) + vni.to_bytes(3, "big") + b"\0" + data


def pcap(*frames: tuple[float, bytes], link: int = LINK_ETHERNET, nano: bool = True) -> bytes:
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file, linktype=link, nano=nano)
    for at, frame in frames:
        writer.writepkt(frame, at)
    return file.getvalue()


def common(protocol: int, data: bytes, frame: bytes) -> dict[str, object]:
    """Fields of every packet of :func:`ip` in an Ethernet frame."""
    return {
        "time": 0.0,
        "length": len(frame),
        "frame": frame,
        "src_mac": ONE,
        "dst_mac": TWO,
        "ethertype": 0x0800,
        "src": "10.0.0.1",
        "dst": "10.0.0.2",
        "protocol": protocol,
        "ttl": 63,
        "ip_id": 0x1234,
        "ip_length": 20 + len(data),
        "df": True,
    }


def test_udp() -> None:
    data = udp(b"hello")
    frame = ethernet(ip(17, data))
    packet = decode(frame)
    wanted = {**common(17, data, frame), "sport": 4711, "dport": 53, "payload": b"hello"}
    assert packet == Packet(**wanted)  # type: ignore[arg-type]
    assert packet.flow == ("10.0.0.1", 4711, "10.0.0.2", 53)
    assert str(packet) == (
        f"0.000000 {ONE} > {TWO} 10.0.0.1:4711 > 10.0.0.2:53 UDP ttl 63 ip-id 4660 length 33"
    )


@pytest.mark.parametrize(
    ("flags", "names", "is_syn"),
    [
        (0x02, {"SYN"}, True),
        (0x12, {"SYN", "ACK"}, False),
        (0x10, {"ACK"}, False),
        (0x18, {"PSH", "ACK"}, False),
        (0x11, {"FIN", "ACK"}, False),
        (0x04, {"RST"}, False),
        (0x20, {"URG"}, False),
        (0xC2, {"SYN"}, True),  # with ECE and CWR, as a sender with ECN opens
        (0x00, set(), False),
    ],
)
def test_tcp(flags: int, names: set[str], is_syn: bool) -> None:
    data = tcp(flags, b"GET /", options=b"\x02\x04\x05\xb4")
    frame = ethernet(ip(6, data))
    packet = decode(frame)
    wanted = {
        **common(6, data, frame),
        "sport": 40000,
        "dport": 80,
        "seq": 1000,
        "ack": 2000,
        "payload": b"GET /",
        "flags": frozenset(names),
    }
    assert packet == Packet(**wanted)  # type: ignore[arg-type]
    assert packet.is_syn is is_syn
    assert f"TCP {'+'.join(sorted(names))} ttl" in str(packet)


@pytest.mark.parametrize(("kind", "request_", "reply"), [(8, True, False), (0, False, True)])
def test_icmp_echo(kind: int, request_: bool, reply: bool) -> None:
    packet = decode(ethernet(ip(1, icmp(kind, 0, b"\x00\x07\x00\x02payload"))))
    assert packet.icmp == Icmp(kind, 0, 7, 2)
    assert (packet.protocol, packet.sport, packet.dport) == (1, 0, 0)
    assert packet.payload.endswith(b"payload")
    assert (packet.is_echo_request, packet.is_echo_reply) == (request_, reply)
    assert f"10.0.0.1 > 10.0.0.2 ICMP {kind}/0 id 7 seq 2 ttl 63" in str(packet)


@pytest.mark.parametrize(("kind", "code"), [(3, 1), (3, 4), (11, 0), (5, 1)])
def test_icmp_errors_have_no_id(kind: int, code: int) -> None:
    # With check sums, as dpkt would put in those that are not there.
    about = bytes(dpkt.ip.IP(src=address("10.0.0.1"), dst=address("10.0.0.9"), len=21, data=b"x"))
    packet = decode(ethernet(ip(1, icmp(kind, code, b"\0\0\0\0" + about))))
    assert packet.icmp == Icmp(kind, code)
    assert about in packet.payload
    assert not packet.is_echo_request
    assert not packet.is_echo_reply


@pytest.mark.parametrize(
    ("op", "words"), [(1, "ARP who-has 10.0.0.2 tell 10.0.0.1"), (2, f"ARP 10.0.0.1 is-at {ONE}")]
)
def test_arp(op: int, words: str) -> None:
    ends = bytes.fromhex("020000000001 0a000001 000000000000 0a000002")
    padding = bytes(18)  # to the least length of a frame
    frame = ethernet(struct.pack(">HHBBH", 1, 0x0800, 6, 4, op) + ends + padding, 0x0806)
    packet = decode(frame)
    assert packet.arp == Arp(op, ONE, "10.0.0.1", "00:00:00:00:00:00", "10.0.0.2")
    assert packet.ethertype == 0x0806
    assert (packet.src, packet.dst, packet.protocol, packet.ttl) == ("", "", 0, 0)
    assert (packet.length, packet.frame) == (60, frame)
    assert str(packet).endswith(words)


def test_a_frames_padding_is_no_payload() -> None:
    packet = decode(ethernet(ip(17, udp(b"")) + bytes(18)))
    assert (packet.length, packet.ip_length, packet.payload) == (60, 28, b"")


def test_a_length_of_0_is_a_segment_that_the_card_would_cut() -> None:
    packet = decode(ethernet(ip(6, tcp(0x10, b"x" * 3000), length=0)))
    assert packet.ip_length == 0
    assert packet.payload == b"x" * 3000


def test_fragments() -> None:
    first = decode(ethernet(ip(17, udp(b"x" * 8), flags=0x2000)))
    assert (first.df, first.sport, first.dport) == (False, 4711, 53)
    later = decode(ethernet(ip(17, b"no header", flags=0x2001)))
    assert (later.protocol, later.sport, later.dport) == (17, 0, 0)
    assert later.payload == b"no header"


def test_other_protocols_of_ip() -> None:
    packet = decode(ethernet(ip(132, b"sctp")))
    assert (packet.protocol, packet.payload) == (132, b"sctp")
    assert "protocol 132" in str(packet)


@pytest.mark.parametrize("ethertype", [0x88B5, 0x88CC, 0x9000])
def test_unknown_ethertypes_have_a_frame_and_no_more(ethertype: int) -> None:
    frame = ethernet(b"whatever", ethertype)
    packet = decode(frame, at=1.5)
    assert packet == Packet(
        time=1.5, length=len(frame), src_mac=ONE, dst_mac=TWO, ethertype=ethertype, frame=frame
    )
    assert str(packet) == f"1.500000 {ONE} > {TWO} ethertype {ethertype:#06x}"


def test_a_vlan_tag_is_looked_behind() -> None:
    tag = struct.pack(">HH", 100, 0x0800)
    packet = decode(ethernet(tag + ip(17, udp(b"tagged")), 0x8100))
    assert packet.ethertype == 0x8100
    assert (packet.dst, packet.dport, packet.payload) == ("10.0.0.2", 53, b"tagged")


def ipv6(next_header: int, data: bytes) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(data), next_header, 64)
    return head + bytes.fromhex("fe80" + "00" * 13 + "01" + "fe80" + "00" * 13 + "02") + data


def test_ipv6() -> None:
    packet = decode(ethernet(ipv6(17, udp(b"six")), 0x86DD))
    assert packet.flow == ("fe80::1", 4711, "fe80::2", 53)
    assert (packet.ttl, packet.protocol, packet.ip_length) == (64, 17, 40 + 8 + 3)
    assert (packet.payload, packet.ethertype) == (b"six", 0x86DD)
    assert not packet.df


@pytest.mark.parametrize("link", LINK_RAW)
def test_packets_of_a_tun_device_have_no_frame(link: int) -> None:
    packet = decode(ip(17, udp(b"raw")), link)
    assert (packet.src_mac, packet.dst_mac, packet.ethertype) == ("", "", 0x0800)
    assert packet.flow == ("10.0.0.1", 4711, "10.0.0.2", 53)
    assert packet.length == packet.ip_length == 31
    assert str(packet).startswith("0.000000 10.0.0.1:4711 > ")
    six = decode(ipv6(17, udp(b"raw")), link)
    assert (six.ethertype, six.src, six.payload) == (0x86DD, "fe80::1", b"raw")


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x45\0\0", b"\x00" * 40])
def test_what_is_no_packet_is_empty(data: bytes) -> None:
    for link in (LINK_ETHERNET, LINK_RAW[0]):
        packet = decode(data, link)
        assert (packet.length, packet.frame) == (len(data), data)
        assert packet.payload in (b"", data[20:])
        assert packet.arp is None
        assert packet.icmp is None
        assert str(packet)


def test_nothing_that_comes_in_a_frame_is_an_error() -> None:
    dice = random.Random(0)
    inner = ethernet(ip(6, tcp(0x12, b"inside")))
    seeds = [
        inner,
        ethernet(ip(1, icmp(8, 0, b"\0\1\0\1x"))),
        ethernet(ip(17, udp(vxlan(inner), dport=8472))),
        ethernet(ipv6(0, b"\x3a\0\0\0\0\0\0\0" + bytes(8)), 0x86DD),
        ethernet(struct.pack(">HH", 1, 0x0806) + bytes(28), 0x8100),
    ]
    for _ in range(2000):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        packet = decode(bytes(data[: dice.randrange(len(data) + 1)]), dice.choice((1, 101)))
        assert str(packet)
        packet.vxlan()
        packet.inner_ip()


def test_a_link_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="113"):
        decode(b"x" * 40, 113)
    with pytest.raises(LabError, match="link type 113"):
        read(pcap((0, b"x" * 40), link=113))


# -- packets in packets --------------------------------------------------------


def test_vxlan() -> None:
    inside = ethernet(ip(1, icmp(8, 0, b"\0\1\0\1")))
    packet = decode(ethernet(ip(17, udp(vxlan(inside, 0x010203), dport=8472))), at=7.5)
    found = packet.vxlan()
    assert found is not None
    vni, inner = found
    assert vni == 0x010203
    assert inner == decode(inside, at=7.5)
    assert inner.is_echo_request
    assert inner.src_mac == ONE
    assert packet.vxlan(4789) is None
    assert packet.inner_ip() is None


@pytest.mark.parametrize(
    "data",
    [
        ip(17, udp(vxlan(b"x" * 60), dport=4789)),  # another port
        ip(17, udp(vxlan(b"x" * 60), sport=8472)),  # sent from it, as an answer to another
        ip(17, udp(vxlan(b"x" * 60, flags=0), dport=8472)),  # without a valid VNI
        ip(17, udp(b"\x08\0\0\0\0\0\1", dport=8472)),  # too short
        ip(6, tcp(0x10, b"\x08" * 60)),
    ],
)
def test_what_is_no_vxlan(data: bytes) -> None:
    assert decode(ethernet(data)).vxlan() is None


def test_vxlan_of_another_port_and_of_an_empty_frame() -> None:
    packet = decode(ethernet(ip(17, udp(vxlan(b"", 5), dport=4789))))
    assert packet.vxlan(4789) == (5, Packet())


@pytest.mark.parametrize(("sport", "dport"), [(8285, 8285), (8285, 9), (9, 8285)])
def test_inner_ip(sport: int, dport: int) -> None:
    inside = ip(6, tcp(0x02))
    packet = decode(ethernet(ip(17, udp(inside, sport, dport))), at=2.5)
    inner = packet.inner_ip()
    assert inner == decode(inside, LINK_RAW[0], 2.5)
    assert inner is not None
    assert inner.is_syn
    assert inner.src_mac == ""
    assert packet.inner_ip(8286) is None


@pytest.mark.parametrize("inside", [b"", b"\x60" + b"x" * 39, b"\x00" * 30])
def test_what_is_no_inner_ip(inside: bytes) -> None:
    assert decode(ethernet(ip(17, udp(inside, 8285, 8285)))).inner_ip() is None


def test_inner_ip_is_carried_by_udp_only() -> None:
    assert Packet(protocol=6, dport=8285, payload=ip(17, b"")).inner_ip() is None


# -- captures as files ---------------------------------------------------------

FRAMES = ((1.5, ethernet(ip(17, udp(b"first")))), (2.25, ethernet(ip(17, udp(b"second")))))


@pytest.mark.parametrize("nano", [True, False])
def test_a_capture_is_read_in_order(nano: bool) -> None:
    packets = read(pcap(*FRAMES, nano=nano))
    assert [(p.time, p.payload) for p in packets] == [(1.5, b"first"), (2.25, b"second")]


def test_a_capture_of_a_tun_device() -> None:
    (packet,) = read(pcap((1, ip(17, udp(b"raw"))), link=101))
    assert (packet.payload, packet.src_mac) == (b"raw", "")


def test_a_last_record_that_is_not_finished_is_left_out() -> None:
    whole = pcap(*FRAMES)
    first = len(pcap(FRAMES[0]))
    for end in range(len(whole) + 1):
        seen = [p.payload for p in read(whole[:end])]
        assert seen == [b"first", b"second"][: (end >= first) + (end == len(whole))], end


@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_capture_of_either_byte_order(order: str, magic: int) -> None:
    data = struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 65535, 1)
    for at, frame in FRAMES:
        data += struct.pack(f"{order}IIII", int(at), 5, len(frame), len(frame)) + frame
    assert [p.payload for p in read(data)] == [b"first", b"second"]
    assert [p.payload for p in read(data[:-1])] == [b"first"]


def test_before_there_is_a_header_there_are_no_packets() -> None:
    assert read(b"") == read(pcap()[: TCPDUMP_HEADER - 1]) == read(pcap()) == []


class Tcpdump:
    """A Running whose output the test decides."""

    argv = ("tcpdump",)
    pid = 7

    def __init__(self, *, err: bytes = b"listening on eth0", ends: int | None = None) -> None:
        self.out = b""
        self.err = err
        self.ends = ends
        self.killed = 0

    def wait(self, timeout: float | None = None) -> Result:
        if self.ends is None:
            raise TimeoutExpired(f"still running after {timeout}")
        return Result(self.argv, self.ends, self.out, self.err)

    def kill(self) -> None:
        self.killed += 1


class Somewhere:
    """A place with tcpdumps that the test has made."""

    name = "node1"
    slowness = 1.0

    def __init__(self, *running: Tcpdump) -> None:
        self.made = list(running)
        self.left = list(running)
        self.argvs: list[Sequence[str]] = []

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        self.argvs.append(argv)
        for one in self.made:
            one.ends = 0 if one.ends is None else one.ends
        return Result(tuple(argv), 0, b"", b"")

    def spawn(self, argv: Sequence[str]) -> Running:
        self.argvs.append(argv)
        return cast("Running", self.left.pop(0))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.observe.capture.QUIET_SECONDS", 0.001)
    monkeypatch.setattr("testbed.observe.capture.POLL_SECONDS", 0.001)


def place(*running: Tcpdump) -> tuple[Somewhere, Place]:
    made = Somewhere(*running)
    return made, made


@pytest.mark.usefixtures("quick")
def test_a_capture_begins_before_the_block_and_is_ended_after_it() -> None:
    one, two = Tcpdump(), Tcpdump()
    where, at = place(one, two)
    with captures((at, "eth0", "udp"), (at, "eth1", "")) as (first, second):
        assert [argv[:3] for argv in where.argvs] == [
            ["tcpdump", "-i", "eth0"],
            ["tcpdump", "-i", "eth1"],
        ]
        assert where.argvs[0][-1] == "udp"
        assert where.argvs[1][-1].startswith("--")  # no filter at all, rather than an empty one
        one.out = pcap(*FRAMES)
    assert [p.payload for p in first.packets] == [b"first", b"second"]
    assert first.packets is first.packets  # decoded once
    assert first.wait_for(lambda packets: len(packets) == 2, seconds=0)
    assert not second.wait_for(lambda packets: packets, seconds=0)
    assert (first.lines().count("\n"), second.lines()) == (1, "no packets")
    assert str(second) == "node1:eth1"
    assert where.argvs[-1] == ["kill", "-INT", "7"]
    assert (one.killed, two.killed) == (1, 1)


@pytest.mark.usefixtures("quick")
def test_a_capture_ends_once_tcpdump_has_written_all_that_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine it may not have had its turn: what is ready to run is not idle."""
    one = Tcpdump()
    where, at = place(one)
    states = iter(["R", "R", "S"])

    def run(argv: Sequence[str], **_: object) -> Result:
        where.argvs.append(argv)
        if argv[0] == "cat":
            state = next(states)
            one.out = pcap(*FRAMES) if state == "S" else b""
            return Result(tuple(argv), 0, f"7 (tcp (dump) {state} 1 7 7".encode(), b"")
        one.ends = 0
        return Result(tuple(argv), 0, b"", b"")

    monkeypatch.setattr(where, "run", run)
    with captures((at, "eth0", "")) as (seen,):
        pass
    assert [argv[0] for argv in where.argvs] == ["tcpdump", "cat", "cat", "cat", "kill"]
    assert [p.payload for p in seen.packets] == [b"first", b"second"]


@pytest.mark.usefixtures("quick")
def test_a_capture_that_cannot_listen_says_why() -> None:
    running = Tcpdump(err=b"tcpdump: eth9: No such device exists\n", ends=1)
    _, at = place(running)
    with (
        pytest.raises(LabError, match=r"cannot capture on node1:eth9: .*No such device"),
        captures((at, "eth9", "")),
    ):
        pytest.fail("nothing is captured")
    assert running.killed == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("dropped", "fails"), [(0, False), (1, True), (12, True)])
def test_packets_that_the_kernel_dropped_are_an_error(dropped: int, fails: bool) -> None:
    word = "packet" if dropped == 1 else "packets"
    running = Tcpdump(err=f"listening on eth0\n{dropped} {word} dropped by kernel\n".encode())
    _, at = place(running)
    one = Capture(at, "eth0")
    one.wait_listening()
    if fails:
        with pytest.raises(LabError, match=f"missed {dropped} packets"):
            one.stop()
    else:
        one.stop()
