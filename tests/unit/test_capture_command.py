"""``testbed capture``: filters, lines of packets, places, and the command on a scripted lab."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from commands import Said, call

from testbed.cli import common
from testbed.errors import MachineError, UsageError
from testbed.labs.lab import Lab
from testbed.nodes.fake import Answer, FakeNode
from testbed.observe import inventory, lines, taps
from testbed.observe.capture import decode
from testbed.observe.inventory import Inventory, Machine, Space
from testbed.observe.listen import Seen, compiled
from testbed.observe.pcapng import LINK_ETHERNET, LINK_RAW
from testbed.observe.places import find, holder
from testbed.observe.taps import Step, guarded, told
from testbed.testing import Bench
from testbed.topology import load_text

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.fake import Call

HEAD = bytes.fromhex("020000000002 020000000001")
NOON = 1_700_000_000_123_456_789
NEEDS_TCPDUMP = pytest.mark.skipif(not shutil.which("tcpdump"), reason="needs tcpdump")


def ip(protocol: int, data: bytes, source: str = "10.0.0.1", target: str = "10.0.0.2") -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + data


def ip6(protocol: int, data: bytes) -> bytes:
    ends = (socket.inet_pton(socket.AF_INET6, one) for one in ("fd00::1", "fd00::2"))
    return struct.pack(">IHBB", 6 << 28, len(data), protocol, 64) + b"".join(ends) + data


def udp(data: bytes, dport: int, sport: int = 4711) -> bytes:
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def ethernet(data: bytes, kind: int = 0x0800) -> bytes:
    return HEAD + struct.pack(">H", kind) + data


ECHO = struct.pack(">BBHHH", 8, 0, 0, 7, 1)
PING = ip(1, ECHO)
SYN = struct.pack(">HHIIBBHHH", 40000, 80, 1000, 0, 0x50, 0x02, 65535, 0, 0)
ARP = bytes.fromhex("0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002")


def seen(frame: bytes, link: int = LINK_ETHERNET) -> Seen:
    return Seen("node1:eth0", NOON, "out", "unicast", link, len(frame), frame)


# -- filters ---------------------------------------------------------------------


def accepts(steps: list[Step], frame: bytes, hardware: int = 1) -> bool:
    """Return a filter's answer for a packet, by the instructions of bpf(4) that tcpdump uses."""
    a = x = 0
    memory = [0] * 16
    at = 0
    sizes = {0x00: 4, 0x08: 2, 0x10: 1}
    while True:
        code, yes, no, k = steps[at]
        at += 1
        kind = code & 0x07
        if kind == 0x06:  # return
            return bool(k)
        if kind in {0x00, 0x01}:  # load into a or x
            size, mode = sizes.get(code & 0x18, 4), code & 0xE0
            if mode == 0xA0:  # 4 * (octet & 15), the length of an IP header
                value = 4 * (frame[k] & 15) if k < len(frame) else 0
            elif k == taps.HARDWARE:
                value = hardware
            elif mode == 0x60:
                value = memory[k]
            elif mode == 0x00:
                value = k
            else:
                place = k + (x if mode == 0x40 else 0)
                if place + size > len(frame):
                    return False
                value = int.from_bytes(frame[place : place + size], "big")
            a, x = (value, x) if kind == 0x00 else (a, value)
        elif kind == 0x05:  # jump
            operand = x if code & 0x08 else k
            results = {0x10: a == operand, 0x20: a > operand, 0x30: a >= operand,
                       0x40: bool(a & operand)}  # fmt: skip
            at += k if code & 0xF0 == 0 else (yes if results[code & 0xF0] else no)
        elif kind == 0x04:  # arithmetic
            operand = x if code & 0x08 else k
            a = {0x50: a & operand, 0x00: a + operand, 0x70: a >> operand}[code & 0xF0]
        elif kind == 0x07:
            a, x = (a, a) if code & 0xF8 == 0 else (x, x)
        else:
            raise AssertionError(f"opcode {code:#x}")


@pytest.mark.parametrize(
    ("hardware", "ether"), [(1, True), (772, True), (65534, False), (768, False), (0, False)]
)
def test_each_filter_sees_its_own_kind_of_device(hardware: int, ether: bool) -> None:
    """ARPHRD_ETHER, _LOOPBACK, _NONE (tun), _TUNNEL (linux/if_arp.h)."""
    everything = [[taps.RETURN, 0, 0, 65535]]
    assert accepts(guarded(everything, ethernet=True), PING, hardware) == ether
    assert accepts(guarded(everything, ethernet=False), PING, hardware) != ether


@NEEDS_TCPDUMP
def test_an_expression_means_the_same_with_and_without_a_frame_header() -> None:
    filters = compiled("icmp and dst host 10.0.0.2")
    assert filters is not None
    ether, raw = filters["ether"], filters["raw"]
    assert ether is not None
    assert raw is not None
    other = ip(1, ECHO, target="10.0.0.3")
    for packet, wanted in ((PING, True), (ip(17, udp(b"", 53)), False), (other, False)):
        assert accepts(guarded(ether, ethernet=True), ethernet(packet)) == wanted
        assert accepts(guarded(raw, ethernet=False), packet, 65534) == wanted


