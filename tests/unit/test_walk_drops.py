"""Reasons of the kernel for lost packets: its layouts, the program, and what a walk says."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from walk_frames import ECHO, A, B, echo, ip, link, seen, vxlan
from walk_frames import frame as ethernet

from testbed.walk import drops as tracepoint
from testbed.walk.drops import FIELDS, HEAD, WINDOW, Layout, functions, opened, program
from testbed.walk.explain import drops, lost
from testbed.walk.frames import Dropped, Signature, dropped
from testbed.walk.model import Fact, Hop, Spot, View

NAMES = ("sk_buff", "next", "dev", "head", "network_header", "skb_drop_reason",
         "SKB_DROP_REASON_NO_SOCKET", "net_device")  # fmt: skip
INT, STRUCT, UNION, ENUM, FORWARD, ENUM64 = 1, 4, 5, 6, 7, 19
AT = {name: 1 + sum(len(one) + 1 for one in NAMES[:index]) for index, name in enumerate(NAMES)}


def kind(number: int, name: str, body: bytes, count: int, size: int, *, flag: int = 0) -> bytes:
    return struct.pack("=III", AT.get(name, 0), flag << 31 | number << 24 | count, size) + body


def members(*some: tuple[str, int, int]) -> bytes:
    return b"".join(struct.pack("=III", AT.get(name, 0), of, bits) for name, of, bits in some)


def btf() -> bytes:
    """The types of a kernel in which sk_buff has members in structures without a name."""
    types = [
        kind(INT, "", struct.pack("=I", 64), 0, 8),
        # A type that is only named, with the name of the one that is wanted.
        kind(FORWARD, "sk_buff", b"", 0, 0),
        kind(UNION, "", members(("dev", 1, 0), ("", 1, 0)), 2, 8),
        kind(STRUCT, "", members(("next", 1, 0), ("", 3, 128)), 2, 24),
        kind(STRUCT, "", members(("network_header", 1, 16)), 1, 8),
        # A bit field: its size is in the upper octet of the offset.
        kind(STRUCT, "sk_buff",
             members(("", 4, 0), ("", 5, 8 << 24 | 192), ("head", 1, 256)), 3, 40, flag=1),
        kind(ENUM, "skb_drop_reason",
             struct.pack("=Ii", AT["SKB_DROP_REASON_NO_SOCKET"], 3), 1, 4),
    ]  # fmt: skip
    names = b"\0" + b"".join(name.encode() + b"\0" for name in NAMES)
    data = b"".join(types)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(data), len(data), len(names))
    return head + data + names


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "btf").write_bytes(btf())
    return Layout(str(tmp_path / "btf"))


def test_a_member_is_found_also_in_structures_without_a_name(layout: Layout) -> None:
    found = {name: layout.offset("sk_buff", name) for name in ("head", "dev", "network_header")}
    assert found == {"head": 32, "dev": 16, "network_header": 26}
    assert layout.values("skb_drop_reason") == {3: "SKB_DROP_REASON_NO_SOCKET"}


@pytest.mark.parametrize(("structure", "member"), [
    ("sk_buff", "nothing"), ("nothing", "head"), ("net_device", "ifindex"),
])  # fmt: skip
def test_what_the_kernel_does_not_have_is_an_error(
    layout: Layout, structure: str, member: str
) -> None:
    with pytest.raises(OSError, match=member if structure == "sk_buff" else structure):
        layout.offset(structure, member)


def test_without_the_types_of_the_kernel_there_are_no_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = str(tmp_path / "vmlinux")
    monkeypatch.setattr(tracepoint, "BTF", missing)
    found, why = opened([])
    assert found is None
    assert missing in why


@pytest.mark.parametrize("data", [b"", b"\0" * 24, btf()[:20], btf()[:40]],
                         ids=["empty", "zeros", "half a head", "half"])  # fmt: skip
def test_types_that_are_not_understood_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "btf").write_bytes(data)
    monkeypatch.setattr(tracepoint, "BTF", str(tmp_path / "btf"))
    found, why = opened([])
    assert found is None
    assert why


def test_a_kind_of_type_of_a_later_kernel_is_an_error(tmp_path: Path) -> None:
    """Its size is not known, nor where the next type begins."""
    (tmp_path / "btf").write_bytes(
        btf().replace(kind(FORWARD, "sk_buff", b"", 0, 0), kind(31, "sk_buff", b"", 0, 0))
    )
    with pytest.raises(OSError, match="31"):
        Layout(str(tmp_path / "btf")).offset("sk_buff", "head")


def test_a_kernel_without_reasons_is_refused_before_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One before 5.17: the tracepoint has no third argument."""
    (tmp_path / "btf").write_bytes(btf().replace(b"skb_drop_reason", b"skb_drop_nothin"))
    monkeypatch.setattr(tracepoint, "BTF", str(tmp_path / "btf"))
    found, why = opened([])
    assert found is None
    assert "skb_drop_reason" in why


