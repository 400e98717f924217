"""Every command with standard streams that are full, closed, or read by nobody any more."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
import report_runs

from testbed import __main__
from testbed.cli import COMMANDS, brought, common
from testbed.labs.lab import Lab
from testbed.nodes.fake import FakeNode
from testbed.report.html import render
from testbed.topology import load

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

LAB = "two-node"
#: All commands that have a help, or in the short form one of ours and one that a plugin brings.
HELPFUL = [*COMMANDS, *brought()] if "TESTBED_LONG" in os.environ else ["up", "kubectl"]
#: Command lines that end by themselves and need no root.
PLAIN = [
    *([name, "--help"] for name in HELPFUL),
    ["--help"], ["--version"], ["no-such-command"], ["claims", "show", "no-such-claim"],
    ["topologies"], ["topologies", "--json"], ["topologies", LAB],
    ["plan", LAB], ["claims"], ["claims", "--json"], ["schema"], ["completion", "bash"],
    ["report", "RUN", "--html", "-"], ["report", "RUN", "--html", "/dev/stdout"],
    ["report", "-", "--html", "-"],
]  # fmt: skip
#: With a lab of fakes.
ON_A_LAB = [
    ["ls"], ["ls", "--json"], ["status", LAB], ["status", LAB, "--json"],
    ["logs", "node1"], ["logs", "node1", "no-such-service"], ["exec", "node1", "--", "true"],
    ["shell", "node1"], ["exec", "nowhere", "--", "true"],
    ["up", LAB], ["up", LAB, "-q"], ["up", "docker-single"], ["up", "docker-single", "--json"],
    ["down", "docker-single"], ["down", LAB], ["down", "--all"],
]  # fmt: skip


class Ended:
    """The outcome of a command line in a process of its own."""

    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status = status
        self.out = out
        self.err = err


Streams = Callable[[], object]


def at(number: int, path: str) -> Streams:
    """The stream of that number opened on a path."""

    def act() -> None:
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)

    return act


def closed(*numbers: int) -> Streams:
    def act() -> None:
        for number in numbers:
            os.close(number)

    return act


def reader_gone(number: int) -> Streams:
    def act() -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        os.dup2(theirs, number)
        os.close(theirs)

    return act


def run(streams: Streams, *lines: Sequence[str]) -> list[Ended]:
    """Run command lines in a copy of this process, each as a process of its own would begin."""
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            _in_the_child(lines, streams, told)
        os.waitpid(child, 0)
        told.seek(0)
        ended: list[Ended] = pickle.loads(told.read())
    assert len(ended) == len(lines)
    return ended


def _in_the_child(lines: Sequence[Sequence[str]], streams: Streams, told: IO[bytes]) -> None:
    found = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, opened in ((0, nothing), (1, out.fileno()), (2, err.fileno())):
                os.dup2(opened, number)
            os.close(nothing)
            streams()
            # As Python's own start: a stream whose descriptor is closed is None.
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                setattr(sys, name, _stream(number))
            for line in lines:
                for file in (out, err):
                    file.seek(0)
                    file.truncate()
                status = _status(line, err)
                found.append(Ended(status, *(os.pread(f.fileno(), 1 << 24, 0) for f in (out, err))))
            pickle.dump(found, told)
            told.flush()
        finally:
            os._exit(0)


def _stream(number: int) -> IO[str] | None:
    try:
        os.fstat(number)
    except OSError:
        return None
    return open(number, "w" if number else "r", encoding="utf-8", closefd=False)


def _status(line: Sequence[str], err: IO[bytes]) -> int:
    sys.argv = ["testbed", *line]
    try:
        __main__.main()
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        return error.code if isinstance(error.code, int) else 70
    except BaseException:  # noqa: BLE001  told to the test
        os.write(err.fileno(), traceback.format_exc().encode())
    return 70


Command = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def _loaded() -> None:
    """Modules that every copy would load for itself."""
    for module in COMMANDS.values():
        importlib.import_module(f"testbed.cli.{module}")
    render(report_runs.run())


@pytest.fixture
def command(
    _loaded: None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Makes a command line ready; what is changed here is so in the copies, too."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(report_runs.run()))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TESTBED_LAB", raising=False)
    yield lambda argv: [str(path) if word == "RUN" else word for word in argv]
    assert json.loads(path.read_text()) == report_runs.run(), "nothing was written into it"


FULL, GONE, NONE = "stdout full", "stdout's reader gone", "no streams"
WAYS: dict[str, Streams] = {
    FULL: at(1, "/dev/full"),
    GONE: reader_gone(1),
    NONE: closed(0, 1, 2),
    "no stdin, stderr full": lambda: (at(2, "/dev/full")(), closed(0)()),
}
EACH: dict[str, Streams] = {
    "no stdin": closed(0),
    "no stdout": closed(1),
    "no stderr": closed(2),
    "neither output": closed(1, 2),
    "stderr full": at(2, "/dev/full"),
    "stderr's reader gone": reader_gone(2),
}


def timeless(out: bytes) -> bytes:
    return re.sub(rb" *\d+\.\d+", b"", out)


def expect(lines: list[list[str]], ways: Mapping[str, Streams]) -> None:
    """Command lines end as they do ordinarily, but for what they could not print."""
    ordinary = run(lambda: None, *lines)
    for way, streams in ways.items():
        for line, usual, ended in zip(lines, ordinary, run(streams, *lines), strict=True):
            assert b"Traceback" not in usual.err + ended.err, (line, way, ended.err.decode())
            if way == FULL and usual.out:
                assert ended.status == 3, line
                assert b"No space left on device" in ended.err
            elif way == GONE and usual.out:
                assert (ended.status, ended.err) == (128 + signal.SIGPIPE, b""), line
            else:
                assert ended.status == usual.status, (line, way, ended.err.decode())
                if way not in {FULL, GONE, NONE, "no stdout", "neither output"}:
                    # In any order: the steps of `up` end as they like.
                    assert len(timeless(ended.out)) == len(timeless(usual.out)), (line, way)


@pytest.mark.thorough
def test_commands(command: Command) -> None:
    expect([command(line) for line in PLAIN], WAYS)


@pytest.mark.parametrize("line", [["plan", LAB], ["plan", "nowhere"]], ids=" ".join)
def test_each_stream(line: list[str], command: Command) -> None:
    expect([command(line)], EACH)


@pytest.mark.thorough
def test_commands_on_a_lab(command: Command, bench: Bench) -> None:
    Lab(LAB, bench.settings).up(load(LAB))
    record = bench.state.path / f"{LAB}.json"
    kept = record.read_text()

    def restored(streams: Streams) -> None:
        record.write_text(kept)
        streams()

    ways = {way: partial(restored, streams) for way, streams in WAYS.items()}
    expect([command(line) for line in ON_A_LAB], ways)


def test_no_file_takes_the_place_of_a_closed_stream(command: Command, tmp_path: Path) -> None:
    """All that a command opens has another number, and keeps what it had."""
    html = tmp_path / "a.html"
    assert run(closed(0, 1, 2), command(["report", "RUN", "--html", str(html)]))[0].status == 0
    assert html.read_text().rstrip().endswith("</html>")


def test_the_streams_of_a_command_on_a_node(
    command: Command, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is handed three descriptors that are open, and none of a file of ours."""
    Lab(LAB, bench.settings).up(load(LAB))

    def attach(_: FakeNode, __: Sequence[str], *, tty: bool) -> int:
        assert not tty
        streams = [sys.stdin, sys.stdout, sys.stderr]
        assert [stream.fileno() for stream in streams] == [0, 1, 2]
        null = Path(os.devnull).stat()
        return 42 if all(os.fstat(number).st_rdev == null.st_rdev for number in range(3)) else 1

    monkeypatch.setattr(FakeNode, "attach", attach)
    for argv in (["exec", "node1", "--", "true"], ["shell", "node1"]):
        assert run(closed(0, 1, 2), command(argv))[0].status == 42


