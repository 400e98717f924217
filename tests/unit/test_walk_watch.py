"""The socket filter of a walk, run by an interpreter of the instructions that it has."""

from __future__ import annotations

import ast
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from walk_frames import NUMBER, A, B, echo, frame, ip, tcp, udp, vxlan

from testbed.observe import taps
from testbed.observe.inventory import Inventory, Machine, Space
from testbed.walk import drops, watch
from testbed.walk.frames import Signature
from testbed.walk.observer import posts
from testbed.walk.observer import program as program_for
from testbed.walk.watch import NETWORK, batch, program

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab


def accepts(code: bytes, packet: bytes) -> bool:
    """Run a filter on a packet that begins with its IP header (bpf(4))."""
    at, value = 0, 0
    while True:
        opcode, true, false, operand = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if opcode in {0x20, 0x28, 0x30}:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[opcode]
            offset = operand - NETWORK
            if offset + size > len(packet):
                return False
            value = int.from_bytes(packet[offset : offset + size], "big")
        elif opcode == 0x15:
            at += true if value == operand else false
        else:
            assert opcode == 6
            return bool(operand)


ECHO4 = ip("10.0.0.2", "10.0.0.3", echo())
SYN4 = ip("10.0.0.2", "10.0.0.3", tcp(seq=NUMBER), protocol=6)
ACK4 = ip("10.0.0.3", "10.0.0.2", tcp(seq=1, ack=NUMBER + 1, flags=0x12), protocol=6)
DATAGRAM4 = ip("10.0.0.2", "10.0.0.3", udp(NUMBER.to_bytes(4, "big")), protocol=17)
ECHO6 = ip("fd00::2", "fd00::3", echo(128), protocol=58)


def error(cited: bytes) -> bytes:
    return ip("10.0.0.1", "10.0.0.2", bytes([3, 4, 0, 0, 0, 0, 5, 0]) + cited)


