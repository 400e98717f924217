"""Each of the examples does what it shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from labs import by_commands, verify_beside

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_tests_of_a_repository_pass_on_its_lab(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "ci", tmp_path, dirs_exist_ok=True)
    tests, page = tmp_path / "tests" / "network", tmp_path / "report.html"
    with by_commands(tmp_path, str(tmp_path / "lab.yaml"), "shop"):
        done = call(tmp_path, "verify", "shop", str(tests), "--html", str(page))
        assert done.status == 0, done.out + done.err
        assert page.stat().st_size
        # On each node once, and each of the others once.
        assert "5 other checks, 0 failed" in done.out


def test_the_script_in_cells_runs_and_leaves_nothing(tmp_path: Path) -> None:
    env = {**os.environ, "TESTBED_STATE": str(tmp_path)}
    script = EXAMPLES / "notebook" / "overlay.py"
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, check=True, text=True
    )
    assert len(done.stdout.splitlines()) == 4
    assert not [path for path in tmp_path.rglob("*.json") if path.parent.name != "runs"]


#: Networks of examples/networks for `make test`; the others run in `make test-all`.
SHORT = ("linuxrouter", "dockerhosts")


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(one, id=one.name, marks=() if one.name in SHORT else pytest.mark.long)
        for one in sorted(EXAMPLES.glob("networks/*/"))
    ],
)
def test_a_network_does_what_its_tests_say(folder: Path, tmp_path: Path) -> None:
    verify_beside(folder, tmp_path)


@pytest.mark.parametrize("lesson", ["1-namespaces", "2-nat", "3-overlay"])
def test_the_claims_of_a_lesson_hold_and_can_fail(lesson: str, tmp_path: Path) -> None:
    topology, lab = EXAMPLES / "course" / lesson / "lab.yaml", lesson.partition("-")[2]
    with by_commands(tmp_path, str(topology), lab):
        done = call(tmp_path, "verify", str(topology))
        assert done.status == 0, done.out + done.err
        assert "3 as expected" in done.out
        proved = call(tmp_path, "verify", str(topology), "--prove")
        assert proved.status == 0, proved.out + proved.err
        assert "3 of 3" in proved.out
