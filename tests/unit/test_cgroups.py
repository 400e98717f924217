"""cgroup hierarchies as machines have them: version 1, version 2, both."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from testbed.errors import LabError
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.cgroups import Freezer, Hierarchy, folder_name, hierarchies

ROOT = Path("/sys/fs/cgroup")

# Debian 12, Fedora, Ubuntu 22.04: version 2 alone (proc_pid_mountinfo(5) for the columns).
V2 = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
24 22 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
29 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""

# systemd's "legacy" or "hybrid" layout, as Debian 10 and Amazon Linux 2 have it.
HYBRID = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
36 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct
37 30 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:17 - cgroup cgroup rw,memory
38 30 0:34 / /sys/fs/cgroup/net_cls,net_prio rw shared:18 - cgroup cgroup rw,net_cls,net_prio
39 30 0:35 / /sys/fs/cgroup/cpuset rw shared:19 - cgroup cgroup rw,cpuset,clone_children
"""

# Version 1 alone, without systemd; optional fields missing, and a mount that is none of it.
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,release_agent=/bin/x
40 31 0:37 / /mnt/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""


def test_version_2() -> None:
    (found,) = hierarchies(V2)
    assert found == Hierarchy(ROOT, 2, ())
    assert found.option == ("mount2", ".")


def test_both() -> None:
    found = {h.mount.name: h for h in hierarchies(HYBRID)}
    assert {n: (h.version, h.controllers) for n, h in found.items()} == {
        "unified": (2, ()),
        "systemd": (1, ("name=systemd",)),
        "cpu,cpuacct": (1, ("cpu", "cpuacct")),
        "memory": (1, ("memory",)),
        "net_cls,net_prio": (1, ("net_cls", "net_prio")),
        "cpuset": (1, ("cpuset",)),
    }
    assert found["unified"].option == ("mount2", "unified")
    assert found["cpu,cpuacct"].option == ("mount1", "cpu,cpuacct=cpu,cpuacct")
    assert found["systemd"].option == ("mount1", "systemd=name=systemd")


def test_version_1() -> None:
    assert hierarchies(V1) == [
        Hierarchy(ROOT / "cpu", 1, ("cpu",)),
        Hierarchy(ROOT / "memory", 1, ("memory",)),
    ]


def test_none() -> None:
    assert hierarchies("") == []
    assert hierarchies(V2.splitlines()[0]) == []


def test_what_is_mounted_over_another_counts() -> None:
    over = V2 + "50 24 0:50 / /sys/fs/cgroup rw - cgroup2 none rw\n"
    assert hierarchies(over) == [Hierarchy(ROOT, 2, ())]


def test_this_machines_own_can_be_read() -> None:
    for hierarchy in hierarchies():
        assert (hierarchy.mount / "cgroup.procs").exists()


def test_a_folder_belongs_to_a_lab_and_a_state_folder() -> None:
    one = folder_name("two-node", Path("/a"))
    assert one == folder_name("two-node", Path("/a"))
    assert one.rpartition(".")[0] == "two-node"
    assert len({one, folder_name("two-node", Path("/b")), folder_name("two", Path("/a"))}) == 3
    assert "/" not in folder_name("lab", Path("/a/b"))


# The files of a hierarchy can be made in any folder: what is written where, without root.


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2, ())])
    top = tmp_path / "testbed" / "lab"
    for folder in (top.parent, top, top / "node1"):
        folder.mkdir()
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (folder / "cgroup.subtree_control").touch()
    for file in ("cpu.max", "memory.max"):
        (top / "node1" / file).touch()
    return tmp_path


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = [Hierarchy(tmp_path / c, 1, (c,)) for c in ("cpu", "memory", "cpuset")]
    monkeypatch.setattr(cgroups, "hierarchies", lambda: found)
    for controller, files in {
        "cpu": ["cpu.cfs_quota_us"],
        "memory": ["memory.limit_in_bytes"],
        "cpuset": ["cpuset.cpus", "cpuset.mems"],
    }.items():
        mount = tmp_path / controller
        for folder in (
            mount,
            mount / "testbed",
            mount / "testbed/lab",
            mount / "testbed/lab/node1",
        ):
            folder.mkdir()
            for file in files:
                (folder / file).write_text("\n")
    (tmp_path / "cpuset/cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset/cpuset.mems").write_text("0\n")
    return tmp_path


