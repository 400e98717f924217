"""Reasons of the kernel for the loss of a request's packets: its tracepoint skb:kfree_skb.

A program of bpf(2) at the tracepoint keeps the drops of packets with one of the marks. It is
attached by a file descriptor, so that the kernel removes it with the process, also after SIGKILL.
The layout of the kernel's structures and the names of its reasons come from the kernel itself
(/sys/kernel/btf/vmlinux, https://docs.kernel.org/bpf/btf.html).

This module needs the standard library alone. It also runs on nodes with a kernel of their own.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import os
import platform
import struct
from typing import Any

BTF = "/sys/kernel/btf/vmlinux"
SYMBOLS = "/proc/kallsyms"
PREFIX = "SKB_DROP_REASON_"
UNSPECIFIED = "NOT_SPECIFIED"  # only the function tells more
REASONS = "skb_drop_reason"  # an enumeration, from Linux 5.17 on
#: Numbers of bpf(2) by processor (syscall_64.tbl, asm-generic/unistd.h). Registers in
#: instructions are in the order of those with the lowest octet first.
NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}
MAP_CREATE, PROG_LOAD, TRACEPOINT_OPEN, TAKE = 0, 5, 17, 21  # enum bpf_cmd, linux/bpf.h
ARRAY_PER_CPU, QUEUE = 6, 22  # enum bpf_map_type
RAW_TRACEPOINT = 17  # enum bpf_prog_type
LOOKUP, PUSH, READ_KERNEL = 1, 87, 113  # enum bpf_func_id
MOST = 256  # drops that are kept
#: A drop: reason, the address in the kernel's text, the inode of the network namespace and the
#: index of the device (0 if not known), then the packet from its network header.
HEAD = struct.Struct("=QQII")
WINDOW = 176  # octets of a packet: the farthest mark is below
MAGIC = 0xEB9F
#: Kinds of types: octets after the first 12, and octets of each member or value.
EXTRA = {**dict.fromkeys(range(20), (0, 0)), 1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12),
         6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}  # fmt: skip
STRUCT, UNION, ENUM, ENUM64 = 4, 5, 6, 19
#: Fields that the program reads.
FIELDS = (("sk_buff", "head"), ("sk_buff", "network_header"), ("sk_buff", "dev"),
          ("net_device", "ifindex"), ("net_device", "nd_net"), ("net", "ns"),
          ("ns_common", "inum"))  # fmt: skip

#: A drop as data: the inode of the namespace, the index of the device, reason, function, octets.
Drop = tuple[int, int, str, str, bytes]


class Layout:
    """The types of the running kernel.  Raises OSError if it does not tell them."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib takes long to load
            data = file.read()
        if len(data) < 24 or struct.unpack_from("=H", data) != (MAGIC,):
            raise OSError(0, f"{path} does not have the types of a kernel")
        size, types, types_size, names, names_size = struct.unpack_from("=IIIII", data, 4)
        self._types = data[size + types : size + types + types_size]
        self._names = data[size + names : size + names + names_size]
        self._at = [0, 0]  # where each type begins, by its number; none has 0

    def has(self, name: str) -> None:
        """Raise OSError if the kernel has no type of this name."""
        self._name(name)

    def offset(self, structure: str, member: str) -> int:
        """Return where a member begins, in octets.  Raises OSError for one that is not there."""
        found = self._member(self._named(structure, STRUCT), self._name(member))
        if found is None:
            raise OSError(0, f"the kernel has no {structure}.{member}")
        return found // 8

    def values(self, name: str) -> dict[int, str]:
        """Return the names of an enumeration by their values.  Raises OSError as :meth:`offset`."""
        at = self._named(name, ENUM, ENUM64)
        _, info = struct.unpack_from("=II", self._types, at)
        found = {}
        for number in range(info & 0xFFFF):
            if info >> 24 & 31 == ENUM:
                start, value = struct.unpack_from("=Ii", self._types, at + 12 + 8 * number)
            else:  # not of eight octets in one place: they are not aligned
                start, low, high = struct.unpack_from("=III", self._types, at + 12 + 12 * number)
                value = high << 32 | low
            found[value] = self._names[start : self._names.index(b"\0", start)].decode()
        return found

    def _name(self, word: str) -> int:
        """Return the offset of a name."""
        at = self._names.find(b"\0" + word.encode() + b"\0")
        if at < 0:
            raise OSError(0, f"the kernel has no {word}")
        return at + 1

    def _named(self, word: str, *kinds: int) -> int:
        """Return where a named type of one of these kinds begins."""
        wanted = struct.pack("=I", self._name(word))
        at = self._types.find(wanted)
        while at >= 0:
            if at % 4 == 0 and at + 12 <= len(self._types):
                _, info = struct.unpack_from("=II", self._types, at)
                if info >> 24 & 31 in kinds and info & 0xFFFF and self._begins(at):
                    return at
            at = self._types.find(wanted, at + 1)
        raise OSError(0, f"the kernel has no type {word}")

    def _begins(self, at: int) -> bool:
        """Tell whether a type begins there; otherwise these octets are a member of one."""
        while self._at[-1] < at:
            self._next()
        return self._at[bisect.bisect_left(self._at, at)] == at

    def _next(self) -> None:
        at = self._at[-1]
        if at + 12 > len(self._types):
            raise OSError(0, "the types of the kernel are not complete")
        (info,) = struct.unpack_from("=I", self._types, at + 4)
        kind = info >> 24 & 31
        if kind not in EXTRA:
            raise OSError(0, f"the kernel has a kind of type that is not known: {kind}")
        fixed, each = EXTRA[kind]
        self._at.append(at + 12 + fixed + each * (info & 0xFFFF))

    def _member(self, at: int, name: int) -> int | None:
        """Return where a member begins, in bits; also one of a structure without a name."""
        _, info = struct.unpack_from("=II", self._types, at)
        if info >> 24 & 31 not in {STRUCT, UNION}:
            return None
        for number in range(info & 0xFFFF):
            word, kind, bits = struct.unpack_from("=III", self._types, at + 12 + 12 * number)
            bits &= 0xFFFFFF if info >> 31 else 0xFFFFFFFF  # kind_flag: with the size in bits
            if word == name:
                return int(bits)
            if not word:
                while len(self._at) <= kind:
                    self._next()
                inner = self._member(self._at[kind], name)
                if inner is not None:
                    return int(bits) + inner
        return None


