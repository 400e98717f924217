"""`verify --prove`: a lab is broken, its checks must fail, and it is repaired in any case."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from inner_pytest import FakeLab, kept_apart

from testbed.claims.load import load
from testbed.errors import CommandError, MachineError, NothingSelected, UsageError
from testbed.suites import prove, runner
from testbed.suites.model import Check, Results, Selection

if TYPE_CHECKING:
    from testbed.faults.model import Fault
    from testbed.labs.lab import Lab
    from testbed.labs.live import LiveLab

DOCUMENT = """\
title: Manual
claims:
- {id: a-page, place: p, claim: There is a page., kind: state, needs: [netns], expect: confirmed,
   check: Look.}
- {id: no-moon, place: p, claim: There is a moon., kind: state, needs: [netns],
   expect: contradicted, why: There is none., check: Look.}
"""
CHECKS = """\
import pytest
from pathlib import Path


@pytest.mark.testbed_claim("a-page")
def test_page(observe):
    observe.note("look", "page")
    observe.holds(Path("page").exists(), "a page")


@pytest.mark.testbed_claim("no-moon")
def test_moon(observe):
    observe.holds(Path("moon").exists(), "a moon")
"""
GOOD = """\
- {name: gone, what: The page is gone., claims: [a-page], do: [node1: mv page lost],
   undo: [node1: mv lost page]}
- {name: rise, what: A moon rises., claims: [no-moon], do: [node2: touch moon],
   undo: [node2: rm moon]}
"""


class Place:
    """A node whose commands run in the folder of the test."""

    slowness = 1.0

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def run(self, argv: Sequence[str]) -> None:
        self._log.append(f"{self.name}: {argv[-1]}")
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandError(argv, where=self.name, status=done.returncode, stderr=done.stderr)


class Broken(FakeLab):
    """A lab with nodes that run commands."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def node(self, name: str) -> Place:
        return Place(name, self.log)

    def close(self) -> None:
        self.log.append("closed")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page").write_text("x")
    with kept_apart():
        yield


@pytest.fixture
def lab() -> Broken:
    return Broken()


Prove = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def outcomes(tmp_path: Path, lab: Broken) -> Prove:
    """Prove the checks of a catalogue with these sabotages: outcome and problem by name."""

    def go(sabotages: str = GOOD, **more: Any) -> dict[str, tuple[str, str]]:
        folder = tmp_path / "claims"
        folder.mkdir(exist_ok=True)
        (folder / "manual.yaml").write_text(DOCUMENT)
        (folder / "test_manual.py").write_text(CHECKS)
        (folder / "sabotages.yaml").write_text(sabotages)
        selection = Selection(catalogue=load(folder), **more)
        told: list[Check] = []
        proofs = prove.prove(cast("LiveLab", lab), cast("Lab", None), selection, told=told.append)
        assert told == proofs.results.checks
        return {check.name: (check.outcome, check.problem) for check in told}

    return go


def test_a_check_that_fails_then_and_only_then_is_proven(outcomes: Prove, lab: Broken) -> None:
    assert outcomes() == {
        "a-page fails under gone": ("passed", ""),
        "no-moon fails under rise": ("passed", ""),
    }
    assert lab.log == [
        "node1: mv page lost",
        "node1: mv lost page",
        "node2: touch moon",
        "node2: rm moon",
    ]


def test_the_selection_narrows_it(outcomes: Prove, lab: Broken) -> None:
    assert list(outcomes(claims=("no-moon",))) == ["no-moon fails under rise"]
    assert len(lab.log) == 2
    with pytest.raises(UsageError):
        outcomes(claims=("no-mon",))
    with pytest.raises(NothingSelected):
        outcomes(expression="nothing_is_called_so")


def test_without_a_sabotage_of_a_selected_claim_nothing_is_run(
    outcomes: Prove, lab: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest, "main", lambda *_, **__: pytest.fail("a check was run"))
    only = "- {name: x, what: w, claims: [a-page], do: [node1: ls], undo: [node1: ls]}"
    with pytest.raises(NothingSelected):
        outcomes(only, claims=("no-moon",))
    assert lab.log == []


