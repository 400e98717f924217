"""Capture files of several places: a writer of pcapng, block by block.

::

    with Path("walk.pcapng").open("wb") as out:
        file = Writer(out, names={"10.0.0.2": "node2"})
        eth0 = file.interface("node1:eth0")
        file.packet(eth0, time.time_ns(), frame, direction="out", comments=["leaves node1"])

The format is draft-ietf-opsawg-pcapng, in the octet order of this machine. Each block is written
with one call, so that a file that grows, or a pipe, ends with a whole block.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Literal, Protocol

LINK_ETHERNET = 1
LINK_RAW = 101  #: an IPv4 or IPv6 packet without a frame
NANOSECONDS = 9  #: if_tsresol: time is counted in units of 10^-9 s
LONGEST = 0xFFFF  #: octets of an option's value, whose length has 16 bits

SECTION, INTERFACE, NAMES, PACKET = 0x0A0D0D0A, 1, 4, 6
ORDER_MAGIC = 0x1A2B3C4D
UNKNOWN_LENGTH = -1  #: of a section that is still written

Direction = Literal["", "in", "out"]
Reach = Literal["", "unicast", "multicast", "broadcast", "promiscuous"]

#: Bits 0 to 1, and 2 to 4, of epb_flags.
DIRECTIONS: Mapping[Direction, int] = {"": 0, "in": 1, "out": 2}
REACHES: Mapping[Reach, int] = {
    "": 0,
    "unicast": 1,
    "multicast": 2,
    "broadcast": 3,
    "promiscuous": 4,
}


class Output(Protocol):
    """The part of a binary file that the writer uses."""

    def write(self, data: bytes, /) -> object: ...


class Writer:
    """A section of a pcapng file.

    ``names`` maps addresses (IPv4 or IPv6, as text) to names, for programs that resolve
    addresses by the file. ``application`` is the program that writes it, ``comment`` a comment
    on the whole section. Raises ValueError for a name of something that is no address.
    """

    def __init__(
        self,
        out: Output,
        *,
        names: Mapping[str, str] | None = None,
        application: str = "testbed",
        comment: str = "",
    ) -> None:
        self._out = out
        self._interfaces = 0
        records = _records(names or {})  # before anything is written
        header = struct.pack("=IHHq", ORDER_MAGIC, 1, 0, UNKNOWN_LENGTH)
        self._block(
            SECTION,
            header,
            [*_comments([comment]), *_texts({3: sys.platform, 4: application})],
        )
        if names:
            self._block(NAMES, records, ())

    def interface(
        self, name: str, *, link: int = LINK_ETHERNET, description: str = "", filter: str = ""
    ) -> int:
        """Add an interface and return its number, for :meth:`packet`.

        ``link`` is a LINKTYPE value of tcpdump.org, ``filter`` the capture filter in the syntax
        of libpcap. An interface can be added after packets of others.
        """
        options = _texts({2: name, 3: description})
        options.append((9, bytes([NANOSECONDS])))
        if filter:
            options.append((11, b"\0" + filter.encode()))  # 0: a string of libpcap
        self._block(INTERFACE, struct.pack("=HHI", link, 0, 0), options)  # no limit of length
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        nanoseconds: int,
        frame: bytes,
        *,
        length: int | None = None,
        direction: Direction = "",
        reach: Reach = "",
        comments: Iterable[str] = (),
    ) -> None:
        """Add a packet that was seen at ``interface``.

        ``nanoseconds`` count from the epoch, ``length`` is that of the packet in octets where
        ``frame`` is only its beginning. A comment longer than 65535 octets is cut.

        Raises ValueError for an interface that was not added.
        """
        if not 0 <= interface < self._interfaces:
            raise ValueError(f"no interface {interface}, there are {self._interfaces}")
        whole = len(frame) if length is None else length
        header = struct.pack(
            "=IIIII",
            interface,
            nanoseconds >> 32,
            nanoseconds & 0xFFFFFFFF,
            len(frame),
            whole,
        )
        options = _comments(comments)
        if flags := DIRECTIONS[direction] | REACHES[reach] << 2:
            options.append((2, struct.pack("=I", flags)))
        self._block(PACKET, header + _padded(frame), options)

    def _block(self, kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> None:
        packed = [struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options]
        if packed:
            packed.append(bytes(4))  # opt_endofopt
        whole = body + b"".join(packed)
        total = len(whole) + 12
        self._out.write(struct.pack("=II", kind, total) + whole + struct.pack("=I", total))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _comments(texts: Iterable[str]) -> list[tuple[int, bytes]]:
    return [option for text in texts for option in _texts({1: text})]


def _texts(options: Mapping[int, str]) -> list[tuple[int, bytes]]:
    """Return the options that have a text, in UTF-8 without half a character at the end."""
    found = ((code, text.encode(errors="replace")) for code, text in options.items() if text)
    return [
        (code, data if len(data) <= LONGEST else data[:LONGEST].decode(errors="ignore").encode())
        for code, data in found
    ]


def _records(names: Mapping[str, str]) -> bytes:
    """Return the body of a name resolution block."""
    records = []
    for address, name in names.items():
        packed = ip_address(address).packed
        value = packed + name.encode(errors="replace").replace(b"\0", b"") + b"\0"
        kind = 1 if len(packed) == 4 else 2
        records.append(struct.pack("=HH", kind, len(value)) + _padded(value))
    return b"".join([*records, bytes(4)])  # nrb_record_end
