"""The bug reports of examples/bugs, as far as no lab is needed: tests/live runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bugs import BUGS

from testbed.labs import plan
from testbed.suites.beside import find_tests
from testbed.topology import load

pytestmark = [
    pytest.mark.source,
    pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name),
]
#: The title, and the report that the first line of text links to.
HEAD = re.compile(r"# .+\n\n\[[^\]]+\]\(https://(\S+)\)")


def test_its_lab_has_a_plan_and_its_name(bug: Path) -> None:
    topology = load(bug / "lab.yaml")
    assert topology.name == bug.name
    assert plan.make(topology).steps
    assert len((bug / "lab.yaml").read_text(encoding="utf-8").splitlines()) <= 30, "it is small"


def test_verify_finds_tests_of_the_report_and_of_its_fix(bug: Path) -> None:
    lab = bug / "lab.yaml"
    found = find_tests(str(lab), load(lab).nodes)
    assert found
    assert [path.name for path in found.files] == [f"test_{bug.name.replace('-', '_')}.py"]
    assert found.files[0].read_text(encoding="utf-8").count("\ndef test_") >= 2


def test_its_page_has_a_title_and_the_link(bug: Path) -> None:
    text = (bug / "README.md").read_text(encoding="utf-8")
    assert (head := HEAD.match(text))
    number = bug.name.rpartition("-")[2]
    assert not number.isdigit() or head[1].endswith(f"/{number}")
    # On the site it is a part of a page in another folder.
    assert "\n#" not in text
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", text))
    assert len(text.splitlines()) <= 30, "it is small"
