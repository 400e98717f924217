"""Coverage-guided fuzzing (atheris) of the topology loader and of each parser of foreign output.

    python tests/fuzz/fuzz.py [RUNS SECONDS]           every target, and how often each was run
    python tests/fuzz/fuzz.py TARGET RUNS SECONDS SEED  one of them

Whatever the bytes, a target gives a result or one of the errors that its function names; all
else is a crash, whose input is written below ``build/fuzz``.  ``tests/fuzz/corpus/TARGET`` holds
the inputs that it starts from, kept small; what a run finds stays out of it.  A target of which
a file ``crash-*`` is in the corpus was mended: ``tests/unit/test_fuzz_targets.py`` puts all of
the corpus to every target, without atheris.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from testbed.nodes.base import Result

if TYPE_CHECKING:
    import socket

    from testbed.labs.live import LiveLab

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FOUND = HERE.parent.parent / "build" / "fuzz"

#: Bytes: room for every key of a topology, and small enough to be quick.
LONGEST = 512
UNITS = re.compile(r"stat::number_of_executed_units: (\d+)")

Target = Callable[[bytes], None]


def topology(data: bytes) -> None:
    """A topology file: a Topology that survives its record, or errors with a place and a hint."""
    from testbed.errors import TopologyError
    from testbed.topology import load_data, load_text, source
    from testbed.topology.tree import Problems

    try:
        found = load_text(source.to_text(data, Problems("t.yaml")), "t.yaml")
    except TopologyError as error:
        problems = error.problems
    else:
        assert load_data(found.to_dict(), "t.yaml") == found
        return
    assert problems
    for problem in problems:
        assert problem.wanted
        assert problem.seen
        assert problem.hint
        assert "\n" not in problem.format("t.yaml")


def record(data: bytes) -> None:
    """A record as it is in the state folder."""
    from testbed.labs.state import State

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        state = State(Path(folder))
        (state.path / "x.json").write_bytes(data)
        found = state.read("x")
        assert found is None or found.lab == "x"


def capture(data: bytes) -> None:
    """The capture file of tcpdump."""
    from testbed.errors import LabError
    from testbed.observe.capture import read

    try:
        for packet in read(data):
            str(packet)
            packet.vxlan()
            packet.inner_ip()
    except LabError:
        return


def frame(data: bytes) -> None:
    """A packet, whatever is in it."""
    from testbed.observe.capture import LINK_ETHERNET, LINK_RAW, decode

    for link in (LINK_ETHERNET, LINK_RAW[0]):
        str(decode(data, link))


def nflog(data: bytes) -> None:
    """A record of NFLOG, as iptables-legacy's TRACE makes it."""
    from testbed.errors import LabError
    from testbed.observe.trace import legacy_event, logged

    try:
        str(legacy_event(logged(data, {1: "lo"})))
    except LabError:
        return


def nftrace(data: bytes) -> None:
    """Netlink messages of nftables' trace."""
    from testbed.errors import LabError
    from testbed.observe.trace import nft_events, ways

    try:
        for way in ways(nft_events(data, {1: "lo"})):
            way.lines()
    except LabError:
        return


def systemd(data: bytes) -> None:
    """The list of a machine's services."""
    from testbed.errors import LabError
    from testbed.nodes.ssh.services import states

    try:
        states(data.decode(errors="replace"))
    except LabError:
        return


def vagrant(data: bytes) -> None:
    """The output of a failed Vagrant."""
    from testbed.nodes.vagrant.client import MOST, meant

    assert len(meant(data.decode(errors="replace"))) <= MOST


def mountinfo(data: bytes) -> None:
    """The kernel's list of mounts, of which some are cgroup hierarchies."""
    from testbed.nodes.netns.cgroups import hierarchies

    hierarchies(data.decode(errors="replace"))