def test_limits_of_version_2(v2: Path) -> None:
    options = cgroups.create("lab", "node1", cpus=1.5, memory=1 << 30)
    node = v2 / "testbed/lab/node1"
    assert options[:3] == ["cgroup", str(node), "mount2"]
    # cgroup-v2.rst: "$MAX $PERIOD", in microseconds; memory in bytes.
    assert (node / "cpu.max").read_text() == "150000 100000"
    assert (node / "memory.max").read_text() == "1073741824"
    # The machine's own hands nothing on that it did not before.
    assert not (v2 / "cgroup.subtree_control").exists()
    assert (v2 / "testbed/cgroup.subtree_control").read_text() == "+pids"  # the last one written
    assert (node / "cgroup.subtree_control").read_text() == ""


def test_limits_of_version_1(v1: Path) -> None:
    cgroups.create("lab", "node1", cpus=0.25, memory=1 << 20)
    # sched-bwc.rst: quota per period of 100 ms, in microseconds.
    assert (v1 / "cpu/testbed/lab/node1/cpu.cfs_quota_us").read_text() == "25000"
    assert (v1 / "memory/testbed/lab/node1/memory.limit_in_bytes").read_text() == "1048576"
    for folder in ("testbed", "testbed/lab", "testbed/lab/node1"):
        assert (v1 / "cpuset" / folder / "cpuset.cpus").read_text() == "0-3\n"
        assert (v1 / "cpuset" / folder / "cpuset.mems").read_text() == "0\n"


def test_without_limits_none_is_written(v2: Path) -> None:
    cgroups.create("lab", "node1", cpus=None, memory=None)
    assert (v2 / "testbed/lab/node1/cpu.max").read_text() == ""


def test_the_kernels_smallest_quota(v2: Path) -> None:
    cgroups.create("lab", "node1", cpus=0.001, memory=None)
    assert (v2 / "testbed/lab/node1/cpu.max").read_text() == "1000 100000"


def test_a_limit_that_nothing_sets(v2: Path) -> None:
    (v2 / "testbed/lab/node1/memory.max").unlink()
    with pytest.raises(LabError, match=r"node1: .* memory"):
        cgroups.create("lab", "node1", cpus=1, memory=1 << 30)


def test_folders_are_removed_from_the_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2, ())])
    (tmp_path / "testbed/lab/node1/docker/abc").mkdir(parents=True)
    (tmp_path / "testbed/lab/node2").mkdir()
    (tmp_path / "testbed/other/node1").mkdir(parents=True)
    assert cgroups.labs() == ["lab", "other"]
    cgroups.remove("lab", "node1")
    assert sorted(p.name for p in (tmp_path / "testbed/lab").iterdir()) == ["node2"]
    cgroups.remove("lab")
    assert cgroups.labs() == ["other"]
    cgroups.remove("lab")
    cgroups.remove("other")
    assert list(tmp_path.iterdir()) == []


def test_who_looks_while_another_lab_goes_sees_it_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2, ())])
    looked = threading.Event()

    def come_and_go() -> None:
        while not looked.is_set():
            (tmp_path / "testbed/lab/node1").mkdir(parents=True)
            cgroups.remove("lab")

    other = threading.Thread(target=come_and_go)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that it happens between any two steps of ours
    other.start()
    try:
        seen = {(*cgroups.labs(), *sorted(cgroups.nodes("lab"))) for _ in range(2000)}
    finally:
        looked.set()
        other.join()
        sys.setswitchinterval(interval)
    assert seen <= {(), ("lab",), ("lab", "node1"), ("node1",)}


