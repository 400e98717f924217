"""Surroundings of testbed: full disks, limits, variables of the environment."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from crash.means import LONG, Bed, Watch, lab, no_traceback, with_cpus, with_processes
from testbed.labs.state import State

SMALL = str(Path(__file__).with_name("small.yaml"))
HOSTILE = {
    "DOCKER_HOST": "tcp://192.0.2.1:2375",
    "DOCKER_CONTEXT": "elsewhere",
    "DOCKER_TLS_VERIFY": "1",
    "DOCKER_CERT_PATH": "/nowhere",
    "DOCKER_API_VERSION": "1.10",
    "DOCKER_CONFIG": "/nowhere",
    "ETCDCTL_API": "2",
    "ETCDCTL_ENDPOINTS": "http://192.0.2.1:2379",
    "ETCDCTL_USER": "root:x",
    "ETCD_NAME": "other",
    "ETCD_DATA_DIR": "/nowhere",
    "FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.1:2379",
    "FLANNELD_IFACE": "lo",
    "VAGRANT_CWD": "/nowhere",
    "VAGRANT_DEFAULT_PROVIDER": "virtualbox",
    "VAGRANT_HOME": "/nowhere",
    "http_proxy": "http://192.0.2.1:3128",
    "https_proxy": "http://192.0.2.1:3128",
    "HTTP_PROXY": "http://192.0.2.1:3128",
    "HTTPS_PROXY": "http://192.0.2.1:3128",
    "ALL_PROXY": "socks5://192.0.2.1:1080",
    "NOTIFY_SOCKET": "/nowhere/notify",
    "CONTAINERD_ADDRESS": "/nowhere",
    "LANG": "xx_YY",
    "LC_ALL": "xx_YY",
    "IFS": "/",
    "BASH_ENV": "/nowhere",
    "ENV": "/nowhere",
    "PYTEST_ADDOPTS": "--no-such-option",
    "TMPDIR": "/nowhere",
}


def test_variables_from_elsewhere(bed: Bed, watch: Watch) -> None:
    bed.env = dict(HOSTILE)
    bed.must("up", "two-node", "-q")
    assert bed.status("two-node")["ok"]
    bed.must("verify", "two-node", "-q", "--claim", "flannel-subnet-mapping-in-etcd")
    bed.must("down", "two-node")
    watch.check()


def refused(bed: Bed, *argv: str) -> str:
    """Return the output of a command that must fail with 3 and leave nothing."""
    done = bed.run(*argv)
    bed.under = ()
    no_traceback(done.stderr)
    assert done.returncode == 3, done.stderr
    return done.stderr


#: Arguments: a place to mount on, the mount's options, what is run.  In a mount namespace of its
#: own: nobody else sees the small disk.
ON_A_SMALL_DISK = """
mount -n -t tmpfs -o "$2" testbed "$1" || exit 99
place=$1; shift 2
eval "$1"; shift
exec "$@"
"""


def on_a_small_disk(bed: Bed, place: Path, options: str, before: str, *argv: str) -> str:
    """Return the output of a command that must fail without free space and leave nothing."""
    place.mkdir(exist_ok=True)
    words = (ON_A_SMALL_DISK, "sh", str(place), options, before)
    bed.under = ("unshare", "--mount", "sh", "-c", *words)
    said = refused(bed, *argv)
    assert "->" in said, "it says what to do"
    return said


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ("size=64k", 'head -c 65536 /dev/zero > "$place/full" 2> /dev/null'),
        ("size=1m,nr_inodes=2", 'touch "$place/a"'),
        ("ro", ":"),
    ],
    ids=["full", "no inodes", "read-only"],
)
def test_a_state_folder_without_room(
    tmp_path: Path, watch: Watch, options: str, before: str
) -> None:
    place = tmp_path / "disk"
    bed = Bed(place)
    said = on_a_small_disk(bed, place, options, before, "up", SMALL)
    assert str(place) in said
    assert bed.labs() == []
    watch.check()


@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_a_cache_without_room(bed: Bed, tmp_path: Path, watch: Watch, options: str) -> None:
    place = tmp_path / "cache"
    bed.env["TESTBED_CACHE"] = str(place)
    said = on_a_small_disk(bed, place, options, ":", "up", SMALL, "-q")
    assert "TESTBED_CACHE" in said or "room" in said
    assert bed.labs() == []
    watch.check()


@pytest.mark.parametrize("files", [24, 40])
def test_few_file_descriptors(bed: Bed, watch: Watch, files: int) -> None:
    """Its daemons would have as few, and take no connection: it is refused before it begins."""
    bed.under = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    assert "ulimit -n" in refused(bed, "up", SMALL)
    assert bed.labs() == []
    watch.check()


@pytest.mark.parametrize("processes", range(1, 21) if LONG else [1])
def test_few_processes(bed: Bed, watch: Watch, processes: int) -> None:
    """With fewer threads it takes longer; without any it says so.  ``down`` needs none."""
    with with_processes(processes) as words:
        bed.under = words
        done = bed.run("up", SMALL, "-q")
        no_traceback(done.stderr)
        assert done.returncode in (0, 3), done.stderr
        assert done.returncode == 0 or "pids.max" in done.stderr
        assert done.returncode == 3 or processes > 1
        bed.under = ()
        assert bed.labs() == ["small"] * (done.returncode == 0)
        bed.must("up", SMALL, "-q")
        bed.under = words
        status = bed.run("status", "small")
        no_traceback(status.stderr)
        assert status.returncode == 0 or "pids.max" in status.stderr
        bed.must("down", "small")
    watch.check()


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.2, 0.05] if LONG else [0.4])
def test_a_very_slow_machine(bed: Bed, watch: Watch, tmp_path: Path, share: float) -> None:
    """So much of a CPU for testbed, and as much for the node that has the daemons."""
    file = tmp_path / "small.yaml"
    text = Path(SMALL).read_text()
    file.write_text(text.replace("roles: [docker]", f"roles: [docker], cpus: {share}"))
    with with_cpus(share) as bed.under:
        bed.must("up", str(file), "-q")
        assert bed.status("small")["ok"]
        bed.must("verify", "small", "-q", "--claim", "bridge-docker0-first-address")
        bed.must("down", "small")
    watch.check()


def test_a_full_data_root(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    """An image that finds no room: told as such; the lab is as before, and done once there is."""
    small, file = Path(SMALL).read_text(), tmp_path / "small.yaml"
    file.write_text(small.partition("containers:")[0])
    bed.must("up", str(file), "-q")
    node = lab(bed, "small").node("one")
    node.run(["mount", "-o", "remount,size=16m", "/var/lib"])
    assert not node.run(["dd", "if=/dev/zero", "of=/var/lib/full", "bs=64k"], check=False).ok
    file.write_text(small)
    done = bed.run("up", str(file), "-q")
    no_traceback(done.stderr)
    assert done.returncode == 4, done
    assert "no space left on device" in done.stderr
    assert {node["name"]: node["state"] for node in bed.status("small")["nodes"]} == {
        "one": "up",
        "two": "up",
    }
    node.run(["rm", "/var/lib/full"])
    node.run(["mount", "-o", "remount,size=1g", "/var/lib"])
    bed.must("up", str(file), "-q")
    assert bed.status("small")["ok"]
    bed.must("down", "small")
    watch.check()


#: Read by Python before all else: a clock that is set while testbed looks at it.
JUMPING = """
import itertools, time
real, jumps = time.time, itertools.cycle((0, 1e8, -1e8, 3600, -3600))
time.time = lambda: real() + next(jumps)
"""


@pytest.mark.thorough
def test_a_clock_that_jumps(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    bed.env["PYTHONPATH"] = str(tmp_path)
    began = time.monotonic()
    up = json.loads(bed.must("up", "two-node", "--json").stdout)
    assert 0 < up["seconds"] < time.monotonic() - began
    assert bed.status("two-node")["ok"]
    (row,) = json.loads(bed.must("ls", "--json").stdout)
    assert row["lab"] == "two-node"
    bed.must("verify", "two-node", "-q", "--claim", "flannel-subnet-mapping-in-etcd")
    bed.must("up", "two-node", "-q")
    bed.must("down", "two-node")
    watch.check()


@pytest.mark.parametrize("cut", [0, 1, 40, 400, -1] if LONG else [0, -1])
def test_a_record_that_is_cut(bed: Bed, watch: Watch, cut: int) -> None:
    bed.must("up", "netns-experiments", "-q")
    record = bed.state / "netns-experiments.json"
    record.write_bytes(record.read_bytes()[:cut])
    assert bed.labs() == ["netns-experiments"]
    done = bed.run("status", "netns-experiments")
    no_traceback(done.stderr)
    bed.must("up", "netns-experiments", "-q")
    assert bed.status("netns-experiments")["ok"]
    bed.must("down", "--all")
    watch.check()


def test_a_record_of_another_version(bed: Bed, watch: Watch) -> None:
    bed.must("up", "netns-experiments", "-q")
    record = bed.state / "netns-experiments.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps({**data, "version": 999, "more": {"of": "it"}}))
    no_traceback(bed.run("status", "netns-experiments").stderr)
    bed.must("down", "netns-experiments")
    assert bed.labs() == []
    watch.check()


def test_links_in_the_state_folder(bed: Bed, watch: Watch, tmp_path: Path) -> None:
    """The target of a link is neither written nor removed."""
    real = tmp_path / "real"
    real.mkdir()
    bed.state.symlink_to(real)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (real / "netns-experiments.json").symlink_to(precious)
    bed.must("up", "netns-experiments", "-q")
    bed.must("down", "--all")
    assert State(bed.state).labs() == []
    assert precious.read_text() == "precious"
    watch.check()


def test_a_folder_with_a_space_and_a_line_break(watch: Watch, tmp_path: Path) -> None:
    place = tmp_path / "a folder\nwith 'quotes' and $(words)"
    place.mkdir()
    bed = Bed(place / "state")
    file = place / "my lab.yaml"
    file.write_text(Path(SMALL).read_text())
    bed.must("up", str(file), "-q")
    assert bed.status("small")["ok"]
    bed.must("down", str(file))
    assert bed.leftovers() == []
    watch.check()


@pytest.mark.parametrize("name", ["../x", "-rf", "a b", "a\nb", "", "x" * 300, "$(touch /x)", "ü"])
def test_a_hostile_name_is_refused_or_is_just_a_name(bed: Bed, watch: Watch, name: str) -> None:
    before = set(os.listdir("/"))  # noqa: PTH208
    for argv in (("up", "netns-experiments", "--name", name), ("down", "--", name)):
        done = bed.run(*argv)
        no_traceback(done.stderr)
        assert done.returncode in (0, 2, 3, 4), done
    assert bed.labs() == []
    assert set(os.listdir("/")) == before  # noqa: PTH208
    watch.check()
