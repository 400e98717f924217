"""Watch packets in network namespaces: frames, netfilter's trace, conntrack's events.

Every namespace gets sockets of its own, opened from inside it: one AF_PACKET socket that sees all
its devices, and netlink sockets for the events. A table of nftables marks the packets for the
trace. The socket that made the table owns it (NFT_TABLE_F_OWNER), so that the kernel removes it
when the socket is closed, also when the process was killed. Nothing is read before
:meth:`Eye.read`: the buffers of the sockets limit what is kept.

This module needs the standard library, :mod:`testbed.observe.taps` and :mod:`testbed.walk.drops`
alone. It also runs as a program on nodes whose namespaces cannot be entered from this machine
(``python3 -I -S -c``); its argument is the JSON text of :func:`main`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

from testbed.observe.taps import BUFFER_FORCE, enter, missed, opened, received, told
from testbed.walk import drops

TABLE = "testbed_walk"  #: begin of the name of each table of ours
NETLINK, MEMBERSHIP, NETFILTER = 270, 1, 12  # SOL_NETLINK, linux/netlink.h
TRACE_GROUP, TRACK_NEW, TRACK_UPDATE = 9, 1, 2  # linux/netfilter/nfnetlink.h
BUFFER = 1 << 22  # octets; a lab's trace of one packet has some thousand
FRAME = 1 << 16
THREADS = 16
TURN = 3.0  # seconds to wait for the log of legacy tables, which one program at a time reads
NETWORK = 0x100000000 - 0x100000  # SKF_NET_OFF, linux/filter.h
REQUEST, ACK, CREATE, APPEND = 1, 4, 0x400, 0x800  # NLM_F_*, linux/netlink.h
BEGIN, END = 16, 17  # NFNL_MSG_BATCH_*
NFTABLES, ULOG = 10, 4  # NFNL_SUBSYS_*
OWNER = 2  # NFT_TABLE_F_OWNER
INET, NETDEV, BRIDGE = 1, 5, 7  # NFPROTO_*
FIRST = -400  # before raw and conntrack
HOOKS = {"prerouting": 0, "output": 3}  # NF_INET_*, NF_BR_*: the same numbers
INGRESS = {"ingress": 0}  # NF_NETDEV_INGRESS
LOAD = {1: 0x30, 2: 0x28, 4: 0x20}  # opcode by size in octets (bpf(4))
LOGGER = "/proc/sys/net/netfilter/nf_log/{}"
LOGGER_FAMILY = {2: "ip_tables_names", 10: "ip6_tables_names"}
SAVE = {2: "iptables-legacy-save", 10: "ip6tables-legacy-save"}  # of each family
LOGS_HERE = "nfnetlink_log"
BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
#: Puts a logger back as soon as its input ends, however the process that holds it has ended.
GUARD = 'cat >/dev/null; printf %s "$1" >"$2"'


def program(marks: list[list[Any]]) -> bytes:
    """Return the socket filter that accepts frames with one of the marks.

    A mark is an offset from the first IP header, a size of 1, 2 or 4 octets, the values of which
    one is there, and an offset, a size and a value for each further condition. Offsets ascend: a
    load beyond the end of a frame refuses the frame (bpf(4)).
    """
    steps: list[tuple[int, int, int]] = []  # opcode, operand, steps to skip without the value
    for offset, size, values, *also in sorted(marks):
        left = 2 * len(also) + 1 + len(values)
        for place, octets, value in also:
            left -= 2
            steps += [(LOAD[octets], NETWORK + place, 0), (0x15, value, left)]
        steps.append((LOAD[size], NETWORK + offset, 0))
        steps += [(0x15, value, 0) for value in values]
    found = b""
    for index, (code, operand, skipped) in enumerate(steps):
        over = len(steps) - index if code == 0x15 else 0  # to the second return below
        found += struct.pack("=HBBI", code, 0 if skipped else over, skipped, operand)
    return found + struct.pack("=HBBI", 6, 0, 0, 0) + struct.pack("=HBBI", 6, 0, 0, FRAME)


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """Return a netlink attribute; a number takes 4 octets in network order."""
    if isinstance(value, int):
        value = struct.pack(">I", value & 0xFFFFFFFF)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return a netlink attribute that holds others."""
    return attribute(kind | 0x8000, b"".join(attributes))


