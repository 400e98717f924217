"""Many rounds of up, verify and down: does anything grow?

    PYTHONPATH=tests python -m crash.soak [ROUNDS SECONDS]

The rounds go round the shipped topologies.  Every second one is carried out in this process,
through the Python API, so that what it keeps is seen; the others by command.  After each round
what is ours alone and can be counted must be as it was.  The rest, which is never the same twice
or which others have a hand in, may rise over the second half of the rounds by so much and no more:
both by the line through all of it (least squares), and from most rounds to the one a turn later,
since what others do is a step here and there.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from crash.means import Bed
from testbed import machine_state
from testbed.claims.choose import SHIPPED, choose
from testbed.errors import Interrupted, TestbedError
from testbed.labs.lab import Lab, Settings
from testbed.labs.live import LiveLab
from testbed.nodes.netns import cgroups
from testbed.settings import settings
from testbed.suites.model import Selection
from testbed.suites.runner import run
from testbed.topology import load

#: Shipped topologies, each with claims that it decides at once.  Their number is odd: each has its
#: turn in both ways.
LABS = (
    ("two-node", ("flannel-overlay-connects-all", "flannel-subnet-mapping-in-etcd")),
    ("docker-single", ("bridge-docker0-first-address", "veth-other-end-is-eth0")),
    ("netns-experiments", ("veth-crosses-namespaces", "bridge-attach-veth-master")),
    ("two-node-udp", ("flannel-udp-port-8285-listen", "flannel-overlay-connects-all")),
    ("two-node-host-gw", ("flannel-unique-subnet-per-node", "flannel-overlay-connects-all")),
)
TURN = 2 * len(LABS)  # rounds until the same topology comes in the same way
WARM = 2  # rounds: the first of each way loads modules, and writes what stays
TELLING = 8 * TURN  # rounds: of fewer the second half cannot tell growth from a step
SLABS = ("net_namespace", "pid_namespace", "uts_namespace", "mnt_cache", "sock_inode_cache")
MOST_TOLD = 20  # failures
PATIENCE = 10.0  # seconds for the kernel to take away what has ended


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value that is read after each round, and its allowed growth per round.

    0: it is the same after each round.  None: it is told, and others have too large a hand in it.
    """

    name: str
    read: Callable[[], float]
    most: float | None = 0


def number(path: str, pattern: str) -> float:
    found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{path} has no {pattern}"
    return float(found[1])


def entries(folder: str) -> float:
    return len(os.listdir(folder))  # noqa: PTH208


def children() -> float:
    return sum(len(p.read_text().split()) for p in Path("/proc/self/task").glob("*/children"))


def objects() -> float:
    """Count the objects of Python's garbage collector after a collection."""
    gc.collect()
    return len(gc.get_objects())


def files(folder: Path) -> float:
    return sum(len(folders) + len(names) for _, folders, names in os.walk(folder))


def room(folder: Path) -> float:
    """KiB on the disk."""
    found = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_blocks for path in found) / 2


def temporary() -> float:
    return len(list(Path(tempfile.gettempdir()).glob("testbed-*")))


def own(bed: Bed, cache: Path) -> Iterator[Quantity]:
    """Of this process, and of the folders that testbed writes to."""
    yield Quantity("own: open files", partial(entries, "/proc/self/fd"))
    yield Quantity("own: threads", partial(entries, "/proc/self/task"))
    yield Quantity("own: children", children)
    # A lab's record has 10 KiB and its findings as much again: who keeps those of each round grows
    # by more, and the allocator's ups and downs come to less over so many rounds.
    status = partial(number, "/proc/self/status")
    yield Quantity("own: memory, KiB", partial(status, r"^VmRSS:\s+(\d+)"), 20)
    yield Quantity("own: objects", objects, 10)
    yield Quantity("state folder: files", partial(files, bed.state))
    yield Quantity("state folder: KiB", partial(room, bed.state), 1)
    yield Quantity("cache: files", partial(files, cache), 0.1)
    yield Quantity("cache: KiB", partial(room, cache), 1)
    yield Quantity("temporary files", temporary, 0.1)


