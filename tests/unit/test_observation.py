"""From what a check saw to its verdict: the whole table."""

from __future__ import annotations

import json

import pytest
from walks import dropped

from testbed.claims.model import WALK, Evidence, Finding, Measurement, Verdict
from testbed.claims.observation import LIMIT, Observation, spread
from testbed.errors import CommandError
from testbed.nodes.fake import Answer, FakeProvider
from testbed.testing.provider import spec
from testbed.walk.model import Walk

# A word each: "+" holds, "-" does not; "w" holds when its condition is met, "W" not even then;
# "f" fails as it should under its condition, "F" holds in spite of it; "?" is not clear.
TABLE: list[tuple[str, Verdict | None]] = [
    ("", None),  # a check that tests nothing proves nothing
    ("+", "confirmed"),
    ("-", "contradicted"),
    ("++", "confirmed"),
    ("+-", "contradicted"),
    ("w", "confirmed"),
    ("W", "contradicted"),
    ("wf", "conditional"),  # true under a condition, false without: the document did not say
    ("wwff", "conditional"),
    ("+f", "conditional"),
    ("f", "contradicted"),  # it never holds
    ("ff", "contradicted"),
    ("wF", "confirmed"),  # the condition does not matter: it holds either way
    ("+F", "confirmed"),
    ("F", "confirmed"),
    ("Wf", "contradicted"),  # not even under its condition
    ("-f", "contradicted"),
    ("wWf", "contradicted"),
    ("WF", "contradicted"),  # holds where it should not, and does not where it should
    ("-F", "contradicted"),
    ("wfF", "contradicted"),  # fails, yet not wherever it was foreseen to
    ("?", "inconclusive"),
    ("+?", "inconclusive"),  # of what is said only a part was seen
    ("-?", "contradicted"),  # one part that is false is enough
    ("wf?", "inconclusive"),
    ("W?", "contradicted"),
    ("wfF?", "inconclusive"),
    ("f?", "inconclusive"),
    ("-F?", "contradicted"),
    ("WfF", "contradicted"),
]


def observed(word: str) -> Observation:
    notes = Observation()
    for letter in word:
        match letter:
            case "+" | "-":
                notes.holds(letter == "+", f"test {letter}")
            case "w" | "W":
                notes.holds_when(f"condition {letter}", letter == "w")
            case "f" | "F":
                notes.fails_when(f"condition {letter}", letter == "f")
            case "?":
                notes.unclear("figures")
    return notes


@pytest.mark.parametrize(("word", "verdict"), TABLE)
def test_verdicts(word: str, verdict: Verdict | None) -> None:
    assert observed(word).verdict == verdict
    assert observed(word[::-1]).verdict == verdict  # the order of looking does not matter


def test_what_refutes_is_named() -> None:
    assert observed("+-wWfF").refuted_by == [
        "test -", "condition W", "does not fail even when condition F"
    ]  # fmt: skip
    assert observed("+wf").refuted_by == []


def test_each_test_is_evidence() -> None:
    assert observed("+-wWfF").evidence == [
        Evidence("holds", "test +"),
        Evidence("does not hold", "test -"),
        Evidence("holds when", "condition w"),
        Evidence("does not hold even when", "condition W"),
        Evidence("fails when", "condition f"),
        Evidence("does not fail even when", "condition F"),
    ]


@pytest.mark.parametrize("seen", [[], 0, "", None, {}])
def test_anything_empty_does_not_hold(seen: object) -> None:
    notes = Observation()
    notes.holds(seen, "there is something")
    assert notes.verdict == "contradicted"


def test_notes_are_kept_as_text() -> None:
    notes = Observation()
    notes.note("words", "as they are\n\n")
    notes.note("data", {"a": [1]})
    notes.note("long", "x" * (LIMIT + 10))
    words, data, long = (e.seen for e in notes.evidence)
    assert words == "as they are"
    assert json.loads(data) == {"a": [1]}
    assert long == "x" * LIMIT + "\n[10 more characters]"


