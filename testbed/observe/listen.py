"""Packets at several places of a running lab, as they come.

Namespaces of this machine's kernel are listened to from here (:mod:`testbed.observe.taps`). On
another kernel the same module runs as a program on the node.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from testbed import process
from testbed.errors import CommandError, LabError, MachineError, TestbedError, UsageError
from testbed.observe import taps
from testbed.observe.pcapng import LINK_ETHERNET, LINK_RAW, REACHES, Direction, Reach
from testbed.observe.taps import ETHERNET, INTERPRETER, OUTGOING, Frame, Step, Tap
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

PROGRAM = "tcpdump"
HOLD = 0.003  # seconds in which packets of several sockets are put in order
START = 60.0  # for a program on a node; long, for a busy machine
GONE = "it has ended"
#: Numbers of packets in linux/if_packet.h.
KINDS: tuple[Reach, ...] = ("unicast", "broadcast", "multicast", "promiscuous", "")


@dataclass(frozen=True, slots=True)
class Place:
    """A place to listen at.

    ``word`` is its name, to which that of a device is added. ``path`` enters its network namespace
    from this machine, or is "" if only ``machine`` can, by ``inside``. ``devices`` are those that
    are listened to, all if empty. With ``inbound`` only packets that come in are shown.
    """

    word: str
    machine: str
    path: str
    inside: str
    devices: tuple[str, ...] = ()
    inbound: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet at a device.  ``stamp`` is in ns since the epoch, on the clock of its machine."""

    place: str  #: such as "node1:eth0"
    stamp: int
    direction: Direction
    reach: Reach
    link: int  #: LINK_ETHERNET or LINK_RAW
    length: int  #: octets on the wire
    frame: bytes


def compiled(expression: str) -> dict[str, list[Step] | None] | None:
    """Return an expression of tcpdump as filters for :class:`taps.Tap`; None for no expression.

    Raises UsageError with the words of tcpdump, MachineError without it.
    """
    if not expression.strip():
        return None
    if shutil.which(PROGRAM) is None:
        raise MachineError(
            f"a filter needs {PROGRAM} on this machine", hint=f"apt install {PROGRAM}"
        )
    found: dict[str, list[Step] | None] = {}
    for kind, link in (("ether", "EN10MB"), ("raw", "RAW")):
        argv = [PROGRAM, "-ddd", "-y", link, "--", expression]
        try:
            printed = process.run(argv, timeout=START).stdout
        except CommandError as error:
            if kind == "raw":  # such as `arp`, which is only in frames with a header
                found[kind] = None
                continue
            words = error.stderr.strip().removeprefix(f"{PROGRAM}: ")
            raise UsageError(
                words, where=f"--filter {expression!r}", hint="pcap-filter(7) has the syntax"
            ) from error
        lines = printed.split("\n")[1:]  # the first has the number of the others
        found[kind] = [[int(word) for word in line.split()] for line in lines if line]
    return found


class Listening:
    """Taps at places of a lab, open for a ``with`` block.

    ``ended`` tells, by the word of each place that has gone, what became of it. Raises LabError
    if no place can be listened to.
    """

    def __init__(
        self,
        lab: LiveLab,
        places: Sequence[Place],
        filters: dict[str, list[Step] | None] | None = None,
    ) -> None:
        self._lab = lab
        self._places = places
        self._filters = filters
        self._near: list[tuple[Place, Tap]] = []
        self._far: list[_Far] = []
        self._held: list[Seen] = []
        self._looked = 0.0
        self.ended: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        if not self._near and not self._far:
            words = "; ".join(f"{word}: {why}" for word, why in self.ended.items())
            raise LabError(f"cannot listen at {words}", hint="`testbed status` shows what runs")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        far: dict[str, list[Place]] = {}
        for place in self._places:
            if not place.path:
                far.setdefault(place.machine, []).append(place)
                continue
            try:
                devices = [*place.devices]
                tap = Tap(place.path, devices, self._filters, inbound=place.inbound)
            except OSError as error:
                self.ended[place.word] = error.strerror or str(error)
            else:
                self._near.append((place, tap))
        for machine, places in far.items():
            one = _Far(self._lab, machine, places, self._filters)
            self._far.append(one)
            self.ended |= one.start()

    @property
    def over(self) -> bool:
        """True if no place is left."""
        return not self._near and not any(one.open for one in self._far)

    def read(self, timeout: float, *also: int) -> list[Seen]:
        """Return the packets that have come, in the order of time; wait for up to ``timeout``.

        The packets of one kernel are in order also over several calls. ``also`` are descriptors:
        the wait ends when the reader of one has gone.
        """
        poll = select.poll()
        for _, tap in self._near:
            for sock in tap.sockets:
                poll.register(sock, select.POLLIN)
        for one in self._far:
            if one.open:
                poll.register(one.source, select.POLLIN)
        for number in also:
            poll.register(number, 0)
        poll.poll(min(timeout, HOLD if self._held else timeout, taps.LOOK) * 1000)
        edge = time.time_ns() - int(HOLD * 1e9)
        self._gather()
        far = [seen for one in self._far for seen in one.read()]
        self._look()
        ready = [seen for seen in self._held if seen.stamp < edge]
        self._held = self._held[len(ready) :]
        return [*ready, *far]

    def rest(self) -> list[Seen]:
        """Return the packets that have come up to now."""
        self._gather()
        found = [*self._held, *(seen for one in self._far for seen in one.read())]
        self._held = []
        return found

    def missed(self) -> int:
        """Return the number of packets for which there was no room."""
        return sum(tap.missed() for _, tap in self._near)

    def _gather(self) -> None:
        for place, tap in self._near:
            self._held += [_seen(place, frame) for frame in tap.read()]
        self._held.sort(key=lambda seen: seen.stamp)

    def _look(self) -> None:
        """Note namespaces whose machine or container has ended."""
        for one in self._far:
            if not one.open:
                for place in one.places:
                    self.ended.setdefault(place.word, one.why or GONE)
        if time.monotonic() - self._looked < taps.LOOK:
            return
        self._looked = time.monotonic()
        for place, tap in [*self._near]:
            if not Path(place.path).exists():
                self._held += [_seen(place, frame) for frame in tap.read(0)]
                self._held.sort(key=lambda seen: seen.stamp)
                tap.close()
                self._near.remove((place, tap))
                self.ended[place.word] = GONE

    def close(self) -> None:
        for _, tap in self._near:
            tap.close()
        for one in self._far:
            one.close()
        self._near, self._far = [], []