class Program:
    """Instructions of bpf(2)."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int, int]] = []
        self._found: list[int] = []

    def step(
        self, code: int, target: int = 0, source: int = 0, offset: int = 0, k: int = 0
    ) -> None:
        self._steps.append((code, target | source << 4, offset, k))

    def map(self, register: int, file: int) -> None:
        """Load a map."""
        self.step(0x18, register, 1, 0, file)
        self.step(0)

    def read(self, frame: int, size: int, base: int, offset: int) -> None:
        """Read the kernel's memory at a register into the stack; zeros where it cannot be read."""
        self.step(0xBF, 1, 10)
        self.step(0x07, 1, k=frame)
        self._read(size, base, offset)

    def keep(self, place: int, size: int, base: int, offset: int) -> None:
        """Read the kernel's memory at a register into the record of the drop (register 7)."""
        self.step(0xBF, 1, 7)
        self.step(0x07, 1, k=place)
        self._read(size, base, offset)

    def _read(self, size: int, base: int, offset: int) -> None:
        self.step(0xB7, 2, k=size)
        self.step(0xBF, 3, base)
        self.step(0x07, 3, k=offset)
        self.step(0x85, k=READ_KERNEL)

    def leave_if_zero(self, register: int) -> None:
        self.step(0x55, register, 0, 2)
        self.step(0xB7, 0)
        self.step(0x95)

    def go_on_if(self, *conditions: tuple[int, bytes]) -> None:
        """Go on at :meth:`here` if the record has a value of 1, 2 or 4 octets at each offset."""
        for left, (offset, value) in zip(range(len(conditions) - 1, -1, -1), conditions,
                                         strict=True):  # fmt: skip
            load, kind = {1: (0x71, "=B"), 2: (0x69, "=H"), 4: (0x61, "=i")}[len(value)]
            self.step(load, 1, 7, HEAD.size + offset)
            number = struct.unpack(kind, value)[0]
            if left:  # 32-bit comparison: over the steps of the other conditions
                self.step(0x56, 1, 0, 2 * left, number)
            else:
                self._found.append(len(self._steps))
                self.step(0x16, 1, 0, 0, number)

    def here(self) -> None:
        self.step(0xB7, 0)
        self.step(0x95)
        for at in self._found:
            code, registers, _, k = self._steps[at]
            self._steps[at] = (code, registers, len(self._steps) - at - 1, k)

    def packed(self) -> bytes:
        return b"".join(struct.pack("=BBhi", *one) for one in self._steps)


def program(offsets: dict[str, int], marks: list[list[Any]], scratch: int, queue: int) -> bytes:
    """Return the program for the tracepoint.

    ``offsets`` are those of :data:`FIELDS`, ``marks`` as in :mod:`testbed.walk.watch`. ``scratch``
    and ``queue`` are the maps for one record, and for all.
    """
    made = Program()
    made.step(0xBF, 6, 1)
    made.step(0x62, 10, 0, -4)  # key 0
    made.map(1, scratch)
    made.step(0xBF, 2, 10)
    made.step(0x07, 2, k=-4)
    made.step(0x85, k=LOOKUP)
    made.leave_if_zero(0)
    made.step(0xBF, 7, 0)
    made.step(0x79, 8, 6, 0)  # the packet: first argument of the tracepoint
    made.read(-16, 8, 8, offsets["head"])
    made.step(0x7A, 10, 0, -24)
    made.read(-24, 2, 8, offsets["network_header"])
    made.step(0x79, 9, 10, -16)
    made.step(0x69, 1, 10, -24)
    made.step(0x0F, 9, 1)
    made.keep(HEAD.size, WINDOW, 9, 0)
    for offset, size, values, *also in marks:
        for value in values:
            wanted = [(place, one.to_bytes(octets, "big")) for place, octets, one in also]
            made.go_on_if(*wanted, (offset, value.to_bytes(size, "big")))
    made.here()
    made.step(0x79, 1, 6, 16)  # the reason: third argument
    made.step(0x7B, 7, 1, 0)
    made.step(0x79, 1, 6, 8)  # the place in the code: second argument
    made.step(0x7B, 7, 1, 8)
    made.read(-16, 8, 8, offsets["dev"])
    made.step(0x79, 9, 10, -16)
    made.keep(20, 4, 9, offsets["ifindex"])
    made.read(-16, 8, 9, offsets["nd_net"])
    made.step(0x79, 9, 10, -16)
    made.keep(16, 4, 9, offsets["ns"] + offsets["inum"])
    made.map(1, queue)
    made.step(0xBF, 2, 7)
    made.step(0xB7, 3)
    made.step(0x85, k=PUSH)
    made.step(0xB7, 0)
    made.step(0x95)
    return made.packed()


