"""Packets of network namespaces, by sockets that are opened from inside them.

A tap has no process of its own, and nothing of it stays behind: the kernel closes a socket with
the process. This module needs the standard library alone. It also runs as a program on nodes
whose namespaces cannot be entered from this machine (``python3 -I -S -c``); its argument is the
JSON text of :func:`main`.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import struct
import sys
import threading
from typing import Any

#: Runs a program, the argument after it. It starts in half the time: no user or site modules.
INTERPRETER = ("python3", "-I", "-S", "-c")
SETNS = 0x40000000  # CLONE_NEWNET, linux/sched.h
ALL_FRAMES = 0x0003  # ETH_P_ALL, linux/if_ether.h
ATTACH_FILTER, TIMESTAMP_NS, BUFFER_FORCE = 26, 35, 33  # asm-generic/socket.h
PACKET, STATISTICS, AUXDATA = 263, 6, 8  # SOL_PACKET, linux/if_packet.h
GET_ADDRESS = 0x8915  # SIOCGIFADDR, linux/sockios.h
VLAN_VALID, VLAN_TPID_VALID = 0x10, 0x40  # TP_STATUS_*
OUTGOING = 4  # PACKET_OUTGOING
ETHERNET = (1, 772)  # ARPHRD_ETHER and ARPHRD_LOOPBACK have a frame's header, linux/if_arp.h
HARDWARE = 0xFFFFF000 + 28  # SKF_AD_OFF + SKF_AD_HATYPE, linux/filter.h
BUFFER = 1 << 24  # octets
LOOK = 0.25  # seconds from one look for namespaces that have gone to the next
FRAME = 1 << 18  # octets; a segment that is not split yet may have more than 64 KiB
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # opcodes of bpf(4)

#: An instruction of bpf(4): opcode, jumps if true and if false, operand.
Step = list[int]
#: A packet: time in ns since the epoch, device, its number in linux/if_packet.h, hardware type,
#: length on the wire, octets.
Frame = tuple[int, str, int, int, int, bytes]


def guarded(steps: list[Step], *, ethernet: bool) -> list[Step]:
    """Return a filter for devices with a frame's header, or for those without."""
    one, other = ETHERNET
    if ethernet:
        head = [[JUMP_EQUAL, 2, 0, one], [JUMP_EQUAL, 1, 0, other]]
    else:
        head = [[JUMP_EQUAL, 1, 0, one], [JUMP_EQUAL, 0, 1, other]]
    return [[LOAD, 0, 0, HARDWARE], *head, [RETURN, 0, 0, 0], *steps]


def enter(path: str) -> None:
    """Move the thread to a network namespace.  Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(file, SETNS):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(file)


def inside(path: str, work: Any) -> Any:
    """Call a function in a thread of its own, in the network namespace of a path.

    Raises FileNotFoundError if the path does not exist, or has gone before the function ended.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def there() -> None:
        try:
            enter(path)
            found.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)

    thread = threading.Thread(target=there, daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    while thread.is_alive():
        thread.join(LOOK)
        if thread.is_alive() and not os.access(path, os.F_OK):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if failed:
        raise failed[0]
    return found[0]


def packed(steps: list[Step]) -> bytes:
    """Return instructions as the kernel takes them (struct sock_filter, linux/filter.h)."""
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def opened(device: str, program: bytes, buffer: int = BUFFER) -> socket.socket:
    """Return a socket for the frames of a device; of all of the namespace if it is "".

    ``program`` is a packed filter; without one all frames are seen. ``buffer`` is in octets.
    Raises OSError.
    """
    # With protocol 0 nothing comes before the filter is there.
    protocol = 0 if device else socket.htons(ALL_FRAMES)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, protocol)
    try:
        if program:
            kept = ctypes.create_string_buffer(program)
            given = struct.pack("HL", len(program) // 8, ctypes.addressof(kept))
            sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, given)
        sock.setsockopt(socket.SOL_SOCKET, TIMESTAMP_NS, 1)
        sock.setsockopt(PACKET, AUXDATA, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, BUFFER_FORCE, buffer)
        sock.settimeout(0)
        if device:
            sock.bind((device, ALL_FRAMES))
        else:  # what came before the filter
            collections.deque(received(sock), maxlen=0)
    except BaseException:
        sock.close()
        raise
    return sock


def received(sock: socket.socket, most: int = 0) -> Any:
    """Yield the messages that wait at a socket, as recvmsg returns them; up to ``most``."""
    count = 0
    while not most or count < most:
        try:
            yield sock.recvmsg(FRAME, 256)
            count += 1
        except BlockingIOError:
            return
        except OSError as error:
            # ENETDOWN: a device of the capture went down; the next call works again.
            if error.errno != errno.ENETDOWN:
                raise


