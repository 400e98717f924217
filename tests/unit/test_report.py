"""What a run came to, for the terminal and as data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click
import pytest

from testbed.claims import catalogue
from testbed.claims.model import Claim, Evidence, Finding, Verdict
from testbed.report import data, terminal
from testbed.suites.everything import LabRun
from testbed.suites.runner import Check, Results

LONG = "It is so, and so on, " * 12


def claim(name: str, document: str = "002", expect: Verdict = "confirmed", **more: Any) -> Claim:
    fields: dict[str, Any] = {
        "place": "1.1, line 9",
        "claim": f"The statement of {name}.",
        "kind": "state",
        "needs": ("docker",),
        "check": "Look.",
        "why": "" if expect == "confirmed" else f"The reason of {name}.",
    }
    return Claim(name, document, expect=expect, **{**fields, **more})


CLAIMS = {
    c.id: c
    for c in (
        claim("one", "000"),
        claim("two"),
        claim("three", expect="depends"),
        claim("four", "003", "contradicted"),
        claim("long", "003", claim=LONG),
    )
}


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (terminal, data, catalogue):
        monkeypatch.setattr(module, "claims", lambda: CLAIMS)
    monkeypatch.setenv("COLUMNS", "120")


def plain(lines: Iterable[str] | str) -> str:
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return click.unstyle(text)


def good(name: str, **more: Any) -> Finding:
    expected, why = CLAIMS[name].expected({})
    return Finding(name, expected, expected=expected, why=why, **more)


GOOD = [good("one"), good("two"), good("three"), good("four")]
WRONG = Finding(
    "two",
    "contradicted",
    expected="confirmed",
    reason="expected confirmed: docker0 is there",
    evidence=[Evidence("node1# ip link", "1: lo\n2: eth0"), Evidence("does not hold", "docker0")],
)
BROKEN = Finding("one", None, problem="LabError: the node is gone")
SKIPPED = Finding("one", "not here", reason="Skipped: the lab has no docker")
PASSED = Check("tests/test_a.py::test_it", "passed", 0.1)
FAILED = Check("tests/test_a.py::test_other", "failed", 0.1, "assert 1 == 2\n  +1")


# -- a line ---------------------------------------------------------------------


def test_a_finding_is_a_line() -> None:
    assert plain(terminal.line(good("two"))) == "  confirmed     002  The statement of two."
    assert plain(terminal.line(good("four"))) == "  contradicted  003  The statement of four."
    assert plain(terminal.line(BROKEN)) == "  error         000  The statement of one."


def test_what_is_not_here_has_its_reason() -> None:
    assert plain(terminal.line(SKIPPED)) == (
        "  not here      000  The statement of one.  (the lab has no docker)"
    )
    long = Finding("one", "not here", reason="no " * 60)
    assert plain(terminal.line(long)).endswith("no …)")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_line_stays_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = plain(terminal.line(good("long")))
    assert len(text) <= max(columns, 100)
    assert "\n" not in text
    assert text.endswith("…")


def test_a_check_is_a_line() -> None:
    assert plain(terminal.line(PASSED)) == "  passed        tests/test_a.py::test_it"
    assert plain(terminal.line(FAILED)) == "  failed        tests/test_a.py::test_other"


def red(text: str) -> bool:
    return click.style("", fg="red", reset=False) in text


@pytest.mark.parametrize(
    ("found", "alarming"),
    [
        (good("two"), False),
        (good("four"), False),  # contradicted, as was expected
        (SKIPPED, False),
        (WRONG, True),
        (
            Finding("four", "confirmed", expected="contradicted"),
            True,
        ),  # a surprise is one, whichever way it goes
        (Finding("three", "inconclusive", expected="depends"), False),  # a noisy machine
        (BROKEN, True),
        (PASSED, False),
        (FAILED, True),
        (Check("a", "skipped", 0.0), False),
    ],
)
def test_red_is_what_was_not_expected(found: Finding | Check, alarming: bool) -> None:
    assert red(terminal.line(found)) is alarming


# -- failures --------------------------------------------------------------------


def test_what_is_as_expected_is_no_failure() -> None:
    assert list(terminal.failures(Results([*GOOD, SKIPPED], [PASSED]))) == []


def test_an_unexpected_verdict_is_shown_with_its_evidence() -> None:
    assert plain(terminal.failures(Results([good("one"), WRONG]))) == (
        "\ntwo  (002, 1.1, line 9)\n"
        "  claim:    The statement of two.\n"
        "  expected: confirmed\n"
        "  seen:     contradicted; expected confirmed: docker0 is there\n"
        "  node1# ip link\n"
        "      1: lo\n"
        "      2: eth0\n"
        "  does not hold\n"
        "      docker0"
    )


def test_a_check_that_failed_itself_is_shown_with_its_problem() -> None:
    text = plain(terminal.failures(Results([BROKEN])))
    assert "  seen:     LabError: the node is gone" in text
    other = Finding("three", "confirmed", expected="depends", why="The reason of three.")
    text = plain(terminal.failures(Results([other])))
    assert "  expected: depends, The reason of three." in text


def test_failed_checks_and_suites_that_cannot_be_loaded() -> None:
    results = Results(checks=[PASSED, FAILED], broken=["test_x.py: SyntaxError\nline 1"])
    assert plain(terminal.failures(results)) == (
        "\ntests/test_a.py::test_other\n  assert 1 == 2\n    +1\n"
        "\na suite that cannot be loaded\n  test_x.py: SyntaxError\n  line 1"
    )


# -- the table ---------------------------------------------------------------------


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_the_table_counts_by_document() -> None:
    text = plain(terminal.table(Results([good("one"), WRONG, good("three"), good("four")])))
    assert cells(text)[:4] == [
        ["document", "confirmed", "depends", "contradicted", "unexpected"],
        ["000", "1", "-", "-", "-"],
        ["002", "-", "1", "1", "1"],
        ["003", "-", "-", "1", "-"],
    ]
    lengths = {len(line) for line in text.splitlines()[1:5]}
    assert len(lengths) == 1, "the columns stand below each other"


def test_the_table_says_what_is_not_as_the_documents_say() -> None:
    text = plain(terminal.table(Results(GOOD)))
    told = text.partition("Not as the documents say:")[2].splitlines()[1:]
    assert told == [
        "  002  The statement of three. depends: The reason of three.",
        "  003  The statement of four. contradicted: The reason of four.",
    ]
    assert "Not as the documents" not in plain(terminal.table(Results([good("one"), WRONG])))


def test_a_run_of_checks_alone_has_no_table() -> None:
    assert list(terminal.table(Results(checks=[PASSED]))) == []


def test_a_broken_finding_is_in_the_table_as_unexpected() -> None:
    assert cells(plain(terminal.table(Results([BROKEN])))) == [
        ["document", "unexpected"],
        ["000", "1"],
    ]


# -- the end -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "words", "fine"),
    [
        (Results(GOOD), "4 claims put to the test on lab, 4 as expected", True),
        (
            Results([good("one"), WRONG, BROKEN]),
            "3 claims put to the test on lab, 1 as expected",
            False,
        ),
        (
            Results(GOOD, [PASSED, FAILED], broken=["x"]),
            "4 claims put to the test on lab, 4 as expected; 2 other checks, 2 failed",
            False,
        ),
        (
            Results([SKIPPED], elsewhere=["two", "three"]),
            "0 claims put to the test on lab, 0 as expected; 1 not here; 2 need another lab",
            True,
        ),
        (
            Results(GOOD[:1], signum=15),
            "1 claim put to the test on lab, 1 as expected; interrupted",
            True,
        ),
        (Results([]), "0 claims put to the test on lab, 0 as expected", True),
        (Results(broken=["test_x.py"]), "0 claims put to the test on lab, 0 as expected", False),
    ],
)
def test_the_last_line(results: Results, words: str, fine: bool) -> None:
    line = terminal.closing(results, "lab", 1.234)
    assert plain(line) == f"\n{words} (1.2 s)"
    assert red(line) is not fine
    assert terminal.is_good(results) is fine


# -- several labs ------------------------------------------------------------------


def run(name: str, *findings: Finding, **more: Any) -> LabRun:
    return LabRun(name, Results(list(findings), **more), 1.5, 2.0, 0.5, {})


MISSING = Finding("two", "not here", reason="no docker")


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (MISSING, good("two"), good("two")),  # what was decided anywhere is decided
        (good("two"), WRONG, WRONG),
        (MISSING, WRONG, WRONG),
        (MISSING, Finding("two", None, problem="x"), Finding("two", None, problem="x")),
        (MISSING, MISSING, MISSING),
        (WRONG, Finding("two", None, problem="later"), WRONG),  # the first of the worst
    ],
)
def test_merged_takes_the_worst(first: Finding, second: Finding, kept: Finding) -> None:
    for order in ((first, second), (second, first)):
        if order[0] is not first and first != second and kept is first:
            continue  # of two that are equally bad the first stays
        merged = terminal.merged([run("a", order[0]), run("b", order[1])])
        assert merged.findings == [kept]


def test_merged_keeps_the_order_of_the_catalogue_and_all_else() -> None:
    runs = [
        run("a", good("four"), good("two"), checks=[PASSED]),
        run("b", good("one"), good("two"), checks=[FAILED], broken=["x"], signum=2),
    ]
    merged = terminal.merged(runs)
    assert [f.claim for f in merged.findings] == ["one", "two", "four"]
    assert (merged.checks, merged.broken, merged.signum) == ([PASSED, FAILED], ["x"], 2)
    assert merged.interrupted
    assert not terminal.merged(runs[:1]).interrupted
    assert terminal.merged([]) == Results()


def test_the_overview_has_a_line_a_lab() -> None:
    runs = [run("two-node", *GOOD, checks=[PASSED]), run("docker-single", SKIPPED, WRONG)]
    text = plain(terminal.overview(runs))
    lines = cells(text)
    assert lines[0] == [
        *("lab", "up", "confirmed", "depends", "contradicted", "not", "here"),
        *("unexpected", "checks"),
    ]
    assert lines[1] == ["two-node", "1.50s", "2", "1", "1", "-", "-", "1"]
    assert lines[2] == ["docker-single", "1.50s", "-", "-", "1", "1", "1", "-"]
    assert lines[4] == ["000", "1", "-", "-", "-"], "and the table of all together"
    assert lines[5] == ["002", "-", "1", "1", "1"]
    assert len({len(line) for line in text.splitlines()[1:4]}) == 1


def test_the_last_line_of_several_labs_counts_each_claim_once() -> None:
    runs = [run("a", good("one"), good("two")), run("b", good("one"))]
    assert plain(terminal.closing_all(runs, 61.04)) == (
        "\n2 claims put to the test on 2 labs (a, b), 2 as expected (61.0 s)"
    )


def test_the_machine() -> None:
    (line,) = terminal.machine([])
    assert plain(line).startswith("the machine is as it was: namespaces, links, rules")
    assert not red(line)
    assert plain(terminal.machine(["new link: x", "mount is gone: y"])) == (
        "the machine is not as it was:\n  new link: x\n  mount is gone: y"
    )


# -- data --------------------------------------------------------------------------


def test_the_data_have_each_claim_in_full() -> None:
    results = Results([good("one", seconds=0.5), WRONG], [FAILED], ["other"], ["broken"], 15)
    found = data.to_dict(results, lab="lab", seconds=1.23456, versions={"docker": "20.10"})
    assert json.loads(json.dumps(found)) == found
    assert {k: v for k, v in found.items() if k not in {"claims", "checks"}} == {
        "version": data.VERSION,
        "lab": "lab",
        "seconds": 1.235,
        "versions": {"docker": "20.10"},
        "elsewhere": ["other"],
        "broken": ["broken"],
        "interrupted": True,
    }
    assert found["checks"] == [
        {"name": FAILED.name, "outcome": "failed", "seconds": 0.1, "problem": FAILED.problem}
    ]
    one, two = found["claims"]
    assert one == {
        **CLAIMS["one"].to_dict(),
        "verdict": "confirmed",
        "seconds": 0.5,
        "reason": "",
        "problem": "",
        "evidence": [],
        "measurements": [],
        "expected": "confirmed",
        "as_expected": True,
    }
    assert (two["id"], two["claim"]) == ("two", "The statement of two.")
    assert (two["verdict"], two["as_expected"]) == ("contradicted", False)
    assert two["evidence"][0] == {"what": "node1# ip link", "seen": "1: lo\n2: eth0"}


def test_the_data_of_a_finding_without_a_verdict() -> None:
    found = data.to_dict(Results([BROKEN]), lab="lab", seconds=0, versions={})
    (one,) = found["claims"]
    assert (one["verdict"], one["as_expected"]) == (None, False)
    assert one["problem"] == "LabError: the node is gone"
    assert found["interrupted"] is False
