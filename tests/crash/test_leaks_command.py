"""``doctor --leaks``: each kind is told with what removes it, and what lives stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crash.means import LONG, Bed, Watch, no_traceback
from testbed.leftover import FIX
from testbed.nodes.netns import cgroups, find

SMALL = str(Path(__file__).with_name("small.yaml"))
TINY = "netns-experiments"
LIVE = "live"
Row = dict[str, Any]


@pytest.fixture
def place(bed: Bed, tmp_path: Path) -> Path:
    """Use temporary files and a cache of our own."""
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    bed.env["TMPDIR"] = str(tmp_path / "tmp")
    bed.env["TESTBED_CACHE"] = str(tmp_path / "cache")
    bed.state.mkdir()
    return tmp_path


def rows(bed: Bed, *options: str) -> list[Row]:
    """Return the leftovers that are ours; exit status and output must agree."""
    done = bed.run("doctor", "--leaks", "--json", *options)
    no_traceback(done.stderr)
    said: list[Row] = json.loads(done.stdout)
    left = [row for row in said if not row["theirs"] and not row["removed"]]
    assert done.returncode == (1 if left else 0), done
    return said


def paste(bed: Bed, command: str) -> None:
    """Run a command as it is, in a shell that has testbed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", command], env=bed.environment() | {"PATH": path}, check=True)


def old(path: Path) -> None:
    os.utime(path, (0, 0))


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def up(bed: Bed, name: str) -> list[find.Init]:
    """A lab, brought up with the user's own cache; the first processes of its nodes."""
    quiet = {key: value for key, value in bed.env.items() if key != "TESTBED_CACHE"}
    Bed(bed.state, quiet).must("up", TINY, "-q", "--name", name)
    mine = str(bed.state.resolve())
    return sorted(
        (init for init in find.inits() if (init.lab, init.state) == (name, mine)),
        key=lambda init: init.node,
    )


def _record(bed: Bed, _: Path) -> str:
    for init in up(bed, "dead"):
        init.kill()
        assert init.wait_dead(30)
    return str(bed.state / "dead.json")


def _nodes(bed: Bed, _: Path) -> str:
    nodes = up(bed, "nameless")
    (bed.state / "nameless.json").unlink()
    return ", ".join(f"{init.node} (pid {init.pid})" for init in nodes)


def _nodes_of_another_folder(bed: Bed, place: Path) -> str:
    other = Bed(place / "an other", bed.env)
    name = _nodes(other, place)
    shutil.rmtree(other.state)
    return name


def _cgroup(bed: Bed, _: Path) -> str:
    folder = cgroups.folder_name("gone", bed.state.resolve())
    cgroups.create(folder, "node", cpus=None, memory=None)
    return f"testbed/{folder}"


def _cgroup_of_a_node(bed: Bed, _: Path) -> str:
    up(bed, LIVE)
    folder = cgroups.folder_name(LIVE, bed.state.resolve())
    cgroups.create(folder, "gone", cpus=None, memory=None)
    return f"testbed/{folder}/gone"


def _cgroup_of_nobody(_: Bed, __: Path) -> str:
    folder = "nobodys.0123abcd"
    cgroups.create(folder, "node", cpus=None, memory=None)
    for hierarchy in cgroups.hierarchies():
        for path in cgroups._bottom_up(hierarchy.mount / cgroups.TOP / folder):
            old(path)
    return f"testbed/{folder}"


def _file(name: str) -> Callable[[Bed, Path], str]:
    def make(_: Bed, place: Path) -> str:
        path = place / name.format(pid=dead_pid())
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
        return str(path)

    return make


def _temporary(_: Bed, place: Path) -> str:
    path = place / "tmp" / "testbed-doctor-x"
    path.mkdir()
    (path / "file").write_text("x")
    old(path)
    return str(path)


def _cache(_: Bed, place: Path) -> str:
    path = place / "cache" / ".tmp-cc-0123.1.2"
    path.mkdir()
    return str(path)


