"""Results of a run: terminal, data, JUnit XML, and the stored last run."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from catalogues import of_claims

from testbed import __version__
from testbed.claims.model import JUDGEMENTS, Claim, Evidence, Finding, Measurement, Verdict
from testbed.claims.observation import Observation
from testbed.errors import NothingTested, UsageError
from testbed.report import data, html, junit, last, terminal
from testbed.suites.model import Check, LabRun, Results, Run, Selection
from testbed.topology.load import load

LONG = "It is so, and so on, " * 12


def claim(name: str, document: str = "002", expect: Verdict = "confirmed", **more: Any) -> Claim:
    fields: dict[str, Any] = {
        "place": "1.1, line 9",
        "claim": f"The statement of {name}.",
        "kind": "state",
        "needs": ("docker",),
        "check": "Look.",
        "why": "" if expect in ("confirmed", "not testable") else f"The reason of {name}.",
    }
    return Claim(name, document, expect=expect, **{**fields, **more})


CLAIMS = {
    c.id: c
    for c in (
        claim("one", "000"),
        claim("two"),
        claim("three", expect="conditional"),
        claim("four", "003", "contradicted"),
        claim("long", "003", claim=LONG),
        claim("word", "004", "not testable", kind="definition", needs=("none",)),
    )
}


CATALOGUE = of_claims(*CLAIMS.values())


def chosen(*args: Any, **more: Any) -> Selection:
    return Selection(*args, **{"catalogue": CATALOGUE, **more})


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def plain(lines: Iterable[str] | str) -> str:
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return click.unstyle(text)


def failures(part: LabRun) -> Iterable[str]:
    return terminal.failures(part, CATALOGUE)


TWO_NODE = load("two-node")


def lab(*findings: Finding, name: str = "lab", **more: Any) -> LabRun:
    """A lab that has said this."""
    results = Results(list(findings), **more)
    return LabRun(name, TWO_NODE, results, up=0.5, seconds=2.0, down=0.25)


def run(*labs: LabRun, **more: Any) -> Run:
    return Run(**{"selection": chosen(), "labs": list(labs), "seconds": 1.234, **more})


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
BROKEN = Finding("one", None, problem="LabError: the node is gone", expected="confirmed")
SKIPPED = Finding("one", "skipped", reason="Skipped: the lab has no docker", expected="confirmed")
SURPRISE = Finding("four", "confirmed", expected="contradicted")
PASSED = Check("tests/test_a.py::test_it", "passed", 0.1)
LEFT_OUT = Check("tests/test_a.py::test_it", "skipped", 0.1, "Skipped: no reason")
FAILED = Check("tests/test_a.py::test_other", "failed", 0.1, "assert 1 == 2\n  +1")


# -- a line ---------------------------------------------------------------------


def test_a_finding_is_a_line() -> None:
    def line(found: Finding) -> str:
        return plain(terminal.line(found, CATALOGUE))

    assert line(good("two")) == "  confirmed     002  The statement of two."
    assert line(good("four")) == "  contradicted  003  The statement of four."
    assert line(BROKEN) == "  error         000  The statement of one."


def test_a_skipped_claim_has_its_reason() -> None:
    assert plain(terminal.line(SKIPPED, CATALOGUE)) == (
        "  skipped       000  The statement of one.  (the lab has no docker)"
    )
    long = Finding("one", "skipped", reason="no " * 60)
    assert plain(terminal.line(long, CATALOGUE)).endswith("no …)")


def test_skipped_claims_are_counted_by_reason() -> None:
    reason = "the lab has no docker"
    parts = lab(SKIPPED, replace(SKIPPED, claim="two"), replace(SKIPPED, claim="three", reason="x"))
    decided = lab(good("three"))
    assert cells(plain(terminal.skipped(run(parts, decided)))) == [
        ["Skipped:"],
        ["2", *reason.split()],
    ]
    assert not plain(terminal.skipped(run(decided)))


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_line_stays_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = plain(terminal.line(good("long"), CATALOGUE))
    assert len(text) <= max(columns, 100)
    assert "\n" not in text
    assert text.endswith("…")


def test_a_check_is_a_line() -> None:
    assert plain(terminal.line(PASSED, CATALOGUE)) == "  passed        tests/test_a.py::test_it"
    assert plain(terminal.line(FAILED, CATALOGUE)) == "  failed        tests/test_a.py::test_other"


def test_what_checks_have_measured_is_a_table_of_labs() -> None:
    def check(*figures: float) -> Check:
        series = {"link cut": figures, "etcd killed": (0.0,)}
        one = Measurement("until traffic flows again", "s", series, "lower")
        return Check("test_figures", "passed", 0.1, measurements=(one,))

    whole = run(
        lab(checks=[check(0.25, 0.5, 0.25)], name="vxlan"),
        lab(checks=[check(2.0)], name="udp"),
        lab(name="other"),
    )
    assert plain(terminal.measured(whole)).splitlines() == [
        "",
        "  until traffic flows again, s: median ± spread",
        "                        vxlan             udp           other",
        "  link cut        0.25 ± 0.25           2 ± 0               -",
        "  etcd killed           0 ± 0           0 ± 0               -",
    ]
    assert list(terminal.measured(run(lab(checks=[PASSED])))) == []


def red(text: str) -> bool:
    return click.style("", fg="red", reset=False) in text


@pytest.mark.parametrize(
    ("found", "alarming"),
    [
        (good("two"), False),
        (good("four"), False),  # contradicted, as was expected
        (SKIPPED, False),
        (WRONG, True),
        (SURPRISE, True),  # whichever way it goes
        (Finding("three", "inconclusive", expected="conditional"), False),  # a noisy machine
        (BROKEN, True),
        (PASSED, False),
        (FAILED, True),
        (Check("a", "skipped", 0.0), False),
    ],
)
def test_red_is_what_was_not_expected(found: Finding | Check, alarming: bool) -> None:
    assert red(terminal.line(found, CATALOGUE)) is alarming


# -- failures --------------------------------------------------------------------


def test_what_is_as_expected_is_no_failure() -> None:
    assert list(failures(lab(*GOOD, SKIPPED, checks=[PASSED]))) == []


def test_an_unexpected_verdict_is_shown_with_its_evidence() -> None:
    assert plain(failures(lab(good("one"), WRONG))) == (
        "\ntwo  on lab  (002, 1.1, line 9)\n"
        "  claim:    The statement of two.\n"
        "  expected: confirmed\n"
        "  seen:     contradicted; expected confirmed: docker0 is there\n"
        "  does not hold: docker0\n"
        "  node1# ip link\n"
        "      1: lo\n"
        "      2: eth0"
    )


def test_what_was_judged_comes_first_and_outputs_are_cut() -> None:
    found = replace(
        WRONG,
        evidence=[
            Evidence("node1# ip route", "\n".join(f"line {n}" for n in range(30))),
            Evidence("holds", "docker0 is up"),
            Evidence("node1# ip -j link", "x" * 1000),
            Evidence("does not hold even when", "docker0 has an address"),
        ],
    )
    lines = plain(failures(lab(found))).splitlines()
    assert lines[5:8] == [
        "  does not hold even when: docker0 has an address",
        "  holds: docker0 is up",
        "  node1# ip route",
    ]
    assert lines[17:20] == ["      line 9", "      [160 more characters]", "  node1# ip -j link"]
    assert lines[20:22] == ["      " + "x" * 200, "      [800 more characters]"]
    assert "--html FILE" in lines[-1]


def test_evidence_as_a_line() -> None:
    assert terminal.piece(Evidence("holds", "docker0 is up")) == "holds: docker0 is up"
    assert terminal.piece(Evidence("node1# ip link", "1: lo")) == "node1# ip link"


def test_every_judgement_is_known() -> None:
    notes = Observation()
    for value in (True, False):
        notes.holds(value, "x")
        notes.holds_when("x", value)
        notes.fails_when("x", value)
    notes.unclear("x")
    assert {one.what for one in notes.evidence} == set(JUDGEMENTS)


def test_a_check_that_failed_itself_is_shown_with_its_problem() -> None:
    text = plain(failures(lab(BROKEN)))
    assert "  seen:     LabError: the node is gone" in text
    other = Finding("three", "confirmed", expected="conditional", why="The reason of three.")
    text = plain(failures(lab(other)))
    assert "  expected: conditional, The reason of three." in text


def test_failed_checks_and_suites_that_cannot_be_loaded() -> None:
    found = lab(checks=[PASSED, FAILED], broken=["test_x.py: SyntaxError\nline 1"])
    assert plain(failures(found)) == (
        "\ntests/test_a.py::test_other\n  assert 1 == 2\n    +1\n"
        "\na suite could not be loaded\n  test_x.py: SyntaxError\n  line 1"
    )


# -- the table ---------------------------------------------------------------------


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


TESTABLE = chosen(documents=("000", "002", "003"))


def test_the_table_counts_by_document() -> None:
    text = plain(terminal.table(run(lab(good("one"), WRONG, *GOOD[2:]), selection=TESTABLE)))
    assert cells(text)[:4] == [
        ["document", "confirmed", "conditional", "contradicted", "unexpected"],
        ["000", "1", "-", "-", "-"],
        ["002", "-", "1", "1", "1"],
        ["003", "-", "-", "1", "-"],
    ]
    lengths = {len(line) for line in text.splitlines()[1:5]}
    assert len(lengths) == 1, "the columns stand below each other"


def test_the_table_counts_each_claim_once_and_at_its_worst() -> None:
    text = plain(terminal.table(run(lab(*GOOD), lab(SKIPPED, WRONG), selection=TESTABLE)))
    assert cells(text)[:4] == [
        ["document", "confirmed", "conditional", "contradicted", "unexpected"],
        ["000", "1", "-", "-", "-"],  # of what was decided anywhere it does not matter where not
        ["002", "-", "1", "1", "1"],
        ["003", "-", "-", "1", "-"],
    ]


def test_the_table_of_a_complete_run_has_every_claim() -> None:
    text = plain(terminal.table(run(lab(*GOOD), complete=True)))
    assert cells(text)[:5] == [
        [
            *("document", "confirmed", "conditional", "contradicted", "not", "testable"),
            *("undecided", "unexpected"),
        ],
        ["000", "1", "-", "-", "-", "-", "-"],
        ["002", "1", "1", "-", "-", "-", "-"],
        ["003", "-", "-", "1", "-", "1", "-"],
        ["004", "-", "-", "-", "1", "-", "-"],
    ]


def test_the_table_says_what_is_not_as_the_documents_say() -> None:
    text = plain(terminal.table(run(lab(*GOOD))))
    told = text.partition("Differs from the documents:")[2].splitlines()[1:]
    assert told == [
        "  002  The statement of three. conditional: The reason of three.",
        "  003  The statement of four. contradicted: The reason of four.",
    ]
    assert "Not as the documents" not in plain(terminal.table(run(lab(good("one"), WRONG))))


def test_a_run_of_checks_alone_has_no_table() -> None:
    tests = chosen(paths=(Path("tests"),))
    assert list(terminal.table(run(lab(checks=[PASSED]), selection=tests))) == []


def test_a_broken_finding_is_in_the_table_as_unexpected() -> None:
    broken = run(lab(BROKEN), selection=chosen(documents=("000",)))
    assert cells(plain(terminal.table(broken))) == [
        ["document", "undecided", "unexpected"],
        ["000", "1", "1"],
    ]


# -- the end -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "words", "fine"),
    [
        (lab(*GOOD), "4 claims checked on lab, 4 as expected", True),
        (
            lab(good("one"), WRONG, BROKEN),
            "2 claims checked on lab, 0 as expected",
            False,
        ),
        (
            lab(*GOOD, checks=[PASSED, FAILED], broken=["x"]),
            "4 claims checked on lab, 4 as expected; 2 other checks, 1 failed"
            "; 1 suite cannot be loaded",
            False,
        ),
        (
            lab(good("two"), SKIPPED, elsewhere=["two", "three"]),
            "1 claim checked on lab, 1 as expected; 1 skipped; 2 need another lab",
            True,
        ),
        (
            lab(good("one"), Finding("three", "inconclusive", expected="conditional")),
            "2 claims checked on lab, 2 as expected",
            True,
        ),
        (lab(good("one")), "1 claim checked on lab, 1 as expected", True),
        (
            lab(checks=[PASSED]),
            "0 claims checked on lab, 0 as expected; 1 other checks, 0 failed",
            True,
        ),
        (
            lab(broken=["test_x.py", "test_y.py"]),
            "0 claims checked on lab, 0 as expected; 2 suites cannot be loaded",
            False,
        ),
    ],
)
def test_the_last_line(part: LabRun, words: str, fine: bool) -> None:
    line = terminal.closing(run(part))
    assert plain(line) == f"\n{words} (1.2 s)"
    assert red(line) is not fine
    assert part.results.is_good is fine


@pytest.mark.parametrize("part", [lab(), lab(SKIPPED), lab(checks=[LEFT_OUT])])
def test_the_last_line_of_a_run_that_tested_nothing(part: LabRun) -> None:
    line = terminal.closing(run(part))
    assert "nothing was tested" in plain(line)
    assert red(line)


def test_the_last_line_of_several_labs_counts_each_claim_once() -> None:
    many = run(
        lab(good("one"), good("two"), name="a", elsewhere=["x"]),
        lab(good("one"), name="b", elsewhere=["x", "y"]),
        LabRun("no lab", results=Results([good("three")])),
    )
    words = "\n3 claims checked on 2 labs, 3 as expected"
    assert plain(terminal.closing(many)) == f"{words}; 2 need another lab (1.2 s)"
    many.complete = True  # then there is no other lab
    assert plain(terminal.closing(many)) == f"{words} (1.2 s)"


def test_the_last_line_without_any_lab() -> None:
    line = terminal.closing(run(LabRun("no lab", results=Results([good("one")]))))
    assert plain(line).startswith("\n1 claim checked on no lab, 1 as expected")


def test_the_last_line_of_a_run_that_broke_off() -> None:
    line = terminal.closing(run(lab(good("one")), signum=15))
    assert plain(line).endswith("1 as expected; interrupted (1.2 s)")
    assert red(line)
    failed = LabRun("b", error="no vxlan", status=3)
    line = terminal.closing(run(lab(good("one")), failed))
    assert plain(line).endswith("1 as expected; 1 lab failed (1.2 s)")
    assert red(line)
    assert "2 labs failed" in plain(terminal.closing(run(failed, failed)))


# -- several labs ------------------------------------------------------------------


def test_the_overview_has_a_line_a_lab() -> None:
    labs = [
        LabRun("no lab", results=Results([good("one")])),
        lab(*GOOD, name="two-node", checks=[PASSED]),
        lab(SKIPPED, WRONG, name="docker-single"),
    ]
    text = plain(terminal.overview(run(*labs)))
    assert cells(text) == [
        [
            *("lab", "up", "confirmed", "conditional", "contradicted", "skipped"),
            *("unexpected", "checks", "time"),
        ],
        ["no", "lab", "-", "1", "-", "-", "-", "-", "-", "0.0", "s"],
        ["two-node", "0.50", "s", "2", "1", "1", "-", "-", "1", "2.0", "s"],
        ["docker-single", "0.50", "s", "-", "-", "1", "1", "1", "-", "2.0", "s"],
    ]
    assert len({len(line) for line in text.splitlines()[1:]}) == 1


def test_what_is_not_the_same_on_every_lab() -> None:
    labs = [
        lab(good("two"), good("three"), good("four"), SKIPPED, name="a"),
        lab(WRONG, good("three"), BROKEN, name="b"),
        lab(good("two"), SURPRISE, good("one"), name="c"),
    ]
    assert plain(terminal.differences(run(*labs))) == (
        "\n  Verdict differs between labs:\n"
        "  000  The statement of one. error on b; confirmed on c\n"
        "  002  The statement of two. confirmed on a, c; contradicted on b\n"
        "  003  The statement of four. contradicted on a; confirmed on c"
    )
    assert list(terminal.differences(run(labs[0], labs[0]))) == []
    assert list(terminal.differences(run(lab(SKIPPED), lab(good("one"))))) == []


def test_the_slowest() -> None:
    labs = [
        lab(good("one", seconds=0.5), good("two", seconds=2.25), name="a"),
        lab(good("one", seconds=0.75), name="b", checks=[PASSED]),
    ]
    assert plain(terminal.slowest(run(*labs), 2)) == (
        "\n  The slowest 2:\n     2.25 s  two  a\n     0.75 s  one  b"
    )
    assert list(terminal.slowest(run(*labs), 4)) == [], "of so few each is seen anyway"


def test_what_no_lab_has_decided() -> None:
    some = run(lab(good("one"), good("two")), complete=True)
    assert plain(terminal.undecided(some)) == "\n  Not decided by any lab:\n  three\n  four\n  long"
    some.signum = 2  # nobody expects more, then
    assert list(terminal.undecided(some)) == []
    assert list(terminal.undecided(run(lab(good("one"))))) == []


@pytest.mark.parametrize(
    ("part", "line", "fine"),
    [
        (
            lab(*GOOD, SKIPPED, name="two-node"),
            "  ok    two-node                   up  0.50 s    5 as expected    2.0 s",
            True,
        ),
        (
            LabRun("no lab", results=Results([good("one")]), seconds=0.5),
            "  ok    no lab                       1 as expected    0.5 s",
            True,
        ),
        (
            lab(good("one"), WRONG, checks=[PASSED, FAILED], broken=["x"]),
            "  FAIL  lab                        up  0.50 s    1 as expected, 3 not    2.0 s",
            False,
        ),
        (
            lab(good("one"), signum=2),
            "  ok    lab                        up  0.50 s    1 as expected, interrupted    2.0 s",
            True,
        ),
        (
            LabRun("lab", error="Traceback\n  File\nValueError: odd\n"),
            "  FAIL  lab                          0 as expected  ValueError: odd    0.0 s",
            False,
        ),
    ],
)
def test_a_lab_that_has_ended_is_a_line(part: LabRun, line: str, fine: bool) -> None:
    text = terminal.lab_line(part)
    assert plain(text) == line
    assert red(text) is not fine


def test_why_labs_could_not_be_put_to_the_test() -> None:
    labs = [lab(*GOOD), LabRun("b", error="no vxlan\n  -> load it\n", status=3)]
    assert plain(terminal.errors(run(*labs))) == "\nb\n  no vxlan\n    -> load it"


def test_the_machine() -> None:
    (line,) = terminal.machine([])
    assert not red(line)
    first, *others = terminal.machine(["new link: x", "mount is gone: y"])
    assert red(first)
    assert others == ["  new link: x", "  mount is gone: y"]


# -- results of a run ----------------------------------------------------------------

MISSING = Finding("two", "skipped", reason="no docker", expected="confirmed")
NOISY = Finding("two", "inconclusive", expected="confirmed")


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (MISSING, good("two"), good("two")),  # what was decided anywhere is decided
        (NOISY, good("two"), good("two")),
        (MISSING, NOISY, NOISY),
        (good("two"), WRONG, WRONG),
        (MISSING, WRONG, WRONG),
        (NOISY, WRONG, WRONG),
        (MISSING, Finding("two", None, problem="x"), Finding("two", None, problem="x")),
        (MISSING, MISSING, MISSING),
        (
            good("two"),
            Finding("two", "contradicted", expected="contradicted"),
            Finding("two", "contradicted", expected="contradicted"),
        ),
        (
            good("two"),
            Finding("two", "conditional", expected="conditional"),
            Finding("two", "conditional", expected="conditional"),
        ),
        (  # as expected counts for less than a surprise, whichever way it goes
            Finding("two", "contradicted", expected="contradicted"),
            Finding("two", "confirmed", expected="contradicted"),
            Finding("two", "confirmed", expected="contradicted"),
        ),
    ],
)
def test_a_claim_is_as_good_as_its_worst_finding(
    first: Finding, second: Finding, kept: Finding
) -> None:
    for order in ((first, second), (second, first)):
        assert run(*map(lab, order)).worst() == {"two": kept}


def test_of_two_that_are_equally_bad_the_first_stays() -> None:
    later = Finding("two", None, problem="later")
    assert run(lab(WRONG), lab(later)).worst()["two"] is WRONG
    assert run(lab(later), lab(WRONG)).worst()["two"] is later


def test_by_claim_is_in_the_order_of_the_catalogue() -> None:
    a, b = lab(good("four"), good("two")), lab(good("one"), WRONG)
    found = run(a, b).by_claim()
    assert list(found) == ["one", "two", "four"]
    assert found["two"] == [(a, good("two")), (b, WRONG)]
    assert run().by_claim() == {}
    assert run().worst() == {}


def names(claims: Iterable[Claim]) -> list[str]:
    return [claim.id for claim in claims]


ALL = ["one", "two", "three", "four", "long", "word"]


@pytest.mark.parametrize(
    ("selection", "complete", "meant", "undecided"),
    [
        (chosen(), False, ["one", "word"], []),
        (chosen(), True, ALL, ["two", "three", "four", "long"]),
        (chosen(documents=("002",)), True, ["one", "two", "three"], ["two", "three"]),
        (chosen(claims=("one", "four")), True, ["one", "four"], ["four"]),
        (chosen(claims=("word",)), True, ["one", "word"], []),
        (chosen("one"), False, ["one"], []),
        (chosen(paths=(Path("x"),)), False, ["one"], []),
        (chosen(tests=("test_it",)), True, ["one"], []),
    ],
)
def test_what_a_run_is_about(
    selection: Selection, complete: bool, meant: list[str], undecided: list[str]
) -> None:
    found = run(lab(good("one")), selection=selection, complete=complete)
    assert names(found.meant()) == meant
    assert found.undecided() == undecided


def test_the_verdict_in_all() -> None:
    found = run(lab(good("one"), good("three")), lab(BROKEN), complete=True)
    worst = found.worst()
    assert {name: found.verdict(claim, worst) for name, claim in CLAIMS.items()} == {
        "one": None,
        "two": None,
        "three": "conditional",
        "four": None,
        "long": None,
        "word": "not testable",
    }


DOWN = LabRun("b", error="no vxlan", status=3)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (run(lab(*GOOD, SKIPPED, checks=[PASSED])), 0),
        (run(lab(*GOOD), lab(WRONG)), 1),
        (run(lab(*GOOD, checks=[FAILED])), 1),
        (run(lab(*GOOD, broken=["x"])), 1),
        (run(lab(*GOOD), DOWN), 3),
        (run(DOWN, LabRun("c", error="it died", status=4)), 4),
        (run(DOWN, lab(WRONG)), 1),
        (run(lab(*GOOD), complete=True), 1),  # "long" is undecided
        (run(lab(*GOOD, good("long")), complete=True), 0),
        (run(lab(*GOOD), DOWN, complete=True), 3),
        (run(lab(*GOOD, signum=15)), 1),  # somebody has ended one lab, not us
        (run(lab(*GOOD, signum=15), signum=15), 143),
        (run(lab(WRONG), signum=2), 130),
        (run(lab(SKIPPED)), 5),  # nothing tested is not fine
        (run(lab(SKIPPED, checks=[LEFT_OUT]), lab(elsewhere=["x"])), 5),
        (run(), 5),
        (run(lab(SKIPPED), DOWN), 3),
        (run(lab(SKIPPED), signum=2), 130),
        (run(lab(SKIPPED), lab(*GOOD)), 0),
        (run(lab(SKIPPED, checks=[PASSED])), 0),
        (run(lab(Finding("one", "inconclusive", expected="confirmed"))), 0),
    ],
)
def test_the_exit_status(found: Run, status: int) -> None:
    assert found.status == status


def test_a_lab_with_nothing_to_say() -> None:
    assert LabRun("a", up=1.0, seconds=2.0).is_empty
    assert lab(elsewhere=["one"]).is_empty
    for part in (lab(SKIPPED), lab(checks=[PASSED]), lab(broken=["x"]), lab(signum=2), DOWN):
        assert not part.is_empty


# -- what is selected -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "has"),
    [
        (chosen(), ALL),
        (chosen("any"), ALL),  # pytest decides
        (chosen(paths=(Path("x"),)), ALL),
        (chosen(claims=("two", "four")), ["two", "four"]),
        (chosen(documents=("000", "003")), ["one", "four", "long"]),
        (chosen(claims=("two", "four"), documents=("003",)), ["four"]),
        (chosen(of=("002", "003")), ["two", "three", "four", "long"]),
        (chosen(of=("002", "003"), documents=("000", "003")), ["four", "long"]),
        (chosen(of=("002",), claims=("two", "four")), ["two"]),
        (chosen(tests=("test_it",)), []),
        (chosen(tests=("test_it",), claims=("one",)), ["one"]),
    ],
)
def test_which_claims_a_selection_has(selection: Selection, has: list[str]) -> None:
    assert names(claim for claim in CLAIMS.values() if selection.has(claim)) == has


def test_whether_all_that_a_selection_has_is_to_be_decided() -> None:
    assert chosen(claims=("one",), documents=("000",), tests=("x",)).is_by_claims
    assert not chosen("one").is_by_claims
    assert not chosen(paths=(Path("x"),)).is_by_claims
    assert not chosen("x", documents=("000",)).names_some
    assert chosen(tests=("x",)).names_some


# -- data --------------------------------------------------------------------------

FIGURES = Measurement("throughput", "Gbit/s", {"udp": (1.0, 1.5), "vxlan": (9.0, 9.5)}, "higher")


def test_the_data_have_each_lab_and_each_claim_in_full() -> None:
    part = lab(
        good("one", seconds=0.51239, measurements=[FIGURES]), WRONG,
        checks=[FAILED], elsewhere=["other"], broken=["broken"], signum=15,
    )  # fmt: skip
    part.facts, part.versions = {"docker": "20.10.24"}, {"docker": "20.10"}
    part.picture, part.error = {"nodes": []}, "it died"
    found = data.to_dict(run(part, started=1.5, seconds=1.23456, signum=15))
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, default=str))
    assert {k: v for k, v in found.items() if k not in {"labs", "claims", "machine"}} == {
        "catalogues": [],
        "documents": [CATALOGUE.documents[name].to_dict() for name in ("000", "002", "004")],
        "version": data.VERSION,
        "testbed": __version__,
        "started": "1970-01-01T00:00:01Z",
        "seconds": 1.235,
        "interrupted": True,
        "complete": False,
    }
    (told,) = found["labs"]
    one, two = told.pop("findings")
    assert told == {
        "lab": "lab",
        "topology": TWO_NODE.to_dict(),
        "facts": {"docker": "20.10.24"},
        "versions": {"docker": "20.10"},
        "picture": {"nodes": []},
        "up": 0.5,
        "seconds": 2.0,
        "down": 0.25,
        "error": "it died",
        "absent": "",
        "interrupted": True,
        "checks": [
            {
                "name": FAILED.name,
                "outcome": "failed",
                "seconds": 0.1,
                "problem": FAILED.problem,
                "evidence": (),
                "measurements": (),
            }
        ],
        "elsewhere": ["other"],
        "missed": [],
        "broken": ["broken"],
    }
    assert one == {
        "claim": "one",
        "verdict": "confirmed",
        "seconds": 0.5124,
        "reason": "",
        "problem": "",
        "missing": "",
        "evidence": [],
        "measurements": [
            {
                "what": "throughput",
                "unit": "Gbit/s",
                "series": {"udp": (1.0, 1.5), "vxlan": (9.0, 9.5)},
                "better": "higher",
            }
        ],
        "expected": "confirmed",
        "why": "",
        "as_expected": True,
    }
    assert (two["claim"], two["verdict"], two["as_expected"]) == ("two", "contradicted", False)
    assert two["evidence"][0] == {"what": "node1# ip link", "seen": "1: lo\n2: eth0"}
    assert found["claims"] == [
        {
            **CLAIMS["one"].to_dict(),
            "translations": {},
            "verdict": "confirmed",
            "as_expected": True,
        },
        {
            **CLAIMS["two"].to_dict(),
            "translations": {},
            "verdict": "contradicted",
            "as_expected": False,
        },
        {
            **CLAIMS["word"].to_dict(),
            "translations": {},
            "verdict": "not testable",
            "as_expected": True,
        },
    ]


def verdicts(found: dict[str, Any]) -> dict[str, tuple[Verdict | None, bool]]:
    return {claim["id"]: (claim["verdict"], claim["as_expected"]) for claim in found["claims"]}


def test_the_data_of_a_run_of_every_lab_have_every_claim() -> None:
    found = data.to_dict(run(lab(good("one"), good("three")), lab(BROKEN), complete=True))
    assert verdicts(found) == {
        "one": (None, False),
        "two": (None, False),  # undecided
        "three": ("conditional", True),
        "four": (None, False),
        "long": (None, False),
        "word": ("not testable", True),
    }
    assert found["labs"][1]["findings"][0]["problem"] == "LabError: the node is gone"


def test_the_data_without_a_lab() -> None:
    found = data.to_dict(run(LabRun("no lab", results=Results([good("one")]))))
    assert found["labs"][0]["topology"] is None


def test_the_machine_is_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.machine()
    assert set(found) == {"kernel", "system", "architecture", "cpus", "memory"}
    assert found["kernel"] == os.uname().release
    assert found["cpus"] >= 1
    assert found["memory"] > 2**20

    def none() -> dict[str, str]:
        raise OSError

    monkeypatch.setattr("platform.freedesktop_os_release", none)
    assert data.machine()["system"] == "Linux"


# -- JUnit XML -----------------------------------------------------------------------

#: What a CI service's reader takes: of each element the attributes and children it may have,
#: after the schema of Jenkins' xUnit plugin.
SHAPE: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": ({"name", "time"}, {"testsuite"}),
    "testsuite": ({"name", "time", "tests", "failures", "errors", "skipped"}, {"testcase"}),
    "testcase": (
        {"classname", "name", "time"},
        {"failure", "error", "skipped", "system-out"},
    ),
    "failure": ({"message"}, set()),
    "error": ({"message"}, set()),
    "skipped": ({"message"}, set()),
    "system-out": (set(), set()),
}


def parsed(found: Run) -> ET.Element:
    """The XML of a run, as a strict reader sees it."""
    root = ET.fromstring(junit.to_xml(found))  # our own
    for element in root.iter():
        attributes, children = SHAPE[element.tag]
        assert set(element.keys()) == attributes, element.tag
        assert {child.tag for child in element} <= children, element.tag
    for suite in root:
        for attribute, tag in {
            "tests": "testcase",
            "failures": "failure",
            "errors": "error",
            "skipped": "skipped",
        }.items():
            assert int(suite.get(attribute, "")) == len(list(suite.iter(tag)))
        for case in suite:
            assert sum(child.tag != "system-out" for child in case) <= 1
    return root


def outcomes(suite: ET.Element) -> list[tuple[str | None, str, str | None]]:
    """Each case's name, what became of it, and its message."""
    found: list[tuple[str | None, str, str | None]] = []
    for case in suite:
        said = next((child for child in case if child.tag != "system-out"), None)
        word, message = ("", None) if said is None else (said.tag, said.get("message"))
        found.append((case.get("name"), word, message))
    return found


