"""The writer of pcapng: read back by dpkt, and by tshark where it is installed."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from testbed.observe.pcapng import INTERFACE, LINK_RAW, LONGEST, NAMES, PACKET, SECTION, Writer

NOON = 1_700_000_000_123_456_789  # ns since the epoch
PING = bytes.fromhex(
    "020000000002 020000000001 0800"  # Ethernet
    "4500001c 12340000 4001 5475 0a000001 0a000002"  # IPv4: its sum is right
    "0800 f7fb 0001 0003"  # ICMP echo request
)


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each block; both lengths of a block agree."""
    while data:
        kind, length = struct.unpack_from("=II", data)
        assert length % 4 == 0
        assert struct.unpack_from("=I", data, length - 4) == (length,)
        yield kind, data[8 : length - 4]
        data = data[length:]


def options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        code, length = struct.unpack_from("=HH", data)
        if code == 0:
            assert data == bytes(4)
            break
        found.append((code, data[4 : 4 + length]))
        data = data[4 + length + -length % 4 :]
    return found


def written(**names: str) -> tuple[io.BytesIO, Writer]:
    out = io.BytesIO()
    return out, Writer(out, names=names)


def test_the_file_begins_with_a_section_of_unknown_length() -> None:
    out = io.BytesIO()
    Writer(out, application="testbed 1", comment="two nodes")
    ((kind, body),) = blocks(out.getvalue())
    assert kind == SECTION
    assert struct.unpack_from("=IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
    assert options(body[16:]) == [(1, b"two nodes"), (3, b"linux"), (4, b"testbed 1")]


def test_dpkt_reads_packets_with_their_nanoseconds() -> None:
    out, file = written()
    one = file.interface("node1:eth0")
    other = file.interface("node1/c1:eth0")
    file.packet(one, NOON, PING)
    file.packet(other, NOON + 1, PING + b"x")  # a length that needs padding
    reader: Any = dpkt.pcapng.Reader(io.BytesIO(out.getvalue()))
    assert reader.datalink() == 1
    (first, a), (second, b) = list(reader)
    assert (a, b) == (PING, PING + b"x")
    # A float holds no more than microseconds of today.
    assert float(first) == pytest.approx(NOON / 1e9, abs=1e-6)
    assert float(second) == pytest.approx(NOON / 1e9, abs=1e-6)


def test_an_interface_has_its_name_resolution_and_filter() -> None:
    out, file = written()
    assert file.interface("node1/容器:eth0") == 0
    assert file.interface("tun", link=LINK_RAW, description="of flannel", filter="icmp") == 1
    _, first, second = (body for _, body in blocks(out.getvalue()))
    assert struct.unpack_from("=HHI", first) == (1, 0, 0)
    assert options(first[8:]) == [(2, "node1/容器:eth0".encode()), (9, b"\x09")]
    assert struct.unpack_from("=HHI", second) == (101, 0, 0)
    assert options(second[8:]) == [
        (2, b"tun"),
        (3, b"of flannel"),
        (9, b"\x09"),
        (11, b"\0icmp"),
    ]


def test_a_packet_has_comments_and_flags() -> None:
    out, file = written()
    number = file.interface("eth0")
    file.packet(
        number, NOON, PING, direction="out", reach="broadcast", comments=["one", "", "zwei: ü"]
    )
    *_, (kind, body) = blocks(out.getvalue())
    assert kind == PACKET
    dpkt_block: Any = dpkt.pcapng.EnhancedPacketBlockLE(out.getvalue()[-len(body) - 12 :])
    assert dpkt_block.pkt_data == PING
    assert (dpkt_block.ts_high << 32) + dpkt_block.ts_low == NOON
    tail = options(body[20 + len(PING) + -len(PING) % 4 :])
    # Outbound is 2 in the two lowest bits, broadcast 3 in the next three.
    assert tail == [(1, b"one"), (1, "zwei: ü".encode()), (2, struct.pack("=I", 2 | 3 << 2))]


def test_a_packet_that_was_cut_keeps_its_length() -> None:
    out, file = written()
    file.packet(file.interface("eth0"), NOON, PING[:20], length=9000)
    *_, (_, body) = blocks(out.getvalue())
    assert struct.unpack_from("=II", body, 12) == (20, 9000)


def test_names_of_both_families() -> None:
    out = io.BytesIO()
    Writer(out, names={"10.0.0.2": "node2", "fd00::2": "node2"})
    _, (kind, body) = blocks(out.getvalue())
    assert kind == NAMES
    assert options(body) == [
        (1, bytes([10, 0, 0, 2]) + b"node2\0"),
        (2, bytes([0xFD, *[0] * 14, 2]) + b"node2\0"),
    ]


def test_a_long_comment_is_cut_between_characters() -> None:
    out, file = written()
    file.packet(file.interface("eth0"), NOON, PING, comments=["ü" * LONGEST])
    *_, (_, body) = blocks(out.getvalue())
    ((_, comment),) = options(body[20 + len(PING) + -len(PING) % 4 :])
    assert comment.decode() == "ü" * (LONGEST // 2)


def test_what_does_not_fit_is_refused_and_nothing_written() -> None:
    out, file = written()
    before = out.getvalue()
    with pytest.raises(ValueError, match="no interface 0"):
        file.packet(0, NOON, PING)
    assert out.getvalue() == before
    empty = io.BytesIO()
    with pytest.raises(ValueError, match="node1"):
        Writer(empty, names={"node1": "10.0.0.1"})
    assert not empty.getvalue()


def test_an_interface_can_come_after_packets() -> None:
    out, file = written()
    file.packet(file.interface("a"), NOON, PING)
    file.packet(file.interface("b"), NOON, PING)
    kinds = [kind for kind, _ in blocks(out.getvalue())]
    assert kinds == [SECTION, INTERFACE, PACKET, INTERFACE, PACKET]


@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_tshark_reads_all_of_it_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "two.pcapng"
    with path.open("wb") as out:
        names = {"10.0.0.1": "node1", "10.0.0.2": "node2", "fd00::2": "node2"}
        file = Writer(out, names=names, comment="two nodes")
        one = file.interface("node1:eth0", filter="icmp")
        two = file.interface("node2/c1:eth0", description="of c1")
        raw = file.interface("node2:flannel0", link=LINK_RAW)
        file.packet(one, NOON, PING, direction="out", comments=["leaves", "node1"])
        file.packet(two, NOON + 5, PING, direction="in", reach="unicast", length=2000)
        file.packet(raw, NOON + 6, PING[14:])
    fields = (
        "frame.interface_name", "frame.time_epoch", "frame.comment", "frame.packet_flags_direction",
        "frame.len", "ip.src_host", "icmp.seq",
    )  # fmt: skip
    argv = ["tshark", "-r", str(path), "-N", "n", "-T", "fields", "-E", "separator=|"]
    argv += [word for field in fields for word in ("-e", field)]
    result = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    lines = [line for line in result.stderr.splitlines() if "as user" not in line]
    assert lines == []
    first, second, third = (line.split("|") for line in result.stdout.splitlines())
    length = str(len(PING))
    assert first[:3] == ["node1:eth0", "1700000000.123456789", "leaves,node1"]
    assert first[4:] == [length, "node1", "3"]
    assert [second[0], second[4]] == ["node2/c1:eth0", "2000"]
    assert [int(line[3], 0) for line in (first, second)] == [2, 1]  # decimal or not, by version
    assert third[0] == "node2:flannel0"
    assert third[5:] == ["node1", "3"]