@NEEDS_TCPDUMP
def test_what_only_frames_have_is_seen_nowhere_else() -> None:
    filters = compiled("ether src 02:00:00:00:00:01")
    assert filters is not None
    assert filters["raw"] is None
    assert filters["ether"] is not None
    assert accepts(filters["ether"], ethernet(PING))


@NEEDS_TCPDUMP
@pytest.mark.parametrize("expression", ["tcp prt 80", "host", "(icmp", "ip proto 6 and arp", "-d"])
def test_a_bad_expression_is_refused_in_the_words_of_tcpdump(expression: str) -> None:
    with pytest.raises(UsageError) as caught:
        compiled(expression)
    assert "pcap-filter" in (caught.value.hint or "")


def test_without_an_expression_nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert compiled(" ") is None
    with pytest.raises(MachineError, match="tcpdump"):
        compiled("icmp")


def test_the_tag_of_a_vlan_is_put_back_into_its_frame() -> None:
    stamp = (socket.SOL_SOCKET, taps.TIMESTAMP_NS, struct.pack("=qq", 5, 7))
    status = taps.VLAN_VALID | taps.VLAN_TPID_VALID
    beside = struct.pack("=IIIHHHH", status, 1500, 60, 0, 14, 5, 0x88A8)
    data = ethernet(PING)
    tagged = data[:12] + bytes.fromhex("88a8 0005") + data[12:]
    found = told([stamp, (taps.PACKET, taps.AUXDATA, beside)], data)
    assert found == (5_000_000_007, 1504, tagged)
    assert decode(tagged).dst == "10.0.0.2"
    assert told([stamp], data) == (5_000_000_007, len(data), data)


# -- lines -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (ethernet(PING), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1"),
        (ethernet(ip(6, SYN)), "IP 10.0.0.1.40000 > 10.0.0.2.80: Flags [S], seq 1000, length 0"),
        (ethernet(ip(17, udp(b"abc", 53))), "IP 10.0.0.1.4711 > 10.0.0.2.53: UDP, length 3"),
        (ethernet(ARP, 0x0806), "ARP, Request who-has 10.0.0.2 tell 10.0.0.1"),
        (ethernet(ip6(17, udp(b"", 53)), 0x86DD), "IP6 fd00::1.4711 > fd00::2.53: UDP, length 0"),
        (ethernet(ip(89, b"ospf")), "IP 10.0.0.1 > 10.0.0.2: protocol 89, length 4"),
        (ethernet(b"", 0x88CC), "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88cc"),
        (
            ethernet(ip(17, udp(b"\x08\0\0\0\0\0\x01\0" + ethernet(PING), 8472))),
            "IP 10.0.0.1.4711 > 10.0.0.2.8472: VXLAN 1 | "
            "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1",
        ),
        (
            ethernet(ip(17, udp(PING, 8285, 8285))),
            "IP 10.0.0.1.8285 > 10.0.0.2.8285: flannel udp | "
            "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1",
        ),
        (
            ethernet(ip(4, PING)),
            "IP 10.0.0.1 > 10.0.0.2: IP in IP | "
            "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1",
        ),
    ],
)
def test_a_packet_in_words(frame: bytes, words: str) -> None:
    assert lines.line(seen(frame), 12).endswith(f".123456 node1:eth0   out {words}")
    found = json.loads(json.dumps(lines.data(seen(frame))))
    assert (found["time"], found["place"], found["text"]) == (
        "1700000000.123456789", "node1:eth0", words,
    )  # fmt: skip


def test_a_packet_without_a_frame_header() -> None:
    assert "IP 10.0.0.1 > 10.0.0.2: ICMP echo request" in lines.line(seen(PING, LINK_RAW))


@pytest.mark.parametrize("size", range(0, 90, 3))
def test_a_packet_that_is_cut_anywhere_still_has_a_line(size: int) -> None:
    whole = ethernet(ip(17, udp(b"\x08\0\0\0\0\0\x01\0" + ethernet(ip(6, SYN)), 8472)))
    for link in (LINK_ETHERNET, LINK_RAW):
        assert "node1:eth0" in lines.line(seen(whole[:size], link))
        json.dumps(lines.data(seen(whole[:size], link)))


# -- places ----------------------------------------------------------------------


def lab_of(*machines: Machine) -> Inventory:
    return Inventory("lab", machines)