def test_a_suite_a_lab_and_a_case_a_claim() -> None:
    noisy = Finding("two", "inconclusive", expected="confirmed", seconds=0.25)
    root = parsed(
        run(
            lab(good("one", seconds=0.5), WRONG, good("four"), name="a", checks=[PASSED, FAILED]),
            lab(SKIPPED, noisy, BROKEN, name="b", broken=["test_x.py: SyntaxError\nline 1"]),
            LabRun("c", error="no vxlan\n  -> load it"),
            seconds=1.5,
        )
    )
    assert (root.get("name"), root.get("time")) == ("testbed", "1.500")
    a, b, c = root
    assert outcomes(a) == [
        ("one", "", None),
        ("two", "failure", "contradicted: expected confirmed: docker0 is there"),
        ("four", "", None),  # contradicted, as was expected
        (PASSED.name, "", None),
        (FAILED.name, "failure", "assert 1 == 2"),
    ]
    assert a.attrib == {
        "name": "a",
        "time": "2.000",
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "0",
    }
    assert [(case.get("classname"), case.get("time")) for case in a][:2] == [
        ("a.000", "0.500"),
        ("a.002", "0.000"),
    ]
    assert a[1].findtext("system-out") == ("node1# ip link\n1: lo\n2: eth0\ndoes not hold\ndocker0")
    assert a[4].findtext("failure") == FAILED.problem
    assert outcomes(b) == [
        ("one", "skipped", "Skipped: the lab has no docker"),
        ("two", "", None),
        ("one", "error", "LabError: the node is gone"),
        ("lab", "error", "test_x.py: SyntaxError"),
    ]
    assert outcomes(c) == [("lab", "error", "no vxlan")]
    assert c.findtext("testcase/error") == "no vxlan\n  -> load it"


