"""The one door for commands on this machine."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

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


def test_ticks_tell_the_seconds() -> None:
    ticks: list[float] = []
    run(["sleep", "1.2"], on_tick=ticks.append)
    assert ticks
    assert ticks[0] >= 1


def test_time_out_kills_the_whole_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(TimeoutExpired, match=r"0\.3 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], timeout=0.3)
    assert gone(int(pid.read_text()))


def test_cancel_kills_the_whole_group(tmp_path: Path) -> None:
    pid, cancel = tmp_path / "pid", threading.Event()
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Interrupted):
        run(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"], cancel=cancel)
    assert gone(int(pid.read_text()))


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
