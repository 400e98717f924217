"""Tests beside a topology file: those that use the lab run, and nothing else of the folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from inner_pytest import FakeLab, kept_apart

from testbed import cli
from testbed.claims.load import load as load_catalogue
from testbed.cli import common
from testbed.labs.lab import Lab
from testbed.suites import runner
from testbed.suites.beside import find_tests
from testbed.suites.model import LabRun, Results, Selection
from testbed.topology.load import load

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.testing.fakes import Bench

NODES = ["node1", "node2"]
TOPOLOGY = "name: small\nnodes: {node1: {}}\n"
OF_THE_LAB = "def test_it(lab):\n    assert lab.name\n"
#: A file whose import is seen.
IMPORTED = "open('{}', 'w').close()\n"


def write(top: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


def chosen(top: Path, files: Mapping[str, str], topology: str = "small.yaml") -> list[str]:
    write(top, files)
    found = find_tests(str(top / topology), NODES)
    return [str(path.relative_to(top)) for path in found.files] if found else []


@pytest.mark.parametrize(
    "text",
    [
        OF_THE_LAB,
        "async def test_it(lab): pass\n",
        "class TestIt:\n    def test_it(self, nodes): pass\n",
        "def test_it(*, fault): pass\n",
        "def test_it(host): pass\n",
        "testinfra_hosts = ['node1', 'testbed://small/node2/c']\ndef test_it(host): pass\n",
        "import pytest\n@pytest.mark.testbed_needs('docker')\ndef test_it(): pass\n",
        "import pytest\npytestmark = pytest.mark.testbed_alone\ndef test_it(): pass\n",
        "import pytest\n@pytest.mark.usefixtures('lab')\ndef test_it(): pass\n",
        "import pytest\n@pytest.fixture\ndef web(lab): pass\ndef test_it(web): pass\n",
        "import pytest\n@pytest.fixture\ndef lab(lab): return lab\ndef test_it(lab): pass\n",
        "def test_it(lab) pass\n",  # pytest shows the mistake
    ],
)
def test_a_file_that_uses_the_lab(text: str, tmp_path: Path) -> None:
    assert chosen(tmp_path, {"tests/test_a.py": text}) == ["tests/test_a.py"]


@pytest.mark.parametrize(
    "text",
    [
        "def test_it(): pass\n",
        "def test_it(client): pass  # not the lab\n",
        "def helper(lab): pass\ndef test_it(): helper(1)\n",
        "import pytest\n@pytest.fixture\ndef lab(): pass\ndef test_it(lab): pass\n",
        "import pytest\n@pytest.fixture()\ndef host(): pass\ndef test_it(host): pass\n",
        "import pytest\n@pytest.mark.parametrize('nodes, x', [])\ndef test_it(nodes, x): pass\n",
        "testinfra_hosts = ['ansible://web']\ndef test_it(host): pass\n",
        "testinfra_hosts = ['web1']\ndef test_it(host): pass\n",
        "print 'Python 2 and a host'\n",
        "TEXT = '''\ndef test_it(lab): pass\n'''\n",
    ],
)
def test_a_file_of_another_project(text: str, tmp_path: Path) -> None:
    assert chosen(tmp_path, {"tests/test_a.py": text}) == []


def test_fixtures_of_a_conftest_count(tmp_path: Path) -> None:
    through = (
        "import pytest\n@pytest.fixture\ndef web(lab): pass\n@pytest.fixture\ndef page(web): pass\n"
    )
    own = "import pytest\n@pytest.fixture\ndef lab(): pass\n"
    files = {
        "tests/ours/conftest.py": through,
        "tests/ours/test_page.py": "def test_it(page): pass\n",
        "tests/ours/test_other.py": "def test_it(client): pass\n",
        "tests/each/conftest.py": through.replace("fixture\n", "fixture(autouse=True)\n"),
        "tests/each/test_any.py": "class TestAny:\n    def test_it(self): pass\n",
        "tests/each/test_none.py": "X = 1  # no test\n",
        "tests/theirs/conftest.py": own,
        "tests/theirs/test_lab.py": OF_THE_LAB,
    }
    assert chosen(tmp_path, files) == ["tests/each/test_any.py", "tests/ours/test_page.py"]
    write(tmp_path, {"conftest.py": own})
    assert chosen(tmp_path, {}) == [], "one beside the topology counts, too"


def test_files_that_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "tests/.venv/test_a.py": OF_THE_LAB,
        "tests/helpers.py": OF_THE_LAB,
        "test_a.py": OF_THE_LAB,
        "other/tests/test_a.py": OF_THE_LAB,
    }
    assert chosen(tmp_path, files) == []
    (tmp_path / "tests/test_gone.py").symlink_to(tmp_path / "gone")
    assert chosen(tmp_path, {}) == []
    assert find_tests("", NODES) is None
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"tests/test_a.py": OF_THE_LAB})
    assert find_tests("small.yaml", NODES) is None, "recorded by an old version, for any folder"


def test_topologies_share_the_folder(tmp_path: Path) -> None:
    files = {
        "small.yaml": TOPOLOGY,
        "two-rings.clab.yml": "name: ring\n",
        "tests/test_all.py": OF_THE_LAB,
        "tests/test_small.py": OF_THE_LAB,
        "tests/small/test_a.py": OF_THE_LAB,
        "tests/test_two_rings.py": OF_THE_LAB,
        "tests/two-rings/test_a.py": OF_THE_LAB,
        "tests/test_two_rings_too.py": OF_THE_LAB,
    }
    both = ["tests/test_all.py", "tests/test_two_rings_too.py"]
    small = ["tests/small/test_a.py", "tests/test_small.py"]
    rings = ["tests/test_two_rings.py", "tests/two-rings/test_a.py"]
    assert chosen(tmp_path, files) == sorted(both + small)
    assert chosen(tmp_path, {}, "two-rings.clab.yml") == sorted(both + rings)


# -- the run -------------------------------------------------------------------------------

DOCUMENT = """\
title: Manual
claims:
- {id: a-claim, claim: It is so., needs: [netns], expect: confirmed, check: Look.}
"""
CLAIM = """\
import pytest
from words import WORD

