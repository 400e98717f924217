"""``testbed capture``."""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from testbed import files, owner
from testbed.cli import common
from testbed.errors import LabError, MachineError, OutputError, ReaderGone, UsageError
from testbed.requirement import need_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.labs.live import LiveLab
    from testbed.observe.inventory import Inventory, Machine, Space
    from testbed.observe.listen import Listening, Place, Seen

STDOUT = 1
FOREVER = 3600.0  # seconds of one wait

HELP = """Show the packets at places of a running lab, or write them into one file.

\b
PLACE is one of:
  NODE                  all devices of a node
  NODE/CONTAINER        all devices of a container, a Pod or a named namespace
  NETWORK               what enters a network between nodes, by every port of its bridge
  PLACE:DEVICE          one device of these: node1:eth0, node1/web:eth0

Packets of several places are in the order of time; that of virtual machines is by their own
clocks. Ctrl-C ends the capture.

\b
  testbed capture node1:eth0 node2:eth0 --filter 'udp port 8472'
  testbed capture node1/container-1 lan --count 20
  testbed capture node1 node2 -w both.pcapng --seconds 10
  testbed capture node1 -w - | wireshark -k -i -
"""


@click.command("capture", help=HELP)
@common.lab_option
@click.option(
    "-f", "--filter", "expression", default="", metavar="EXPRESSION",
    help="Only these packets: an expression of tcpdump (pcap-filter(7)).",
)  # fmt: skip
@click.option(
    "-w", "--pcapng", "output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
    help="Write a pcapng file with an interface for each device; - is standard output.",
)  # fmt: skip
@click.option(
    "-c", "--count", type=click.IntRange(1), metavar="N", help="End after so many packets."
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
    help="End after so long.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@click.argument(
    "places", nargs=-1, required=True, metavar="PLACE...", shell_complete=common.complete_nodes
)
def command(
    lab_name: str | None,
    places: tuple[str, ...],
    expression: str,
    output: Path | None,
    count: int | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """See HELP."""
    if output and as_json:
        raise UsageError("-w and --json exclude each other", hint="remove one of them")
    need_root("`testbed capture`")
    binary = output is not None and files.leads_to_stdout(output)
    if binary and os.isatty(STDOUT):
        raise UsageError(
            "a terminal does not show a capture file",
            where=f"-w {output}",
            hint="| wireshark -k -i -, or -w FILE",
        )
    if output and not binary:
        files.check(output)
    from testbed.observe.inventory import inventory
    from testbed.observe.listen import Listening, compiled

    filters = compiled(expression)
    with common.live_lab(lab_name) as lab, ExitStack() as stack:
        found = inventory(lab)
        meant = [place for word in places for place in _meant(lab, found, word)]
        listening = stack.enter_context(Listening(lab, meant, filters))
        sink: _Sink = _Lines(as_json=as_json)
        if output:
            sink = _File(_opened(stack, output, binary=binary), found, expression)
        for word, why in listening.ended.items():
            _tell(f"cannot listen at {word}: {why}")
        _tell(f"listening at {', '.join(places)}; Ctrl-C ends it")
        try:
            _run(listening, sink, count, seconds)
        except KeyboardInterrupt:
            left = None if count is None else count - sink.count
            sink.take(listening.rest()[:left])
        missed = listening.missed()
    where = f" in {output}" if output and not binary else ""
    _tell(f"{sink.count} packets{where}" + (f", {missed} were missed" if missed else ""))


def _run(listening: Listening, sink: _Sink, count: int | None, seconds: float | None) -> None:
    """Hand packets on until the capture is over.

    Raises LabError when no place is left, ReaderGone.
    """
    deadline = time.monotonic() + (FOREVER * FOREVER if seconds is None else seconds)
    told = {*listening.ended}
    while (left := deadline - time.monotonic()) > 0:
        found = listening.read(min(left, FOREVER), STDOUT)
        if count is not None and sink.count + len(found) >= count:
            sink.take(found[: count - sink.count])
            return
        sink.take(found)
        for word, why in listening.ended.items():
            if word not in told:
                told.add(word)
                _tell(f"{word}: {why}")
        if listening.over:
            sink.take(listening.rest())
            raise LabError(
                f"no place is left to listen at: {', '.join(told)}",
                hint="`testbed status` shows what runs",
            )
        if _reader_gone():
            raise ReaderGone
    sink.take(listening.rest())


def _reader_gone() -> bool:
    """Tell whether standard output is a pipe that nobody reads any more."""
    import select

    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _tell(words: str) -> None:
    click.echo(f"testbed: {words}", err=True)


def _opened(stack: ExitStack, output: Path, *, binary: bool) -> IO[bytes]:
    if binary:
        return sys.stdout.buffer
    try:
        with owner.giving([output]):
            file = output.open("wb")
    except OSError as error:
        raise _cannot_write(output, error) from error
    stack.callback(_close, file)
    return file


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # what could not be written was told before
        file.close()


def _cannot_write(output: Path | str, error: OSError) -> MachineError:
    return MachineError(
        f"cannot write {output}: {error.strerror}",
        hint="check free space and permissions there, or choose another file",
    )


# -- places ----------------------------------------------------------------------


def _meant(lab: LiveLab, found: Inventory, word: str) -> list[Place]:
    """Return the places that a word of the command line means.

    Raises UsageError with the nearest words, LabError for a machine that does not answer.
    """
    from testbed.observe.places import find, holder

    name, colon, device = word.partition(":")
    if (at := find(found, name)) is not None:
        machine, space = at[0], holder(*at)
        if machine.error and not machine.spaces:
            raise LabError(machine.error, hint=f"`testbed status {found.lab}` shows what runs")
        if colon and space.link(device) is None:
            raise _no_device(word, device, space)
        return [_place(lab, machine, space, name, (device,) if colon else ())]
    for network in found.networks:
        if network.name == name and network.bridge and found.fabric is not None:
            space = found.fabric.own
            ports = {link.name: link for link in space.links if link.master == network.bridge}
            if colon and device not in ports:
                raise _no_device(word, device, space, [*ports])
            return [
                _place(
                    lab, found.fabric, space, name, (device,) if colon else (*ports,), inbound=True
                )
            ]
    raise _unknown(found, word, name)


def _place(
    lab: LiveLab,
    machine: Machine,
    space: Space,
    word: str,
    devices: tuple[str, ...],
    *,
    inbound: bool = False,
) -> Place:
    from testbed.observe.listen import Place
    from testbed.observe.places import way_in

    path = way_in(lab, machine, space)
    return Place(word, machine.name, path, space.path, devices, inbound)


def _no_device(
    word: str, device: str, space: Space, known: Sequence[str] | None = None
) -> UsageError:
    from testbed.spelling import nearest

    names = [link.name for link in space.links] if known is None else known
    hint = nearest(device, names, f"devices there: {', '.join(names)}")
    return UsageError(f"no device {device!r} there", where=word, hint=hint)


def _unknown(found: Inventory, word: str, name: str) -> UsageError:
    from testbed.observe.places import places
    from testbed.spelling import nearest

    known = [one for one, _, _ in places(found)]
    known += [space.name for _, _, space in places(found) if space.name]
    known += [network.name for network in found.networks if network.bridge]
    short = [one for one, _, space in places(found) if not space.name]
    hint = nearest(name, known, f"places: {', '.join(short)}; see `testbed graph {found.lab}`")
    return UsageError("no such place in the lab", where=word, hint=hint)


# -- what becomes of packets -----------------------------------------------------


class _Sink(ABC):
    """The output of a capture; ``count`` is the number of packets so far."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, packets: Sequence[Seen]) -> None:
        for one in packets:
            self.write(one)
        self.count += len(packets)
        if packets:
            self.flush()

    @abstractmethod
    def write(self, one: Seen) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...


class _Lines(_Sink):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._width = 0  # of the longest name of a place so far

    def write(self, one: Seen) -> None:
        from testbed.observe import lines

        self._width = max(self._width, len(one.place))
        text = json.dumps(lines.data(one)) if self._as_json else lines.line(one, self._width)
        sys.stdout.write(text + "\n")

    def flush(self) -> None:
        sys.stdout.flush()


class _File(_Sink):
    def __init__(self, out: IO[bytes], found: Inventory, expression: str) -> None:
        from testbed.observe.pcapng import Writer

        super().__init__()
        self._out = out
        self._expression = expression
        self._numbers: dict[tuple[str, int], int] = {}
        with self._told():
            self._writer = Writer(
                out, names=found.names(), application="testbed capture", comment=f"lab {found.lab}"
            )
            self.flush()

    def take(self, packets: Sequence[Seen]) -> None:
        with self._told():
            super().take(packets)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Convert errors in writing the file; those of standard output say so already."""
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise _cannot_write(self._out.name, error) from error

    def write(self, one: Seen) -> None:
        key = one.place, one.link
        if key not in self._numbers:
            self._numbers[key] = self._writer.interface(
                one.place, link=one.link, filter=self._expression
            )
        self._writer.packet(
            self._numbers[key],
            one.stamp,
            one.frame,
            length=max(one.length, len(one.frame)),
            direction=one.direction,
            reach=one.reach,
        )

    def flush(self) -> None:
        self._out.flush()
