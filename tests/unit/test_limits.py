"""The limits of this process, and what happens when one is reached."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from open_files import garbage_kept, unchanged_files

from testbed import cli, limits
from testbed.errors import MachineError, StepsFailed
from testbed.labs import run as running
from testbed.nodes.fake import FakeProvider
from testbed.nodes.netns.agent import Command, Connection
from testbed.nodes.terminal import readable
from testbed.steps.context import Context
from testbed.steps.step import Plan, Step
from testbed.testing.fakes import FakeStore
from testbed.topology import load

INFINITY = resource.RLIM_INFINITY


class Limits:
    """Stands in for the module ``resource``: the limits of a process that is not this one."""

    RLIMIT_NOFILE, RLIMIT_NPROC, RLIM_INFINITY = 7, 6, INFINITY

    def __init__(self, files: tuple[int, int], processes: tuple[int, int]) -> None:
        self.now = {self.RLIMIT_NOFILE: files, self.RLIMIT_NPROC: processes}

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.now[which]

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        self.now[which] = limits


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1024), (1024, 1024)),
        ((1024, 1 << 30), (limits.MOST_FILES, 1 << 30)),
        ((1024, INFINITY), (limits.MOST_FILES, INFINITY)),
        ((1 << 20, 1 << 20), (1 << 20, 1 << 20)),  # never lowered
        ((INFINITY, INFINITY), (INFINITY, INFINITY)),
    ],
)
def test_open_files_are_raised_as_far_as_is_of_use(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    here = Limits(given, (100, 100))
    monkeypatch.setattr(limits, "resource", here)
    limits.raise_soft()
    assert here.now == {here.RLIMIT_NOFILE: wanted, here.RLIMIT_NPROC: (100, 100)}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((100, 200), (200, 200)), ((100, INFINITY), (INFINITY, INFINITY)), ((100, 100), (100, 100))],
)
def test_processes_are_raised(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    here = Limits((64, 64), given)
    monkeypatch.setattr(limits, "resource", here)
    limits.raise_soft()
    assert here.now[here.RLIMIT_NPROC] == wanted


@pytest.mark.parametrize(
    "error",
    [ValueError("not allowed to raise maximum limit"), OSError(errno.EPERM, "not permitted")],
)
def test_a_limit_that_cannot_be_raised_is_kept(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    here = Limits((64, 128), (1, 1))

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(here, "setrlimit", refuse)
    monkeypatch.setattr(limits, "resource", here)
    limits.raise_soft()
    assert here.now[here.RLIMIT_NOFILE] == (64, 128)


def test_commands_run_with_raised_limits() -> None:
    """The settings that every command and the plugin ask for raise them."""
    code = (
        "import resource; from testbed.settings import settings; settings();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 100; ulimit -Hn 200; exec "$@"', "sh", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(200, 200)"


@pytest.mark.parametrize(
    ("free", "most", "expected"),
    [
        (1000, 64, 64),
        (64, 64, 4),
        (64, 3, 3),
        (limits.SPARE + 12, 64, 1),
        (limits.SPARE + 30, 64, 2),
        (0, 64, 1),
        (64, 0, 1),
    ],
)
def test_as_much_at_once_as_there_are_descriptors(
    monkeypatch: pytest.MonkeyPatch, free: int, most: int, expected: int
) -> None:
    monkeypatch.setattr(limits, "free_files", lambda: free)
    assert limits.at_once(most, files=12) == expected


@pytest.mark.parametrize("soft", [128, 129, INFINITY])
def test_enough_open_files(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(limits, "resource", Limits((soft, INFINITY), (1, 1)))
    limits.require(128, "it")


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "resource", Limits((127, 127), (1, 1)))
    with pytest.raises(MachineError, match="only 127") as caught:
        limits.require(128, "it")
    assert "ulimit -n 128" in str(caught.value.hint)


def test_the_hard_limit_counts_for_daemons_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "resource", Limits((127, 128), (1, 1)))
    with pytest.raises(MachineError):
        limits.require(128, "it")
    limits.require(128, "it", hard=True)
    with pytest.raises(MachineError):
        limits.require(129, "it", hard=True)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ((65536, 1 << 20), "raise the limit: ulimit -n 131072"),
        ((65536, INFINITY), "raise the limit: ulimit -n 131072"),
        ((65536, 131071), "raise the limit as root: ulimit -n 131072"),
        ((200, 200), "raise the limit as root: ulimit -n 1024"),
        ((1024, 1024), "raise the limit as root: ulimit -n 2048"),
    ],
)
def test_the_hint_raises_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int, int], hint: str
) -> None:
    monkeypatch.setattr(limits, "resource", Limits(given, (1, 1)))
    error = limits.exhausted(OSError(errno.EMFILE, "Too many open files"))
    assert error is not None
    assert str(given[0]) in error.message
    assert error.hint == hint


def test_the_machines_own_limit_is_another() -> None:
    error = limits.exhausted(OSError(errno.ENFILE, "Too many open files in system"))
    assert error is not None
    assert "fs.file-max" in str(error.hint)
    assert limits.exhausted(OSError(errno.ENOSPC, "No space left on device")) is None


def test_none_is_free_where_even_the_folder_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(_: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "listdir", exhausted)
    assert limits.free_files() == 0


def test_free_descriptors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "resource", Limits((5000, 9000), (1, 1)))
    assert 4000 < limits.free_files() < 5000
    with garbage_kept():
        before = limits.free_files()
        with socket.socket(), socket.socket():
            assert limits.free_files() == before - 2
    monkeypatch.setattr(limits, "resource", Limits((1, 1), (1, 1)))
    assert limits.free_files() == 0


def nothing() -> Context:
    """A lab without nodes."""
    return Context(load("two-node"), FakeProvider(), FakeStore())


def steps_at_once(monkeypatch: pytest.MonkeyPatch, free: int) -> int:
    """Return how many of twenty steps run at once with so many free descriptors."""
    monkeypatch.setattr(limits, "free_files", lambda: free)
    lock, held = threading.Lock(), threading.Event()
    now = most = 0

    def act(_: Context) -> tuple[str, bool]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        held.wait(0.005)
        with lock:
            now -= 1
        return "", True

    steps = {f"s{i}": Step(f"s{i}", "", (), act=act) for i in range(20)}
    running.carry_out(Plan("lab", steps), nothing())
    return most


def test_a_plan_keeps_to_the_descriptors_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_at_once(monkeypatch, limits.SPARE + 2 * running.FILES_PER_STEP) <= 2
    assert steps_at_once(monkeypatch, 0) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_step_without_a_free_descriptor_says_so(number: int) -> None:
    def act(_: Context) -> tuple[str, bool]:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StepsFailed) as caught:
        running.carry_out(Plan("lab", {"s": Step("s", "", (), act=act)}), nothing())
    assert caught.value.exit_code == MachineError.exit_code


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_command_without_a_free_descriptor_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def main(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cli.cli, "main", main)
    assert cli.run(["ls"]) == 3
    said = capsys.readouterr().err
    assert "open files" in said or "files can be opened" in said
    assert "Traceback" not in said


def test_another_error_is_not_taken_for_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.exhausted(FileNotFoundError(errno.ENOENT, "x")) is None

    def main(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "x")

    monkeypatch.setattr(cli.cli, "main", main)
    with pytest.raises(FileNotFoundError):
        cli.run(["ls"])


# -- the connection to a node's pid 1 -----------------------------------------------


class Cut:
    """A socket whose message came with a file for which there was no descriptor."""

    def settimeout(self, _: float | None) -> None:
        """Nothing to wait for."""

    def recvmsg(self, *_: int) -> tuple[bytes, list[Any], int, None]:
        return b"ok", [], socket.MSG_CTRUNC, None


def test_a_file_for_which_there_is_no_descriptor() -> None:
    connection = Connection.__new__(Connection)
    connection._node = "node1"
    vars(connection)["_socket"] = Cut()
    with pytest.raises(MachineError, match="open files"):
        connection.receive(5)


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_a_command_that_has_no_room_for_its_output_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, opened: int
) -> None:
    real, left = os.memfd_create, iter(range(opened))
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def create(name: str) -> int:
        if next(left, None) is None:
            raise full
        return real(name)

    def connect() -> Connection:
        raise full

    monkeypatch.setattr(os, "memfd_create", create)
    with unchanged_files(), pytest.raises(OSError, match="Too many open files"):
        Command("node1", connect, ["true"], input=None, env=None)


def test_a_terminal_is_watched_whatever_its_number() -> None:
    """select(2) takes no descriptor from 1024 on."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    code = (
        "import os, fcntl, json; from testbed.nodes.terminal import readable;"
        "r, w = os.pipe(); high = fcntl.fcntl(r, fcntl.F_DUPFD, 1500); os.write(w, b'x');"
        "print(json.dumps([high, list(readable([high]))]))"
    )
    if soft != INFINITY and soft <= 1500:
        pytest.skip(f"only {soft} open files may be had here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    high, ready = json.loads(done.stdout)
    assert high >= 1500
    assert ready == [high]


def test_only_what_can_be_read_is_told() -> None:
    ours, theirs = socket.socketpair()
    other, _far = socket.socketpair()
    theirs.send(b"x")
    assert readable([ours.fileno(), other.fileno()]) == {ours.fileno()}
    theirs.close()
    ours.recv(1)
    assert readable([ours.fileno(), other.fileno()]) == {ours.fileno()}  # it has ended
    for one in (ours, other, _far):
        one.close()