def _bpf(command: int, given: bytes) -> int:
    """Call bpf(2).  Raises OSError."""
    number = NUMBERS.get(platform.machine())
    if number is None or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"bpf(2) is not used on this processor, {platform.machine()}")
    # A system call takes whole registers: without types ctypes would pass 32 bits.
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    kept = ctypes.create_string_buffer(given, len(given))
    found = int(
        call(ctypes.c_long(number), ctypes.c_long(command), kept, ctypes.c_long(len(given)))
    )
    if found < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return found


class Drops:
    """The drops of marked packets in all namespaces of this kernel, from now on.

    Raises OSError if the kernel does not tell them, or not to this user.
    """

    def __init__(self, marks: list[list[Any]]) -> None:
        self._layout = Layout(BTF)
        self._layout.has(REASONS)
        offsets = {member: self._layout.offset(name, member) for name, member in FIELDS}
        size = HEAD.size + WINDOW
        self._files: list[int] = []
        try:
            scratch = self._open(MAP_CREATE, struct.pack("=IIII", ARRAY_PER_CPU, 4, size, 1))
            self._queue = self._open(MAP_CREATE, struct.pack("=IIII", QUEUE, 0, size, MOST))
            steps = program(offsets, marks, scratch, self._queue)
            code = ctypes.create_string_buffer(steps, len(steps))
            law = ctypes.create_string_buffer(b"GPL")  # of helpers that read the kernel's memory
            given = struct.pack("=IIQQ", RAW_TRACEPOINT, len(steps) // 8,
                                ctypes.addressof(code), ctypes.addressof(law))  # fmt: skip
            loaded = self._open(PROG_LOAD, given + bytes(48))
            name = ctypes.create_string_buffer(b"kfree_skb")
            self._open(TRACEPOINT_OPEN, struct.pack("=QII", ctypes.addressof(name), loaded, 0))
        except BaseException:
            self.close()
            raise

    def _open(self, command: int, given: bytes) -> int:
        self._files.append(_bpf(command, given))
        return self._files[-1]

    def read(self) -> list[Drop]:
        """Return the drops since the last call, in their order."""
        found = []
        value = ctypes.create_string_buffer(HEAD.size + WINDOW)
        given = struct.pack("=IIQQQ", self._queue, 0, 0, ctypes.addressof(value), 0)
        with contextlib.suppress(OSError):  # ENOENT: the queue is empty
            while True:
                _bpf(TAKE, given)
                found.append(value.raw)
        if not found:
            return []
        names: dict[int, str] = {}
        with contextlib.suppress(OSError):  # else their numbers are told
            names = self._layout.values(REASONS)
        told: list[tuple[int, int, str, int, bytes]] = []
        for data in found:
            reason, place, space, device = HEAD.unpack_from(data)
            word = names.get(reason, str(reason)).removeprefix(PREFIX)
            told.append((space, device, word, place, data[HEAD.size :]))
        places = [place for _, _, word, place, _ in told if word == UNSPECIFIED]
        known = functions(places) if places else {}
        return [
            (space, device, word, known.get(place, ""), data)
            for space, device, word, place, data in told
        ]

    def close(self) -> None:
        for one in reversed(self._files):
            os.close(one)
        self._files.clear()


def functions(addresses: list[int]) -> dict[int, str]:
    """Return the functions of the kernel that addresses are in, as far as they are known."""
    found = dict.fromkeys(addresses, (0, b""))
    with contextlib.suppress(OSError), open(SYMBOLS, "rb") as file:  # noqa: PTH123
        for line in file:
            text, kind, name = line.split()[:3]
            if kind in b"tTwW":
                start = int(text, 16)
                for address, (before, _) in found.items():
                    if before < start <= address:
                        found[address] = (start, name)
    return {address: name.decode() for address, (_, name) in found.items() if name}


def opened(marks: list[list[Any]]) -> tuple[Drops | None, str]:
    """Return what reports the drops of marked packets, or None and why nothing does."""
    try:
        return Drops(marks), ""
    except OSError as error:
        return None, ": ".join(one for one in (error.filename, error.strerror) if one)
