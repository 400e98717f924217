"""The one door for commands on this machine."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.errors import CommandError, Interrupted, MachineError, TimeoutExpired
from testbed.process import run, which


def gone(pid: int, within: float = 60.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = (
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            )
        except FileNotFoundError:
            return True
        if state == "Z":  # an orphan whose new parent has not reaped it yet
            return True
        time.sleep(0.01)
    return False


def test_outputs_and_status_come_back_apart() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_failure_carries_command_place_and_output() -> None:
    with pytest.raises(CommandError, match=r"on this machine: sh -c .*exit status 4\n +no luck"):
        run(["sh", "-c", "echo no luck >&2; exit 4"])


def test_the_signal_that_ended_a_command_is_its_negative_status() -> None:
    assert run(["sh", "-c", "kill -TERM $$"], check=False).status == -15


def test_a_missing_program_is_a_command_error_even_unchecked() -> None:
    with pytest.raises(CommandError) as caught:
        run(["/nowhere/at-all"], check=False)
    assert caught.value.status == 127


def test_without_room_for_a_process_the_machine_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # fork(2), at a pids.max

    monkeypatch.setattr("subprocess.Popen", refused)
    with pytest.raises(MachineError, match=r"pids\.max"):
        run(["true"], check=False)


def test_more_than_a_pipe_holds_goes_through_in_both_directions() -> None:
    data = os.urandom(3 << 20)
    assert run(["cat"], input=data).out == data


def test_a_command_that_does_not_read_its_input_is_no_error() -> None:
    assert run(["true"], input=b"x" * (1 << 20)).status == 0


def test_environment_and_folder(tmp_path: Path) -> None:
    done = run(["/bin/sh", "-c", "pwd; echo $A"], cwd=tmp_path, env={"A": "b"})
    assert done.stdout.splitlines() == [str(tmp_path), "b"]


def test_lines_are_told_as_they_come_and_the_last_one_without_an_end() -> None:
    lines: list[str] = []
    run(["sh", "-c", "echo one; sleep 0.05; printf 'two\\nthree'"], on_line=lines.append)
    assert lines == ["one", "two", "three"]


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a test lets pass, by appending them."""
    seconds: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(seconds))
    monkeypatch.setattr("testbed.process.time", clock)
    return seconds


def test_ticks_tell_the_seconds(tmp_path: Path, passed: list[float]) -> None:
    ticks: list[float] = []
    end = tmp_path / "end"
    os.mkfifo(end)

    def tick(seconds: float) -> None:
        ticks.append(seconds)
        if len(ticks) < 3:
            passed.append(1.5)
        elif len(ticks) == 3:
            end.write_text("")

    def let_pass(_: str) -> None:
        passed.append(1.5)

    run(["sh", "-c", f"echo begun; read line < {end}"], check=False, on_line=let_pass, on_tick=tick)
    assert len(ticks) >= 3
    assert all(after - before >= 1 for before, after in pairwise([0, *ticks]))


GROUP = ["sh", "-c", "sleep 60 & echo $!; wait"]


def test_time_out_kills_the_whole_group(passed: list[float]) -> None:
    pids: list[str] = []

    def let_pass(line: str) -> None:
        pids.append(line)
        passed.append(3600)

    with pytest.raises(TimeoutExpired, match="1800 s"):
        run(GROUP, timeout=1800, on_line=let_pass)
    assert gone(int(pids[0]))


def test_cancel_kills_the_whole_group() -> None:
    pids: list[str] = []
    cancel = threading.Event()

    def stop(line: str) -> None:
        pids.append(line)
        cancel.set()

    with pytest.raises(Interrupted):
        run(GROUP, cancel=cancel, on_line=stop)
    assert gone(int(pids[0]))


def test_an_exception_on_the_way_kills_the_command() -> None:
    seen: list[str] = []

    def interrupt(line: str) -> None:
        seen.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "echo $$; exec sleep 60"], on_line=interrupt)
    assert gone(int(seen[0]))


def test_a_child_in_the_background_is_not_waited_for() -> None:
    done = run(["sh", "-c", "sleep 600 & echo $!"])
    os.kill(int(done.stdout), signal.SIGKILL)  # fails when it has ended


def test_which_also_looks_where_an_ordinary_path_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr("testbed.process.ADMIN", (str(tmp_path),))
    tool = tmp_path / "some-admin-tool"
    tool.touch(mode=0o755)
    assert which("some-admin-tool") == str(tool)
    assert which("no-such-tool") is None
