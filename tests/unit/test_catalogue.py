"""The catalogue: each claim well formed, and decided by one test, no more and no less."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from testbed import pytest_plugin
from testbed.claims import catalogue
from testbed.claims.model import Claim, Kind, Otherwise, Verdict, fits
from testbed.suites.runner import SUITES
from testbed.topology import load, names


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    catalogue.claims.cache_clear()
    yield
    catalogue.claims.cache_clear()


def marked_tests() -> dict[str, list[str]]:
    """The tests of the suites that carry a claim's mark, read without running anything."""
    found: dict[str, list[str]] = {}
    for path in sorted(SUITES.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.claim":
                    claim = ast.literal_eval(mark.args[0])
                    found.setdefault(claim, []).append(f"{path.name}::{node.name}")
    return found


def marks_anywhere() -> Counter[str]:
    """How often each file has the mark in its code: also where marked_tests does not look."""
    found: Counter[str] = Counter()
    for path in SUITES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("mark.claim"):
                found[path.name] += 1
    return found


# -- the shipped one -----------------------------------------------------------


def test_all_documents_are_there_in_order() -> None:
    documents = [claim.document for claim in catalogue.claims().values()]
    assert documents == sorted(documents)
    assert set(documents) == {path.stem for path in catalogue.FOLDER.glob("[0-9]*.yaml")}
    assert set(documents) == {"000", "001", "002", "003", "004"}


def test_ids_are_words_and_the_keys() -> None:
    for key, claim in catalogue.claims().items():
        assert key == claim.id
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key), key


def test_every_claim_is_complete() -> None:
    for claim in catalogue.claims().values():
        for text in (claim.place, claim.claim, claim.check):
            assert text, claim.id
            assert text == text.strip(), claim.id
        assert claim.kind in get_args(Kind), claim.id
        assert claim.expect in get_args(Verdict), claim.id
        assert claim.needs, claim.id
        assert len(set(claim.needs)) == len(claim.needs), claim.id
        assert claim.expect in {"confirmed", "not testable"} or claim.why, claim.id


def test_every_claim_expects_what_a_check_can_come_to() -> None:
    for claim in catalogue.claims().values():
        expected = {claim.expect, *(other.expect for other in claim.otherwise)}
        if claim.is_testable:
            assert expected <= {"confirmed", "depends", "contradicted"}, claim.id
        else:
            assert expected == {"not testable"}, claim.id


def test_what_a_claim_needs_is_had_by_a_shipped_lab() -> None:
    labs = [pytest_plugin.features(load(name)) for name in names()]
    for claim in catalogue.claims().values():
        assert any(set(claim.needs) <= lab for lab in labs), (claim.id, claim.needs)


def test_every_claim_has_one_test_and_every_mark_a_claim() -> None:
    marked = marked_tests()
    testable = {claim.id for claim in catalogue.claims().values() if claim.is_testable}
    assert sorted(set(marked) - testable) == [], "marks without a claim that can be tested"
    assert sorted(testable - set(marked)) == [], "claims without a test"
    assert {claim: tests for claim, tests in marked.items() if len(tests) > 1} == {}


def test_no_mark_is_overlooked() -> None:
    tests = [test for tests in marked_tests().values() for test in tests]
    assert Counter(test.partition("::")[0] for test in tests) == marks_anywhere()


def test_no_test_hides_another_of_the_same_name() -> None:
    for path in SUITES.glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        seen = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        assert [name for name, count in seen.items() if count > 1] == [], path.name


# -- bad ones ------------------------------------------------------------------

GOOD = """\
- id: a-claim
  document: "002"
  place: line 1
  claim: It is so.
  kind: state
  needs: [docker, netns]
  expect: confirmed
  check: Look.
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    return tmp_path


def test_the_least_that_a_claim_has(folder: Path) -> None:
    (folder / "002.yaml").write_text(GOOD)
    claim = catalogue.claims()["a-claim"]
    assert claim == Claim(
        "a-claim", "002", "line 1", "It is so.", "state", ("docker", "netns"), "confirmed", "Look."
    )
    assert set(claim.to_dict()) == {
        *("id", "document", "place", "claim", "kind", "needs", "expect", "check", "why", "quoted"),
        "otherwise",
    }


def test_all_that_a_claim_can_have(folder: Path) -> None:
    more = "  why: Because.\n  quoted: [docker0, '80']\n"
    (folder / "002.yaml").write_text(GOOD.replace("confirmed", "depends") + more)
    claim = catalogue.claims()["a-claim"]
    assert (claim.why, claim.quoted, claim.expect) == ("Because.", ("docker0", "80"), "depends")


def test_files_are_read_by_name(folder: Path) -> None:
    for number in ("003", "000", "002"):
        (folder / f"{number}.yaml").write_text(
            GOOD.replace("002", number).replace("a-claim", f"c{number}")
        )
    (folder / "notes.txt").write_text("not of the catalogue")
    assert list(catalogue.claims()) == ["c000", "c002", "c003"]


OTHERWISE = """\
  otherwise:
  - when: {docker: ">= 28", firewall: nftables}
    expect: contradicted
    why: It is new.