def test_a_lab_is_taken_back_when_its_coming_up_cannot_be_told(
    command: Command, bench: Bench
) -> None:
    for streams in (at(1, "/dev/full"), reader_gone(1)):
        run(streams, command(["up", LAB]))
        assert bench.state.labs() == []


def test_a_terminal_that_somebody_has_made_non_blocking(command: Command) -> None:
    """It takes a little at a time; nothing is lost."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got: list[bytes] = []

    def read() -> None:
        while data := ours.recv(4096):
            got.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    (usual,) = run(lambda: None, ["topologies", "--json"])
    (ended,) = run(lambda: os.dup2(theirs.fileno(), 1), ["topologies", "--json"])
    theirs.close()
    thread.join()
    ours.close()
    assert (ended.status, b"".join(got)) == (0, usual.out)


def test_what_an_encoding_lacks_is_escaped(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / os.fsdecode(b"no-\xff-utf-8.yaml")
    path.write_text("name: t\ndescription: \u5bb9\u5668\nnodes: {a: {}}\n")
    (ended, wrong) = run(
        lambda: None, ["plan", str(path)], ["plan", str(path.with_suffix(".gone"))]
    )
    assert (ended.status, ended.err) == (0, b"")
    assert wrong.status == 2
    assert b"udcff" in wrong.err