def test_a_check_that_does_not_notice_fails(outcomes: Prove) -> None:
    found = outcomes(GOOD.replace("mv page lost", "cp page lost"))
    outcome, problem = found["a-page fails under gone"]
    assert outcome == "failed"
    assert "The page is gone." in problem


def test_a_check_that_is_wrong_before_proves_nothing(
    outcomes: Prove, lab: Broken, tmp_path: Path
) -> None:
    (tmp_path / "page").unlink()
    outcome, problem = outcomes()["a-page fails under gone"]
    assert (outcome, "without it" in problem) == ("failed", True)
    assert not any(line.startswith("node1") for line in lab.log), "the lab is not broken for it"


def test_a_lab_that_is_not_repaired_is_told(outcomes: Prove) -> None:
    outcome, problem = outcomes(GOOD.replace("mv lost page", "'true'"))["a-page fails under gone"]
    assert (outcome, "undone" in problem) == ("failed", True)


def test_a_command_that_fails_ends_the_run_after_the_repair(outcomes: Prove, lab: Broken) -> None:
    with pytest.raises(CommandError) as caught:
        outcomes(GOOD.replace("mv page lost", "mv page lost && exit 7"))
    assert caught.value.status == 7
    assert "gone" in str(caught.value.hint)
    assert lab.log[-1] == "node1: mv lost page"
    with pytest.raises(CommandError):
        outcomes(GOOD.replace("[node1: mv lost page]", "[node1: exit 8, node1: mv lost page]"))
    assert lab.log[-1] == "node1: mv lost page", "the other commands are run all the same"


def test_what_no_sabotage_is_for_and_what_does_not_fit_is_skipped(outcomes: Prove) -> None:
    found = outcomes("- {name: x, what: w, claims: [a-page], do: [moon: ls], undo: [moon: ls]}")
    assert found["a-page fails under x"] == ("skipped", "the lab has no moon")
    assert found["no-moon has a sabotage"][0] == "skipped"
    found = outcomes("- {name: x, what: w, claims: [a-page], faults: [no-such-fault]}")
    assert found["a-page fails under x"][0] == "skipped"


class Faults:
    """Faults that are noted."""

    log: list[str]
    fails = False

    def __init__(self, _: object) -> None: ...

    def apply(self, fault: Fault) -> bool:
        if self.fails:
            raise MachineError("no nft")
        self.log.append(f"apply {fault.words}")
        Path("page").rename("lost")
        return True

    def heal(self, meant: Callable[[Fault], bool], *, kinds: set[str]) -> list[Fault]:
        del meant
        self.log.append(f"heal {sorted(kinds)}")
        if Path("lost").exists():
            Path("lost").rename("page")
        return []


def test_faults_are_healed(outcomes: Prove, lab: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "Faults", Faults)
    monkeypatch.setattr(Faults, "log", lab.log, raising=False)
    text = "- {name: cut, what: w, claims: [a-page], faults: ['partition node1:node2']}"
    assert outcomes(text)["a-page fails under cut"] == ("passed", "")
    assert lab.log == ["apply partition node1:node2", "heal ['partition']", "closed"]
    monkeypatch.setattr(Faults, "fails", True)
    outcome, problem = outcomes(text)["a-page fails under cut"]
    assert (outcome, "no nft" in problem) == ("skipped", True)


def test_a_signal_ends_it_with_a_whole_lab(
    outcomes: Prove, lab: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = runner.run, iter(range(9))

    def run(*args: Any, **more: Any) -> Results:
        return Results(signum=15) if next(count) == 1 else real(*args, **more)

    monkeypatch.setattr(prove, "run", run)
    assert outcomes() == {}
    assert lab.log == ["node1: mv page lost", "node1: mv lost page"]
