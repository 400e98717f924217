"""Progress of what takes long: all of it on a terminal, and few lines in a file."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable

import click
import pytest

from testbed.claims.catalogue import Catalogue
from testbed.cli import common, verify
from testbed.cli.output import Output
from testbed.progress import EVERY, Log, Tell
from testbed.suites.model import Check, LabRun
from testbed.topology.load import load


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_thing_of_five_minutes_has_a_line_every_half_a_minute(clock: Clock) -> None:
    """Messages of a task that come each second, such as the seconds of a compiler."""
    lines: list[str] = []
    log = Log(lines.append, clock)
    for second in range(300):
        clock.now = 1000.0 + second
        log.tell("flanneld", f"compile, {second} s")
    log.end("flanneld", "ready")
    assert lines == [*(f"compile, {second} s" for second in range(0, 300, int(EVERY))), "ready"]


def test_a_thing_that_is_soon_done_has_two_lines(clock: Clock) -> None:
    lines: list[str] = []
    log = Log(lines.append, clock)
    for number in range(100):
        clock.now += 0.1
        log.tell("nginx", f"unpack {number}")
    log.end("nginx", "ready")
    assert lines == ["unpack 0", "ready"]


def test_things_at_the_same_time_have_lines_of_their_own(clock: Clock) -> None:
    lines: list[str] = []
    log = Log(lines.append, clock)
    for second in range(40):
        clock.now = 1000.0 + second
        log.tell("one", f"one {second}")
        if second >= 20:
            log.tell("two", f"two {second}")
    assert lines == ["one 0", "two 20", "one 30"]


def test_a_thing_that_begins_again_is_told_of_again(clock: Clock) -> None:
    lines: list[str] = []
    log = Log(lines.append, clock)
    for word in ("first", "second"):
        log.tell("lab", word)
        log.end("lab")
    for word in ("third", "fourth"):
        log.tell("step", word)
        log.keep({"another"})
    assert lines == ["first", "second", "third", "fourth"]


# -- what commands make of it ---------------------------------------------------------------


def artifact(tell: Tell) -> None:
    for second in range(5):
        tell("flanneld", f"compile, {second} s")
    tell("flanneld", "ready, v1", ended=True)


@pytest.fixture
def _first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been told yet."""
    common._log.cache_clear()


@pytest.mark.usefixtures("_first")
def test_a_file_has_the_begin_and_the_end_of_an_artifact(
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact(common.tell_artifact)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n") == ["  flanneld: compile, 0 s", "  flanneld: ready, v1", ""]


def on_terminal(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> list[str]:
    """The lines that a terminal shows in the place of a standard stream."""
    ours, its = os.openpty()
    with os.fdopen(its, "w") as terminal:
        monkeypatch.setattr(sys, name, terminal)
        act()
        monkeypatch.undo()  # the terminal is about to be closed
    seen = b""
    with contextlib.suppress(OSError):  # EIO at the end; before, it comes in parts
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    return [line.strip() for line in click.unstyle(seen.decode()).splitlines()]


@pytest.mark.usefixtures("_first")
def test_a_terminal_shows_all_of_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_terminal(monkeypatch, "stderr", lambda: artifact(common.tell_artifact))
    assert lines == [*(f"flanneld: compile, {second} s" for second in range(5)),
                     "flanneld: ready, v1"]  # fmt: skip


def install(tell: Tell) -> None:
    tell("packages", "install gcc")
    for number in range(50):
        tell("packages", f"Get:{number} a package")
    tell("packages", "installed", ended=True)


@pytest.mark.usefixtures("_first")
def test_a_file_has_the_begin_and_the_end_of_an_installation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(common.tell_fix)
    said = "".join(capsys.readouterr())
    assert said.split("\n") == ["  packages: install gcc", "  packages: installed", ""]


@pytest.mark.usefixtures("_first")
def test_a_terminal_shows_what_apt_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_terminal(monkeypatch, "stdout", lambda: install(common.tell_fix))
    assert lines == ["install gcc", *(f"Get:{number} a package" for number in range(50))]


def labs(clock: Clock, *, quiet: bool) -> None:
    output = Output(
        json_file=None, junit=None, html=None, markdown=None, lang="en", evidence=False, quiet=quiet
    )
    with verify._Progress(output, Catalogue(), clock) as progress:
        watching = progress.watching()
        watching.began("one")
        watching.up("one", 1.0)
        for second in range(70):
            clock.now = 1000.0 + second
            watching.found("one", Check("a test", "passed", 0.1))
        watching.ended(LabRun("one", load("two-node")))


def test_a_file_has_the_begin_of_each_lab_and_its_count(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    labs(clock, quiet=False)
    out, err = capsys.readouterr()
    words = [line.split() for line in err.splitlines()]
    assert words[0][0] == "one"
    assert [line[:2] for line in words[1:]] == [["one:", str(count)] for count in (31, 61)]
    assert len(out.splitlines()) == 1, "its end"


def test_who_is_quiet_says_nothing_of_labs(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    labs(clock, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_closed_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    common._log.cache_clear()
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    artifact(common.tell_artifact)
    assert len(said.getvalue().splitlines()) == 2
