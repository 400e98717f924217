"""Labs that are larger than the limits of the shell that they are started from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTBED = [sys.executable, "-m", "testbed"]
NODES = 200
CROWD = 1200  # commands at once on one node

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Runs a command where a process may have so many open files; what is up at the end goes."""
    state = tmp_path_factory.mktemp("limits") / "state"

    def run(files: int, *argv: str) -> subprocess.CompletedProcess[str]:
        # Set both limits: the hard one is not for testbed to raise.
        limited = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *argv]
        return subprocess.run(
            limited,
            env={**os.environ, "TESTBED_STATE": str(state)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    yield run
    gone = run(1024, *TESTBED, "down", "--all")
    assert gone.returncode == 0, gone.stderr


@pytest.fixture(scope="module")
def large(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lab of plain nodes, made from a shell with a login's usual limit."""
    file = tmp_path_factory.mktemp("large") / "large.yaml"
    nodes = {f"n{i}": {"networks": {"lan": f"10.7.0.{i + 1}"}} for i in range(NODES)}
    networks = {"lan": {"subnet": "10.7.0.0/16"}}
    file.write_text(json.dumps({"name": "large", "networks": networks, "nodes": nodes}))
    made = shell(1024, *TESTBED, "up", str(file), "-q")
    assert made.returncode == 0, made.stderr
    return "large"


@pytest.mark.seconds(10)
def test_commands_with_far_fewer_open_files_than_nodes(
    shell: Shell, large: str, tmp_path: Path
) -> None:
    status = shell(64, *TESTBED, "status", large, "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert found["ok"]
    assert len(found["nodes"]) == NODES
    listed = json.loads(shell(64, *TESTBED, "ls", "--json").stdout)
    assert [lab["lab"] for lab in listed] == [large]
    assert shell(64, *TESTBED, "exec", "n7", "--", "hostname").stdout == "n7\n"
    own = tmp_path / "test_own.py"
    own.write_text(
        "def test_it(lab):\n    assert lab.nodes['n3'].run(['hostname']).stdout == 'n3\\n'\n"
    )
    verified = shell(128, *TESTBED, "verify", large, str(own))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    refused = shell(64, *TESTBED, "verify", large, str(own))
    assert refused.returncode == 3
    assert "ulimit -n 128" in refused.stderr
    assert refused.stdout == ""


def test_few_open_files_make_a_second_up_slower_and_no_more(shell: Shell, large: str) -> None:
    source = json.loads(shell(64, *TESTBED, "ls", "--json").stdout)[0]["source"]
    again = shell(64, *TESTBED, "up", source, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["changed"] == []
    assert large in source


def test_a_command_has_the_limits_of_a_login(shell: Shell, large: str) -> None:
    """Whatever the shell had that the lab was started from, and this one."""
    for files in (64, 4096):
        words = ("exec", "-l", large, "n1", "--", "sh", "-c", "ulimit -Sn; ulimit -Hn")
        assert shell(files, *TESTBED, *words).stdout.split() == ["1024", "1024"]


def test_more_commands_at_once_than_pid_1_can_serve(shell: Shell, large: str) -> None:
    """It may have 1024 open files: those that come then wait until others have ended."""
    code = f"""
import threading, time
from testbed.cli.common import lab_meant, make_settings
node = lab_meant(make_settings(), {large!r}).node("n5")
running = []
def crowd():
    for _ in range({CROWD}):
        running.append(node.spawn(["sleep", "600"]))
thread = threading.Thread(target=crowd, daemon=True)
thread.start()
while len(running) < 900 and thread.is_alive():
    time.sleep(0.01)
for one in running[:600]:
    one.kill()
thread.join()
print(len(running), node.run(["echo", "served"]).stdout)
"""
    done = shell(4096, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(CROWD), "served"], done.stderr