def test_a_folder_that_does_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2, ())])
    (tmp_path / "testbed/lab/node1").mkdir(parents=True)

    def busy(_: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(
        LabError, match=r"cannot remove the cgroup .*node1: Device or resource busy"
    ):
        cgroups.remove("lab", timeout=0.02)


def test_limits_of_processes_that_nodes_are_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, other = (tmp_path / name for name in ("pids", "unified", "cpu"))
    for folder, most, used in (
        (one / "testbed", "512", "17"),
        (two, "max", "400"),  # without a limit
        (two / "testbed", "1000", "40"),
        (other, "5", "5"),  # not of that controller
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pids.max").write_text(f"{most}\n")
        (folder / "pids.current").write_text(f"{used}\n")
    monkeypatch.setattr(
        cgroups,
        "hierarchies",
        lambda: [
            cgroups.Hierarchy(one, 1, ("pids",)),  # the top one has no limit
            cgroups.Hierarchy(two, 2, ()),
            cgroups.Hierarchy(other, 1, ("cpu",)),
        ],
    )
    assert cgroups.task_limits() == [
        (one / "testbed/pids.max", 512, 17),
        (two / "testbed/pids.max", 1000, 40),
    ]


def test_a_controller_that_is_in_use_is_done_without(
    v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = _refuse(monkeypatch, "cgroup.subtree_control", "+memory", errno.EBUSY)
    cgroups.create("lab", "node1", cpus=None, memory=None)
    assert len(refused) == 2  # of the top folder and of the lab
    assert (v2 / "testbed/lab/cgroup.subtree_control").read_text() == "+pids"


def test_any_other_failure_is_told(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(monkeypatch, "cgroup.subtree_control", "+memory", errno.EACCES)
    with pytest.raises(PermissionError):
        cgroups.create("lab", "node1", cpus=None, memory=None)


def _refuse(patch: pytest.MonkeyPatch, file: str, text: str, code: int) -> list[Path]:
    """Let a file refuse a text; returns those that were asked."""
    asked: list[Path] = []
    write = Path.write_text

    def refuse(path: Path, data: str) -> int:
        if path.name == file and data == text:
            asked.append(path)
            raise OSError(code, os.strerror(code))
        return write(path, data)

    patch.setattr(Path, "write_text", refuse)
    return asked


def test_sets_that_are_there_stay(v1: Path) -> None:
    (v1 / "cpuset/testbed/cpuset.cpus").write_text("2\n")
    cgroups.create("lab", "node1", cpus=None, memory=None)
    assert (v1 / "cpuset/testbed/cpuset.cpus").read_text() == "2\n"
    assert (v1 / "cpuset/testbed/lab/node1/cpuset.cpus").read_text() == "2\n"


# cgroup-v2.rst: what is asked stands in cgroup.freeze, what has come of it in cgroup.events;
# cgroup-v1/freezer-subsystem.rst: THAWED, FREEZING, FROZEN.
FREEZERS = [
    (2, "cgroup.freeze", ("0", "1")),
    (1, "freezer.state", ("THAWED", "FROZEN")),
]


@pytest.fixture(params=FREEZERS, ids=["v2", "v1"])
def freezing(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Freezer, Path, list[str]]:
    """A freezer, the file of node1 that is written, and its words for off and on."""
    version, file, words = request.param
    for node in ("node1", "node2"):
        folder = tmp_path / "testbed/lab" / node
        folder.mkdir(parents=True)
        (folder / file).write_text(f"{words[0]}\n")
        (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    controllers = () if version == 2 else ("freezer",)
    freezer = Freezer(Hierarchy(tmp_path, version, controllers))
    return freezer, tmp_path / "testbed/lab/node1" / file, list(words)


def test_a_node_is_stopped_and_goes_on(freezing: tuple[Freezer, Path, list[str]]) -> None:
    freezer, file, (off, on) = freezing
    events = file.parent / "cgroup.events"
    assert not freezer.is_set("lab", "node1")
    events.write_text("populated 1\nfrozen 1\n")
    freezer.set("lab", "node1", on=True)
    assert file.read_text() == on
    assert freezer.is_set("lab", "node1")
    assert freezer.stopped("lab") == ["node1"]
    assert freezer.stopped("other") == []
    events.write_text("populated 1\nfrozen 0\n")
    freezer.set("lab", "node1", on=False)
    assert file.read_text() == off
    assert not freezer.is_set("lab", "node1")


def test_a_node_that_does_not_stop(tmp_path: Path) -> None:
    folder = tmp_path / "testbed/lab/node1"
    folder.mkdir(parents=True)
    (folder / "cgroup.events").write_text("frozen 0\n")
    freezer = Freezer(Hierarchy(tmp_path, 2, ()))
    with pytest.raises(LabError, match="stopped after 0 s") as caught:
        freezer.set("lab", "node1", on=True, timeout=0)
    assert caught.value.hint
    (folder / "cgroup.events").write_text("frozen 1\n")
    with pytest.raises(LabError, match="continued"):
        freezer.set("lab", "node1", on=False, timeout=0)


def test_a_node_without_a_cgroup(freezing: tuple[Freezer, Path, list[str]]) -> None:
    freezer, _, _ = freezing
    with pytest.raises(LabError, match="node9") as caught:
        freezer.set("lab", "node9", on=True)
    assert caught.value.hint
    assert not freezer.is_set("lab", "node9")


def test_one_that_is_being_stopped_counts_as_stopped(tmp_path: Path) -> None:
    (tmp_path / "testbed/lab/node1").mkdir(parents=True)
    (tmp_path / "testbed/lab/node1/freezer.state").write_text("FREEZING\n")
    assert Freezer(Hierarchy(tmp_path, 1, ("freezer",))).is_set("lab", "node1")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ([], None),
        ([Hierarchy(ROOT / "cpu", 1, ("cpu",))], None),
        ([Hierarchy(ROOT / "a", 1, ("cpu",)), Hierarchy(ROOT / "b", 1, ("freezer",))], 1),
        ([Hierarchy(ROOT / "b", 1, ("freezer",)), Hierarchy(ROOT / "u", 2, ())], 0),
        ([Hierarchy(ROOT, 2, ())], 0),
    ],
)
def test_what_stops_nodes_here(
    monkeypatch: pytest.MonkeyPatch, there: list[Hierarchy], wanted: int | None
) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: there)
    found = cgroups.freezer.__wrapped__()
    best = sorted(there, key=lambda one: -one.version)
    assert found == (None if wanted is None else Freezer(best[wanted]))


def test_a_lab_is_busy_while_a_process_is_in_any_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for mount in (one, two):
        for folder in ("lab", "lab/node1", "lab/node1/docker", "other"):
            (mount / "testbed" / folder).mkdir(parents=True, exist_ok=True)
            (mount / "testbed" / folder / "cgroup.procs").write_text("\n")
    there = [Hierarchy(one, 1, ("cpu",)), Hierarchy(two, 1, ("memory",))]
    monkeypatch.setattr(cgroups, "hierarchies", lambda: there)
    assert not cgroups.busy("lab")
    (two / "testbed/lab/node1/docker/cgroup.procs").write_text("4711\n")
    assert cgroups.busy("lab")
    assert not cgroups.busy("other")
    assert not cgroups.busy("unknown")
    assert cgroups.nodes("lab") == {"node1"}


def test_the_age_of_a_lab_is_that_of_its_newest_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(tmp_path, 2, ())])
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    for folder, made in (("lab/node1", 900.0), ("lab/node2", 930.0), ("lab", 910.0)):
        path = tmp_path / "testbed" / folder
        path.mkdir(parents=True, exist_ok=True)
        os.utime(path, (made, made))
    os.utime(tmp_path / "testbed/lab", (910.0, 910.0))
    assert cgroups.age("lab") == 70.0
    assert cgroups.age("unknown") == 1000.0  # as long ago as can be