def test_evidence_of_an_ordinary_check() -> None:
    check = Check("test_a", "passed", 0.0, evidence=(Evidence("node1# ip link", "1: lo"),))
    root = parsed(run(lab(checks=[check])))
    assert root.findtext("testsuite/testcase/system-out") == "node1# ip link\n1: lo"


def test_a_check_that_is_skipped() -> None:
    skipped = Check("tests/test_a.py::test_it", "skipped", 0.0, "no docker\nat all")
    root = parsed(run(lab(checks=[skipped])))
    assert outcomes(root[0]) == [(skipped.name, "skipped", "no docker")]


HOSTILE = (
    '<a href="x">&amp; ]]> \x1b[31mred\x1b[0m \x00\x07\x08\x0b\x0c\x7f \ud800 \ufffe \uffff '
    "\U0001f600 容器网络\t'\n-->"
)


def test_whatever_a_command_prints_is_xml() -> None:
    finding = Finding(
        "two", "contradicted", expected="confirmed", reason=HOSTILE,
        evidence=[Evidence(HOSTILE, HOSTILE)],
    )  # fmt: skip
    broken = Finding("one", None, problem=HOSTILE)
    skipped = Finding("three", "skipped", reason=HOSTILE, expected="conditional")
    check = Check(f"test_a[{HOSTILE}]", "failed", 0.0, HOSTILE)
    part = lab(finding, broken, skipped, checks=[check], broken=[HOSTILE])
    part.error = HOSTILE
    root = parsed(run(part))
    text = root.findtext("testsuite/testcase/failure") or ""
    bad = re.compile("[\x00\x07\x08\x0b\x0c\x1b\ud800\ufffe\uffff]")
    assert text == f"contradicted: {bad.sub(chr(0xFFFD), HOSTILE)}"
    assert "容器网络" in text
    assert "\U0001f600" in text
    assert (root[0].get("tests"), root[0].get("errors")) == ("6", "3")


