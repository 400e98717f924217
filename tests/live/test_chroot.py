"""testbed run in a chroot: its nodes end at that root, and nothing leads out of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTBED = f"{sys.executable} -m testbed"
# The machine's own files again, at another place: a chroot, but with all programs there.
IN_A_CHROOT = """
set -e
mount --make-rprivate /
mount --rbind / "$1"
exec chroot "$1" sh -c "$2"
"""


def test_a_node_of_a_chroot_cannot_be_left_by_entering_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    mark = f"/run/testbed-chroot-{os.getpid()}"
    script = f"""
    set -e
    trap '{TESTBED} down netns-experiments -q' EXIT
    {TESTBED} up netns-experiments -q
    {TESTBED} exec host -- nsenter --target=1 --mount sh -c 'echo kept > {mark}'
    {TESTBED} exec host -- cat {mark}
    ! {TESTBED} exec host -- nsenter --target=1 --mount touch /testbed-chroot
    """
    argv = ["unshare", "--mount", "sh", "-c", IN_A_CHROOT, "sh", str(root), script]
    env = {**os.environ, "TESTBED_STATE": str(tmp_path / "state")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    if "mount:" in done.stderr and "--rbind" in done.stderr:
        pytest.skip(f"no chroot can be made here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "kept\n"
    assert "Read-only file system" in done.stderr
    assert not Path(mark).exists()
    assert not Path("/testbed-chroot").exists()