def test_what_is_too_long_is_cut_at_a_line() -> None:
    notes = Observation()
    line = "x" * 99 + "\n"
    text = "y" * 50 + "\n" + line * (LIMIT // 100 + 5)
    notes.note("lines", text)
    notes.note("just as long", "x" * LIMIT)
    lines, whole = (e.seen for e in notes.evidence)
    assert whole == "x" * LIMIT
    *kept, last = lines.split("\n")
    assert kept == ["y" * 50, *["x" * 99] * (LIMIT // 100 - 1)]
    assert last == f"[{len(text) - len(line) * (len(kept) - 1) - 51} more characters]"


def test_a_command_is_kept_with_what_it_said() -> None:
    provider = FakeProvider()
    provider.script(["ip"], Answer(out=b'[{"a": 1}]'))
    provider.script(["ping"], Answer(1, out=b"0 received", err=b"unreachable"))
    node = provider.create_one("lab", spec("node1"))
    notes = Observation()
    assert notes.json(node, ["ip", "-j", "link"]) == [{"a": 1}]
    assert not notes.run(node, ["ping", "a b"], check=False).ok
    assert notes.evidence == [
        Evidence("node1# ip -j link", '[{"a": 1}]'),
        Evidence("node1# ping 'a b'", "0 received\nunreachable\n[exit status 1]"),
    ]
    assert notes.verdict is None  # looking is not judging


def test_a_command_that_must_work_is_run_once() -> None:
    provider = FakeProvider()
    provider.script(["ip"], Answer(2, err=b"no"))
    node = provider.create_one("lab", spec("node1"))
    notes = Observation()
    with pytest.raises(CommandError, match="on node1: ip link: exit status 2\n    no"):
        notes.run(node, ["ip", "link"])
    assert notes.evidence == [Evidence("node1# ip link", "\nno\n[exit status 2]")]
    assert provider.asked("run") == [("ip", "link")]


@pytest.mark.parametrize(
    ("verdict", "problem", "expected"),
    [
        ("confirmed", "", True),
        ("contradicted", "", False),
        ("skipped", "", True),
        (None, "", False),
        ("confirmed", "the check failed", False),
        ("inconclusive", "", True),  # of what was measured: the machine was not quiet
    ],
)
def test_as_expected(verdict: Verdict | None, problem: str, expected: bool) -> None:
    found = Finding("id", verdict, problem=problem, expected="confirmed")
    assert found.as_expected is expected


def test_a_lab_that_did_not_settle_is_never_as_expected() -> None:
    found = Finding("id", "inconclusive", missing="a lease of node2", expected="confirmed")
    assert not found.as_expected


# -- measuring -------------------------------------------------------------------


def figures(**series: tuple[float, ...]) -> Measurement:
    return Measurement("throughput", "Gbit/s", series, "higher")


@pytest.mark.parametrize(
    ("a", "b", "differ"),
    [
        ((9.0, 9.1, 9.2), (1.0, 1.1, 1.2), True),
        ((1.0, 1.1, 1.2), (9.0, 9.1, 9.2), False),
        ((5.0, 5.0, 5.0), (5.0, 5.0, 5.0), None),
        ((5.0, 9.0, 1.0), (4.0, 1.0, 9.0), None),  # now the one, now the other
        ((2.0, 4.0, 8.0, 16.0), (1.0, 3.0, 7.0, 15.0), True),  # always by one, however it varies
        ((9.0, 9.1, 9.0, 9.1, 0.1), (1.0, 1.1, 1.0, 1.1, 1.0), True),  # one bad round of five
    ],
)
def test_which_of_two_is_the_larger(
    a: tuple[float, ...], b: tuple[float, ...], differ: bool | None
) -> None:
    notes = Observation()
    assert notes.differ(figures(a=a, b=b), "a", "b") is differ
    opposite = None if differ is None else not differ
    assert notes.differ(figures(a=a, b=b), "b", "a") is opposite
    assert notes.evidence == []  # comparing is not judging
    assert notes.verdict is None


def test_rounds_are_compared_one_by_one() -> None:
    with pytest.raises(ValueError, match="zip"):
        Observation().differ(figures(a=(1.0, 2.0), b=(1.0,)), "a", "b")


def test_figures_are_kept_as_they_are_and_as_evidence() -> None:
    notes = Observation()
    measurement = figures(udp=(0.3, 0.4, 0.35), vxlan=(14.0, 14.5, 13.5))
    notes.measured(measurement)
    assert notes.measurements == [measurement]
    assert notes.evidence == [
        Evidence(
            "measured: throughput",
            "udp: median 0.35 Gbit/s, spread 0.1 (rounds: 0.3, 0.4, 0.35)\n"
            "vxlan: median 14 Gbit/s, spread 1 (rounds: 14, 14.5, 13.5)",
        )
    ]
    assert notes.verdict is None  # measuring is not judging


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([1.0], 0.0),
        ([1.0, 3.0], 2.0),
        ([3.0, 1.0, 2.0], 2.0),
        ([1.0, 2.0, 3.0, 4.0], 1.5),  # between 1.75 and 3.25
        ([5.0, 1.0, 4.0, 2.0, 100.0], 3.0),  # one that is far out does not count
        ([7.0] * 9, 0.0),
    ],
)
def test_the_spread(series: list[float], expected: float) -> None:
    assert spread(series) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("verdict", "expected", "good"),
    [
        ("contradicted", "contradicted", True),
        ("conditional", "conditional", True),
        ("confirmed", "contradicted", False),  # a surprise, though a pleasant one
        ("contradicted", "conditional", False),
        ("inconclusive", "contradicted", True),
        ("confirmed", None, True),  # what is expected of a lab that is not known
        ("contradicted", None, False),
    ],
)
def test_expected_of_a_lab(verdict: Verdict, expected: Verdict | None, good: bool) -> None:
    assert Finding("id", verdict, expected=expected).as_expected is good


def test_a_path_is_noted_with_its_end_and_all_its_hops() -> None:
    notes = Observation()
    notes.walk(dropped())
    (seen,) = notes.evidence
    assert seen.what.startswith(WALK)
    assert "LOST at node2" in seen.what
    assert Walk.from_dict(json.loads(seen.seen)).path == dropped().path