def test_a_name_at_the_end_of_the_types_is_not_a_type(tmp_path: Path) -> None:
    last = struct.pack("=Ii", AT["SKB_DROP_REASON_NO_SOCKET"], 3)
    (tmp_path / "btf").write_bytes(
        btf().replace(last, struct.pack("=II", AT["SKB_DROP_REASON_NO_SOCKET"], AT["net_device"]))
    )
    with pytest.raises(OSError, match="net_device"):
        Layout(str(tmp_path / "btf")).offset("net_device", "ifindex")


def test_an_enumeration_can_be_of_64_bits(tmp_path: Path) -> None:
    before = kind(ENUM, "skb_drop_reason", b"", 1, 4)
    name = AT["SKB_DROP_REASON_NO_SOCKET"]
    last = struct.pack("=Ii", name, 3)
    after = kind(ENUM64, "skb_drop_reason", struct.pack("=III", name, 3, 1), 1, 8)
    data = btf().replace(before + last, after)
    types = struct.unpack_from("=I", data, 12)[0] + 4
    head = struct.pack("=III", types, types, struct.unpack_from("=I", data, 20)[0])
    (tmp_path / "btf").write_bytes(data[:12] + head + data[24:])
    found = Layout(str(tmp_path / "btf")).values("skb_drop_reason")
    assert found == {1 << 32 | 3: "SKB_DROP_REASON_NO_SOCKET"}