@dataclass(slots=True)
class _Far:
    """The program on a node with a kernel of its own."""

    lab: LiveLab
    machine: str
    places: list[Place]
    filters: dict[str, list[Step] | None] | None
    open: bool = True
    why: str = ""
    source: int = -1
    _pid: int = 0
    _text: bytes = b""
    _thread: threading.Thread | None = None
    _errors: int = -1

    def start(self) -> dict[str, str]:
        """Start the program; return the errors by the words of places."""
        given = {
            "taps": [
                {"path": one.inside, "devices": [*one.devices], "inbound": one.inbound}
                for one in self.places
            ],
            "filters": self.filters,
        }
        text = Path(taps.__file__).read_text(encoding="utf-8")
        argv = [*INTERPRETER, text, json.dumps(given)]
        self.source, into = os.pipe()
        os.set_blocking(self.source, False)
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        node = self.lab.node(self.machine)

        def work() -> None:
            try:
                status = node.pipe(argv, stdout=into, stderr=self._errors)
                self.why = "" if status in {0, 128 + 15} else self._said()
            except TestbedError as error:
                self.why = error.message
            finally:
                os.close(into)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        until(self._has_line, START)
        line, _, self._text = self._text.partition(b"\n")
        if not line:
            self.open = False
            return {one.word: self.why or "no answer" for one in self.places}
        self._pid, errors = json.loads(line)
        return {one.word: error for one, error in zip(self.places, errors, strict=True) if error}

    def _said(self) -> str:
        said = os.pread(self._errors, 1 << 16, 0)
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the program on the node has ended"

    def _has_line(self) -> bool:
        self._fill()
        return b"\n" in self._text or not self.open

    def _fill(self) -> None:
        while self.open:
            try:
                data = os.read(self.source, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                if self._thread is not None:
                    self._thread.join()
                self.open = False
            self._text += data

    def read(self) -> list[Seen]:
        """Return the packets that have come."""
        self._fill()
        *lines, self._text = self._text.split(b"\n")
        found = []
        for line in lines:
            number, stamp, device, kind, hardware, length, text = json.loads(line)
            frame = (stamp, device, kind, hardware, length, bytes.fromhex(text))
            found.append(_seen(self.places[number], frame))
        return found

    def close(self) -> None:
        if self.open and self._pid:
            try:
                self.lab.node(self.machine).run(["kill", str(self._pid)], check=False)
            except TestbedError:
                self.open = False  # the node has gone, and its program with it
        if self.source >= 0:
            os.close(self.source)
            self.source = -1
        if self._thread is not None:
            self._thread.join(START)
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1


def _seen(place: Place, frame: Frame) -> Seen:
    stamp, device, kind, hardware, length, data = frame
    reach = KINDS[kind] if kind < len(KINDS) else ""
    assert reach in REACHES
    return Seen(
        f"{place.word}:{device}",
        stamp,
        "out" if kind == OUTGOING else "in",
        reach,
        LINK_ETHERNET if hardware in ETHERNET else LINK_RAW,
        length,
        data,
    )