def message(
    kind: int, body: bytes, number: int, *, flags: int = 0, family: int = 0, resource: int = 0
) -> bytes:
    """Return a message of nfnetlink."""
    rest = struct.pack(">BBH", family, 0, resource) + body
    return struct.pack("=IHHII", 16 + len(rest), kind, flags | REQUEST, number, 0) + rest


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, *attributes))


@functools.lru_cache(maxsize=4096)  # the same in all namespaces
def _rule(table: str, chain: str, *conditions: tuple[int, int, int]) -> bytes:
    """Return the attributes of a rule: values at offsets set `meta nftrace`.

    A condition is an offset, a size in octets and a value.
    """
    one = attribute(1, struct.pack("=I", 1))
    return (
        attribute(1, table)
        + attribute(2, chain)
        + nested(
            4,
            *(part for condition in conditions for part in _condition(*condition)),
            _expression("immediate", attribute(1, 8), nested(2, one)),
            _expression("meta", attribute(2, 12), attribute(3, 8)),
        )
    )


def _condition(offset: int, size: int, value: int) -> tuple[bytes, bytes]:
    wanted = nested(3, attribute(1, value.to_bytes(size, "big")))
    place = (attribute(1, 8), attribute(2, 1), attribute(3, offset), attribute(4, size))
    return _expression("payload", *place), _expression("cmp", attribute(1, 8), attribute(2, 0),
                                                       wanted)  # fmt: skip


def batch(
    families: tuple[int, ...], name: str, marks: list[list[Any]], devices: tuple[str, ...]
) -> bytes:
    """Return the messages that make a table in each family which traces marked packets.

    ``devices`` are those of the hook ingress, for the family netdev.
    """
    parts: list[tuple[int, int, bytes]] = []
    for family in families:
        parts.append((family, 0, attribute(1, name) + attribute(2, OWNER)))
        netdev = family == NETDEV
        at = (nested(4, *(attribute(1, one) for one in devices)),) if netdev else ()
        for chain, hook in (INGRESS if netdev else HOOKS).items():
            place = nested(4, attribute(1, hook), attribute(2, FIRST), *at)
            body = attribute(1, name) + attribute(3, chain) + place + attribute(7, "filter")
            parts.append((family, 3, body))
            parts += [
                (family, 6, _rule(name, chain, *map(tuple, also), (offset, size, value)))
                for offset, size, values, *also in marks
                for value in values
            ]
    made = [message(BEGIN, b"", 0, resource=NFTABLES)]
    for number, (family, kind, body) in enumerate(parts, 1):
        flags = CREATE | APPEND | (ACK if number == len(parts) else 0)
        made.append(message(NFTABLES << 8 | kind, body, number, flags=flags, family=family))
    return b"".join([*made, message(END, b"", len(parts) + 1, resource=NFTABLES)])


def log_messages() -> bytes:
    """Return two messages that send what is logged to group 0 to the socket (whole packets)."""
    bind = attribute(1, b"\x01")  # NFULA_CFG_CMD, NFULNL_CFG_CMD_BIND
    mode = attribute(2, struct.pack(">IBB", 0xFFFF, 2, 0))  # NFULA_CFG_MODE, copy packets
    now = attribute(5, 1)  # NFULA_CFG_QTHRESH: each at once
    kind = ULOG << 8 | 1
    made = (message(kind, body, n, flags=ACK) for n, body in enumerate((bind, mode + now)))
    return b"".join(made)


def answer(sock: socket.socket) -> int:
    """Return the error number of the first acknowledgement; 0 for success."""
    while True:
        data = sock.recv(FRAME)
        (kind,) = struct.unpack_from("=H", data, 4)
        if kind == 2:  # NLMSG_ERROR
            return -int(struct.unpack_from("=i", data, 16)[0])


