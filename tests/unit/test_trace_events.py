"""TRACE and NFLOG, built octet by octet as the kernel's headers describe them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import dpkt
import pytest

from testbed.catalogues.shipped.test_trace import is_empty
from testbed.errors import LabError, TimeoutExpired
from testbed.nodes.base import Result
from testbed.observe.capture import LINK_NFLOG, Icmp, decode, read
from testbed.observe.trace import (
    Logged,
    TraceEvent,
    Way,
    legacy_event,
    legacy_events,
    logged,
    nft_events,
    nft_trace,
    ways,
)

if TYPE_CHECKING:
    from testbed.nodes.base import Running
    from testbed.nodes.place import Place

NAMES = {3: "docker0", 5: "veth-a", 7: "veth-b"}
HEADER = bytes.fromhex("0242ac110003 0242ac110004 0800")
ASKER, ANSWERER = "172.17.0.3", "172.17.0.4"


def reply(seq: int = 6, ip_id: int = 45798, ttl: int = 64) -> bytes:
    """The document's packet: an echo reply of 84 octets."""
    icmp = struct.pack(">BBHHH", 0, 0, 0, 3, seq) + bytes(56)
    ends = (bytes(map(int, address.split("."))) for address in (ANSWERER, ASKER))
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), ip_id, 0, ttl, 1, 0, *ends)
    return head + icmp


def attributes(*pairs: tuple[int, bytes]) -> bytes:
    out = b""
    for kind, value in pairs:
        out += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return out


def number(value: int, octets: int = 4) -> bytes:
    return value.to_bytes(octets, "big")


# -- NFLOG -----------------------------------------------------------------------


def record(*pairs: tuple[int, bytes], family: int = 2, group: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, group) + attributes(*pairs)


FORWARDED = (
    (1, bytes.fromhex("08000200")),  # NFULA_PACKET_HDR
    (10, b"TRACE: filter:FORWARD:rule:1 \0"),
    (4, number(3)),
    (5, number(3)),
    (6, number(5)),
    (7, number(7)),
    (16, HEADER),
    (3, struct.pack(">QQ", 1_795_295_967, 410_402)),
    (9, reply()),
)


def test_a_record_of_a_bridged_packet() -> None:
    seen = logged(record(*FORWARDED), NAMES)
    packet = seen.packet
    assert packet is not None
    assert seen == Logged(
        prefix="TRACE: filter:FORWARD:rule:1 ",
        indev="docker0",
        outdev="docker0",
        physindev="veth-a",
        physoutdev="veth-b",
        hwheader=HEADER,
        packet=packet,
        stamp=1_795_295_967_410_402,
    )
    assert (packet.src, packet.dst, packet.ttl) == (ANSWERER, ASKER, 64)
    assert (packet.ip_id, packet.ip_length) == (45798, 84)
    assert (packet.dst_mac, packet.src_mac) == ("02:42:ac:11:00:03", "02:42:ac:11:00:04")
    assert packet.icmp == Icmp(0, 0, 3, 6)


def test_a_record_reads_as_the_kernels_log_does() -> None:
    seen = logged(record(*FORWARDED), NAMES)
    assert str(seen) == (
        "IN=docker0 OUT=docker0 PHYSIN=veth-a PHYSOUT=veth-b "
        "MAC=02:42:ac:11:00:03:02:42:ac:11:00:04:08:00 SRC=172.17.0.4 DST=172.17.0.3 "
        "LEN=84 TTL=64 ID=45798 TYPE=0 CODE=0 ID=3 SEQ=6"
    )
    assert str(legacy_event(seen)) == f"filter:FORWARD:rule:1 {seen}"


def test_what_a_record_lacks_is_empty() -> None:
    assert logged(record(), NAMES) == Logged()
    assert str(Logged()) == "IN= OUT="


def test_a_packet_without_a_frame() -> None:
    packet = logged(record((9, reply())), NAMES).packet
    assert packet is not None
    assert (packet.src_mac, packet.src) == ("", ANSWERER)


def test_an_interface_that_has_gone_keeps_its_number() -> None:
    assert logged(record((4, number(99))), NAMES).indev == "if99"


def test_flags_in_an_attributes_type_are_not_part_of_it() -> None:
    assert logged(record((0x4000 | 4, number(3))), NAMES).indev == "docker0"


@pytest.mark.parametrize("length", [0, 3, 200])
def test_a_broken_record_is_an_error(length: int) -> None:
    with pytest.raises(LabError, match=f"attribute of {length} octets"):
        logged(b"\2\0\0\0" + struct.pack("=HH", length, 4) + bytes(8), NAMES)


