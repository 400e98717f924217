"""The examples, as far as no lab is needed: tests/live runs them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from testbed.claims.catalogue import combine
from testbed.claims.load import load as read
from testbed.pytest_checks import features
from testbed.topology import load

pytestmark = pytest.mark.source

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LABS = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "claims")


def name(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


@pytest.mark.parametrize("path", LABS, ids=name)
def test_topologies_are_accepted(path: Path) -> None:
    assert load(path).nodes


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=name)
def test_scripts_and_tests_are_python_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_list_has_each_example() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert set(re.findall(r"^\| \[([\w-]+)\]", page, re.MULTILINE)) == folders


LESSONS = sorted(path.parent for path in (EXAMPLES / "course").glob("*/claims"))


@pytest.mark.parametrize("lesson", LESSONS, ids=name)
def test_each_claim_of_a_lesson_can_be_decided_on_its_lab(lesson: Path) -> None:
    catalogue, topology = read(lesson / "claims"), load(lesson / "lab.yaml")
    assert catalogue.claims
    for claim in catalogue.claims.values():
        assert set(claim.needs) <= features(topology), claim.id
        assert catalogue.checked_by(claim.id), claim.id
    broken = {claim for sabotage in catalogue.sabotages for claim in sabotage.claims}
    assert broken == set(catalogue.claims)


def test_no_claim_is_in_two_lessons() -> None:
    assert len(LESSONS) == 3
    assert len(combine([read(lesson / "claims") for lesson in LESSONS]).claims) == 9


def test_both_jobs_run_the_same_commands_on_the_lab() -> None:
    folder = EXAMPLES / "ci"
    github = yaml.safe_load((folder / ".github/workflows/network.yml").read_text("utf-8"))
    gitlab = yaml.safe_load((folder / ".gitlab-ci.yml").read_text(encoding="utf-8"))["network"]
    steps = [step.get("run", "") for step in github["jobs"]["lab"]["steps"]]
    scripts = [*gitlab["before_script"], *gitlab["script"], *gitlab["after_script"]]
    wanted = ["doctor --fix --quick", "up ./lab.yaml --timeout 300", "verify shop", "down --all"]
    for words in wanted:
        (first,) = [step for step in steps if f"testbed {words}" in step]
        (second,) = [line for line in scripts if f"testbed {words}" in line]
        assert first == second.removeprefix("/opt/testbed/bin/")
    assert github["jobs"]["lab"]["container"]["image"] == gitlab["image"]
