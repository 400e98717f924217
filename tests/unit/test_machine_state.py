"""Snapshots of a machine: new, missing and changed parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from testbed import machine_state
from testbed.leftover import LabPart
from testbed.machine_state import RESTLESS, Snapshot, differences
from testbed.nodes.fake import FakeProvider
from testbed.registry import PROVIDERS
from testbed.testing import declare


def seen(**areas: dict[str, str]) -> Snapshot:
    return Snapshot(areas)


def test_nothing_changed() -> None:
    one = seen(link={"eth0": "mtu 1500"}, process={})
    assert differences(one, one) == []


def test_new_gone_and_changed() -> None:
    before = seen(link={"eth0": "mtu 1500", "eth1": "up"}, sysctl={"a": "0"})
    after = seen(link={"eth0": "mtu 1450", "br-lan": "up"}, sysctl={"a": "1"})
    assert differences(before, after) == [
        "new link: br-lan (up)",
        "link is gone: eth1",
        "link has changed: eth0: mtu 1500 -> mtu 1450",
        "sysctl has changed: a: 0 -> 1",
    ]


def test_a_process_that_has_ended_is_no_leak() -> None:
    before = seen(process={"etcd pid 1 since 2": "etcd"})
    assert differences(before, seen(process={})) == []
    assert differences(seen(process={}), before) == ["new process: etcd pid 1 since 2 (etcd)"]


def test_a_lab_of_another_that_goes_meanwhile_is_no_leak() -> None:
    part = {machine_state.PART: {"cgroup /sys/fs/cgroup/cpu/testbed/lab.0123abcd": "there"}}
    assert differences(seen(**part), seen(**{machine_state.PART: {}})) == []
    assert len(differences(seen(**{machine_state.PART: {}}), seen(**part))) == 1


def test_only_what_stays_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab that another is making or removing is there for a look or two."""
    looks = [{"a": "", "b": ""}, {"b": "", "c": ""}, {"b": "", "d": ""}]
    monkeypatch.setattr(machine_state, "PAUSE", 0)
    monkeypatch.setattr(
        machine_state, "snapshot", lambda _: seen(link=looks.pop(0) if looks[1:] else looks[0])
    )
    assert machine_state.left(seen(link={}), seconds=0.01) == ["new link: b ()"]


def test_what_goes_in_a_moment_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [seen(link={"a": ""}), seen(link={"a": ""}), seen(link={})]
    monkeypatch.setattr(machine_state, "PAUSE", 0)
    monkeypatch.setattr(machine_state, "snapshot", lambda _: looks.pop(0))
    assert machine_state.left(seen(link={}), seconds=60) == []
    assert looks == []


@pytest.mark.parametrize(
    ("key", "skipped"),
    [
        ("kernel/random/entropy_avail", True),
        ("kernel/ns_last_pid", True),
        ("kernel/pty/nr", True),
        ("kernel/pty/max", False),
        ("kernel/core_pattern", False),
        ("vm/drop_caches", True),
        ("vm/swappiness", False),
        ("net/ipv4/ip_forward", False),
    ],
)
def test_what_counts_by_itself_is_not_looked_at(key: str, skipped: bool) -> None:
    assert bool(RESTLESS.search(key)) is skipped


def test_counters_of_a_firewall_are_no_change() -> None:
    assert machine_state.COUNTERS.sub("", ":INPUT ACCEPT [12:3456]") == ":INPUT ACCEPT "
    assert machine_state.COUNTERS.sub("", "counter packets 1 bytes 2 drop") == "counter  drop"


def test_a_process_of_a_lab_is_seen_and_its_zombie_is_not(tmp_path: Path) -> None:
    program = tmp_path / "tcpdump"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        found = dict(machine_state._processes(set()))
        (key,) = [k for k in found if k.startswith(f"tcpdump pid {process.pid} ")]
        assert found[key] == f"{program} 60"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert key not in dict(machine_state._processes(set()))
    finally:
        process.kill()
        process.wait()


def test_names_of_processes_may_have_any_encoding(tmp_path: Path) -> None:
    # The kernel cuts a name after 15 bytes, also within a character.
    program = os.fsencode(tmp_path) + "/tcpdump-abcdefü".encode()
    os.symlink("/bin/sleep", program)  # noqa: PTH211  the path is bytes
    process = subprocess.Popen([program, "60"])
    try:
        found = dict(machine_state._processes(set()))
        assert [key for key in found if f" pid {process.pid} " in key]
        assert list(machine_state._ancestors(process.pid))[:2] == [process.pid, os.getpid()]
    finally:
        process.kill()
        process.wait()