CASES = {
    "echo": ("icmp", 4, ECHO4),
    "tcp": ("tcp", 4, SYN4),
    "answer of tcp": ("tcp", 4, ACK4),
    "udp": ("udp", 4, DATAGRAM4),
    "answer of udp": ("udp", 4, ip("10.0.0.3", "10.0.0.2", udp(b"x" * 20, 53, 61234), protocol=17)),
    "echo of IPv6": ("icmp", 6, ECHO6),
    "error about an echo": ("icmp", 4, error(ECHO4)),
    "error with the least of tcp": ("tcp", 4, error(SYN4[:28])),
    "vxlan": ("icmp", 4, vxlan("192.0.2.1", "192.0.2.2", frame(A, B, ECHO4))),
    "vxlan over IPv6": ("tcp", 4, vxlan("fd00::1", "fd00::2", frame(A, B, SYN4))),
    "vxlan with IPv6": ("icmp", 6, vxlan("192.0.2.1", "192.0.2.2", frame(A, B, ECHO6))),
    "error in vxlan": ("icmp", 4, vxlan("192.0.2.1", "192.0.2.2", frame(A, B, error(ECHO4)))),
    "flannel's udp": ("tcp", 4, ip("192.0.2.1", "192.0.2.2", udp(SYN4, 8285, 8285), protocol=17)),
    "ip in ip": ("udp", 4, ip("192.0.2.1", "192.0.2.2", DATAGRAM4, protocol=4)),
    "gre": ("tcp", 4, ip("192.0.2.1", "192.0.2.2", b"\0\0\x08\0" + SYN4, protocol=47)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_filter_accepts_the_request_in_whatever_carries_it(name: str) -> None:
    protocol, family, packet = CASES[name]
    signature = Signature(protocol, family, NUMBER, 61234)  # type: ignore[arg-type]
    assert accepts(program(signature.marks()), packet)


@pytest.mark.parametrize("name", CASES)
def test_the_filter_refuses_the_packets_of_others(name: str) -> None:
    protocol, family, packet = CASES[name]
    signature = Signature(protocol, family, NUMBER + 7, 61235)  # type: ignore[arg-type]
    assert not accepts(program(signature.marks()), packet)
    assert not accepts(program(signature.marks()), packet[:10])


def opens(
    src: str = "172.17.0.1",
    dst: str = "172.17.0.2",
    *,
    flags: int = 2,
    port: int = 80,
    kind: int = 6,
) -> bytes:
    return ip(src, dst, tcp(seq=1, flags=flags, sport=4000, dport=port), protocol=kind)


@pytest.mark.parametrize(("packet", "wanted"), [
    (opens(), True),
    (opens(flags=0xC2), True),  # with ECN
    (opens("fd00::1", "fd00::2"), True),
    (SYN4, True),  # that of the request itself
    (opens(flags=0x12), False),
    (opens(flags=0x10), False),
    (opens(port=81), False),
    (opens(dst="172.17.0.3"), False),
    (opens("fd00::1", "fd00::3"), False),
    (opens(kind=17), False),
])  # fmt: skip
def test_the_filter_accepts_what_opens_a_connection_to_an_address(
    packet: bytes, wanted: bool
) -> None:
    address = "fd00::2" if packet[0] >> 4 == 6 else "172.17.0.2"
    marks = [*Signature("tcp", 4, NUMBER, 61234).marks(), Signature.opening(address, 80)]
    assert accepts(program(marks), packet) is wanted


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_the_filter_and_the_table_fit_the_kernel(protocol: str, family: int) -> None:
    """A jump of a filter has 8 bits (bpf(4)), and so has an offset of nftables' payload."""
    signature = Signature(protocol, family, NUMBER, 61234)  # type: ignore[arg-type]
    marks = [*signature.marks(), Signature.opening("172.17.0.2" if family == 4 else "fd00::2", 80)]
    assert len(program(marks)) // 8 <= 256
    assert max(offset for offset, *_ in marks) <= 255
    messages = batch((1, 7, 5), "t", marks, ("lo", "eth0"))
    at = count = 0
    while at < len(messages):
        (length,) = struct.unpack_from("=I", messages, at)
        assert length % 4 == 0
        at, count = at + length, count + 1
    assert at == len(messages)
    # Begin, three tables, five chains, the rules of each chain, end.
    assert count == 10 + 5 * sum(len(values) for _, _, values, *_ in marks)


@pytest.mark.parametrize("name", ["watch", "send"])
def test_a_program_for_a_node_needs_nothing_that_it_does_not_bring(name: str) -> None:
    own = Path(watch.__file__).with_name(f"{name}.py")
    modules = {one.__name__: Path(one.__file__ or "") for one in (taps, drops)}
    brought: dict[Path, set[str]] = {own: set(modules), **{one: set() for one in modules.values()}}
    for path, more in brought.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        needed = {one.names[0].name for one in ast.walk(tree) if isinstance(one, ast.Import)}
        for one in (one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)):
            package = one.module == "testbed.walk"
            needed.add(f"{one.module}.{one.names[0].name}" if package else one.module or "")
        others = {one for one in needed if one.partition(".")[0] not in sys.stdlib_module_names}
        assert others <= more
    compile(program_for(name), name, "exec")


@pytest.mark.parametrize(("shared", "watched"), [
    (True, [("node1", ""), ("node1", "web"), ("node2", "other")]),
    (False, [("node1", ""), ("node1", "web"), ("node2", ""), ("node2", "other")]),
])  # fmt: skip
def test_a_namespace_is_watched_once_and_its_number_is_that_of_a_kernel(
    shared: bool, watched: list[tuple[str, str]]
) -> None:
    """Virtual machines that were booted alike have namespaces of the same numbers."""
    node = SimpleNamespace(shares_kernel=shared, socket=lambda path: f"/proc/7/root{path}")
    lab = cast("LiveLab", SimpleNamespace(fabric=None, node=lambda _: node))
    first, web, again, other = (
        Space(name, path=f"/run/netns/{name}", inode=inode)
        for name, inode in (("", 1), ("web", 2), ("same", 2), ("other", 3))
    )
    machines = Machine("node1", spaces=(first, web, again)), Machine("node2", spaces=(first, other))
    assert [post.key for post in posts(lab, Inventory("lab", machines))] == watched
