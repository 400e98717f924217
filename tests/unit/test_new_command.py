"""``testbed new``: a small lab with tests, also for a bug report."""

from __future__ import annotations

import compileall
import json
from pathlib import Path

import pytest

from testbed import cli
from testbed.claims import skeleton as claims
from testbed.labs import plan
from testbed.suites import skeleton
from testbed.suites.beside import find_tests
from testbed.topology import load

ISSUE = "https://github.com/moby/moby/issues/45610"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def whole(folder: Path) -> str:
    """Check that a folder has a lab with a plan, and tests that belong to it.  Returns its name."""
    lab = folder / skeleton.LAB
    topology = load(lab)
    assert plan.make(topology).steps
    found = find_tests(str(lab.resolve()), topology.nodes)
    assert found
    assert compileall.compile_dir(str(folder / "tests"), quiet=2)
    return topology.name


def test_a_lab_with_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["new", "labs/My Office"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[:2] == ["labs/My Office/lab.yaml", "labs/My Office/tests/test_my_office.py"]
    assert whole(Path("labs/My Office")) == "my-office"
    assert claims.create(Path("labs/My Office"))[0].name == "catalogue.yaml"
    assert sorted(Path("labs/My Office").glob("*.yaml")) == [Path("labs/My Office/lab.yaml")]


def test_the_lab_of_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["new", "--bug", ISSUE, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["files"]
    folder = Path("moby-45610")
    assert {Path(path) for path in written} == {
        Path.cwd() / folder / name for name in ("lab.yaml", "README.md", "tests/test_moby_45610.py")
    }
    assert whole(folder) == "moby-45610"
    assert f"[moby/moby#45610]({ISSUE})" in (folder / "README.md").read_text()
    assert (folder / "tests" / "test_moby_45610.py").read_text().count("\ndef test_") == 2


@pytest.mark.parametrize(
    ("text", "name", "link"),
    [
        (f"{ISSUE}#issuecomment-1", "moby-45610", "[moby/moby#45610]"),
        ("https://github.com/FRRouting/frr/pull/13413/", "frr-13413", "[FRRouting/frr#13413]"),
        ("flannel-io/flannel#1171", "flannel-1171", "issues/1171)"),
        ("https://gitlab.nic.cz/labs/bird/-/issues/12", "bird-12", "[labs/bird#12]"),
        ("https://example.com/b/123/", "my-123", "[example.com/b/123]"),
        ("https://github.com/a/terraform-provider-docker/issues/123456",
         "terraform-pro-123456", "#123456]"),
    ],
)  # fmt: skip
def test_the_name_and_the_link_of_a_report(text: str, name: str, link: str) -> None:
    found = skeleton.report(text)
    assert found.name == name
    assert link in found.link


@pytest.mark.parametrize(
    "title", ["Port 80 {is} closed", 'a """ and a \\d', "Ω", "x" * 200, "two\nlines", "#1"]
)
def test_a_report_with_a_title_alone(title: str) -> None:
    assert cli.run(["new", "--bug", title]) == 0
    (folder,) = Path().iterdir()
    whole(folder)
    assert (folder / "README.md").read_text().startswith(f"# {' '.join(title.split())}\n")


def test_existing_files_are_kept() -> None:
    Path("office/tests").mkdir(parents=True)
    Path("office/README.md").write_text("mine")
    assert cli.run(["new", "office"]) == 0, "it has no README of its own"
    assert cli.run(["new", "office"]) == 2
    Path("moby-1").mkdir()
    Path("moby-1/README.md").write_text("mine")
    assert cli.run(["new", "--bug", "moby/moby#1"]) == 2
    assert [path.name for path in Path("moby-1").iterdir()] == ["README.md"], (
        "refused before anything is written"
    )
    assert cli.run(["new", "elsewhere", "--bug", "moby/moby#1"]) == 0
    assert load(Path("elsewhere/lab.yaml")).name == "elsewhere"


def test_wrong_use() -> None:
    Path("file").touch()
    for words in ([], ["lab.yaml"], ["file"], ["file/below"], ["--bug", " "]):
        assert cli.run(["new", *words]) == 2, words
    assert list(Path().iterdir()) == [Path("file")]


def test_new_folders_get_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("testbed.owner.make", make)  # which gives them to sudo's caller
    claims.create(Path("shop"))
    skeleton.create(Path("office"))
    assert {Path.cwd() / "shop" / "claims", Path.cwd() / "office" / "tests"} <= {*made}