def _until_it_runs(pid: int) -> None:
    """Wait until a process that was forked is the program, and not the shell any more."""
    while Path(f"/proc/{pid}/comm").read_text().strip() != "tcpdump":
        time.sleep(0.01)


def test_what_another_runs_now_is_no_leak_and_what_has_lost_its_parent_is(tmp_path: Path) -> None:
    program = tmp_path / "tcpdump"
    program.symlink_to("/bin/sleep")
    script = '"$0" 60 & echo $!; wait'
    ours = subprocess.Popen(["sh", "-c", script, program], stdout=subprocess.PIPE, text=True)
    assert ours.stdout
    child = int(ours.stdout.readline())
    try:
        _until_it_runs(child)
        (key,) = [k for k in dict(machine_state._processes(set())) if f" pid {child} " in k]
        code = (
            "from testbed import machine_state\n"
            "print(*dict(machine_state._processes(set())), sep=chr(10))"
        )
        argv = [sys.executable, "-c", code]
        sibling = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert key not in sibling.splitlines(), "it is a child of ours, not of that process"
    finally:
        os.kill(child, signal.SIGKILL)
        ours.communicate()
    # Its parent ends at once.
    script = '"$0" 60 > /dev/null 2>&1 & echo $!'
    argv = ["setsid", "sh", "-c", script, str(program)]
    pid = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    try:
        _until_it_runs(pid)
        assert [k for k in dict(machine_state._processes(set())) if f" pid {pid} " in k]
    finally:
        os.kill(pid, signal.SIGKILL)


class Barn(FakeProvider):
    """Has stables, which no snapshot of links or files shows."""

    name = "barn"
    processes = ("a-horse-of-the-barn",)
    folders = ("/a-folder-of-the-barn",)
    stables: ClassVar[list[LabPart]] = []

    @classmethod
    def lab_parts(cls) -> Iterable[LabPart]:
        return list(cls.stables)


@pytest.fixture
def barn(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Barn]]:
    declare(monkeypatch, PROVIDERS, "barn", f"{__name__}:Barn")
    yield Barn
    Barn.stables.clear()


def test_parts_of_any_provider_are_seen_but_for_those_of_others(
    barn: type[Barn], tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    before = machine_state.snapshot(ours)
    barn.stables[:] = [
        LabPart("stable", "one", ours / "state"),
        LabPart("stable", "two", theirs),
        LabPart("stable", "three", None),
    ]
    lines = [line for line in differences(before, machine_state.snapshot(ours)) if "stable" in line]
    assert [line for line in lines if "one" in line or "three" in line] == lines
    assert len(lines) == 2
    everybodys = differences(before, machine_state.snapshot())
    assert len([line for line in everybodys if "stable" in line]) == 3
    barn.stables.clear()
    assert "stable" not in "".join(differences(before, machine_state.snapshot(ours)))


def test_programs_and_folders_of_any_provider_are_looked_at(
    barn: type[Barn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barn, "folders", (str(tmp_path),))
    (tmp_path / "hay").touch()
    program = tmp_path / "a-horse-of-the-barn"  # the kernel keeps 15 bytes of the name
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        seen = machine_state.snapshot().areas
        assert [key for key in seen["process"] if f" pid {process.pid} " in key]
        assert str(tmp_path / "hay") in seen["file"]
    finally:
        process.kill()
        process.wait()


def test_processes_of_others_nodes_are_not_ours(barn: type[Barn], tmp_path: Path) -> None:
    program = tmp_path / "tcpdump"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        for state, seen in ((tmp_path / "theirs", False), (tmp_path / "ours" / "a", True)):
            barn.stables[:] = [LabPart("process", "node1", state, os.getpid())]
            found = machine_state.snapshot(tmp_path / "ours").areas["process"]
            assert bool([key for key in found if f" pid {process.pid} " in key]) is seen
    finally:
        process.kill()
        process.wait()


def test_lines_that_are_there_twice_count() -> None:
    before = machine_state._counted(["tmpfs /a"])
    after = machine_state._counted(["tmpfs /a", "tmpfs /a"])
    assert differences(Snapshot({"mount": before}), Snapshot({"mount": after})) == [
        "mount has changed: tmpfs /a: 1 of it -> 2 of it"
    ]


def test_two_looks_at_this_machine_are_the_same() -> None:
    last = machine_state.snapshot()
    assert {"link", "mount", "sysctl", "file", "process"} <= set(last.areas)
    for _ in range(20):  # something else may change the machine between two of them
        before, last = last, machine_state.snapshot()
        lines = differences(before, last)
        if not [line for line in lines if "sysctl" in line or "link" in line]:
            return
    pytest.fail("\n".join(lines))