"""


def test_what_is_expected_on_other_labs(folder: Path) -> None:
    more = OTHERWISE + "  - when: {docker: '>= 28'}\n    expect: depends\n    why: It may be.\n"
    (folder / "002.yaml").write_text(GOOD + more)
    claim = catalogue.claims()["a-claim"]
    assert claim.otherwise == (
        Otherwise({"docker": ">= 28", "firewall": "nftables"}, "contradicted", "It is new."),
        Otherwise({"docker": ">= 28"}, "depends", "It may be."),
    )
    assert claim.to_dict()["otherwise"][1] == {
        "when": {"docker": ">= 28"},
        "expect": "depends",
        "why": "It may be.",
    }
    new = {"docker": "29.8.1", "firewall": "nftables"}
    assert claim.expected(new) == ("contradicted", "It is new.")  # the first that fits
    assert claim.expected({**new, "firewall": "iptables-nft"}) == ("depends", "It may be.")
    assert claim.expected({**new, "docker": "20.10.24"}) == ("confirmed", "")
    assert claim.expected({"firewall": "nftables"}) == ("confirmed", "")  # a lab without docker
    assert claim.expected({}) == ("confirmed", "")


def test_a_definition_is_not_testable(folder: Path) -> None:
    text = GOOD.replace("confirmed", "not testable").replace("state", "definition")
    (folder / "002.yaml").write_text(text)
    assert not catalogue.claims()["a-claim"].is_testable


@pytest.mark.parametrize(
    ("wanted", "seen", "fit"),
    [
        ("nftables", "nftables", True),
        ("nftables", "iptables-nft", False),
        ("vxlan", "", False),
        (">= 28", "28.0.0", True),
        (">= 28", "29.8.1", True),
        (">= 28", "27.5.1", False),
        ("< 28", "20.10.24", True),
        ("< 28", "28.0.1", False),
        ("> 20.10", "20.10.24", False),  # in as many numbers as the condition has
        ("<= 20.10", "20.10.24", True),
        (">= 20.10.24", "20.10.24+dfsg1", True),
        (">= 20.10", "20.9.30", False),  # as numbers, not as text
        ("< 3", "20.10", False),
        (">= 28", "", False),
        ("< 28", "unknown", False),
    ],
)
def test_whether_a_fact_fits(wanted: str, seen: str, fit: bool) -> None:
    assert fits(wanted, seen) is fit


BAD = {
    "no id": (GOOD.replace("- id: a-claim\n  document", "- document"), r"\?: 'id' is missing"),
    **{
        f"no {key}": (re.sub(rf"  {key}:.*\n", "", GOOD), f"a-claim: '{key}' is missing")
        for key in ("document", "place", "claim", "kind", "needs", "expect", "check")
    },
    "a key too many": (GOOD + "  because: x\n", r"a-claim: unknown keys \['because'\]"),
    "an unknown kind": (GOOD.replace("state", "status"), "a-claim: unknown kind 'status'"),
    "an unknown verdict": (
        GOOD.replace("confirmed", "true-ish"),
        "a-claim: .* or verdict 'true-ish'",
    ),
    "no reason": (GOOD.replace("confirmed", "depends"), "a-claim: expects 'depends' and does not"),
    "an id twice": (GOOD + GOOD, "a-claim is there twice"),
    "a number": (GOOD.replace('"002"', "002"), "a-claim: not text.*: document"),
    "a text for a list": (GOOD.replace("[docker, netns]", "docker"), "a-claim: not text.*: needs"),
    "nothing for a list": (GOOD.replace("[docker, netns]", ""), "a-claim: not text.*: needs"),
    "numbers in a list": (GOOD + "  quoted: [80]\n", "a-claim: not text.*: quoted"),
    "a condition on no fact": (
        GOOD + OTHERWISE.replace("firewall", "weather"),
        "a-claim: not text.*: otherwise",
    ),
    "a condition that is a number": (
        GOOD + OTHERWISE.replace('">= 28"', "28"),
        "a-claim: not text.*: otherwise",
    ),
    "a condition that is mistyped": (
        GOOD + OTHERWISE.replace(">= 28", ">=28"),
        "a-claim: not text.*: otherwise",
    ),
    "no condition": (
        GOOD + re.sub(r"\{docker.*\}", "{}", OTHERWISE),
        "a-claim: not text.*: otherwise",
    ),
    "otherwise without a reason": (
        GOOD + OTHERWISE.replace("It is new.", '""'),
        "a-claim: not text.*: otherwise",
    ),
    "otherwise an unknown verdict": (
        GOOD + OTHERWISE.replace("contradicted", "wrong"),
        "a-claim: not text.*: otherwise",
    ),
    "otherwise that is no list": (
        GOOD + "  otherwise: {when: {}}\n",
        "a-claim: not text.*: otherwise",
    ),
    "a state that is not testable": (
        GOOD.replace("confirmed", "not testable"),
        "a-claim: only a definition is not testable",
    ),
    "a word": ("- word\n", "wanted a claim, saw 'word'"),
    "a mapping": ("id: a-claim\n", "wanted a claim, saw 'id'"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_entry_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "002.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^002\.yaml: {message}"):
        catalogue.claims()


def test_an_id_is_not_used_by_two_documents(folder: Path) -> None:
    (folder / "001.yaml").write_text(GOOD)
    (folder / "002.yaml").write_text(GOOD)
    with pytest.raises(ValueError, match=r"^002\.yaml: a-claim is there twice"):
        catalogue.claims()
