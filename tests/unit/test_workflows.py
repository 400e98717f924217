"""The workflows: what they run exists, what they use is pinned, and no job has rights to spare."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.source

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
#: A commit of an action, and the version that it is; dependabot keeps both.
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$")
WRITING = {
    ("docs.yml", "publish"): {"pages", "id-token"},
    ("release.yml", "build"): {"attestations", "id-token"},
    ("release.yml", "publish"): {"id-token"},
}


def read(path: Path) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true.
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def shell(path: Path) -> list[str]:
    """The shell parts of a workflow."""
    jobs = read(path)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def made(script: str) -> set[str]:
    """The make targets that a script runs."""
    calls = re.findall(r"^\s*make ([^&|;\n]*)", script, re.MULTILINE)
    return {word for call in calls for word in call.split() if re.fullmatch(r"[a-z][\w-]*", word)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_target_that_a_workflow_makes_exists(path: Path) -> None:
    targets = {target for script in shell(path) for target in made(script)}
    assert targets
    assert targets <= TARGETS


def test_each_target_that_the_ci_script_makes_exists() -> None:
    targets = made((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"setup", "test"} <= targets <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    uses = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert [line for line in uses if not PINNED.search(line)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_ends_and_writes_only_what_it_must(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90
        rights = job.get("permissions", {})
        writing = {right for right, level in rights.items() if level == "write"}
        assert writing == WRITING.get((path.name, name), set())


def test_the_matrix_begins_with_the_oldest_python_that_is_supported() -> None:
    versions = read(ROOT / ".github/workflows/python.yml")["jobs"]["unit"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={versions['python'][0]}"
    assert versions["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_caches_hold_the_folder_that_labs_fill() -> None:
    """A job in a container is root's, whose home folder is not the HOME of the actions."""
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            caches = [step for step in job["steps"] if "/cache@" in step.get("uses", "")]
            assert {step["with"]["path"] for step in caches} <= {"/root/.cache/testbed"}


def test_a_release_that_is_tried_is_the_one_that_is_published() -> None:
    jobs = read(ROOT / ".github/workflows/release.yml")["jobs"]
    assert jobs["try"]["needs"] == "build"
    assert jobs["publish"]["needs"] == "try"
    assert "ref_type == 'tag'" in jobs["publish"]["if"]