def test_a_capture_of_nflog_is_read_as_it_is() -> None:
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file, linktype=LINK_NFLOG)
    frames = [record(*FORWARDED), record((10, b"another\0"))]
    for at, frame in enumerate(frames):
        writer.writepkt(frame, at)
    packets = read(file.getvalue())
    assert [packet.frame for packet in packets] == frames
    assert packets[0] == decode(frames[0], LINK_NFLOG)
    assert packets[0].src == ""
    (event,) = legacy_events(packets, NAMES)
    assert (event.table, event.chain, event.kind, event.number) == ("filter", "FORWARD", "rule", 1)


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("TRACE: raw:PREROUTING:policy:2 ", ("raw", "PREROUTING", "policy", 2)),
        ("TRACE: filter:DOCKER-USER:return:1 ", ("filter", "DOCKER-USER", "return", 1)),
        ("TRACE: nat:a:b:rule:12 ", ("nat", "a:b", "rule", 12)),
    ],
)
def test_a_prefix_is_an_event(prefix: str, wanted: tuple[str, str, str, int]) -> None:
    event = legacy_event(Logged(prefix=prefix))
    assert event is not None
    assert (event.table, event.chain, event.kind, event.number) == wanted


def test_an_event_of_iptables_legacy_has_the_family_of_its_packet() -> None:
    ends = bytes(15) + b"\1" + bytes(15) + b"\2"
    packet = struct.pack(">IHBB", 6 << 28, 0, 59, 64) + ends
    names = [logged(record((9, one), (10, b"TRACE: raw:OUTPUT:rule:1 \0")), NAMES)
             for one in (packet, reply())]  # fmt: skip
    events = [legacy_event(one) for one in names]
    assert [event and event.family for event in events] == ["ip6", "ip"]


def test_other_prefixes_are_no_events() -> None:
    assert legacy_event(Logged(prefix="raw")) is None
    with pytest.raises(LabError, match="unknown kind"):
        legacy_event(Logged(prefix="TRACE: raw:PREROUTING:verdict:2 "))


# -- nftables ---------------------------------------------------------------------


def message(*pairs: tuple[int, bytes], kind: int = 10 << 8 | 17, family: int = 2) -> bytes:
    body = bytes((family, 0, 0, 0)) + attributes(*pairs)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def step(
    chain: str, kind: int, *more: tuple[int, bytes], table: str = "filter", trace: int = 77
) -> bytes:
    return message(
        (15, number(2)),
        (4, number(kind)),
        (6, number(trace)),
        (2, chain.encode() + b"\0"),
        (1, table.encode() + b"\0"),
        *more,
    )


def shown(packet: bytes, *, out: bool = False) -> tuple[tuple[int, bytes], ...]:
    devices = ((10, number(3)), *(((12, number(3)),) if out else ()))
    return (*devices, (7, HEADER), (8, packet[:20]), (9, packet[20:40]))


def test_a_rule_that_shows_the_packet() -> None:
    (event,) = nft_events(step("FORWARD", 3, (3, number(18, 8)), *shown(reply(), out=True)), NAMES)
    assert (event.table, event.chain, event.kind) == ("filter", "FORWARD", "rule")
    assert (event.handle, event.id, event.number) == (18, 77, 0)
    assert event.seen is not None
    assert (event.seen.indev, event.seen.outdev) == ("docker0", "docker0")
    assert event.seen.hwheader == HEADER
    packet = event.packet
    assert packet is not None
    # The length is the header's: of what follows nftables gives no more than its header.
    assert (packet.ip_length, packet.ip_id, packet.icmp) == (84, 45798, Icmp(0, 0, 3, 6))
    assert str(event).startswith("filter:FORWARD:rule handle 18 IN=docker0 OUT=docker0 MAC=02:42")


def test_a_policy_that_shows_nothing() -> None:
    (event,) = nft_events(step("PREROUTING", 1, table="raw"), NAMES)
    assert event == TraceEvent("raw", "PREROUTING", "policy", id=77, family="ip")
    assert str(event) == "raw:PREROUTING:policy"


def test_the_family_is_that_of_the_table_not_of_the_packet() -> None:
    pairs = [(15, number(2)), (4, number(1)), (6, number(7)), (2, b"input\0"), (1, b"filter\0")]
    found = nft_events(b"".join(message(*pairs, family=one) for one in (1, 2, 7)), NAMES)
    assert [event.family for event in found] == ["inet", "ip", "bridge"]


def test_other_messages_are_left_out() -> None:
    end = message(kind=3)  # NLMSG_DONE
    both = nft_events(end + step("FORWARD", 2) + end + step("FORWARD", 1), NAMES)
    assert [event.kind for event in both] == ["return", "policy"]
    with pytest.raises(LabError, match="message of 0 octets"):
        nft_events(bytes(16), NAMES)


# -- ways -------------------------------------------------------------------------


def event(
    table: str, chain: str, packet: bytes | None = None, *, trace: int = 0, kind: str = "rule"
) -> TraceEvent:
    seen = Logged(packet=decode(HEADER + packet)) if packet else None
    return TraceEvent(table, chain, cast("object", kind), id=trace, seen=seen)  # type: ignore[arg-type]