#: What is left over: its kind, what makes it (and tells its name), and what is to remove it.
KINDS: dict[str, tuple[str, Callable[[Bed, Path], str], str]] = {
    "a record": ("record", _record, "testbed down dead"),
    "nodes": ("nodes", _nodes, "testbed down nameless"),
    "nodes of another folder": ("nodes", _nodes_of_another_folder, "TESTBED_STATE='/"),
    "a cgroup": ("cgroup", _cgroup, "testbed down gone"),
    "a node's cgroup": ("cgroup", _cgroup_of_a_node, FIX),
    "nobody's cgroup": ("cgroup", _cgroup_of_nobody, "find /sys/fs/cgroup -depth -type d"),
    "a lock": ("file", _file("state/.x.lock"), FIX),
    "half a record": ("file", _file("state/.x.part-1"), FIX),
    "half a run": ("file", _file("state/runs/.last.json.{pid}"), "rm /"),
    "half a fact": ("file", _file("cache/.machine.{pid}"), "rm /"),
    "half an artifact": ("cache", _cache, FIX),
    "a temporary folder": ("folder", _temporary, "rm -r /"),
}


#: One of each way to remove it; that --fix removes all of them is tried below.
SOME = ("nodes of another folder", "a node's cgroup", "nobody's cgroup", "half a run")


@pytest.mark.parametrize("what", KINDS if LONG else SOME)
def test_each_kind_is_told_with_what_removes_it(
    bed: Bed, watch: Watch, place: Path, what: str
) -> None:
    kind, make, command = KINDS[what]
    name = make(bed, place)
    (row,) = [row for row in rows(bed) if row["name"] == name]
    assert (row["kind"], row["theirs"], row["removed"]) == (kind, False, False)
    assert row["command"].startswith(command)
    said = bed.run("doctor", "--leaks")
    assert said.returncode == 1
    assert f"-> {row['command']}\n" in said.stdout
    paste(bed, row["command"])
    after = rows(bed)
    assert name not in {row["name"] for row in after}
    for row in after:
        if row["about"] == "empty":  # what the lab's cgroup was in
            try:
                paste(bed, row["command"])
            except subprocess.CalledProcessError:  # another lab's is in it now
                assert row["name"] not in {one["name"] for one in rows(bed)}
    bed.must("down", "--all")
    watch.check()


def test_fix_removes_all_of_it_and_nothing_that_lives(
    bed: Bed, other: Bed, watch: Watch, place: Path
) -> None:
    theirs = ", ".join(f"{init.node} (pid {init.pid})" for init in up(other, LIVE))
    names = {make(bed, place) for _, make, _ in KINDS.values()}
    said = {row["name"]: row for row in rows(bed)}
    assert names <= {*said}
    assert (said[theirs]["theirs"], said[theirs]["command"]) == (True, "")
    said = {row["name"]: row for row in rows(bed, "--fix")}
    assert {said[name]["removed"] for name in names} == {True}
    assert said[theirs]["theirs"]
    assert names.isdisjoint(row["name"] for row in rows(bed))
    for mine in (bed, other):
        assert mine.labs() == [LIVE]
        assert mine.status(LIVE)["ok"]
        mine.must("down", "--all")
        assert mine.leftovers() == []
    watch.check()


@pytest.mark.parametrize("steps", range(6) if LONG else [4])
def test_what_a_killed_up_leaves_when_its_record_is_gone(
    bed: Bed, watch: Watch, steps: int
) -> None:
    """With its record it is a lab, half-made: ``up`` and ``down`` know what to do with it."""
    slow = bed.slow("up", SMALL)
    for told, _ in enumerate(slow.lines()):
        if told == steps:
            break
    slow.end(signal.SIGKILL)
    (bed.state / "small.json").unlink(missing_ok=True)
    rows(bed, "--fix")
    assert bed.labs() == []
    assert bed.leftovers() == []
    watch.check()


@pytest.mark.parametrize("runs", [True, False])
def test_an_older_version_s_record(bed: Bed, watch: Watch, runs: bool) -> None:
    """Before there were engines, firewalls, faults and providers of nodes."""
    bed.must("up", SMALL, "-q")
    record = bed.state / "small.json"
    data = json.loads(record.read_text())
    for key in ("engine", "firewall"):
        del data["topology"]["docker"][key]
    for part in (data["topology"], *data["topology"]["nodes"].values()):
        part.pop("faults", None)
        part.pop("provider", None)
    record.write_text(json.dumps(data))
    if runs:
        assert str(record) not in {row["name"] for row in rows(bed)}
        assert bed.status("small")["ok"]
        bed.must("up", "small", "-q")
        bed.must("down", "--all")
    else:
        for init in (init for init in find.inits() if init.state == str(bed.state.resolve())):
            init.kill()
            assert init.wait_dead(30)
        assert str(record) in {row["name"] for row in rows(bed)}
        rows(bed, "--fix")
    assert bed.labs() == []
    watch.check()