def test_no_run_is_too_small_for_xml() -> None:
    assert list(parsed(run())) == []
    assert list(parsed(run(LabRun("a")))[0]) == []


# -- kept for the next run ----------------------------------------------------------------


def keep(state: Path, found: Run) -> None:
    last.keep(state, data.to_dict(found))


def test_it_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    keep(tmp_path, run())
    assert sorted(path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")) == [0o600, 0o700]


def test_what_failed_can_be_run_again(tmp_path: Path) -> None:
    keep(
        tmp_path, run(lab(good("one"), WRONG, checks=[PASSED, FAILED]), lab(SURPRISE, good("two")))
    )
    assert last.failed(tmp_path, chosen()) == chosen(claims=("four", "two"), tests=(FAILED.name,))
    (kept,) = (tmp_path / last.FOLDER).iterdir()
    assert kept.name == last.FILE, "nothing half-written is left beside it"


@pytest.mark.parametrize("part", [lab(SKIPPED), lab(checks=[LEFT_OUT])])
def test_a_last_run_that_tested_nothing_has_not_gone_well(part: LabRun, tmp_path: Path) -> None:
    keep(tmp_path, run(part))
    with pytest.raises(NothingTested):
        last.failed(tmp_path, chosen())


def of_version_2(found: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the verdicts' names of that version."""
    old_keys = {
        key: value for key, value in found.items() if key not in {"catalogues", "documents"}
    }
    claims = [{k: v for k, v in one.items() if k != "translations"} for one in found["claims"]]
    text = json.dumps({**old_keys, "claims": claims, "version": 2})
    text = text.replace('"skipped"', '"not here"').replace('"conditional"', '"depends"')
    old: dict[str, Any] = json.loads(text)
    return old


def test_a_record_of_version_2_gets_the_present_verdicts() -> None:
    found = json.loads(json.dumps(data.to_dict(run(lab(*GOOD, SKIPPED)))))
    old = data.current(of_version_2(found))
    assert {**old, "documents": found["documents"]} == found
    assert [one["id"] for one in old["documents"]] == ["000", "002", "003", "004"]
    assert html.render(of_version_2(found))
    assert data.current(found) is found
    others: list[Any] = [{}, [], None, {"version": 1}, {"version": data.VERSION + 1}]
    for other in others:
        with pytest.raises(UsageError) as caught:
            data.current(other)
        assert "testbed verify --json" in str(caught.value.hint)


def test_a_last_run_of_version_2_can_be_run_again(tmp_path: Path) -> None:
    last.keep(tmp_path, of_version_2(data.to_dict(run(lab(SKIPPED, WRONG)))))
    assert last.failed(tmp_path, chosen()).claims == ("two",)
    last.keep(tmp_path, of_version_2(data.to_dict(run(lab(SKIPPED)))))
    with pytest.raises(NothingTested):
        last.failed(tmp_path, chosen())


def test_only_the_last_run_counts(tmp_path: Path) -> None:
    keep(tmp_path, run(lab(WRONG)))
    keep(tmp_path, run(lab(good("two"), BROKEN)))
    assert last.failed(tmp_path, chosen()).claims == ("one",)


def test_what_an_interrupted_run_did_not_come_to_is_run_again(tmp_path: Path) -> None:
    keep(tmp_path, run(lab(good("one"), good("three")), complete=True, signum=2))
    assert last.failed(tmp_path, chosen()).claims == ("four", "long", "two")


def test_what_an_interrupted_lab_did_not_come_to_is_run_again(tmp_path: Path) -> None:
    parts = lab(good("one"), missed=["two", "three"], signum=2), lab(good("three"))
    found = run(*parts, selection=chosen("x"), signum=2)
    assert names(found.meant()) == ["one", "two", "three"]
    assert found.undecided() == ["two"], "another lab has decided the third"
    keep(tmp_path, found)
    assert last.failed(tmp_path, chosen()).claims == ("three", "two"), "there it is not known"


def test_a_lab_that_did_not_come_up_is_put_to_the_test_again(tmp_path: Path) -> None:
    broken = lab()
    broken.error = "it did not come up"
    keep(tmp_path, run(lab(good("one"), good("two")), broken))
    assert last.failed(tmp_path, chosen()).claims == ("one", "two")


@pytest.mark.parametrize(
    ("selection", "claims", "tests"),
    [
        (chosen(claims=("two", "one")), ("two",), ()),
        (chosen(claims=("one",)), (), ()),
        (chosen(documents=("003",)), ("four",), ()),
        (chosen(documents=("000",)), (), ()),
        (chosen("x", paths=(Path("y"),)), ("four", "two"), (FAILED.name,)),
    ],
)
def test_a_selection_is_narrowed(
    selection: Selection, claims: tuple[str, ...], tests: tuple[str, ...], tmp_path: Path
) -> None:
    keep(tmp_path, run(lab(good("one"), WRONG, SURPRISE, checks=[FAILED])))
    found = last.failed(tmp_path, selection)
    assert (found.claims, found.tests) == (claims, tests)
    assert (found.expression, found.paths, found.documents) == (
        selection.expression,
        selection.paths,
        selection.documents,
    )
    assert found.names_some is bool(claims or tests)


def test_nothing_failed(tmp_path: Path) -> None:
    keep(tmp_path, run(lab(*GOOD, SKIPPED, checks=[PASSED])))
    assert not last.failed(tmp_path, chosen()).names_some


def test_a_claim_that_is_gone_from_the_catalogue_is_not_run_again(tmp_path: Path) -> None:
    keep(tmp_path, run(lab(WRONG, SURPRISE)))
    left = of_claims(*(claim for claim in CLAIMS.values() if claim.id != "two"))
    assert last.failed(tmp_path, Selection(catalogue=left)).claims == ("four",)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"claims": [{}], "labs": []}', '{"claims": 1}', "\x00"]
)
def test_without_a_last_run_there_is_nothing_to_run_again(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / last.FOLDER).mkdir()
        (tmp_path / last.FOLDER / last.FILE).write_text(text)
    with pytest.raises(UsageError, match="last run") as caught:
        last.failed(tmp_path, chosen())
    assert "without --rerun-failed" in str(caught.value.hint)
