"""Trials of the sabotage suite: their results, their repair, their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from sabotage import judgements, means, table, trials
from sabotage.trials import NO_LAB, Outcome, Sabotage, Trial

from testbed.catalogues.shipped import FOLDER
from testbed.claims.model import Finding, Verdict
from testbed.claims.observation import Observation
from testbed.errors import CommandError
from testbed.suites import helpers, prove
from testbed.suites.model import Results

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

LAB = cast("LiveLab", None)  # what is tried here looks at no lab
CLAIM, OTHER = "ip-two-parts", "ip-part-meaning"


def finding(claim: str, verdict: Verdict | None, problem: str = "") -> Finding:
    return Finding(claim, verdict, problem=problem, expected="confirmed")


@pytest.mark.parametrize(
    ("verdict", "problem", "wanted"),
    [
        ("confirmed", "", "held"),
        ("contradicted", "", "refuted"),
        ("conditional", "", "refuted"),
        ("inconclusive", "", "unclear"),
        ("skipped", "", "undecided"),
        (None, "", "undecided"),
        (None, "KeyError: 'dev'", "broke"),
        ("contradicted", "the clean-up failed", "broke"),
    ],
)
def test_outcome(verdict: Verdict | None, problem: str, wanted: Outcome) -> None:
    assert trials.outcome(finding(CLAIM, verdict, problem)) == wanted


WAITED = Finding(CLAIM, "inconclusive", missing="a session", expected="confirmed")


def test_a_check_that_waited_in_vain_is_told_from_one_that_measured() -> None:
    assert trials.outcome(WAITED) == "unsettled"


@dataclass
class Rounds:
    """Findings of each round, and the actions in order."""

    found: list[list[Finding]]
    done: list[str] = field(default_factory=list)

    def decide(self, lab: object, wanted: object) -> list[Finding]:
        self.done.append("decide")
        return self.found.pop(0)

    def sabotage(self, *vain: str) -> Sabotage:
        @contextmanager
        def make(_lab: object) -> Iterator[None]:
            self.done.append("break")
            try:
                yield
            finally:
                self.done.append("mend")

        return Sabotage("broken", NO_LAB, "It is broken.", (CLAIM, OTHER), make, vain=vain)


Rounded = Callable[..., Rounds]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounded:
    def make(*found: list[Finding]) -> Rounds:
        made = Rounds(list(found))
        monkeypatch.setattr(trials, "decide", made.decide)
        return made

    return make


def test_a_trial_breaks_decides_and_mends(rounds: Rounded) -> None:
    made = rounds([finding(CLAIM, "contradicted"), finding(OTHER, "confirmed")])
    trial = trials.try_out(made.sabotage(), LAB)
    assert made.done == ["break", "decide", "mend"]
    assert trial.outcomes == {CLAIM: "refuted", OTHER: "held"}
    assert trial.having("held", "broke") == [OTHER]


def test_the_best_of_several_checks_of_a_claim_counts(rounds: Rounded) -> None:
    found = [finding(CLAIM, v) for v in ("confirmed", "contradicted", "confirmed")]
    trial = trials.try_out(rounds(found).sabotage(), LAB)
    assert trial.outcomes == {CLAIM: "refuted", OTHER: "undecided"}
    assert trial.said[OTHER] == "no check of it ran"


def test_what_is_not_clear_is_tried_again_and_not_for_ever(rounds: Rounded) -> None:
    unclear = [finding(CLAIM, "inconclusive")]
    made = rounds(unclear, [finding(CLAIM, "contradicted")], unclear)
    assert trials.try_out(made.sabotage(), LAB).outcomes[CLAIM] == "refuted"
    assert made.done.count("decide") == 2
    made = rounds(*[unclear] * 9)
    assert trials.try_out(made.sabotage(), LAB).outcomes[CLAIM] == "unclear"
    assert made.done.count("decide") == trials.ATTEMPTS


def test_who_waits_in_vain_for_what_is_kept_away_has_flipped(rounds: Rounded) -> None:
    other = finding(OTHER, "contradicted")
    made = rounds([WAITED, other])
    trial = trials.try_out(made.sabotage(CLAIM), LAB)
    assert (trial.outcomes[CLAIM], trial.wrong) == ("unsettled", {})
    assert made.done.count("decide") == 1


def test_who_waits_in_vain_for_what_is_there_has_not_flipped(rounds: Rounded) -> None:
    other = finding(OTHER, "contradicted")
    made = rounds(*[[WAITED, other]] * trials.ATTEMPTS)
    assert list(trials.try_out(made.sabotage(), LAB).wrong) == [CLAIM]
    late = rounds([WAITED, other], [finding(CLAIM, "contradicted"), other])
    assert trials.try_out(late.sabotage(), LAB).wrong == {}


def test_a_trial_that_breaks_off_mends(rounds: Rounded) -> None:
    made = rounds()
    with pytest.raises(IndexError):
        trials.try_out(made.sabotage(), LAB)
    assert made.done[-1] == "mend"


def test_an_interrupt_of_the_inner_run_ends_the_outer_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "run", lambda _lab, _selection: Results(signum=2))
    with pytest.raises(KeyboardInterrupt):
        trials.decide(LAB, [CLAIM])


def test_waits_are_short_during_a_trial_only() -> None:
    before = helpers.LATE, helpers.SETTLED
    with prove.impatient():
        assert before[0] > prove.PATIENCE
        assert prove.PATIENCE == helpers.LATE
        assert before[1] > helpers.SETTLED
    assert before == (helpers.LATE, helpers.SETTLED)


def test_the_suites_of_a_claim() -> None:
    assert [path.name for path in trials.files_with([CLAIM])] == ["test_addresses.py"]
    assert trials.files_with(["no-such-claim"]) == ()


# -- the table ---------------------------------------------------------------------


def test_the_table_counts_a_claim_once_and_names_what_never_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["a", "b", "c", "d"]
    monkeypatch.setattr(table, "can_be_refuted", lambda: wanted)
    one = Sabotage("one", "lab", "One.", ("a", "b"), cast("Any", None))
    other = Sabotage("other", "", "Other.", ("b", "c", "d"), cast("Any", None))
    made = [
        Trial(one, {"a": "refuted", "b": "broke"}, {"a": "", "b": "KeyError"}, 1.0),
        Trial(other, {"b": "refuted", "c": "broke", "d": "held"}, dict.fromkeys("bcd", "why"), 2.0),
    ]
    assert table.seen_to_fail(made) == (["a", "b"], ["c"], ["d"])
    lines = list(table.table(made))
    assert "3 of 4 testable claims were seen to fail" in lines
    assert any(line.startswith("    only") and line.endswith(": c") for line in lines)
    assert "    never: d" in lines
    assert any("not   d: why" in line for line in lines)
    data = table.data(made)
    assert (data["refuted"], data["broke"], data["never"]) == (["a", "b"], ["c"], ["d"])
    assert data["sabotages"][1]["claims"] == {"b": "refuted", "c": "broke", "d": "held"}


# -- single judgements ----------------------------------------------------------------


def test_places_are_lines_of_the_suites() -> None:
    for place, end in judgements.places().items():
        lines = (FOLDER / place.file).read_text(encoding="utf-8").splitlines()
        text = "\n".join(lines[place.line - 1 : end])
        assert any(f"observe.{name}(" in text for name in judgements.METHODS), place


def test_a_judgement_is_found_from_any_of_its_lines() -> None:
    place, end = next((p, e) for p, e in judgements.places().items() if e > p.line)
    for line in range(place.line, end + 1):
        assert judgements.at(f"/somewhere/{place.file}", line) == place
    assert judgements.at("/somewhere/else.py", place.line) is None


def test_judgements_are_watched_and_still_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    here = judgements.Place("here.py", 1)
    monkeypatch.setattr(judgements, "at", lambda _file, _line: here)
    seen: set[tuple[judgements.Place, bool]] = set()
    observe = Observation()
    with judgements.watched(seen):
        observe.holds(1, "it holds")
        observe.fails_when("it is broken", fails=False)
    assert seen == {(here, True), (here, False)}
    assert observe.verdict == "confirmed"


# -- means -------------------------------------------------------------------------


class Recorder:
    """A node that writes down what it is asked for; what ``refused`` names fails."""

    name = "node1"

    def __init__(self, refused: str = "nothing") -> None:
        self.refused = refused
        self.ran: list[str] = []
        self.files: dict[str, bytes] = {}

    def run(self, argv: list[str]) -> None:
        self.ran.append(" ".join(argv))
        if self.refused in self.ran[-1]:
            raise CommandError(argv, where=self.name, status=1, stdout="", stderr="")

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        self.files[path] = data


def test_a_change_is_undone_even_when_it_went_wrong_halfway() -> None:
    node = Recorder(refused="two")
    with (
        pytest.raises(CommandError),
        means.changed(cast("Node", node), "do one\ndo two\ndo three", "undo one"),
    ):
        pass
    assert node.ran == ["do one", "do two", "undo one"]


def test_a_lying_tool_is_put_before_the_real_one_and_goes() -> None:
    node = Recorder()
    with means.lying(cast("Node", node), ip='exec $real/ip "$@"'):
        assert node.ran == [f"mount --bind {means.LIES} {means.FIRST_ON_PATH}"]
        script = node.files[f"{means.LIES}/ip"].decode()
        assert script.startswith("#!/bin/sh\nreal=/usr/sbin\n")
    assert node.ran[1:] == [f"rm {means.LIES}/ip", f"umount {means.FIRST_ON_PATH}"]


def test_a_program_is_replaced_by_its_path_and_comes_back() -> None:
    node = Recorder()
    with means.in_place_of(cast("Node", node), "/opt/runc", "exec $real"):
        mounted = [line for line in node.ran if line.startswith("mount")]
        assert mounted == [
            "mount --bind /opt/runc /tmp/lies.real",
            "mount --make-private /tmp/lies.real",
            "mount --bind /tmp/lies.lie /opt/runc",
        ]
    assert node.ran[3:] == ["umount --lazy /opt/runc", "umount --lazy /tmp/lies.real"]


def test_rules_of_nftables() -> None:
    do, undo = means.nft("filter hook output priority 0\nudp dport 1 drop\nudp dport 2 drop")
    assert do.splitlines() == [
        "nft add table ip sabotage",
        "nft 'add chain ip sabotage way { type filter hook output priority 0 ; }'",
        "nft 'add rule ip sabotage way udp dport 1 drop'",
        "nft 'add rule ip sabotage way udp dport 2 drop'",
    ]
    assert undo == "nft delete table ip sabotage"
