"""Shared parts of the performance checks: ways from a client to a server.

Ways are measured in turn, round after round, so that other load on the
machine affects all of them alike; medians and spreads over the rounds decide
(:meth:`testbed.claims.observation.Observation.differ`).  Client and server
share one CPU: otherwise the scheduler's choice of CPUs dominates the result.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

from testbed.claims.model import Measurement
from testbed.observe.taps import INTERPRETER
from testbed.suites.helpers import READY, await_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from testbed.claims.observation import Observation
    from testbed.nodes.place import Place, Runs

STREAM_PORT = 5201  # iperf3's default
ECHO_PORT = 5202
TRIPS = 300
MICROSECOND = 1e-6
NANOSECOND = 1e-9
GIGABYTE = 1e9  # octets

#: Arguments are address and port.  Echoes its input, one connection after the other.
ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while data := connection.recv(64):
            connection.sendall(data)
"""

#: Arguments are how many rounds, connections and round trips, and for each way its address,
#: port, and own address or "".  Prints a line for each way and round, in nanoseconds: the median
#: time to open a connection, and the median and 99th percentile of a round trip.
ASK = """
import socket, sys, time
rounds, connections, trips = map(int, sys.argv[1:4])
ways = list(zip(sys.argv[4::3], sys.argv[5::3], sys.argv[6::3]))
clock = time.perf_counter_ns
def measure(address, port, own):
    opened, took = [], []
    for _ in range(connections):
        began = clock()
        door = socket.create_connection((address, int(port)), 60, (own, 0) if own else None)
        opened.append(clock() - began)
        if len(opened) < connections:
            door.close()
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(trips):
        began = clock()
        door.sendall(b"x")
        door.recv(1)
        took.append(clock() - began)
    door.close()
    opened.sort()
    took.sort()
    print(opened[connections // 2], took[trips // 2], took[trips * 99 // 100])
for _ in range(rounds):
    for way in ways:
        measure(*way)
"""


@dataclass(frozen=True, slots=True)
class Way:
    """A way from a client to a server.

    ``own`` is the client's address, if the way depends on it; ``segment`` the
    largest TCP segment in octets, if all ways must use the same; ``prefix`` is
    prepended to the client's commands (:func:`on_one_cpu`).
    """

    name: str
    client: Place
    address: str
    stream_port: int = STREAM_PORT
    echo_port: int = ECHO_PORT
    own: str = ""
    segment: int = 0
    prefix: tuple[str, ...] = ()


def need_iperf3(*places: Runs) -> None:
    """Skip if a node has no iperf3."""
    for place in places:
        if not place.run(["which", "iperf3"], check=False).ok:
            pytest.skip(f"{place.name} has no iperf3 (Debian package iperf3)")


def on_one_cpu(place: Runs) -> tuple[str, ...]:
    """Return a command prefix that pins to the last CPU that the place may use."""
    text = place.run(["grep", "Cpus_allowed:", "/proc/self/status"]).stdout
    mask = int(text.split()[1].replace(",", ""), 16)  # proc(5): hexadecimal, in groups
    return "taskset", "--cpu-list", str(mask.bit_length() - 1)


@contextlib.contextmanager
def measured_server(
    place: Place, address: str = "0.0.0.0", streams: int = STREAM_PORT, echoes: int = ECHO_PORT
) -> Iterator[None]:
    """Run iperf3 and an echo server at a place for the time of the block."""
    here = on_one_cpu(place)
    argv = ["iperf3", "--server", "--bind", address, "--port", str(streams), "--forceflush"]
    with (
        place.spawn([*here, *argv]) as iperf3,
        place.spawn([*here, *INTERPRETER, ECHO, address, str(echoes)]) as echo,
    ):
        await_output(iperf3, b"Server listening")
        await_output(echo, READY)
        yield


@dataclass(frozen=True, slots=True)
class Stream:
    """A TCP transfer: throughput, duration, and the CPU time of iperf3 at both ends."""

    gbits: float  #: 10^9 bits a second, as received
    octets: int
    seconds: float
    cpu: float  #: seconds


def stream(way: Way, octets: int) -> Stream:
    """Send that many octets with iperf3."""
    argv = ["iperf3", "--json", "--client", way.address, "--port", str(way.stream_port)]
    argv += ["--bytes", str(octets)]
    argv += ["--bind", way.own] if way.own else []
    argv += ["--set-mss", str(way.segment)] if way.segment else []
    end = way.client.run([*way.prefix, *argv], timeout=120).json()["end"]
    got, usage = end["sum_received"], end["cpu_utilization_percent"]
    seconds = float(end["sum_sent"]["seconds"])
    return Stream(
        gbits=got["bits_per_second"] / 1e9,
        octets=int(got["bytes"]),
        seconds=seconds,
        cpu=(usage["host_total"] + usage["remote_total"]) / 100 * seconds,
    )


@dataclass(frozen=True, slots=True)
class Trips:
    """Requests of one octet and their answers; times in microseconds."""

    connect: float  #: to open a connection, median
    p50: float
    p99: float


