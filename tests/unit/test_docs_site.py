"""The documentation site: pages written from the code, and links between pages."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from bugs import BUGS, FOLDER
from catalogues import by_provider
from click.testing import CliRunner

from testbed.cli import cli
from testbed.topology.reference import reference
from testbed.topology.schema import schema

pytestmark = pytest.mark.source

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site"
PINNED = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def module(name: str) -> ModuleType:
    """A module of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", SITE / f"{name}.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


links = module("links")


def every_command(
    command: click.Command = cli, parent: click.Context | None = None
) -> Iterator[click.Context]:
    context = click.Context(command, parent=parent, info_name=command.name if parent else "testbed")
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            if not below.hidden:
                yield from every_command(below, context)


def test_the_command_page_has_each_command_with_each_option() -> None:
    page = module("cli_reference").page()
    parts = {part.partition("\n")[0]: part for part in re.split(r"^##+ ", page, flags=re.MULTILINE)}
    for context in every_command():
        part = parts[context.command_path]
        for param in context.command.get_params(context):
            if isinstance(param, click.Option) and not param.hidden:
                assert all(name in part for name in param.opts), (context.command_path, param.name)
        assert "\b" not in part


def every_key(part: dict[str, Any]) -> Iterator[str]:
    for key, value in part.get("properties", {}).items():
        yield key
        yield from every_key(value)
    for below in (part.get("additionalProperties"), part.get("items"), *part.get("anyOf", ())):
        if isinstance(below, dict):
            yield from every_key(below)


def test_the_topology_page_has_a_row_for_each_key() -> None:
    page = reference()
    rows = re.findall(r"^\| `([^`]+)`.*? \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert sorted(key for key, _, _ in rows) == sorted(every_key(schema()))
    assert all(meaning and value for _, meaning, value in rows)


def test_values_are_shown_by_samples_of_their_kind() -> None:
    page = reference()
    shown = dict(re.findall(r"^\| `(\w+)`.*? \| .* \| text such as `([^`]+)`", page, re.MULTILINE))
    assert shown["image"].startswith("registry.")
    assert shown["namespace"] == shown["bridge"] == "node1"
    assert shown["subnet"] == "10.168.0.0/24"
    assert "^(" not in page


def test_the_command_prints_the_page() -> None:
    done = CliRunner().invoke(cli, ["schema", "--markdown"])
    assert done.output == f"{reference()}\n"
    assert CliRunner().invoke(cli, ["schema", "catalogue", "--markdown"]).exit_code == 2


def test_what_leads_to_a_mapping_on_the_topology_page_leads_to_its_heading() -> None:
    page = reference()
    headings = re.findall(r"^## `([^`]+)`$", page, re.MULTILINE)
    targets = re.findall(r"\[`([^`]+)`\]\(#([^)]+)\)", page)
    assert dict(targets) == {name: re.sub(r"[^\w-]", "", name.lower()) for name in headings}


@pytest.mark.parametrize(
    ("target", "page", "leads"),
    [
        ("docs/vm.md#the-box", "index.md", "vm.md#the-box"),
        ("docs/images/lab.svg", "tour.md", "images/lab.svg"),
        ("#names", "topologies.md", "#names"),
        ("vm.md", "ci.md", "vm.md"),
        ("../CHANGELOG.md#010---2026-11-28", "extending.md", "changelog.md#010---2026-11-28"),
        ("../extending.md", "decisions/0006-pytest-and-testinfra.md", "../extending.md"),
        ("../../README.md", "decisions/README.md", "../index.md"),
        ("docs/decisions/README.md", "contributing.md", "decisions/README.md"),
        ("https://containerlab.dev", "index.md", "https://containerlab.dev"),
        ("mailto:someone@example.org", "index.md", "mailto:someone@example.org"),
        ("LICENSE", "index.md", None),
    ],
)
def test_a_link_leads_to_the_page(target: str, page: str, leads: str | None) -> None:
    assert links.on_site(target, page) == leads


def test_a_link_to_a_source_file_leads_to_the_repository_if_there_is_one() -> None:
    target = "../testbed/errors.py"
    found = links.on_site(target, "api.md", "https://forge.example/a/b/")
    assert found == "https://forge.example/a/b/blob/main/testbed/errors.py"


@pytest.mark.parametrize(
    "target",
    ["http://example.org", "https://nowhere", "javascript:alert(1)", "//example.org/x", "NONE.md"],
)
def test_a_link_that_cannot_be_right_is_an_error(target: str) -> None:
    with pytest.raises(links.BadLink):
        links.on_site(target, "index.md")


def test_the_readme_without_its_tour_and_the_tour_are_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, tour = links.split(text)
    assert tour.startswith("# ")
    assert len(start) + len(tour) == len(text) - len("#\n")
    with pytest.raises(links.BadLink):
        links.split("# testbed\n")


def test_the_page_of_bug_reports_has_each_with_its_lab() -> None:
    page = module("gallery").page("# Bug reports as labs\n", FOLDER)
    assert re.findall(r"^testbed up examples/bugs/([\w-]+)/lab.yaml$", page, re.MULTILINE) == [
        bug.name for bug in BUGS
    ]
    assert len(re.findall(r"^## \w", page, re.MULTILINE)) == len(BUGS)
    assert page.count("```") % 2 == 0


def test_a_pattern_in_the_navigation_is_the_list_of_its_pages() -> None:
    nav = links.expanded([{"A": "vm.md"}, {"B": [{"C": "decisions/*.md"}]}])
    assert nav[0] == {"A": "vm.md"}
    pages = nav[1]["B"][0]["C"]
    assert pages[:2] == ["decisions/README.md", "decisions/0001-namespaces-by-default.md"]
    assert len(pages) == len(list((ROOT / "docs" / "decisions").glob("*.md")))


def test_warnings_end_the_build() -> None:
    """MkDocs counts none with --quiet."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"mkdocs build (.*)", makefile)
    assert recipe == "--strict"


def test_docs_have_the_versions_that_the_tests_have() -> None:
    """One virtual environment has both."""
    docs, tests = (
        dict(PINNED.findall((ROOT / name).read_text(encoding="utf-8")))
        for name in ("docs/requirements.txt", "requirements.txt")
    )
    assert {
        name: docs[name] for name in docs.keys() & tests.keys() if docs[name] != tests[name]
    } == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = project["project"]["optional-dependencies"]["docs"]
    assert {re.split(r"[\[><=]", one)[0] for one in wanted} <= docs.keys()


def test_the_page_on_verdicts_has_the_numbers_of_the_catalogue() -> None:
    verdicts = module("verdicts")
    page, known = (ROOT / "docs" / "verdicts.md").read_text("utf-8"), by_provider()
    assert verdicts.counts(known) in page
    assert verdicts.whys(known) in page
    rows = verdicts.every(known).splitlines()
    assert sum(row.startswith("| `") for row in rows) == len(known)
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1
