"""The record and the lock: never half-written, never held by the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.errors import LabBusy, MachineError
from testbed.labs import state as module
from testbed.labs.state import Record, State, folder

RECORD = Record("two-node", {"name": "two-node"}, "two.yaml", 1.5, 2.5, [{"name": "fabric"}])

#: Takes the lock, says so, and sits on it.
HOLDER = """
import sys, time
from pathlib import Path
from testbed.labs.state import State

with State(Path(sys.argv[1])).lock("two-node", "up two-node"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def here(tmp_path: Path) -> State:
    return State(tmp_path / "deep" / "state")


# -- where it is ------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "xdg", "expected"),
    [
        ("/given", "/xdg", "/given"),
        ("", "/xdg", "/xdg/testbed"),
        (None, "/xdg", "/xdg/testbed"),
        (None, "relative", "/home/me/.local/state/testbed"),  # XDG: relative paths are ignored
        (None, "", "/home/me/.local/state/testbed"),
        (None, None, "/home/me/.local/state/testbed"),
    ],
)
def test_the_folder(
    monkeypatch: pytest.MonkeyPatch, given: str | None, xdg: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("TESTBED_STATE", given), ("XDG_STATE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert folder() == Path(expected)


def test_a_relative_folder_is_taken_from_where_we_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTBED_STATE", "mine")
    assert folder() == tmp_path / "mine"


# -- the record -------------------------------------------------------------


def test_what_is_written_can_be_read(here: State) -> None:
    assert here.read("two-node") is None
    assert here.labs() == []
    here.write(RECORD)
    assert here.read("two-node") == RECORD
    assert here.labs() == ["two-node"]
    here.remove("two-node")
    here.remove("two-node")
    assert here.read("two-node") is None
    assert here.labs() == []


def test_the_folder_is_its_owners_alone(here: State) -> None:
    here.write(RECORD)
    assert here.path.stat().st_mode & 0o777 == 0o700
    (file,) = here.path.glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600


def cut(text: str) -> str:
    return text[: len(text) // 2]


def other_version(text: str) -> str:
    return json.dumps({**json.loads(text), "version": module.VERSION + 1})


def more(text: str) -> str:
    return json.dumps({**json.loads(text), "surprise": 1})


def less(text: str) -> str:
    data = json.loads(text)
    del data["topology"]
    return json.dumps(data)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        other_version,
        more,
        less,
        lambda _: "",
        lambda _: "[]",
        lambda _: "null",
        lambda _: '"text"',
        lambda _: "{}",
        lambda t: t.replace("two-node", "other"),  # the record of another lab
        lambda t: t.replace('{\n  "name": "two-node"\n }', '"none"'),
        lambda t: "\0" * len(t),  # what a file system may leave of a file at a power cut
        lambda _: "[" * 100_000,
    ],
)
def test_a_record_that_cannot_be_understood_is_none(
    here: State, damage: Callable[[str], str]
) -> None:
    here.write(RECORD)
    (file,) = here.path.glob("*.json")
    file.write_text(damage(file.read_text()), encoding="utf-8")
    assert here.read("two-node") is None
    assert here.labs() == ["two-node"]  # there is something to clean up
    here.write(RECORD)
    assert here.read("two-node") == RECORD


def test_bytes_that_are_no_text(here: State) -> None:
    here.write(RECORD)
    (file,) = here.path.glob("*.json")
    file.write_bytes(b"\xff\xfe\x00")
    assert here.read("two-node") is None


def test_a_link_is_replaced_not_followed(here: State, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    here.ensure()
    (here.path / "two-node.json").symlink_to(precious)
    assert here.read("two-node") is None
    here.write(RECORD)
    assert precious.read_text(encoding="utf-8") == "precious"
    assert here.read("two-node") == RECORD
    (here.path / "dangling.json").symlink_to(tmp_path / "nowhere")
    assert here.read("dangling") is None
    here.remove("dangling")
    assert here.labs() == ["two-node"]


def test_it_is_replaced_in_one_step(here: State) -> None:
    here.write(RECORD)
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            if here.read("two-node") is None:
                wrong.append(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(30):
            here.write(Record("two-node", {"size": "x" * i * 300}))
    finally:
        stop.set()
        reader.join()
    assert wrong == []


def test_a_failed_write_leaves_the_one_before(here: State, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write(RECORD)
    before = sorted(p.name for p in here.path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        monkeypatch.setattr(f"testbed.labs.state.os.{name}", full)
    with pytest.raises(MachineError, match=r"two-node.*No space left"):
        here.write(Record("two-node", {}))
    with pytest.raises(TypeError):
        here.write(Record("two-node", {"set": {1}}))  # a mistake of ours, not of the disk
    monkeypatch.undo()
    assert here.read("two-node") == RECORD
    assert sorted(p.name for p in here.path.iterdir()) == before


def test_pieces_of_a_killed_writer_go_with_the_lab(here: State) -> None:
    here.write(RECORD)
    (here.path / ".two-node.part-abc").write_text("{", encoding="utf-8")
    (here.path / ".two-node-2.part-abc").write_text("{", encoding="utf-8")
    assert here.labs() == ["two-node"]
    here.remove("two-node")
    assert [p.name for p in here.path.iterdir()] == [".two-node-2.part-abc"]


@pytest.mark.parametrize("where", ["file/state", "/proc/state"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    state = State(tmp_path / where)
    with pytest.raises(MachineError) as caught:
        state.write(RECORD)
    assert str(tmp_path / where) in caught.value.message
    assert "TESTBED_STATE" in str(caught.value.hint)
    with pytest.raises(MachineError), state.lock("two-node", "up"):
        pass
    assert state.labs() == []
    assert state.read("two-node") is None
    state.remove("two-node")


# -- the lock ---------------------------------------------------------------


def test_one_at_a_time(here: State) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(10):
            with State(here.path).lock("two-node", "test"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40
    assert list(here.path.iterdir()) == []  # the lock file goes with its last holder


def test_labs_do_not_wait_for_each_other(here: State) -> None:
    with here.lock("one", "test"), here.lock("two", "test", timeout=0):
        pass


def test_who_waits_is_told_once_by_whom_it_is_held(here: State) -> None:
    told: list[str] = []
    with (
        here.lock("two-node", "up two-node"),
        pytest.raises(LabBusy) as caught,
        here.lock("two-node", "down", timeout=0.1, waiting=told.append),
    ):
        pass
    assert told == [f"testbed up two-node (pid {os.getpid()})"]
    error = caught.value
    assert (error.lab, error.holder, error.waited) == ("two-node", told[0], 0.1)


def test_a_holder_that_never_signs_is_told_of_all_the_same(
    here: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNSIGNED", 0.0)
    told: list[str] = []
    with here.lock("two-node", "up"):
        (here.path / ".two-node.lock").write_text("", encoding="utf-8")
        with (
            pytest.raises(LabBusy, match="another testbed"),
            here.lock("two-node", "down", timeout=0.05, waiting=told.append),
        ):
            pass
    assert told == [""]


def test_a_link_in_the_place_of_a_lock_is_not_followed(here: State) -> None:
    with here.lock("one", "up"):
        (here.path / ".two.lock").symlink_to(".one.lock")
        assert here.holder("one")
        assert here.holder("two") == ""


def test_it_is_had_as_soon_as_the_holder_leaves(here: State) -> None:
    held = threading.Event()

    def hold() -> None:
        with here.lock("two-node", "up"):
            held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with here.lock("two-node", "down", timeout=60):
        pass
    thread.join()


def test_it_is_let_go_when_the_work_fails(here: State) -> None:
    with pytest.raises(KeyError), here.lock("two-node", "up"):
        raise KeyError
    with here.lock("two-node", "up", timeout=0):
        pass


def test_it_ends_with_its_holder(here: State) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(here.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    told: list[str] = []
    with (
        pytest.raises(LabBusy, match=rf"pid {holder.pid}"),
        here.lock("two-node", "down", timeout=0.05, waiting=told.append),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    holder.stdout.close()
    with here.lock("two-node", "down", timeout=0):
        pass


def test_a_lock_file_that_was_left_is_no_lock(here: State) -> None:
    here.ensure()
    (here.path / ".two-node.lock").write_text("testbed up (pid 1)\n", encoding="utf-8")
    with here.lock("two-node", "down", timeout=0):
        assert f"pid {os.getpid()}" in (here.path / ".two-node.lock").read_text()


def test_a_name_that_is_too_long_for_a_file_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(MachineError, match="File name too long"),
        State(tmp_path).lock("x" * 300, "down"),
    ):
        pass


def test_a_record_that_a_killed_writer_has_begun_is_removed(tmp_path: Path) -> None:
    here = State(tmp_path)
    writer = subprocess.Popen(["true"])
    writer.wait()
    (tmp_path / f".testbed-0123abcd.{writer.pid}").write_text("{", encoding="utf-8")
    running = tmp_path / f".testbed-4567cdef.{os.getpid()}"
    running.write_text("{", encoding="utf-8")
    here.remove("two-node")
    assert list(tmp_path.iterdir()) == [running]