def round_trips(
    ways: Sequence[Way], rounds: int = 1, connections: int = 20, trips: int = TRIPS
) -> list[list[Trips]]:
    """Measure connections and round trips over all ways, in turn.

    One process of the first way's client opens connections in sequence, then sends
    requests over the last one.  Returns the rounds, each with a figure for every way.
    """
    numbers = [str(number) for number in (rounds, connections, trips)]
    where = [word for way in ways for word in (way.address, str(way.echo_port), way.own)]
    argv = [*ways[0].prefix, *INTERPRETER, ASK, *numbers, *where]
    lines = ways[0].client.run(argv, timeout=120).stdout.splitlines()
    took = [
        Trips(*(int(number) * NANOSECOND / MICROSECOND for number in line.split()))
        for line in lines
    ]
    return [took[i : i + len(ways)] for i in range(0, len(took), len(ways))]


# -- rounds over several ways

THROUGHPUT, P50, CPU = "TCP, one stream", "round trip, p50", "CPU time of all who carry it"
QUANTITIES = {
    "throughput": (THROUGHPUT, "Gbit/s"),
    "cpu": (CPU, "s/GB"),
    "p50": (P50, "µs"),
    "p99": ("round trip, p99", "µs"),
    "connect": ("opening a connection", "µs"),
}
UNITS = dict(QUANTITIES.values())


@dataclass
class Rounds:
    """Measurements: by quantity and by way, a figure for each round."""

    figures: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, way: Way, **found: float) -> None:
        for name, figure in found.items():
            self.figures[QUANTITIES[name][0]][way.name].append(figure)

    def stream(self, way: Way, octets: int, between: Callable[[], float] = float) -> None:
        """Measure a transfer; ``between`` returns the CPU time of what lies in between."""
        before = between()
        sent = stream(way, octets)
        cpu = sent.cpu + between() - before
        self.add(way, throughput=sent.gbits, cpu=cpu / sent.octets * GIGABYTE)

    def trips(self, *ways: Way, rounds: int = 1) -> None:
        """Measure round trips over ways of one client, in turn."""
        for one_round in round_trips(ways, rounds):
            for way, took in zip(ways, one_round, strict=True):
                self.add(way, p50=took.p50, p99=took.p99, connect=took.connect)

    def measurement(self, quantity: str) -> Measurement:
        better: Literal["higher", "lower"] = "higher" if quantity == THROUGHPUT else "lower"
        series = {way: tuple(figures) for way, figures in self.figures[quantity].items()}
        return Measurement(quantity, UNITS[quantity], series, better)

    def added(self, quantity: str, way: str, base: str) -> tuple[float, ...]:
        """Return the difference of a way's figures to another's, round by round."""
        ours = self.figures[quantity]
        return tuple(one - other for one, other in zip(ours[way], ours[base], strict=True))

    def keep(self, observe: Observation) -> None:
        """Record all figures as evidence."""
        for quantity in self.figures:
            observe.measured(self.measurement(quantity))

    def decide(self, observe: Observation, quantity: str, more: str, less: str) -> bool | None:
        """Tell whether ``more`` is clearly larger; None if unclear, which is recorded."""
        found = observe.differ(self.measurement(quantity), more, less)
        if found is None:
            observe.unclear(f"{quantity}: {more} and {less} differ by less than they spread")
        return found


# -- CPU time of processes


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time that a process has used so far, all its threads together."""

    seconds: float
    user: int  #: ticks in its own code
    system: int  #: ticks in the kernel, on its behalf
    switches: int  #: times that a thread has gone to sleep to wait

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(
            self.seconds + other.seconds,
            self.user + other.user,
            self.system + other.system,
            self.switches + other.switches,
        )

    def __sub__(self, other: CpuTime) -> CpuTime:
        return self + CpuTime(-other.seconds, -other.user, -other.system, -other.switches)


NOTHING = CpuTime(0.0, 0, 0, 0)


def cpu_time(place: Runs, pid: int) -> CpuTime:
    """Return a process's CPU time (proc(5)), from task/*/schedstat in nanoseconds."""
    # A thread may end before its file is read.  The first one exists as long as the process.
    script = (
        'cd "/proc/$1" && cat stat && { cat task/*/schedstat 2>/dev/null;'
        ' grep -hs ^voluntary task/*/status; test -e "task/$1/schedstat"; }'
    )
    stat, *rest = place.run(["sh", "-c", script, "sh", str(pid)]).stdout.splitlines()
    fields = stat.rpartition(")")[2].split()  # from the third field on: utime is the 14th
    lines = [line.split() for line in rest]
    return CpuTime(
        seconds=sum(int(words[0]) for words in lines if len(words) == 3) * NANOSECOND,
        user=int(fields[11]),
        system=int(fields[12]),
        switches=sum(int(words[1]) for words in lines if words[0].startswith("voluntary")),
    )
