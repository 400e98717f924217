"""From what a check saw to its verdict: the whole table."""

from __future__ import annotations

import json

import pytest
from provider_contract import spec

from testbed.claims.model import Evidence, Finding, Verdict
from testbed.claims.observation import LIMIT, Observation
from testbed.errors import CommandError
from testbed.nodes.fake import Answer, FakeProvider

# A word each: "+" holds, "-" does not; "w" holds when its condition is met, "W" not even then;
# "f" fails as it should under its condition, "F" holds in spite of it.
TABLE: list[tuple[str, Verdict | None]] = [
    ("", None),  # a check that tests nothing proves nothing
    ("+", "confirmed"),
    ("-", "contradicted"),
    ("++", "confirmed"),
    ("+-", "contradicted"),
    ("w", "confirmed"),
    ("W", "contradicted"),
    ("wf", "depends"),  # true under a condition, false without: the document did not say
    ("wwff", "depends"),
    ("+f", "depends"),
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
    ("wfF", "confirmed"),
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
    return notes


@pytest.mark.parametrize(("word", "verdict"), TABLE)
def test_verdicts(word: str, verdict: Verdict | None) -> None:
    assert observed(word).verdict == verdict
    assert observed(word[::-1]).verdict == verdict  # the order of looking does not matter


def test_what_refutes_is_named() -> None:
    assert observed("+-wWfF").refuted_by == ["test -", "condition W"]
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


def test_a_command_is_kept_with_what_it_said() -> None:
    provider = FakeProvider()
    provider.script(["ip"], Answer(out=b'[{"a": 1}]'))
    provider.script(["ping"], Answer(1, out=b"0 received", err=b"unreachable"))
    node = provider.create("lab", spec("node1"))
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
    node = provider.create("lab", spec("node1"))
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
        ("not here", "", True),
        (None, "", False),
        ("confirmed", "the check failed", False),
        ("inconclusive", "", True),  # of what was measured: the machine was not quiet
    ],
)
def test_as_expected(verdict: Verdict | None, problem: str, expected: bool) -> None:
    found = Finding("id", verdict, problem=problem, expected="confirmed")
    assert found.as_expected is expected