def of_the_kernel() -> Iterator[Quantity]:
    """Count all objects that the process holds, with or without a name.

    Slabs count as used what their per-CPU part has room for, and other labs may be at work, so
    these come and go by a few; what a lab leaves behind is one or more a round, and half of that
    is told from none.  A removed cgroup that has the memory controller stays while pages of files
    are charged to it, which whoever reads them first is: it goes when these are, and is only told.
    """
    slabs = Path("/proc/slabinfo").read_text(encoding="utf-8")
    for name in SLABS:
        pattern = rf"^{name} +(\d+)"
        if re.search(pattern, slabs, re.MULTILINE):
            yield Quantity(f"kernel: {name}", partial(number, "/proc/slabinfo", pattern), 0.5)
    for line in Path("/proc/cgroups").read_text(encoding="utf-8").splitlines()[1:]:
        name, hierarchy, *_ = line.split()
        if hierarchy != "0":
            read = partial(number, "/proc/cgroups", rf"^{name}\s+\d+\s+(\d+)")
            yield Quantity(f"cgroups: {name}", read, None if name == "memory" else 0.5)
    for one in cgroups.hierarchies():
        if one.version == 2:
            read = partial(number, f"{one.mount}/cgroup.stat", r"^nr_dying_descendants (\d+)")
            controllers = (one.mount / "cgroup.controllers").read_text(encoding="utf-8").split()
            yield Quantity("cgroups: dying", read, None if "memory" in controllers else 0.5)


def of_the_machine(bed: Bed) -> Iterator[Quantity]:
    meminfo = partial(number, "/proc/meminfo")
    yield Quantity("slab, KiB", partial(meminfo, r"^Slab: +(\d+)"), None)
    yield Quantity("memory available, KiB", partial(meminfo, r"^MemAvailable: +(\d+)"), None)
    yield Quantity("sockets", partial(number, "/proc/net/sockstat", r"used (\d+)"), None)
    disk = partial(os.statvfs, bed.state)
    yield Quantity("disk: KiB free", lambda: disk().f_bfree * disk().f_frsize / 1024, None)
    yield Quantity("disk: inodes free", lambda: disk().f_ffree, None)


def by_command(bed: Bed, topology: str, claims: tuple[str, ...]) -> None:
    bed.must("up", topology, "-q")
    assert bed.status(topology)["ok"]
    bed.must("verify", topology, "-q", *(word for claim in claims for word in ("--claim", claim)))
    bed.must("down", topology)


def by_api(own: Settings, topology: str, claims: tuple[str, ...]) -> None:
    lab = Lab(topology, own)
    lab.up(load(topology))
    live = LiveLab(lab.context())
    try:
        results = run(live, Selection(claims=claims, catalogue=choose([SHIPPED])))
    finally:
        live.close()
    if results.signum is not None:
        raise Interrupted(results.signum)
    assert results.is_good, results
    assert len(results.findings) == len(claims), results
    assert lab.down()


