"""The documentation: its links lead somewhere, and what it prints of the code is the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree as ET

import pytest

from testbed.catalogues.shipped import FOLDER
from testbed.claims.load import OF_CLAIM
from testbed.claims.model import Kind, feature_words
from testbed.topology import load_text

ROOT = Path(__file__).parents[2]
SABOTAGE = ROOT / "tests" / "live" / "sabotage"
PAGE = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
FOLDERS = [ROOT / "docs", ROOT / "examples"]
PAGES = sorted([*ROOT.glob("*.md"), *(path for one in FOLDERS for path in one.rglob("*.md"))])
#: In a path that stands for many: NNN.yaml, of_TOPIC.py.
PLACEHOLDER = re.compile(r"[A-Z]{3}")
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
WALK = PAGE[PAGE.index("## Add a claim in ten minutes") :]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", WALK, re.MULTILINE | re.DOTALL)


def first_cells() -> set[str]:
    """The words in the first column of the tables."""
    return {
        word
        for cell in re.findall(r"^\| (`[^|]*) \|", WALK, re.MULTILINE)
        for word in re.findall(r"`([^`]+)`", cell)
    }


@pytest.mark.parametrize(
    ("language", "begins", "folder", "files"),
    [
        ("yaml", "- id: ", FOLDER, "[0-9]*.yaml"),
        ("python", "@pytest.mark.testbed_claim(", FOLDER, "test_*.py"),
        ("python", "@sabotage(", SABOTAGE, "of_*.py"),
    ],
)
def test_what_is_printed_is_what_there_is(
    language: str, begins: str, folder: Path, files: str
) -> None:
    texts = [path.read_text(encoding="utf-8") for path in folder.glob(files)]
    (printed,) = [block for block in blocks(language) if block.startswith(begins)]
    assert any(f"\n{printed}\n" in text for text in texts)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_and_headings_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    links = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for link in (one or other for one, other in links):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_key_kind_and_feature_has_its_line() -> None:
    words = {*OF_CLAIM, *get_args(Kind), *feature_words()}
    assert first_cells() == words


@pytest.mark.source
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_targets_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:testbed|tests|docs|topologies|bench)/[\w./-]*)`", prose(page))
    assert [
        path for path in paths if not (PLACEHOLDER.search(path) or (ROOT / path).exists())
    ] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        word for words in re.findall(r"`make ([a-z0-9 -]+)`", text) for word in words.split()
    }
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def whole_topologies() -> list[tuple[str, str]]:
    """The topologies in code blocks, each with its page.

    That of extending.md has a role of its own. Those of the cookbook have files beside them, and
    tests of their own.
    """
    return [
        (page.name, text)
        for page in PAGES
        if page.name not in ("extending.md", "cookbook.md")
        for text in YAML.findall(page.read_text(encoding="utf-8"))
        if re.search(r"^name: ", text, re.MULTILINE) and re.search(r"^nodes:", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "text"), whole_topologies())
def test_topologies_that_pages_print_are_accepted(
    page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in PAGES:
        for included in YAML.findall(path.read_text(encoding="utf-8")):
            if found := re.match(r"# ([\w-]+\.yaml)\n", included):  # for those that include it
                Path(found[1]).write_text(included, encoding="utf-8")
    load_text(text, page)


@pytest.mark.parametrize("name", ["lab", "terminal"])
def test_pictures_are_svg_that_loads_nothing(name: str) -> None:
    text = (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.findall(r"(?:href=|url\()\W*(?!#)\w+:", text)
    assert "var(" not in text


@pytest.mark.source
def test_the_layers_of_the_architecture_are_those_that_lint_holds() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^```text layers\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers"]
    assert drawn.splitlines() == layers
