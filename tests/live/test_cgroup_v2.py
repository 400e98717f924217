"""A lab on a machine that has cgroup version 2 alone, or is made to look so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.nodes.netns.cgroups import folder_name

TESTBED = f"{sys.executable} -m testbed"
# In a mount namespace of its own: the machine's cgroup mounts stay as they are.
VERSION_2_ALONE = """
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -n -t cgroup2 none /sys/fs/cgroup
"""


def on_version_2(script: str, state: Path) -> subprocess.CompletedProcess[str]:
    argv = ["unshare", "--mount", "sh", "-c", VERSION_2_ALONE + script]
    env = {**os.environ, "TESTBED_STATE": str(state)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=180, check=False)


def test_docker_runs_its_containers_below_the_node(tmp_path: Path) -> None:
    if on_version_2("true", tmp_path).returncode != 0:
        pytest.skip("cgroup version 2 cannot be mounted here on its own")
    done = on_version_2(
        f"""
        trap '{TESTBED} down two-node -q' EXIT
        {TESTBED} up two-node -q
        {TESTBED} exec node1 -- cat /proc/self/cgroup | grep '^0::'
        {TESTBED} exec node1 -- cat /proc/1/cgroup | grep '^0::'
        {TESTBED} exec node1 -- ls /sys/fs/cgroup/docker
        {TESTBED} status --json
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["0::/init"] * 2, "processes are in a leaf of the node's own tree"
    assert any(len(line) == 64 for line in lines), "a container's cgroup, by its id"
    assert json.loads(done.stdout[done.stdout.index("{") :])["ok"] is True
    lab = folder_name("two-node", tmp_path.resolve())  # others may have labs of their own
    left = on_version_2(f"find /sys/fs/cgroup -path '*/testbed/{lab}' -type d", tmp_path)
    assert left.stdout == ""