@dataclass(slots=True)
class Soak:
    """A run: what it did, and what was read after each round."""

    bed: Bed
    asked: int
    seconds: float
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    quantities: list[Quantity] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def carry_out(self, told: Callable[[str], None]) -> None:
        """All rounds, or what of them can be done in time; then all is down."""
        self.bed.state.mkdir(parents=True, exist_ok=True)
        settings_here = settings(state_folder=self.bed.state)
        folders = own(self.bed, settings_here.store.folder)
        self.quantities = [*folders, *of_the_kernel(), *of_the_machine(self.bed)]
        before = machine_state.snapshot(self.bed.state)
        deadline = time.monotonic() + self.seconds
        try:
            while self.rounds < self.asked and time.monotonic() < deadline:
                topology, claims = LABS[self.rounds % len(LABS)]
                here = bool(self.rounds % 2)
                began = time.monotonic()
                try:
                    if here:
                        by_api(settings_here, topology, claims)
                    else:
                        by_command(self.bed, topology, claims)
                except (AssertionError, TestbedError) as error:
                    if isinstance(error, Interrupted):
                        raise
                    self.fail(f"{topology}: {error}")
                    self.bed.must("down", "--all")
                took = time.monotonic() - began
                self.look(before)
                self.rounds += 1
                way = "by the API" if here else "by command"
                told(f"{self.rounds}/{self.asked} {topology} {way}, {took:.1f} s")
        finally:
            self.bed.must("down", "--all")
            self.left = machine_state.left(before, seconds=PATIENCE, below=self.bed.state)
            self.left += [f"{one.kind} {one.name}" for one in self.bed.leftovers()]
        if self.rounds < self.asked:
            self.failures.append(f"{self.rounds} of {self.asked} rounds in {self.seconds:g} s")

    def fail(self, words: str) -> None:
        self.failures.append(f"round {self.rounds + 1}: {words}")

    def look(self, before: machine_state.Snapshot) -> None:
        """Read everything, once the kernel has taken away what has ended."""
        for line in machine_state.left(before, seconds=PATIENCE, below=self.bed.state):
            self.fail(line)
        now = machine_state.snapshot(self.bed.state)
        for area, items in now.areas.items():
            self.values.setdefault(area, []).append(len(items))
        for one in self.quantities:
            values = self.values.setdefault(one.name, [])
            values.append(one.read())
            if one.most == 0 and self.rounds >= WARM and values[-1] != values[WARM - 1]:
                self.fail(f"{one.name}: {values[WARM - 1]:g} before, {values[-1]:g} now")

    def growth(self) -> list[str]:
        """Return the values that have grown too much over the second half."""
        found = []
        for one in self.quantities if self.rounds >= TELLING else []:
            values = self.values[one.name][self.rounds // 2 :]
            rise = min(slope(values), steady(values))
            if one.most and rise > one.most:
                found.append(
                    f"{one.name} grows by {rise:.3g} a round; {one.most:g} is what it may at most"
                )
        return found

    def table(self) -> Iterator[str]:
        """A line for each quantity; the slope is that of the second half."""
        yield f"  {'':<26}{'first':>12}{'last':>12}{'most':>12}{'a round':>10}{'allowed':>9}"
        allowed = {one.name: one.most for one in self.quantities}
        for name, values in self.values.items():
            most = allowed.get(name, 0)
            yield (
                f"  {name:<26}{values[0]:>12g}{values[-1]:>12g}{max(values):>12g}"
                f"{slope(values[len(values) // 2 :]):>10.3g}{'-' if most is None else most:>9}"
            )


def slope(values: list[float]) -> float:
    """By how much the line of least squares rises from one to the next."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def steady(values: list[float]) -> float:
    """By how much a round it rises from one to the one a turn later, in the middle of all cases."""
    return statistics.median(b - a for a, b in zip(values, values[TURN:], strict=False)) / TURN


def main(rounds: int, seconds: int) -> int:
    """Soak, and tell; the exit status."""

    def told(words: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K  {words}")
        elif soak.rounds % 10 == 0:
            sys.stderr.write(f"  {words}\n")

    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell may have had the first ignored
        signal.signal(signum, signal.default_int_handler)
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Bed(Path(folder, "state")), rounds, seconds)
        began = time.monotonic()
        try:
            soak.carry_out(told)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
    bad = [*soak.failures, *soak.growth()]
    took = time.monotonic() - began
    end = f"{soak.rounds} rounds in {took:.0f} s, {len(bad)} failures, {len(soak.left)} things left"
    shown = [*bad[:MOST_TOLD], f"... and {len(bad) - MOST_TOLD} more"] if bad[MOST_TOLD:] else bad
    sys.stdout.write("\n".join(["", *soak.table(), *shown, *soak.left, end, ""]))
    return 130 if interrupted else int(bool(bad or soak.left))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    asked = given[0] if given else 200
    sys.exit(main(asked, given[1] if given[1:] else 9 * asked))  # a round takes four seconds