def test_words_for_places() -> None:
    own = Space("", path="/proc/self/ns/net")
    web = Space("web", "container", "/proc/7/ns/net")
    beside = Space("beside", "container", mode="container", shares="web")
    guest = Space("guest", "container", mode="host")
    pod = Space("default/api", "pod", "/run/netns/cni-1")
    node = Machine("node1", spaces=(own, web, beside, guest, pod))
    found = lab_of(node, Machine("node2", spaces=(own, web)))
    assert find(found, "node1") == (node, own)
    assert find(found, "node1/web") == (node, web)
    for word in ("default/api", "api", "node1/api", "node1/default/api"):
        assert find(found, word) == (node, pod), word
    for word, space in (("node1/beside", web), ("node1/guest", own), ("node1/web", web)):
        at = find(found, word)
        assert at is not None
        assert holder(*at) == space, word
    assert find(found, "nothing") is None
    with pytest.raises(UsageError, match="web"):
        find(found, "web")


# -- the command, on nodes that are entered by a program -------------------------

PAIR = """
name: pair
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  one: {networks: {lan: 10.168.0.2}}
  two: {networks: {lan: 10.168.0.3}}
"""
Capture = Callable[..., Said]


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """``testbed capture`` on a lab, each of whose nodes sees two packets and ends."""
    bench = Bench(tmp_path)
    bench.install(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.setattr(FakeNode, "shares_kernel", False)
    links = [{"ifname": "eth0", "ifindex": 2, "link_type": "ether", "flags": ["UP"]}]
    looked = f"{inventory.SEPARATOR}links\n{json.dumps(links)}\n"
    bench.provider.script(["sh", "-c"], Answer(out=looked.encode()))

    def answer(call: Call) -> Answer:
        given = json.loads(call.words[-1])
        head = [77, ["" for _ in given["taps"]]]
        packets = [[0, NOON + n, "eth0", 4 * n, 1, 98, ethernet(PING).hex()] for n in (0, 1)]
        return Answer(out="".join(f"{json.dumps(line)}\n" for line in (head, *packets)).encode())

    bench.provider.script([*taps.INTERPRETER], answer)
    lab = Lab("pair", bench.settings)
    lab.up(load_text(PAIR, "pair.yaml"))
    yield lambda *argv: call(tmp_path, "capture", *argv)
    lab.down()


def test_it_ends_after_so_many_packets(capture: Capture) -> None:
    said = capture("one", "--count", "2")
    assert said.status == 0, said.err
    first, second = said.out.splitlines()
    assert " one:eth0 in  IP 10.0.0.1 > 10.0.0.2: ICMP echo request" in first
    assert " one:eth0 out IP" in second
    assert "2 packets" in said.err


def test_json_is_an_object_a_line(capture: Capture) -> None:
    found = [
        json.loads(line) for line in capture("one", "two", "--json", "-c", "4").out.splitlines()
    ]
    assert {one["place"] for one in found} == {"one:eth0", "two:eth0"}
    assert [one["length"] for one in found] == [98] * 4


def test_all_places_are_in_one_file(capture: Capture, tmp_path: Path) -> None:
    path = tmp_path / "both.pcapng"
    said = capture("one:eth0", "two", "-w", str(path), "-c", "4")
    assert (said.status, said.out) == (0, ""), said.err
    reader: Any = dpkt.pcapng.Reader(io.BytesIO(path.read_bytes()))
    assert [frame for _, frame in reader] == [ethernet(PING)] * 4
    for name in (b"one:eth0", b"two:eth0"):
        assert path.read_bytes().count(name) == 1


def test_the_packets_of_a_place_that_ends_are_shown_first(capture: Capture) -> None:
    said = capture("one")
    assert said.status == 4
    assert len(said.out.splitlines()) == 2
    assert "no place is left" in said.err


def test_a_disk_that_is_full(capture: Capture) -> None:
    said = capture("one", "-w", "/dev/full", "--count", "2")
    assert said.status == 3
    assert "/dev/full" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["onne"], 2, "one"),
        (["one:eht0"], 2, "eth0"),
        (["one/web"], 2, "no such place"),
        (["lann"], 2, "no such place"),
        (["one", "-w", "a", "--json"], 2, "exclude"),
        (["one", "-w", "/proc/none/a"], 2, "cannot write"),
        (["one", "--count", "0"], 2, "count"),
        (["one", "--seconds", "0"], 2, "seconds"),
        ([], 2, "PLACE"),
        (["-l", "pear", "one"], 4, "pear"),
        pytest.param(["one", "-f", "tcp prt 80"], 2, "syntax error", marks=NEEDS_TCPDUMP),
    ],
)
def test_wrong_use(capture: Capture, argv: list[str], status: int, words: str) -> None:
    said = capture(*argv)
    assert (said.status, said.out) == (status, "")
    assert words in said.err
    assert "Traceback" not in said.err


# -- the program on a node -------------------------------------------------------


def test_the_program_finds_the_device_of_its_session() -> None:
    environment = b"A=1\0SSH_CONNECTION=10.0.0.9 5000 127.0.0.1 22\0B=2"
    assert taps.session_device(environment) == "lo"
    assert taps.session_device(b"SSH_CONNECTION=10.0.0.9 5000 192.0.2.1 22") == ""
    assert taps.session_device(b"A=1") == ""