def test_legacy_events_belong_together_by_what_the_packet_is() -> None:
    one, two = (
        [event("raw", "PREROUTING", reply(seq)), event("filter", "FORWARD", reply(seq, ttl=63))]
        for seq in (1, 2)
    )
    found = ways([one[0], two[0], two[1], one[1]])
    assert [list(way.events) for way in found] == [one, two]
    assert found[0].packet.ttl == 64
    assert found[0].chains == [("raw", "PREROUTING"), ("filter", "FORWARD")]
    assert found[0].at("filter", "FORWARD") == [one[1]]


def test_the_ip_id_is_no_part_of_that() -> None:
    (way,) = ways([event("raw", "PREROUTING", reply()), event("filter", "FORWARD", reply(ip_id=1))])
    assert [e.packet.ip_id for e in way.events if e.packet] == [45798, 1]


def test_what_does_not_show_the_packet_goes_by_its_number() -> None:
    one = [event("raw", "P", reply(1), trace=7), event("raw", "P", trace=7, kind="policy")]
    two = [event("raw", "P", reply(2), trace=8), event("raw", "P", trace=8, kind="policy")]
    found = ways([one[0], two[0], one[1], two[1]])
    assert [list(way.events) for way in found] == [one, two]
    assert found[0].chains == [("raw", "P")]
    assert found[0].lines().splitlines()[-1] == "raw:P:policy"


def test_a_number_that_comes_again_is_another_packets() -> None:
    one = [event("raw", "P", reply(1), trace=7), event("raw", "P", trace=7)]
    two = [event("raw", "P", reply(2), trace=7), event("raw", "P", trace=7)]
    assert [list(way.events) for way in ways([*one, *two])] == [one, two]


def test_a_packet_that_gets_another_number_stays_one() -> None:
    events = [
        event("raw", "P", reply(), trace=7),
        event("filter", "F", reply(), trace=9),
        event("filter", "F", trace=9),
    ]
    assert ways(events) == [Way(tuple(events))]


def test_a_packet_that_was_under_way_before_is_left_out() -> None:
    assert ways([event("raw", "P", trace=7)]) == []


def test_an_empty_chain_has_its_policy_first() -> None:
    policy = TraceEvent("mangle", "FORWARD", "policy", number=1)
    assert is_empty([policy])
    assert not is_empty([TraceEvent("raw", "PREROUTING", "policy", number=2)])
    assert not is_empty([TraceEvent("raw", "PREROUTING", "policy")])  # nftables does not count
    assert not is_empty([TraceEvent("filter", "FORWARD", "rule", number=1), policy])
    assert not is_empty([])


# -- listening --------------------------------------------------------------------


class Listener:
    """A listener that has ended, or ends when told to."""

    argv: tuple[str, ...] = ("python3",)
    pid = 4711

    def __init__(self, out: str, err: str, status: int | None) -> None:
        self.out, self.err = out.encode(), err.encode()
        self.status = status
        self.killed = False

    def wait(self, timeout: float | None = None) -> Result:
        if self.status is None:
            raise TimeoutExpired("it goes on")
        return Result(self.argv, self.status, self.out, self.err)

    def kill(self) -> None:
        self.killed = True


class Somewhere:
    """A place with one listener, which ends with a status when it is told to."""

    name = "somewhere"

    def __init__(self, out: str = "", err: str = "ready\n", *, end: int | None = None) -> None:
        self.running = Listener(out, err, end)
        self.told: list[Sequence[str]] = []
        self.ends_with = 0

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, check: bool = True) -> Result:
        self.told.append(argv)
        self.running.status = self.ends_with
        return Result(tuple(argv), 0, b"", b"")

    def spawn(self, argv: Sequence[str]) -> Running:
        assert argv[0] == "python3"
        return cast("Running", self.running)


def test_messages_are_there_after_the_block() -> None:
    sent = [step("FORWARD", 3), step("FORWARD", 1)]
    place = Somewhere("".join(f"{one.hex()}\n" for one in sent))
    with nft_trace(cast("Place", place)) as listener:
        assert listener.messages == b""
    assert listener.messages == b"".join(sent)
    assert place.told == [["kill", "-TERM", "4711"]]
    assert place.running.killed


def test_a_listener_that_cannot_is_an_error() -> None:
    place = Somewhere(err="PermissionError: no\n", end=1)
    with (
        pytest.raises(LabError, match=r"nftables.*PermissionError: no"),
        nft_trace(cast("Place", place)),
    ):
        pass
    assert place.running.killed


def test_missed_messages_are_an_error() -> None:
    place = Somewhere()
    place.ends_with = 1
    place.running.err = b"ready\nOSError: [Errno 105] No buffer space available\n"
    with (
        pytest.raises(LabError, match=r"(?s)events were missed.*No buffer space"),
        nft_trace(cast("Place", place)),
    ):
        pass