def graph(data: bytes) -> None:
    """The output of ``ip -j``, part by part."""
    from testbed.observe import inventory
    from testbed.observe.graph import node

    class Said:
        shares = True

        @staticmethod
        def run(*_: object, **__: object) -> Result:
            return Result((), 0, data, b"")

    spec = SimpleNamespace(roles=(), gateway=False, image="")
    topology = SimpleNamespace(nodes={"n": spec}, foreign=None)
    lab = SimpleNamespace(topology=topology, node=lambda _: Said)
    found = inventory.machine(cast("LiveLab", lab), "n")
    json.dumps([node(found), asdict(found)])


def containers(data: bytes) -> None:
    """The answer of dockerd with its containers, or with its networks."""
    from testbed.errors import LabError
    from testbed.roles.docker import glance

    with contextlib.suppress(LabError):
        glance.read(data, "node1", "list containers", glance._listed)
    with contextlib.suppress(LabError):
        glance.read(data, "node1", "list networks", glance._networks)


def monitor(data: bytes) -> None:
    """The answers of QEMU's monitor."""
    from testbed.errors import LabError
    from testbed.nodes.qemu.qmp import Monitor

    said = Monitor.__new__(Monitor)
    said._lines = io.BytesIO(data)  # type: ignore[assignment]
    said._socket = cast("socket.socket", SimpleNamespace(sendall=lambda _: None))
    try:
        said.do("query-status")
    except LabError:
        return


def boot(data: bytes) -> None:
    """A fact about the machine in the cache folder."""
    from testbed import boot_cache

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Path(folder, ".x.json").write_bytes(data)
        json.dumps(boot_cache.recall(Path(folder), "x"))


def iptables(data: bytes) -> None:
    """The output of ``iptables-save``."""
    from testbed.errors import LabError
    from testbed.suites.helpers import _rule

    for line in data.decode(errors="replace").splitlines():
        with contextlib.suppress(LabError):
            _rule("nat", line)


TARGETS: dict[str, Target] = {
    one.__name__: one
    for one in (
        topology, record, capture, frame, nflog, nftrace, systemd, vagrant, mountinfo, graph,
        containers, monitor, boot, iptables,
    )
}  # fmt: skip


def one(name: str, runs: str, seconds: str, seed: str) -> None:
    """Fuzz one target in this process, which libFuzzer then ends."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=["testbed"], enable_loader_override=False):
        target(b"")  # imports what it needs, so that this is instrumented
    found = FOUND / name / seed
    found.mkdir(parents=True, exist_ok=True)
    corpus = [str(path) for path in (found, CORPUS / name) if path.is_dir()]
    options = [
        f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}",
        "-timeout=60", f"-artifact_prefix={found}/", "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, *corpus], target)
    atheris.Fuzz()


def every(runs: int, seconds: int) -> int:
    """Fuzz every target: the loader on all processors at once, then the others in turn.

    Prints the executions of each; returns how many ended by a crash.
    """
    cpus = len(os.sched_getaffinity(0))
    crashed = 0
    for name in TARGETS:
        jobs = cpus if name == "topology" else 1
        share = runs // jobs if name == "topology" else runs // 20
        limit = seconds if name == "topology" else max(5, seconds // 20)
        began = time.monotonic()
        started = [
            subprocess.Popen(
                [sys.executable, __file__, name, str(share), str(limit), str(seed + 1)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for seed in range(jobs)
        ]
        said = [job.communicate()[0].decode(errors="replace") for job in started]
        done = sum(int(n) for text in said for n in UNITS.findall(text))
        bad = [text for job, text in zip(started, said, strict=True) if job.returncode]
        took = time.monotonic() - began
        sys.stdout.write(f"{name:<12}{done:>9} executions in {took:6.1f} s, {len(bad)} crashed\n")
        sys.stdout.flush()
        for text in bad:
            sys.stdout.write("\n".join(text.splitlines()[-40:]) + "\n")
        crashed += len(bad)
    return crashed


if __name__ == "__main__":
    if len(sys.argv) > 3:
        one(*sys.argv[1:5])
    else:
        sys.exit(min(1, every(*map(int, [*sys.argv[1:3], "1000000", "1200"][:2]))))
