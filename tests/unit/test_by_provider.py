"""The verdicts of claims by provider: computed from the catalogue, and open to other providers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from catalogues import by_provider, claims

from testbed import cli
from testbed.claims.load import load
from testbed.claims.model import Claim, Otherwise
from testbed.nodes.fake import FakeProvider
from testbed.registry import PROVIDERS
from testbed.suites.by_provider import Known, reasons, table, verdicts
from testbed.testing.fakes import declare

DOCUMENT = """\
title: Manual
claims:
- {id: any-lab, claim: One.}
- {id: with-a-container, claim: Two., needs: [docker]}
- {id: without-a-lab, claim: Three., needs: [none]}
- {id: a-word, claim: Four., expect: not testable}
- {id: changed, claim: Five.}
- {id: broken, claim: Six.}
- id: elsewhere
  claim: Seven.
  otherwise:
  - {when: {provider: barn}, expect: contradicted, why: Barns have no doors.}
- id: too-early
  claim: Eight.
  expect: conditional
  why: It rains.
  otherwise:
  - {when: {provider: barn, docker: ">= 28"}, expect: contradicted, why: "That depends, too."}
  - {when: {provider: barn}, expect: skipped, why: Barns have no clock.}
"""
CHECKS = """\
import pytest

{tests}
@pytest.mark.testbed_claim("changed")
@pytest.mark.testbed_changes
def test_changed(lab):
    ...

@pytest.mark.testbed_claim("broken")
def test_broken(lab, fault):
    ...
"""
PLAIN = """\
@pytest.mark.testbed_claim("{}")
def test_{}(lab):
    ...

"""
DOCKER = """\
name: docker
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {a: {roles: [docker], packages: [sl], networks: {lan: 10.168.0.2}}}
"""
LABS = """\
labs:
- topology: ../plain.yaml
- topology: ../docker.yaml
"""


class Barn(FakeProvider):
    """A provider of somebody else, whose nodes cannot have packages."""

    name = "barn"
    packages = False


class Racks(FakeProvider):
    name = "racks"
    packages = False
    existing = "racks in a cellar"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    declare(monkeypatch, PROVIDERS, "barn", f"{__name__}:Barn")
    declare(monkeypatch, PROVIDERS, "racks", f"{__name__}:Racks")
    names = ("any-lab", "with-a-container", "without-a-lab", "elsewhere", "too-early")
    tests = "".join(PLAIN.format(name, name.replace("-", "_")) for name in names)
    files = {
        "plain.yaml": "name: plain\nnodes: {a: {}}\n",
        "docker.yaml": DOCKER,
        "claims/manual.yaml": DOCUMENT,
        "claims/test_all.py": CHECKS.format(tests=tests),
        "claims/catalogue.yaml": LABS,
    }
    (tmp_path / "claims").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "claims"


def test_each_reason_that_is_known_without_a_lab(folder: Path) -> None:
    found = verdicts(load(folder), None, ["netns", "barn", "racks"])
    assert {name: row["netns"].verdict for name, row in found.items()} == {
        **dict.fromkeys(found, "confirmed"), "a-word": "not testable", "too-early": "conditional",
    }  # fmt: skip
    assert not any(row["netns"].why for row in found.values())
    barn = {name: row["barn"] for name, row in found.items()}
    assert {name for name, one in barn.items() if one.why} == {
        "with-a-container", "elsewhere", "too-early",
    }  # fmt: skip
    assert barn["with-a-container"].verdict == "skipped"
    assert "packages" in barn["with-a-container"].why
    assert barn["elsewhere"] == Known("contradicted", "Barns have no doors.")
    assert barn["too-early"] == Known("skipped", "Barns have no clock.")
    racks = {name: row["racks"] for name, row in found.items() if row["racks"].why}
    assert {one.verdict for one in racks.values()} == {"skipped"}
    assert racks.keys() == {"with-a-container", "changed", "broken"}
    assert "racks in a cellar" in racks["changed"].why


def test_the_mark_of_a_module_is_one_of_each_check(folder: Path) -> None:
    checks = folder / "test_all.py"
    text = checks.read_text()
    assert verdicts(load(folder), None, ["racks"])["any-lab"]["racks"].verdict == "confirmed"
    checks.write_text(text.replace("\n\n", "\n\npytestmark = [pytest.mark.testbed_changes]\n", 1))
    assert verdicts(load(folder), None, ["racks"])["any-lab"]["racks"].verdict == "skipped"


def test_a_catalogue_without_labs_knows_what_its_claims_say(folder: Path) -> None:
    (folder / "catalogue.yaml").write_text("labs: []\n")
    found = verdicts(load(folder), None, ["barn"])
    assert found["with-a-container"]["barn"] == Known("confirmed")
    assert found["too-early"]["barn"].verdict == "skipped"


def test_the_table_and_the_reasons(folder: Path) -> None:
    found = verdicts(load(folder), None, ["netns", "barn"])
    head, first, *_ = table(found)
    assert head == ("claim", "netns", "barn")
    assert first == ("any-lab", "confirmed", "confirmed")
    counted = reasons(found)
    assert list(counted) == ["barn"]
    assert counted["barn"][Known("skipped", "Barns have no clock.")] == 1
    assert table({}) == [("claim",)]
    assert reasons({}) == {}


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["claims", "--catalogue", str(folder), "--by", "provider"]
    assert cli.run([*argv, "--json"]) == 0
    found = {one["id"]: one["verdicts"] for one in json.loads(capsys.readouterr().out)}
    assert list(found) == list(load(folder).claims)
    assert list(found["elsewhere"]) == list(PROVIDERS)
    assert found["elsewhere"]["barn"] == {"verdict": "contradicted", "why": "Barns have no doors."}
    assert cli.run([*argv, "--verdict", "contradicted"]) == 0
    said = capsys.readouterr()
    head, *rows = said.out.splitlines()
    assert head.split() == ["claim", *PROVIDERS]
    assert [row.split()[0] for row in rows[:2]] == ["elsewhere", "too-early"]
    assert "\nbarn:\n" in said.out
    assert "     1  contradicted: Barns have no doors." in rows
    assert f"2 of {len(found)} claims" in said.err
    assert cli.run(["claims", "--by", "weather"]) == 2


def test_a_skip_is_no_expectation_of_a_verdict() -> None:
    """A kernel that decides what others skip is no reason for a failure."""
    other = Otherwise({"provider": "barn"}, "skipped", "No clock.")
    claim = Claim("a", "d", "", "c", "state", ("netns",), "confirmed", "", otherwise=(other,))
    assert claim.expected({"provider": "barn"}) == ("confirmed", "")
    assert claim.undecided({"provider": "barn"}) == "No clock."
    assert claim.undecided({"provider": "netns"}) == ""


# -- the shipped claims ----------------------------------------------------------------------


def test_every_shipped_claim_has_a_verdict_with_each_provider() -> None:
    found = by_provider()
    assert list(found) == list(claims())
    assert all(list(row) == list(PROVIDERS) for row in found.values())
    for name, row in found.items():
        claim = claims()[name]
        assert row["netns"] == Known(claim.expect), name
        for one in row.values():
            assert one.why or one.verdict == claim.expect, name
        others = {row[provider].verdict for provider in PROVIDERS}
        assert claim.is_testable or others == {"not testable"}, name


def test_shipped_claims_name_providers_that_exist() -> None:
    named = {
        other.when["provider"]
        for claim in claims().values()
        for other in claim.otherwise
        if "provider" in other.when
    }
    assert named <= {*PROVIDERS}