@pytest.mark.testbed_claim("a-claim")
def test_it(observe): observe.holds(WORD == "claims", WORD)
"""
OWN = """\
from more_words import WORD

def test_it(lab): assert WORD == lab.name

def test_without_a_lab(): assert not "run"

def test_fails(web): assert not web
"""
CONFTEST = "import pytest\n@pytest.fixture\ndef web(lab): return lab.name\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a topology, claims, and tests, one of which has no use of a lab."""
    files = {
        "small.yaml": TOPOLOGY,
        "claims/manual.yaml": DOCUMENT,
        "claims/test_it.py": CLAIM,
        "claims/words.py": "WORD = 'claims'\n",
        "tests/network/test_it.py": OWN,
        "tests/network/more_words.py": "WORD = 'two-node'\n",
        "tests/network/conftest.py": CONFTEST,
        "tests/test_theirs.py": IMPORTED.format(tmp_path / "imported") + "def test_it(): pass\n",
    }
    write(tmp_path, files)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def checked(project: Path, **more: Any) -> Results:
    tests = find_tests(str(project / "small.yaml"), NODES)
    selection = Selection(beside=tests, catalogue=load_catalogue(project / "claims"), **more)
    with kept_apart("words", "more_words", "tests"):
        return runner.run(cast("LiveLab", FakeLab()), selection)


def test_they_run_with_the_claims(project: Path) -> None:
    results = checked(project)
    assert [(found.claim, found.verdict) for found in results.findings] == [
        ("a-claim", "confirmed")
    ]
    assert [(check.name, check.outcome) for check in results.checks] == [
        ("tests/network/test_it.py::test_it", "passed"),
        ("tests/network/test_it.py::test_fails", "failed"),
    ]
    assert results.broken == []
    assert not (project / "imported").exists()
    assert not list(project.glob("tests/**/__pycache__"))


def test_those_that_failed_run_again(project: Path) -> None:
    results = checked(project, tests=("tests/network/test_it.py::test_fails",))
    assert [check.outcome for check in results.checks] == ["failed"]
    assert results.findings == []


def test_a_mistake_in_a_file_is_shown(project: Path) -> None:
    write(project, {"tests/test_broken.py": "def test_it(lab) pass\n"})
    results = checked(project)
    assert "test_broken.py" in "".join(results.broken)
    assert len(results.checks) == 2, "the others run"


@pytest.mark.parametrize(
    ("more", "runs"),
    [
        ([], True),
        (["-k", "it"], True),
        (["tests"], False),
        (["--claim", "a-claim"], False),
        (["--document", "manual"], False),
        (["--catalogue", "claims"], False),
        (["--recovery"], False),
    ],
)
def test_the_command_selects_them(
    more: list[str], runs: bool, project: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.delenv("TESTBED_LAB", raising=False)
    monkeypatch.setattr(LabRun, "look", lambda *_: None)
    asked: list[Selection] = []

    def run(_: object, selection: Selection, **__: object) -> Results:
        asked.append(selection)
        return Results()

    monkeypatch.setattr(runner, "run", run)
    Lab("small", bench.settings).up(load("./small.yaml"))
    cli.run(["verify", "./small.yaml", *more])
    (selection,) = asked
    own = [project / "tests/network/test_it.py"] if runs else []
    assert [*(selection.beside.files if selection.beside else ())] == own
