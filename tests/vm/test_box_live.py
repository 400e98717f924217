"""The box itself: what its manifest says is so, and a build that is killed leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import machine_state
from testbed.artifacts import Store
from testbed.process import run
from testbed.testing.provider import until
from testbed.vm import box


@pytest.fixture(scope="module")
def made() -> box.Built:
    """The labs' box; made here if need be, which takes minutes."""
    return box.box(Store())


def test_the_files_are_those_of_the_manifest(made: box.Built) -> None:
    for name, said in made.manifest()["files"].items():
        path = made.folder / name
        assert path.stat().st_size == said["size"]
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == said["sha256"]


def test_it_has_what_roles_and_checks_use(made: box.Built) -> None:
    manifest = made.manifest()
    names = {Path(place).name for place in manifest["programs"].values()}
    assert {
        "dockerd", "containerd", "runc", "etcd", "etcdctl", "flanneld", "ip", "bridge", "sshd",
        "tcpdump", "iperf3", "strace", "conntrack", "curl", "nft",
    } <= names  # fmt: skip
    assert set(box.PACKAGES) <= set(manifest["packages"])
    assert "nginx" in manifest["images"]


def test_programs_of_the_store_are_in_it_byte_for_byte(made: box.Built) -> None:
    there = made.manifest()["programs"]
    assert there[box.digest(Store().binary("flanneld"))] == "/usr/local/bin/flanneld"


def test_the_disk_is_whole(made: box.Built) -> None:
    answer = run(["qemu-img", "info", "--output=json", made.disk])
    about = json.loads(answer.stdout)
    assert about["format"] == "qcow2"
    assert about["virtual-size"] == made.manifest()["disk"] == box.SIZE << 20
    assert "backing-filename" not in about
    run(["qemu-img", "check", "-q", made.disk])


def test_a_second_build_takes_no_time(made: box.Built) -> None:
    begin = time.monotonic()
    answer = run([sys.executable, "-m", "testbed", "box", "build"], timeout=60)
    assert str(made.folder) in answer.stdout
    assert time.monotonic() - begin < 60  # it is half a second where nothing else runs


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_no_process_and_no_mount(
    tmp_path: Path, sent: signal.Signals
) -> None:
    before = machine_state.snapshot(tmp_path)
    env = {**os.environ, "TESTBED_CACHE": str(tmp_path)}
    argv = [sys.executable, "-m", "testbed", "box", "build"]
    with subprocess.Popen(argv, env=env) as child:  # with an empty cache, so it compiles first
        assert until(lambda: _unpacking(tmp_path) or child.poll() is not None, 1800)
        assert child.poll() is None, "the build ended by itself"
        child.send_signal(sent)
        child.wait(timeout=120)
    assert until(lambda: not _working_in(tmp_path), 60), _working_in(tmp_path)
    assert machine_state.left(before, seconds=60, below=tmp_path) == []
    # Asked to end it cleans up; killed it cannot, and the next build does.
    halves = list(tmp_path.glob(".tmp-box-*"))
    assert bool(halves) == (sent == signal.SIGKILL)


def _unpacking(folder: Path) -> bool:
    """Tell whether packages are being installed into a box's tree."""
    return any(folder.glob(".tmp-box-*/*/var/lib/dpkg/info/*.list"))


def _working_in(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and entry.name != str(os.getpid()):
            found.append(f"{entry.name} {words[:80]!r}")
    return found
