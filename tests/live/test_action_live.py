"""The action of this repository: its own steps, run as GitHub's runner runs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import call
from distribution import build, share
from jobs import ACTION, Runner

from testbed import owner

TOPOLOGY = """
name: pair
networks: {lan: {subnet: 10.1.0.0/24}}
nodes: {left: {networks: {lan: 10.1.0.1}}, right: {networks: {lan: 10.1.0.2}}}
"""
TESTS = """
def test_reached(lab):
    assert lab.node("left").run(["ping", "-c1", "-W5", "10.1.0.2"], check=False).status == {lost}
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: The action writes to fixed places. Here they are folders of the job, for its own processes.
AROUND = """
mount --make-rprivate /
mount -n --bind "$JOB/opt" /opt
mount -n --bind "$JOB/var" /var/cache
mkdir -p /var/cache/testbed
mount -n --bind "$KEPT" /var/cache/testbed
exec "$@"
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """A runner with empty folders, whose pip finds what is required in this environment."""
    wheel = build("wheel", tmp_path / "dist")
    for folder in ("packages", "opt", "var"):
        (tmp_path / folder).mkdir()
    share(tmp_path / "packages")
    lab = f"action-{os.getpid()}"
    found = Runner(
        tmp_path / "job",
        {"topology": "lab.yaml", "tests": "tests", "name": lab, "package": str(wheel)},
        around=("unshare", "--mount", "bash", "-ec", AROUND, "bash"),
        env={
            "PATH": f"{sys.base_prefix}/bin:{PATH}",
            "JOB": str(tmp_path),
            "KEPT": str(owner.cache()),
            "TESTBED_STATE": str(tmp_path / "state"),
            "PYTHONPATH": str(tmp_path / "packages"),
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
        },
    )
    (found.workspace / "lab.yaml").write_text(TOPOLOGY)
    (found.workspace / "tests").mkdir()
    yield found
    call(tmp_path, "down", lab, env=state(found))


def state(runner: Runner) -> dict[str, str]:
    """The folder of the job's labs."""
    return {"TESTBED_STATE": runner.env["TESTBED_STATE"]}


@pytest.mark.thorough
@pytest.mark.seconds(12)
@pytest.mark.parametrize(
    ("lost", "failed", "sign"),
    [
        pytest.param(0, "", "✅", id="good"),
        pytest.param(1, "verify", "❌", id="bad", marks=pytest.mark.long),
    ],
)
def test_a_job_shows_its_results_and_leaves_no_lab(
    runner: Runner, tmp_path: Path, lost: int, failed: str, sign: str
) -> None:
    (runner.workspace / "tests" / "test_ping.py").write_text(TESTS.format(lost=lost))
    runner.run(ACTION)
    assert runner.failed == failed, runner.log
    summary = runner.summary.read_text(encoding="utf-8")
    assert summary.startswith(f"### {sign} testbed: 1 check on `{runner.inputs['name']}`")
    (cache, kept), (_, given), (_, upload) = runner.used[0], *runner.used
    assert "/cache@" in cache
    assert given["path"] == "/var/cache/testbed"
    assert kept["restore-keys"].startswith("testbed-")
    assert len(kept["key"].removeprefix(kept["restore-keys"])) == 12
    results = Path(upload["path"])
    assert {path.name for path in results.iterdir()} == {
        "results.xml", "results.json", "report.html",
    }  # fmt: skip
    (lab,) = json.loads((results / "results.json").read_text(encoding="utf-8"))["labs"]
    assert [check["outcome"] for check in lab["checks"]] == ["failed" if failed else "passed"]
    assert f"{runner.inputs['name']} is up" in runner.log
    assert f"{runner.inputs['name']}: removed" in runner.log
    assert json.loads(call(tmp_path, "ls", "--json", env=state(runner)).out) == []
    assert runner.outputs["setup"]["lab"] == runner.inputs["name"]