def missed(sock: socket.socket) -> int:
    """Return the number of frames for which a socket had no room since the last call."""
    return int(struct.unpack("=II", sock.getsockopt(PACKET, STATISTICS, 8))[1])


class Tap:
    """Sockets for the packets of one place.

    ``devices`` are those of the namespace that are watched; all of them if empty.
    ``filters`` is None to see everything, or has a filter (``ether``) for devices with a frame's
    header and one (``raw``) for others, either of which may be None: nothing is seen there. With
    ``inbound`` only packets that come in are seen. Raises OSError.
    """

    def __init__(
        self,
        path: str,
        devices: list[str],
        filters: dict[str, list[Step] | None] | None,
        *,
        inbound: bool = False,
    ) -> None:
        self.path = path
        self.inbound = inbound
        self.sockets: list[socket.socket] = []
        wanted = [b""]
        if filters is not None:
            wanted = [
                packed(guarded(steps, ethernet=kind == "ether"))
                for kind, steps in filters.items()
                if steps is not None
            ]

        def work() -> None:
            for device in devices or [""]:
                self.sockets += [opened(device, program) for program in wanted]

        try:
            inside(path, work)
        except BaseException:
            self.close()
            raise

    def read(self, most: int = 2000) -> list[Frame]:
        """Return the packets that have come since; up to ``most`` of each socket."""
        found: list[Frame] = []
        for sock in self.sockets:
            for data, ancillary, _, (device, _, kind, hardware, *_) in received(sock, most):
                if self.inbound and kind == OUTGOING:
                    continue
                stamp, length, frame = told(ancillary, data)
                found.append((stamp, device, kind, hardware, length, frame))
        return found

    def missed(self) -> int:
        """Return the number of packets for which there was no room since the last call."""
        return sum(missed(sock) for sock in self.sockets)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


def told(ancillary: list[tuple[int, int, bytes]], data: bytes) -> tuple[int, int, bytes]:
    """Return time, length on the wire and the frame of a message, with its VLAN tag.

    The kernel keeps the tag of a frame beside it (struct tpacket_auxdata, linux/if_packet.h).
    """
    stamp, length, tag = 0, len(data), b""
    for level, what, value in ancillary:
        if (level, what) == (socket.SOL_SOCKET, TIMESTAMP_NS):
            seconds, nanoseconds = struct.unpack("=qq", value[:16])
            stamp = seconds * 10**9 + nanoseconds
        elif (level, what) == (PACKET, AUXDATA):
            status, length, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", value[:20])
            if status & VLAN_VALID:
                tag = struct.pack(">HH", tpid if status & VLAN_TPID_VALID else 0x8100, tci)
    return stamp, length + len(tag), data[:12] + tag + data[12:] if tag else data


def session_device(environment: bytes) -> str:
    """Return the device by which a session of sshd comes in, by its environment; "" without one.

    What is printed leaves by it, and would be seen there again and be printed.
    """
    found = [one for one in environment.split(b"\0") if one.startswith(b"SSH_CONNECTION=")]
    if not found:
        return ""
    address = found[0].split()[2].decode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(sock, GET_ADDRESS, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def main(text: str) -> None:
    """Write packets to standard output, a JSON list a line, until nobody reads any more.

    ``text`` is JSON: "taps", each with "path", "devices" and "inbound", and "filters". The first
    line has the process ID, and the error of each tap or "". Those of packets begin with the
    number of the tap; octets are base16 text. Of the device by which the output leaves, packets
    are shown only to a tap that names it.
    """
    given = json.loads(text)
    with open(f"/proc/{os.getppid()}/environ", "rb") as file:  # noqa: PTH123  loads long
        own = session_device(file.read())
    taps: dict[int, Tap] = {}
    errors = [""] * len(given["taps"])
    for number, one in enumerate(given["taps"]):
        try:
            taps[number] = Tap(
                one["path"], one["devices"], given["filters"], inbound=one["inbound"]
            )
        except OSError as error:
            errors[number] = error.strerror or str(error)
    sys.stdout.write(json.dumps([os.getpid(), errors]) + "\n")
    sys.stdout.flush()
    poll = select.poll()
    for tap in taps.values():
        for sock in tap.sockets:
            poll.register(sock, select.POLLIN)
    poll.register(sys.stdout, 0)  # that is: until its reader has gone
    while not any(file == sys.stdout.fileno() for file, _ in poll.poll()):
        for number, tap in taps.items():
            for *rest, data in tap.read():
                if rest[1] == own and own not in given["taps"][number]["devices"]:
                    continue
                sys.stdout.write(json.dumps([number, *rest, data.hex()]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