def test_reasons_without_names_have_numbers(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = [HEAD.pack(77, 0x1000, 4026531840, 3) + bytes(WINDOW)]

    def bpf(command: int, given: bytes) -> int:
        if not taken:
            raise FileNotFoundError
        place = struct.unpack_from("=IIQQ", given)[3]
        ctypes.memmove(place, taken.pop(), HEAD.size + WINDOW)
        return 0

    monkeypatch.setattr(tracepoint, "_bpf", bpf)
    monkeypatch.setattr(tracepoint, "REASONS", "net_device")  # no enumeration
    reports = object.__new__(tracepoint.Drops)
    reports._layout, reports._queue = layout, 3
    assert reports.read() == [(4026531840, 3, "77", "", bytes(WINDOW))]


@pytest.mark.parametrize("machine", ["s390x", "ppc64le", "armv7l", "aarch64_be"])
def test_no_system_call_is_made_on_another_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """There its number is that of another one."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: pytest.fail("a system call"))
    with pytest.raises(OSError, match=machine):
        tracepoint._bpf(0, b"")


def test_the_program_fits_its_record_and_ends_within_itself() -> None:
    """A mark beyond the record would make the kernel refuse the program."""
    for protocol in ("icmp", "tcp", "udp"):
        for family in (4, 6):
            signature = Signature(protocol, family, 7, 61234)
            address = "172.17.0.2" if family == 4 else "fd00::2"
            opening = Signature.opening(address, 80)
            marks = [*signature.marks(), opening]
            assert max(offset + size for offset, size, *_ in marks) <= WINDOW
            code = program(dict.fromkeys((member for _, member in FIELDS), 8), marks, 3, 4)
            steps = [*struct.iter_unpack("=BBhi", code)]
            jumps = [(at, offset) for at, (opcode, _, offset, _) in enumerate(steps)
                     if opcode in {0x16, 0x55}]  # fmt: skip
            assert len(jumps) == 1 + sum(len(values) for _, _, values, *_ in marks)
            over = [(at, offset) for at, (opcode, _, offset, _) in enumerate(steps)
                    if opcode == 0x56]  # fmt: skip
            assert len(over) == len(opening[2]) * len(opening[3:])
            # Without a further condition the next alternative follows, which begins with a load.
            assert all(steps[at + 1 + offset][0] in {0x61, 0x71, 0xB7} for at, offset in over)
            assert all(0 < at + 1 + offset < len(steps) for at, offset in jumps)
            assert steps[-1][0] == 0x95
            assert HEAD.size == 24


def test_an_address_is_in_the_function_that_begins_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = "1000 T first\n1100 t second\n1180 d data\n1200 T third\n1f00 T far [module]\n"
    (tmp_path / "kallsyms").write_text(listed)
    monkeypatch.setattr(tracepoint, "SYMBOLS", str(tmp_path / "kallsyms"))
    found = functions([0x1050, 0x11F0, 0x1F20, 0x10])
    assert found == {0x1050: "first", 0x11F0: "second", 0x1F20: "far"}


# -- what a walk says -------------------------------------------------------------------

PACKET = ip("10.0.0.2", "10.2.0.3", echo())
WRAPPED = vxlan("192.0.2.1", "192.0.2.2", ethernet(A, B, PACKET))
OTHERS = ip("10.0.0.2", "10.2.0.3", echo(number=4711))


def test_drops_are_those_of_the_request_in_whatever_carries_it() -> None:
    """The octets that follow the packet in the kernel's memory are kept with it."""
    given: list[Any] = [
        (1, 2, "NO_SOCKET", "", PACKET + bytes(40)), (1, 2, "XDP", "", WRAPPED + bytes(9)),
        (1, 2, "NO_SOCKET", "", OTHERS), (1, 2, "NO_SOCKET", "", b""),
    ]  # fmt: skip
    assert [(one.reason, one.direction) for one in dropped(given, ECHO)] == [
        ("NO_SOCKET", "there"), ("XDP", "there"),
    ]  # fmt: skip


def drop(reason: str, space: int = 7, function: str = "", direction: Any = "there") -> Dropped:
    return Dropped(direction, space, 2, reason, function)


VIEW = View("", "", "10.0.0.2", "10.2.0.3", "icmp", ttl=64)
IN = Hop("device", Spot("r", "", "eth0"), "in", view=VIEW)
OUT = Hop("device", Spot("r", "", "eth1"), "out", view=VIEW)
LINKS = [link("eth0", 1), link("eth1", 2, "s//eth0")]


def test_the_reason_is_that_of_the_last_namespace_and_of_this_direction() -> None:
    here = seen(
        "r", "", LINKS, [], drops=[drop("XDP"), drop("XDP"), drop("OTHER", direction="back")]
    )
    there = seen("s", "", [], [], drops=[drop("CPU_BACKLOG")])
    places = {one.place: one for one in (here, there)}
    assert [one.text for one in drops([IN], places, here, "there")] == [
        "the kernel dropped it: a program of XDP (XDP)"
    ]
    assert [one.text.split("(")[-1] for one in drops([OUT], places, here, "there")] == [
        "XDP)", "CPU_BACKLOG)",
    ]  # fmt: skip


def test_a_drop_in_an_unknown_namespace_counts_without_a_better_one() -> None:
    unknown = drop("IP_OUTNOROUTES", space=0)
    alone = seen("r", "", LINKS, [], drops=[unknown])
    assert "IP_OUTNOROUTES" in drops([IN], {}, alone, "there")[0].text
    both = replace(alone, drops=[unknown, drop("XDP")])
    assert [one.text.split("(")[-1] for one in drops([IN], {}, both, "there")] == ["XDP)"]


def test_a_kernel_that_reports_nothing_is_told_only_where_nothing_else_is_known() -> None:
    place = seen("r", "", LINKS, [], no_drops="Operation not permitted")
    told = drops([IN], {}, place, "there")
    assert [(one.origin, "not permitted" in one.text) for one in told] == [("inferred", True)]
    assert [one.text for one in lost([IN], {}, drops=told).facts][-1] == told[0].text
    known = Fact("10.0.0.1 sent host unreachable", "seen")
    assert lost([IN], {}, [known], drops=told).facts == (known,)


def test_the_reason_of_the_kernel_comes_first_unless_it_is_vague() -> None:
    asked = Fact("no route", "asked")
    clear = Fact("the kernel dropped it: no route (IP_INNOROUTES)", "seen")
    vague = Fact("the kernel dropped it: NOT_SPECIFIED in ip_error", "seen")
    assert lost([IN], {}, [asked], drops=[clear]).facts == (clear, asked)
    assert lost([IN], {}, [asked], drops=[vague]).facts == (asked, vague)
    assert lost([IN], {}, drops=[vague]).facts == (vague,)