class Eye:
    """The sockets in one network namespace.

    It is made by a thread that is in the namespace.
    """

    def __init__(self, table: str, marks: list[list[Any]]) -> None:
        self._table = table
        self.names = dict(socket.if_nameindex())
        self.bridged = _lines(BRIDGED) == ["1"]
        self.warnings: list[str] = []
        self.frames: list[tuple[int, str, int, int, bytes]] = []
        self.events: list[bytes] = []
        self.tracks: list[bytes] = []
        self.logs: list[bytes] = []
        self.legacy: dict[str, str] = {}  # the rules before the request, by the program that lists
        self._guards: list[tuple[int, int, str, int]] = []
        self._owners: list[socket.socket] = []
        self._trace: socket.socket | None = None
        self._tracks: socket.socket | None = None
        self._log: socket.socket | None = None
        self._packets = opened("", program(marks), BUFFER)
        try:
            self._trace = self._listen(TRACE_GROUP)
            self._mark(marks)
            self._tracks = self._listen(TRACK_NEW, TRACK_UPDATE)
        except OSError as error:
            self.warnings.append(f"netfilter does not report packets: {error.strerror}")
            return
        try:
            self._logs()
        except OSError as error:
            self.warnings.append(f"iptables-legacy does not report packets: {error.strerror}")

    @staticmethod
    def _listen(*groups: int) -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, BUFFER_FORCE, BUFFER)
        for group in groups:
            sock.setsockopt(NETLINK, MEMBERSHIP, group)
        sock.settimeout(0)
        return sock

    def _mark(self, marks: list[list[Any]]) -> None:
        """Make the tables that trace marked packets, all in one transaction if possible."""
        if not self._make((INET, BRIDGE, NETDEV), marks):
            return
        # Without some of the families in the kernel, each for itself.
        if status := self._make((INET,), marks):
            raise OSError(status, os.strerror(status))
        for family in (BRIDGE, NETDEV):
            self._make((family,), marks)

    def _make(self, families: tuple[int, ...], marks: list[list[Any]]) -> int:
        """Make tables of some families; return the number of an error, or 0."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
        sock.bind((0, 0))
        self._owners.append(sock)
        sock.settimeout(10.0)
        made = batch(families, self._table, marks, tuple(self.names.values()))
        sock.sendto(made, (0, 0))
        status = answer(sock)
        if status:
            self._owners.remove(sock)
            sock.close()
        return status

    def _logs(self) -> None:
        """Read the trace of iptables-legacy, where it has tables."""
        names = LOGGER_FAMILY.items()
        families = [family for family, file in names if _lines(f"/proc/thread-self/net/{file}")]
        if not families:
            return
        self.legacy = {SAVE[family]: _output(SAVE[family]) for family in families}
        self._log = self._take_log()
        for family in families:
            path = LOGGER.format(family)
            with open(path) as file:  # noqa: PTH123  pathlib takes long to load
                before = file.read().strip()
            if before == LOGS_HERE:
                continue
            logger = self._guard(before, path)
            os.pwrite(logger, LOGS_HERE.encode(), 0)

    def _take_log(self) -> socket.socket:
        """Open the log to which legacy tables report; another walk may have it for a while.

        Raises OSError if it is not free in time.
        """
        sock = self._listen()
        sock.settimeout(10.0)
        deadline = time.monotonic() + TURN
        while True:
            sock.sendto(log_messages(), (0, 0))
            status = [answer(sock), answer(sock)][0]
            if not status:
                sock.settimeout(0)
                return sock
            if time.monotonic() > deadline:
                sock.close()
                raise OSError(status, "another program reads its trace here")
            time.sleep(0.02)

    def _guard(self, before: str, path: str) -> int:
        """Start what puts a logger back if this process is killed; return the open setting."""
        logger = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        theirs, ours = os.pipe()
        argv = ["sh", "-c", GUARD, "sh", before, path]
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 0)]
        try:
            pid = os.posix_spawnp("sh", argv, os.environ, file_actions=actions, setsid=True)
        except OSError:
            os.close(ours)
            os.close(logger)
            raise
        finally:
            os.close(theirs)
        self._guards.append((pid, ours, before, logger))
        return logger

    def read(self) -> int:
        """Read what has arrived since; return the number of frames and events."""
        count = 0
        for data, ancillary, _, (device, _, kind, hardware, *_) in received(self._packets):
            stamp, _, frame = told(ancillary, data)
            self.frames.append((stamp, device, kind, hardware, frame))
            count += 1
        for sock, kept in (
            (self._trace, self.events), (self._tracks, self.tracks), (self._log, self.logs)
        ):  # fmt: skip
            if sock is not None:
                try:
                    for data, *_ in received(sock):
                        kept.append(data)
                        count += 1
                except OSError as error:
                    self.warnings.append(f"events were missed: {error.strerror}")
        return count

    def close(self) -> None:
        """Close the sockets, with which the tables go, and put the logger back."""
        for _, pipe, _, _ in self._guards:
            os.close(pipe)
        for pid, _, before, logger in self._guards:
            try:
                if os.waitpid(pid, 0)[1]:  # the guard was killed, or failed
                    os.pwrite(logger, before.encode(), 0)  # a setting has no further places
            except ChildProcessError:  # somebody else has waited for it
                pass
            except OSError as error:
                text = f"the logger of netfilter (nf_log) was not put back: {error.strerror}"
                self.warnings.append(text)
            os.close(logger)
        self._guards.clear()
        with contextlib.suppress(OSError):
            if dropped := missed(self._packets):
                self.warnings.append(f"{dropped} frames were missed")
        for sock in (self._packets, self._trace, self._tracks, self._log, *self._owners):
            if sock is not None:
                sock.close()

    def to_dict(self) -> dict[str, Any]:
        """Return everything seen as data for JSON; octets are base16 text."""
        return {
            "names": {str(index): name for index, name in self.names.items()},
            "bridged": self.bridged,
            "warnings": self.warnings,
            "frames": [[*rest, data.hex()] for *rest, data in self.frames],
            "events": [data.hex() for data in self.events],
            "tracks": [data.hex() for data in self.tracks],
            "logs": [data.hex() for data in self.logs],
            "legacy": self.legacy,
        }


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path) as file:  # noqa: PTH123
        return file.read().split()
    return []


def _output(program: str) -> str:
    """Return what a program prints; "" for one that is not there."""
    ours, theirs = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, theirs, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        pid = os.posix_spawnp(program, [program], os.environ, file_actions=actions)
    except OSError:
        os.close(ours)
        return ""
    finally:
        os.close(theirs)
    with open(ours, "rb") as file:  # noqa: PTH123
        text = file.read().decode(errors="replace")
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return text


def open_eyes(
    spaces: list[list[str]], marks: list[list[Any]]
) -> tuple[dict[str, Eye], dict[str, str]]:
    """Return an eye for each namespace (name and path), and the errors of those without."""
    eyes: dict[str, Eye] = {}
    errors: dict[str, str] = {}
    table = f"{TABLE}_{os.getpid()}_{os.urandom(4).hex()}"  # others may watch, too

    def some_of_them(some: list[list[str]]) -> None:
        for name, path in some:
            try:
                enter(path)
                eyes[name] = Eye(table, marks)
            except OSError as error:
                errors[name] = error.strerror or str(error)

    _in_threads(some_of_them, spaces)  # which end in other namespaces
    return eyes, errors


def close_eyes(eyes: list[Eye]) -> None:
    """Close all eyes.

    The kernel waits for all its processors at each (synchronize_rcu), and at once for many.
    """

    def some_of_them(some: list[Eye]) -> None:
        for eye in some:
            eye.close()

    _in_threads(some_of_them, eyes)


def _in_threads(work: Any, items: list[Any]) -> None:
    """Call a function with shares of a list, at the same time.  Raises the first of its errors."""
    shares = [items[first::THREADS] for first in range(THREADS)]
    failed: list[BaseException] = []

    def one(share: list[Any]) -> None:
        try:
            work(share)
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)

    threads = [threading.Thread(target=one, args=(share,)) for share in shares if share]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def main(text: str) -> None:
    """Watch until SIGTERM, then print what was seen as JSON.

    ``text`` is JSON: "spaces", each with a name and a path, and "marks". "ready" is written to
    standard error when everything listens. After "seconds" the program ends by itself.
    """
    given = json.loads(text)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    eyes, errors = open_eyes(given["spaces"], given["marks"])
    reports, missing = drops.opened(given["marks"])
    os.write(2, b"ready\n")
    signal.sigtimedwait([signal.SIGTERM], given["seconds"])
    for eye in eyes.values():
        eye.read()
    dropped = reports.read() if reports else []
    close_eyes([*eyes.values()])
    data = {
        "spaces": {name: eye.to_dict() for name, eye in eyes.items()},
        "errors": errors,
        "drops": [[*rest, octets.hex()] for *rest, octets in dropped],
        "no_drops": missing,
    }
    sys.stdout.write(json.dumps(data))


if __name__ == "__main__":
    main(sys.argv[1])
