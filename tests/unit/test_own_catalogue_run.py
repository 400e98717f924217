"""Catalogues of one's own in a run: by the runner, by pytest itself, and in reports."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import pytest
from inner_pytest import FakeLab, kept_apart, plain_pytest

from testbed.claims.catalogue import Catalogue, combine
from testbed.claims.load import load
from testbed.errors import CatalogueError, UsageError
from testbed.labs.state import Record, State
from testbed.report import terminal
from testbed.report.data import to_dict
from testbed.report.html import render
from testbed.report.junit import to_xml
from testbed.report.words import words
from testbed.suites import runner
from testbed.suites.model import LabRun, Run, Selection
from testbed.topology.load import load as load_topology

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

pytest_plugins = "pytester"

DOCUMENT = """\
title: Handbuch {name}
language: de
titles: {{en: Manual {name}}}
claims:
- {{id: {name}-claim, place: S. 1, claim: It is {name}., kind: state, needs: [netns],
   expect: contradicted, why: It is not., check: Look.}}
"""
CHECK = """\
import click
import pytest
from {name}_help import WORD


@pytest.fixture
def whose(): return WORD


@pytest.mark.testbed_claim("{name}-claim")
def test_it(observe, whose, of_conftest):
    observe.holds(whose != "{name}" or of_conftest != "{name}", "another's")
"""
CONFTEST = """\
import click
import pytest


@pytest.fixture
def of_conftest(): return "{name}"
"""
GERMAN = "{name}-claim: {{claim: 'Es ist {name}.', why: 'Ist es nicht.'}}\n"


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with kept_apart("one", "two"):
        yield


def write(name: str) -> Path:
    """A catalogue in a folder of this name, with files of the same names as any other."""
    folder = Path(name).absolute()
    (folder / "translations").mkdir(parents=True)
    texts = {
        f"{name}.yaml": DOCUMENT,
        "test_it.py": CHECK,
        "conftest.py": CONFTEST,
        f"{name}_help.py": 'WORD = "{name}"\n',
        "translations/de.yaml": GERMAN,
    }
    for file, text in texts.items():
        (folder / file).write_text(text.format(name=name))
    return folder


def checked(catalogue: Catalogue, documents: tuple[str, ...] = ()) -> Run:
    selection = Selection(catalogue=catalogue, documents=documents)
    results = runner.run(cast("LiveLab", FakeLab()), selection)
    assert results.broken == []
    return Run(selection, [LabRun("two-node", load_topology("two-node"), results)])


def test_one_is_run(tmp_path: Path) -> None:
    run = checked(load(write("one")))
    assert [(claim.id, run.verdict(claim, run.worst())) for claim in run.meant()] == [
        ("one-claim", "contradicted")
    ]
    assert run.status == 0


def test_two_with_files_of_the_same_names_are_run_together() -> None:
    both = combine([load(write("one")), load(write("two"))])
    run = checked(both)
    assert [finding.claim for lab in run.labs for finding in lab.results.findings] == [
        "one-claim",
        "two-claim",
    ]
    assert run.status == 0, "each has its own fixtures, and its own modules"
    assert [lab.results.elsewhere for lab in run.labs] == [[]]
    only = checked(both, documents=("two",))
    assert [claim.id for claim in only.meant()] == ["two-claim"]


def test_modules_of_the_same_name_are_refused() -> None:
    one, two = write("one"), write("two")
    for folder in (one, two):
        (folder / "helpers.py").write_text("X = 1\n")
    with pytest.raises(CatalogueError) as caught:
        combine([load(one), load(two)])
    assert "helpers.py" in str(caught.value)


def test_reports_need_the_record_alone() -> None:
    run = checked(load(write("one")))
    record = json.loads(json.dumps(to_dict(run)))
    german, english = (render(record, lang=lang) for lang in ("de", "en"))
    assert '<h4 lang="de">Es ist one.</h4>' in german
    assert '<span lang="de">Ist es nicht.</span>' in german
    assert '<html lang="en">' in german, "the report's own words have no German"
    assert "Handbuch one" in german
    assert "Manual one" not in german
    assert "<h4>It is one.</h4>" in english
    assert '<span class="meta" lang="de">Handbuch one</span>' in english
    chinese = render(record, lang="zh")
    assert '<h4 lang="en">It is one.</h4>' in chinese
    assert '<span lang="en">Manual one</span>' in chinese
    assert "已检查" in chinese or "论断" in chinese
    with pytest.raises(UsageError) as caught:
        render(record, lang="fr")
    assert "de" in str(caught.value.hint)
    assert words("de", ["de"]).gettext("Labs") == "Labs"
    assert words("zh-Hant", ["zh-Hant"]).gettext("Labs") == words("zh").gettext("Labs") != "Labs"


def test_junit_and_the_terminal_name_the_document() -> None:
    run = checked(load(write("one")))
    (case,) = ET.fromstring(to_xml(run)).iter("testcase")
    assert (case.get("classname"), case.get("name")) == ("two-node.one", "one-claim")
    table = "\n".join(terminal.table(run))
    assert "It is one." in table


def test_columns_are_as_wide_as_the_names_of_documents() -> None:
    folder = write("one")
    (folder / "one.yaml").rename(folder / "a-manual-of-a-vendor.yaml")
    lines = "\n".join(terminal.table(checked(load(folder)))).splitlines()
    head, row = [line for line in map(click.unstyle, lines) if line][:2]
    assert row.startswith("  a-manual-of-a-vendor ")
    assert head.index("contradicted") + len("contradicted") == row.index(" 1 ") + 2


def test_the_title_of_the_page_is_the_catalogues() -> None:
    folder = write("one")
    (folder / "catalogue.yaml").write_text("title: All manuals\ntitles: {de: Handbücher}\n")
    record = to_dict(checked(load(folder)))
    assert "<title>All manuals</title>" in render(record)
    assert "<title>Handbücher</title>" in render(record, lang="de")


# -- pytest itself ------------------------------------------------------------------------


Plain = Callable[..., pytest.RunResult]


@pytest.fixture
def plain(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Plain:
    """pytest in a project; it sees the labs of the project's own folder alone."""
    monkeypatch.setenv("TESTBED_STATE", str(pytester.path / "state"))
    return partial(plain_pytest, pytester, monkeypatch)


def test_pytest_takes_a_catalogue_by_its_option_or_its_project(plain: Plain) -> None:
    write("one")
    done = plain("one")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "one-claim" in done.stderr.str()
    assert "--testbed-catalogue" in done.stderr.str()
    assert "1 passed" in plain("one", "--testbed-catalogue", "one").stdout.str()
    Path("pyproject.toml").write_text('[tool.testbed]\ncatalogues = ["one"]\n')
    assert "1 passed" in plain("one").stdout.str()


def test_pytest_finds_the_folder_beside_the_lab_s_topology(plain: Plain) -> None:
    write("one").rename("claims")
    topology = Path("small.yaml").absolute()
    topology.write_text("name: small\nnodes: {node1: {}}\n")
    made = replace(load_topology(topology), file=str(topology))
    record = Record("small", made.to_dict(), str(topology))
    State(Path.cwd() / "state").write(record)
    done = plain("claims")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "catalogue shipped" in done.stderr.str(), "no lab is named"
    done = plain("claims", TESTBED_LAB="small")
    assert "1 passed" in done.stdout.str(), done.stdout.str() + done.stderr.str()
