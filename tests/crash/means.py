"""``testbed`` as a process that is ended at chosen points, and what is left of it then."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed import machine_state
from testbed.labs.lab import Lab, labs
from testbed.labs.live import LiveLab
from testbed.leaks import leftovers
from testbed.nodes.netns import cgroups
from testbed.settings import settings

if TYPE_CHECKING:
    from testbed.leftover import Leftover

TESTBED = [sys.executable, "-m", "testbed"]
LONG = "TESTBED_LONG" in os.environ
SECONDS = 240.0  # none of what is run here takes so long, however busy the machine
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How a shell would say that a signal ended it.
STATUS = {signum: 128 + signum for signum in (signal.SIGKILL, *ENDING)}

Done = subprocess.CompletedProcess[str]


class Slow:
    """A ``testbed`` whose lines are taken one by one: it cannot get further than one ahead.

    Its standard output is a pipe in packet mode (pipe2(2), O_DIRECT) of one page: each write is
    a packet, there is room for one, and the next write waits.  So when a line has been taken,
    whatever comes after it has not been told yet; and as steps are started by the thread that
    tells of their ends, none that must wait for the next line can have been started.
    """

    def __init__(self, argv: list[str], env: Mapping[str, str]) -> None:
        self._read, write = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        self.process = subprocess.Popen(
            [*TESTBED, *argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        self.err = b""
        self._errors = threading.Thread(target=self._take_errors)
        self._errors.start()

    def _take_errors(self) -> None:
        assert self.process.stderr
        self.err = self.process.stderr.read()

    def lines(self) -> Iterator[str]:
        """Each line, as it is taken."""
        while packet := os.read(self._read, 1 << 16):
            text = packet.decode()
            if "still at:" not in text:
                yield text.rstrip("\n")

    def end(self, signum: int) -> int:
        """Send a signal; its status once it has ended, whatever it still has to say."""
        self.process.send_signal(signum)
        return self.wait()

    def wait(self) -> int:
        for _ in self.lines():
            pass
        status = self.process.wait(SECONDS)
        self._errors.join()
        assert self.process.stderr
        self.process.stderr.close()
        os.close(self._read)
        return status if status >= 0 else 128 - status


@dataclass
class Bed:
    """A state folder, and the commands that are run with it.

    ``under`` is what stands before each command: a program that limits it, say.
    """

    state: Path
    env: dict[str, str] = field(default_factory=dict)
    under: Sequence[str] = ()

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TESTBED_STATE": str(self.state), "NO_COLOR": "1", **self.env}

    def run(self, *argv: str, timeout: float = SECONDS) -> Done:
        return subprocess.run(
            [*self.under, *TESTBED, *argv],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def must(self, *argv: str) -> Done:
        """Run a command that is to end well."""
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def slow(self, *argv: str) -> Slow:
        return Slow([*argv], self.environment())

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.under, *TESTBED, *argv],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def labs(self) -> list[str]:
        return labs(settings(state_folder=self.state))

    def status(self, lab: str) -> Any:
        """Return the output of ``status``; its exit status must agree with it."""
        done = self.run("status", lab, "--json")
        said = json.loads(done.stdout)
        assert (done.returncode == 0) == said["ok"], done
        return said

    def leftovers(self) -> list[Leftover]:
        """Return the leftovers of this state folder."""
        found = leftovers(lambda path: settings(state_folder=path), self.state)
        return [one for one in found if one.state == self.state.resolve()]


@contextlib.contextmanager
def confined(file: Mapping[int, str], value: Mapping[int, str]) -> Iterator[Sequence[str]]:
    """Return the prefix for a command with these limits; nodes of labs have cgroups beside it.

    ``file`` and ``value`` say by the cgroup's version what limits it, and how far.
    """
    for hierarchy in cgroups.hierarchies():
        folder = hierarchy.mount / f"crash-{os.getpid()}"
        folder.mkdir()
        try:
            if (folder / file[hierarchy.version]).exists():
                (folder / file[hierarchy.version]).write_text(value[hierarchy.version])
                join = 'echo 0 > "$1/cgroup.procs"; shift; exec "$@"'
                yield ("sh", "-c", join, "sh", str(folder))
                return
        finally:
            cgroups._remove_folder(folder, time.monotonic() + SECONDS)
    pytest.skip(f"no cgroup here has {' or '.join({*file.values()})}")


def with_processes(most: int) -> contextlib.AbstractContextManager[Sequence[str]]:
    return confined({1: "pids.max", 2: "pids.max"}, {1: str(most), 2: str(most)})


def with_cpus(share: float) -> contextlib.AbstractContextManager[Sequence[str]]:
    quota = int(share * cgroups.PERIOD)
    return confined(
        {1: "cpu.cfs_quota_us", 2: "cpu.max"}, {1: f"{quota}", 2: f"{quota} {cgroups.PERIOD}"}
    )


def killed_at(process: subprocess.Popen[bytes], seconds: float, signum: int) -> tuple[int, str]:
    """End a process so many seconds after it listens to signals; its status and standard error.

    Before that it is Python alone that begins, which on a busy machine takes its time.
    """
    assert process.stderr
    caught = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        mask = re.search(r"^SigCgt:\s+([0-9a-f]+)", caught.read_text(), re.MULTILINE)
        if mask and int(mask[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.001)
    # Not a wait for something: the instant is what is being tried.
    time.sleep(seconds)
    process.send_signal(signum)
    _, err = process.communicate(timeout=SECONDS)
    status = process.returncode
    return (status if status >= 0 else 128 - status), err.decode()


def lab(bed: Bed, name: str) -> LiveLab:
    """A lab of a bed, as it runs now."""
    return LiveLab(Lab(name, settings(state_folder=bed.state)).context())


def no_traceback(text: str) -> None:
    assert "Traceback" not in text, text


class Watch:
    """The machine as it was, and whether it still is."""

    def __init__(self, below: Path) -> None:
        self._below = below
        self._before = machine_state.snapshot(below)

    def check(self) -> None:
        rest = machine_state.left(self._before, seconds=60, below=self._below)
        assert not rest, "\n".join(rest)


class Count:
    """Count the trials of each kind: printed at the end, and none may be missing."""

    def __init__(self) -> None:
        self.points: dict[str, int] = {}
        self.rounds = 0

    def add(self, point: str) -> None:
        self.points[point] = self.points.get(point, 0) + 1
        self.rounds += 1


def dice(seed: str) -> random.Random:
    """Reproducible chance: the seed is part of the test's name."""
    return random.Random(f"{os.environ.get('TESTBED_SEED', '1')} {seed}")
