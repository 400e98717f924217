"""The runner, on small suites of our own and a lab that is a topology and no more."""

from __future__ import annotations

import gc
import os
import signal
import sys
import textwrap
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from catalogues import claims, selection, shipped
from inner_pytest import HANDLED, FakeLab, kept_apart, plain_pytest

from testbed.claims.catalogue import Source
from testbed.claims.model import Evidence, Finding, Measurement, Otherwise
from testbed.errors import MachineError, NothingSelected, UsageError
from testbed.faults.model import Fault, parse
from testbed.suites import runner
from testbed.suites.model import Check, Results, Selection

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

pytest_plugins = "pytester"
CONFIRMED = [c.id for c in claims().values() if c.expect == "confirmed" and c.document == "000"]
ONE, TWO = CONFIRMED[:2]
OTHER = next(c.id for c in claims().values() if c.document == "003" and c.expect == "confirmed")
CONDITIONAL = next(c.id for c in claims().values() if c.expect == "conditional")
COMPUTED = next(c.id for c in claims().values() if c.needs == ("none",) and c.is_testable)


Told = list[Finding | Check]
Suite = Callable[..., Path]


def run(
    selection: Selection,
    told: Callable[[Finding | Check], None] = lambda _: None,
    topology: str = "two-node",
    **more: Any,
) -> Results:
    return runner.run(cast("LiveLab", FakeLab(topology)), selection, told=told, **more)


@pytest.fixture(autouse=True)
def _our_pytest_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pytest within a pytest leaves nothing in this process: modules, paths, handlers."""
    monkeypatch.chdir(tmp_path)  # or pytest would look through all folders on the way there
    with kept_apart():
        yield


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    def write(text: str, name: str = "test_small.py") -> Path:
        path = tmp_path / name
        path.write_text("import pytest\n\n" + textwrap.dedent(text))
        return path

    return write


def own(path: Path, expression: str = "", **more: tuple[str, ...]) -> Selection:
    return selection(expression, paths=(path,), **more)


def confirm(claim: str, name: str, needs: str = "docker") -> str:
    """A test that confirms a claim."""
    return textwrap.dedent(f"""
        @pytest.mark.testbed_claim({claim!r})
        @pytest.mark.testbed_needs({needs!r})
        def test_{name}(observe):
            observe.holds(True, "seen by {name}")
    """)


def ids(results: Results) -> list[str]:
    return [finding.claim for finding in results.findings]


# -- what comes of a run ----------------------------------------------------------


def test_a_lab_that_has_not_settled_gets_no_verdict(suite: Suite) -> None:
    path = suite(f"""
        from testbed.suites.helpers import observe_until

        @pytest.mark.testbed_claim({ONE!r})
        @pytest.mark.testbed_needs("docker")
        def test_one(observe):
            def look(notes):
                notes.note("looked", "no session")
            observe.holds(observe_until(observe, look, "a session", 0), "there is a session")
    """)
    (finding,) = run(own(path)).findings
    assert (finding.verdict, finding.problem) == ("inconclusive", "")
    assert "a session" in finding.missing
    assert finding.missing in finding.reason
    assert not finding.as_expected, "a lab that never settles is no success"
    assert finding.evidence == [Evidence("looked", "no session")]  # the last look alone


@pytest.mark.parametrize("error", ["Unsettled", "TimeoutExpired", "NoAnswer"])
@pytest.mark.parametrize("place", ["test", "fixture"])
def test_what_a_check_needs_and_never_came_is_missing(error: str, place: str, suite: Suite) -> None:
    path = suite(f"""
        import testbed.errors

        def fail(at):
            if at == {place!r}:
                raise testbed.errors.{error}("no sign of a lease")

        @pytest.fixture(scope="module")
        def thing():
            fail("fixture")

        @pytest.mark.testbed_claim({ONE!r})
        def test_one(thing, observe):
            observe.holds(False, "so far")
            fail("test")

        @pytest.mark.testbed_claim({TWO!r})
        def test_two(thing, observe):
            fail("test")
    """)
    told: Told = []
    results = run(own(path), told.append)
    assert [(f.claim, f.verdict, f.problem) for f in results.findings] == [
        (ONE, "inconclusive", ""),
        (TWO, "inconclusive", ""),
    ]
    assert all(f.missing == "no sign of a lease" for f in results.findings)
    assert not any(f.as_expected for f in results.findings)
    assert told == results.findings


def test_what_comes_late_is_as_good(suite: Suite) -> None:
    path = suite(f"""
        from testbed.suites.helpers import observe_until

        @pytest.mark.testbed_claim({ONE!r})
        @pytest.mark.testbed_needs("docker")
        def test_one(observe):
            looks = iter([False, False, True])
            observe.holds(observe_until(observe, lambda _: next(looks), "a session"), "a session")
    """)
    (finding,) = run(own(path)).findings
    assert (finding.verdict, finding.missing, finding.as_expected) == ("confirmed", "", True)


def test_claims_and_checks_are_told_as_they_come(suite: Suite) -> None:
    path = suite(
        confirm(ONE, "one")
        + "def test_passes():\n    pass\n"
        + "def test_fails(lab):\n    assert lab.name == 'other'\n"
        + "def test_skipped():\n    pytest.skip('no reason')\n"
        + confirm(TWO, "two")
    )
    told: Told = []
    results = run(own(path), told.append)
    assert told == [
        results.findings[0],
        *results.checks,
        results.findings[1],
    ]
    assert ids(results) == [ONE, TWO]
    first = results.findings[0]
    assert (first.verdict, first.problem, first.reason) == ("confirmed", "", "")
    assert first.evidence == [Evidence("holds", "seen by one")]
    assert first.seconds > 0
    assert [(c.name.partition("::")[2], c.outcome) for c in results.checks] == [
        ("test_passes", "passed"),
        ("test_fails", "failed"),
        ("test_skipped", "skipped"),
    ]
    assert results.checks[0].problem == ""
    assert "'two-node' == 'other'" in results.checks[1].problem
    assert (results.elsewhere, results.broken, results.interrupted) == ([], [], False)
    assert results.missed == []


def test_an_unexpected_verdict_has_its_reason(suite: Suite) -> None:
    path = suite(f"""
        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            observe.holds(False, "docker0 is there")

        @pytest.mark.testbed_claim({CONDITIONAL!r})
        def test_other(observe):
            observe.holds(True, "always")
    """)
    one, other = run(own(path)).findings
    assert (one.verdict, one.problem) == ("contradicted", "")
    assert one.reason == "expected confirmed: docker0 is there"
    assert not one.as_expected
    assert (other.verdict, other.reason) == ("confirmed", "expected conditional")


@pytest.mark.parametrize("arguments", ["", "observe"])
def test_a_check_that_tests_nothing_fails(arguments: str, suite: Suite) -> None:
    path = suite(f"""
        @pytest.mark.testbed_claim({ONE!r})
        def test_it({arguments}):
            pass
    """)
    (finding,) = run(own(path)).findings
    assert (finding.verdict, finding.problem) == (None, "the check tested nothing")


def test_a_check_that_breaks_off_keeps_what_it_saw(suite: Suite) -> None:
    path = suite(f"""
        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            observe.holds(True, "so far")
            raise LookupError("no such thing")
    """)
    (finding,) = run(own(path)).findings
    assert (finding.verdict, finding.problem) == (
        None,
        f"{path.parent.name}/test_small.py:7: LookupError: no such thing",
    )
    assert finding.evidence == [Evidence("holds", "so far")]


def test_a_skip_is_a_finding_wherever_it_comes(suite: Suite) -> None:
    path = suite(f"""
        @pytest.fixture
        def thing():
            pytest.skip("the lab has no thing")

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            pytest.skip("there is no tool")

        @pytest.mark.testbed_claim({TWO!r})
        def test_other(thing, observe):
            raise AssertionError
    """)
    told: Told = []
    results = run(own(path), told.append)
    assert [(f.claim, f.verdict, f.reason) for f in results.findings] == [
        (ONE, "skipped", "there is no tool"),
        (TWO, "skipped", "the lab has no thing"),
    ]
    assert told == [*results.findings]


def test_a_set_up_that_fails_is_a_problem_of_the_claim(suite: Suite) -> None:
    path = suite(
        f"""
        @pytest.fixture
        def thing():
            raise OSError("no room")

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(thing, observe):
            observe.holds(True, "x")

        def test_check(thing):
            pass
        """
    )
    told: Told = []
    results = run(own(path), told.append)
    (finding,) = results.findings
    assert (finding.claim, finding.verdict) == (ONE, None)
    where = f"{path.parent.name}/test_small.py:6"
    assert finding.problem == f"the set-up failed: {where}: OSError: no room"
    (check,) = results.checks
    assert check.outcome == "failed"
    assert "no room" in check.problem
    assert told == [finding, check]


def test_a_clean_up_that_fails_spoils_the_claim(suite: Suite) -> None:
    path = suite(
        f"""
        @pytest.fixture
        def thing():
            yield
            raise OSError("still there")

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(thing, observe):
            observe.holds(True, "x")

        def test_check(thing):
            pass
        """
        + confirm(TWO, "after").replace("\n", "\n        ")
    )
    results = run(own(path))
    one, after = results.findings
    assert one.verdict == "confirmed"
    where = f"{path.parent.name}/test_small.py:7"
    assert one.problem == f"the clean-up failed: {where}: OSError: still there"
    assert not one.as_expected
    assert after.problem == ""
    assert [check.outcome for check in results.checks] == ["passed", "failed"]
    assert "still there" in results.checks[1].problem


def test_a_file_that_cannot_be_loaded_is_told_and_the_others_run(
    suite: Suite, tmp_path: Path
) -> None:
    suite("def test_it(:\n", "test_broken.py")
    suite(confirm(ONE, "one"), "test_whole.py")
    results = run(own(tmp_path))
    assert len(results.broken) == 1
    assert "test_broken.py" in results.broken[0]
    assert "SyntaxError" in results.broken[0]
    assert ids(results) == [ONE]
    assert not results.interrupted  # nobody has pressed Ctrl-C


def test_a_clean_up_that_fails_is_told_a_second_time(suite: Suite) -> None:
    path = suite(
        f"""
        @pytest.fixture
        def thing():
            yield
            raise OSError("still there")

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(thing, observe):
            observe.holds(True, "x")
        """
    )
    told: list[tuple[str, str]] = []

    def note(found: Finding | Check) -> None:
        assert isinstance(found, Finding)
        told.append((found.claim, found.problem))

    results = run(own(path), note)
    where = f"{path.parent.name}/test_small.py:7"
    assert told == [(ONE, ""), (ONE, f"the clean-up failed: {where}: OSError: still there")]
    assert ids(results) == [ONE], "it is one finding"


def test_a_finding_has_what_the_catalogue_expects_of_the_lab(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Otherwise({"docker": "< 28"}, "contradicted", "It is old.")
    monkeypatch.setitem(cast("Any", claims()), ONE, replace(claims()[ONE], otherwise=(other,)))
    path = suite(
        f"""
        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            observe.holds(False, "docker0 is there")

        @pytest.fixture
        def thing(request):
            request.param()

        def skips():
            pytest.skip("no thing")

        def fails():
            raise OSError("no room")

        @pytest.mark.testbed_claim({ONE!r})
        @pytest.mark.parametrize("thing", [skips, fails], indirect=True)
        def test_other(thing):
            raise AssertionError
        """
    )
    results = run(own(path))
    assert [(f.verdict, f.expected, f.why, f.as_expected) for f in results.findings] == [
        ("contradicted", "contradicted", "It is old.", True),
        ("skipped", "contradicted", "It is old.", True),
        (None, "contradicted", "It is old.", False),
    ]


def test_what_is_measured_comes_over(suite: Suite) -> None:
    path = suite(f"""
        from testbed.claims.model import Measurement

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            noisy = Measurement("rate", "1/s", {{"a": (1.0, 9.0), "b": (2.0, 3.0)}}, "higher")
            observe.measured(noisy)
            assert observe.differ(noisy, "a", "b") is None
            observe.unclear("a and b are alike")
    """)
    (finding,) = run(own(path)).findings
    assert (finding.verdict, finding.problem, finding.as_expected) == ("inconclusive", "", True)
    assert finding.measurements == [
        Measurement("rate", "1/s", {"a": (1.0, 9.0), "b": (2.0, 3.0)}, "higher")
    ]


def test_an_ordinary_check_keeps_what_it_has_seen_and_measured(suite: Suite) -> None:
    path = suite("""
        from testbed.claims.model import Measurement

        def test_it(observe):
            observe.note("looked", "seen")
            observe.holds(True, "so it is")
            observe.measured(Measurement("time", "s", {"a": (1.0,)}, "lower"))
    """)
    (check,) = run(own(path)).checks
    assert (check.outcome, check.problem) == ("passed", "")
    assert check.evidence[:2] == (Evidence("looked", "seen"), Evidence("holds", "so it is"))
    assert check.measurements == (Measurement("time", "s", {"a": (1.0,)}, "lower"),)


def test_an_ordinary_check_that_refutes_fails(suite: Suite) -> None:
    path = suite("""
        def test_it(observe):
            observe.holds(False, "the moon is of cheese")

        def test_looks_only(observe):
            observe.note("looked", "seen")
    """)
    first, second = run(own(path)).checks
    assert (first.outcome, second.outcome) == ("failed", "passed")
    assert "the moon is of cheese" in first.problem


class FakeFaults:
    """A stand-in for the faults of the fixture ``fault``."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.healed: list[list[str]] = []

    def apply(self, fault: Fault) -> bool:
        if fault.kind == "delay":
            raise MachineError("no netem", hint="none")
        self.done.append(fault.words)
        return fault.words != "partition node2"  # in force before any test

    def heal(self, meant: Callable[[Fault], bool], *, kinds: Collection[str]) -> None:
        due = [w for w in self.done if meant(parse(w.split())) and w.split()[0] in kinds]
        self.healed.append(due)
        self.done = [words for words in self.done if words not in due]


def test_the_fixture_heals_what_it_has_broken(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = FakeFaults()
    monkeypatch.setattr("testbed.faults.force.Faults", lambda _: faults)
    monkeypatch.setattr(FakeLab, "close", lambda _: None, raising=False)
    path = suite("""
        def test_fails(fault):
            fault("kill node1/etcd")
            fault("stop node2")
            assert False

        def test_heals(fault):
            fault("stop node1")
            fault.heal()

        def test_what_was_there_stays(fault):
            fault("partition node2")

        def test_lacks(fault):
            fault("delay node2 5ms")

        def test_wrong(fault):
            fault("stop node9")
    """)
    found = run(own(path)).checks
    assert [check.outcome for check in found] == ["failed", "passed", "passed", "skipped", "failed"]
    assert "no netem" in found[3].problem
    assert "node9" in found[4].problem
    assert faults.healed == [["kill node1/etcd", "stop node2"], ["stop node1"]]
    assert faults.done == ["partition node2"], "what was there before is not the test's to heal"


# -- what measures, and what needs no lab --------------------------------------------


def alone(claim: str, name: str) -> str:
    return "\n@pytest.mark.testbed_alone" + confirm(claim, name)


def test_what_measures_comes_last_after_a_word_to_the_caller(suite: Suite) -> None:
    first = suite(
        alone(ONE, "one")
        + confirm(OTHER, "other")
        + "@pytest.mark.testbed_alone\ndef test_own(): pass\n",
        "test_a.py",
    )
    suite(confirm(TWO, "two"), "test_b.py")
    log: list[str] = []

    def note(found: Finding | Check) -> None:
        log.append(found.claim if isinstance(found, Finding) else found.name.partition("::")[2])

    results = run(own(first.parent), note, before_alone=lambda: log.append("quiet"))
    assert log == [OTHER, TWO, "quiet", ONE, "test_own"]
    assert ids(results) == [OTHER, TWO, ONE]


def test_the_caller_is_not_asked_for_quiet_in_vain(suite: Suite) -> None:
    asked: list[str] = []
    path = suite(confirm(ONE, "one") + alone(TWO, "two"))

    def ask() -> None:
        asked.append("quiet")

    run(own(path, claims=(ONE,)), before_alone=ask)
    assert asked == []
    run(own(path, claims=(TWO,)), before_alone=ask)
    assert asked == ["quiet"]


def test_a_signal_while_it_waits_for_quiet_ends_the_run(suite: Suite) -> None:
    path = suite(confirm(ONE, "one") + alone(TWO, "two"))

    def interrupted() -> None:
        signal.raise_signal(signal.SIGTERM)

    results = run(own(path), before_alone=interrupted)
    assert (results.signum, ids(results)) == (signal.SIGTERM, [ONE])


@pytest.fixture
def computed(suite: Suite) -> Path:
    """A claim that is computed, one that needs a lab, and two ordinary tests."""
    return suite(
        confirm(COMPUTED, "computed", needs="none")
        + confirm(ONE, "one")
        + "def test_check():\n    pass\n"
        + "@pytest.mark.testbed_needs('none')\ndef test_sum():\n    pass\n"
    )


def checks(results: Results) -> list[str]:
    return [check.name.partition("::")[2] for check in results.checks]


def test_without_a_lab_only_what_needs_none_is_run(computed: Path) -> None:
    results = runner.run(None, own(computed))
    assert (ids(results), checks(results)) == ([COMPUTED], ["test_sum"])
    assert [name.rpartition("::")[2] for name in results.elsewhere] == [ONE, "test_check"]
    with pytest.raises(NothingSelected):
        runner.run(None, own(computed, claims=(ONE,)))


def test_what_needs_no_lab_is_run_on_one_or_left_out(computed: Path) -> None:
    results = run(own(computed))
    assert (ids(results), checks(results)) == ([COMPUTED, ONE], ["test_check", "test_sum"])
    results = run(own(computed), lacks=frozenset({"none"}))
    assert (ids(results), checks(results)) == ([ONE], ["test_check"])
    assert [name.rpartition("::")[2] for name in results.elsewhere] == [COMPUTED, "test_sum"]


# -- what is selected --------------------------------------------------------------


@pytest.fixture
def three(suite: Suite) -> Path:
    return suite(
        confirm(ONE, "one")
        + confirm(OTHER, "other")
        + confirm(TWO, "two", needs="flannel-udp")
        + "def test_check():\n    pass\n"
    )


def test_all_of_it(three: Path) -> None:
    results = run(own(three))
    assert (ids(results), len(results.checks)) == ([ONE, OTHER], 1)
    assert results.elsewhere == [TWO]  # it needs another lab


def test_another_lab_runs_the_others(three: Path) -> None:
    results = run(own(three), topology="two-node-udp")
    assert (ids(results), results.elsewhere) == ([ONE, OTHER, TWO], [])
    results = run(own(three), topology="netns-experiments")
    assert (ids(results), results.elsewhere) == ([], [ONE, OTHER, TWO])
    assert len(results.checks) == 1


def test_a_check_that_needs_another_lab_is_named(suite: Suite) -> None:
    path = suite("""
        @pytest.mark.testbed_needs("plain-docker")
        def test_check():
            pass

        def test_other():
            pass
    """)
    results = run(own(path))
    assert [name.partition("::")[2] for name in results.elsewhere] == ["test_check"]
    assert len(results.checks) == 1


def test_by_claim(three: Path) -> None:
    results = run(own(three, claims=(OTHER,)))
    assert (ids(results), results.checks) == ([OTHER], [])
    assert results.elsewhere == []  # of what was selected
    assert run(own(three, claims=(OTHER, TWO))).elsewhere == [TWO]


def test_by_document(three: Path) -> None:
    assert ids(run(own(three, documents=("003",)))) == [OTHER]
    both = run(own(three, documents=("000", "003")))
    assert (ids(both), both.checks, both.elsewhere) == ([ONE, OTHER], [], [TWO])


def test_by_claim_and_document_means_both(three: Path) -> None:
    assert ids(run(own(three, claims=(ONE,), documents=("000",)))) == [ONE]
    with pytest.raises(NothingSelected):
        run(own(three, claims=(ONE,), documents=("003",)))


def test_by_the_documents_that_a_lab_is_for(three: Path) -> None:
    results = run(own(three, of=("003",)))
    assert (ids(results), len(results.checks), results.elsewhere) == ([OTHER], 1, [])
    assert ids(run(own(three, of=("003", "000"), claims=(ONE, OTHER)))) == [ONE, OTHER]
    with pytest.raises(NothingSelected):
        run(own(three, of=("003",), documents=("000",)))


def test_by_the_names_of_tests(three: Path) -> None:
    (check,) = run(own(three)).checks
    results = run(own(three, tests=(check.name,)))
    assert (ids(results), [c.name for c in results.checks]) == ([], [check.name])
    both = run(own(three, tests=(check.name,), claims=(OTHER,)))
    assert (ids(both), len(both.checks)) == ([OTHER], 1)
    with pytest.raises(NothingSelected):
        run(own(three, tests=("test_small.py::test_other",)))


def test_by_expression(three: Path) -> None:
    results = run(own(three, "other or check"))
    assert (ids(results), len(results.checks), results.elsewhere) == ([OTHER], 1, [])
    assert run(own(three, "one or two")).elsewhere == [TWO]


def test_by_paths(suite: Suite, tmp_path: Path) -> None:
    suite(confirm(ONE, "one"), "test_a.py")
    other = suite(confirm(OTHER, "other"), "test_b.py")
    assert ids(run(own(other))) == [OTHER]
    assert sorted(ids(run(own(tmp_path)))) == sorted([ONE, OTHER])


def test_without_paths_the_suites_are_run(three: Path, tmp_path: Path) -> None:
    own = replace(shipped(), sources=(Source("own", tmp_path),))
    assert ids(run(Selection(claims=(ONE,), catalogue=own))) == [ONE]


@pytest.mark.parametrize(
    "chosen",
    [
        selection("nothing_is_called_so"),
        selection(claims=(TWO,)),  # it needs another lab
        selection(documents=("001",)),
    ],
)
def test_nothing_selected(chosen: Selection, three: Path) -> None:
    with pytest.raises(NothingSelected):
        run(replace(chosen, paths=(three,)))


def test_without_a_catalogue_and_paths_there_is_nothing_to_run() -> None:
    with pytest.raises(NothingSelected):
        run(Selection())


# -- what is refused ----------------------------------------------------------------


def test_an_unknown_claim_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=f"no claim '{ONE[:-1]}'") as caught:
        run(selection(claims=(ONE, ONE[:-1])))
    assert caught.value.hint == f"did you mean {ONE!r}?"
    with pytest.raises(UsageError) as caught:
        run(selection(claims=("zzz",)))
    assert "testbed claims" in (caught.value.hint or "")


def test_an_unknown_document_is_refused_with_all_there_are() -> None:
    with pytest.raises(UsageError, match="no document '3'") as caught:
        run(selection(documents=("3",)))
    assert caught.value.hint == f"there are: {', '.join(shipped().documents)}"


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/nowhere.py"):
        run(own(tmp_path / "nowhere.py"))


@pytest.mark.parametrize(
    ("claim", "needs", "words", "hint"),
    [
        (ONE[:-1], "docker", repr(ONE[:-1]), f"did you mean {ONE!r}?"),
        ("zzz", "docker", "'zzz'", "`testbed claims` lists them"),
        (ONE, "dokcer", "'dokcer'", "did you mean 'docker'?"),
        (ONE, "moon", "'moon'", "known: none, netns"),
    ],
)
def test_a_mark_that_means_nothing_is_refused(
    claim: str, needs: str, words: str, hint: str, suite: Suite, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(own(suite(confirm(TWO, "one") + confirm(claim, "it", needs))))
    assert caught.value.message.startswith("test_small.py:9, test_it: ")
    assert words in caught.value.message
    assert (caught.value.hint or "").startswith(hint)
    assert capfd.readouterr() == ("", ""), "said once, by whoever asked"


def test_where_pytest_itself_is_run_it_says_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("import pytest\n" + confirm("zzz", "it"))
    done = plain_pytest(pytester, monkeypatch)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_it: no claim 'zzz' in catalogue shipped" in done.stderr.str()


def test_an_expression_that_is_none_is_refused(three: Path) -> None:
    with pytest.raises(UsageError, match="pytest") as caught:
        run(own(three, "one and ("))
    assert "-k" in str(caught.value.hint)


# -- whose pytest it is --------------------------------------------------------------


def test_the_users_own_options_take_no_part(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing_is_called_so --no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    assert ids(run(own(three))) == [ONE, OTHER]
    # ... and are there again for whatever comes next.
    assert os.environ["PYTEST_ADDOPTS"].startswith("-k nothing")
    assert os.environ["PYTEST_PLUGINS"] == "no_such_plugin"
    assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ


def test_the_configuration_of_the_folder_takes_no_part(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (three.parent / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (three.parent / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['-x']\n")
    monkeypatch.chdir(three.parent)
    assert ids(run(own(three))) == [ONE, OTHER]


def test_a_conftest_far_above_takes_part_and_no_folder_above_it_is_looked_through(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite("@pytest.fixture\ndef thing():\n    return 7\n", "conftest.py")
    for folder in ("tests", "tests/net", "others"):
        (tmp_path / folder).mkdir()
    path = suite("def test_one(thing):\n    assert thing == 7\n", "tests/net/test_small.py")
    monkeypatch.chdir(path.parent)
    real, seen = os.scandir, list[Path]()

    def scandir(path: Any = ".") -> Any:
        seen.append(Path(os.fsdecode(path)).absolute())
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (check,) = run(own(path)).checks
    assert check.outcome == "passed"
    assert seen, "pytest asks for what is in a folder by this"
    assert not [folder for folder in seen if folder in tmp_path.parents]


def test_the_users_conftest_takes_part(suite: Suite) -> None:
    suite("@pytest.fixture\ndef thing():\n    return 7\n", "conftest.py")
    path = suite("def test_it(thing, nodes):\n    assert (thing, nodes) == (7, {})\n")
    lab = FakeLab()
    lab.nodes = {}  # type: ignore[attr-defined]
    (check,) = runner.run(cast("LiveLab", lab), own(path)).checks
    assert (check.outcome, check.problem) == ("passed", "")


def test_nothing_is_left_behind_in_the_folder(three: Path) -> None:
    run(own(three))
    left = {path.name for path in three.parent.iterdir()}  # compiled files would be in the way
    assert left == {three.name}


def test_the_lab_is_let_go_of(suite: Suite) -> None:
    """Though the modules that were loaded keep what loaded them."""
    path = suite("def test_it(lab): assert lab.name")
    lab = FakeLab()
    gone = weakref.ref(lab)
    (check,) = runner.run(cast("LiveLab", lab), own(path)).checks
    assert check.outcome == "passed"
    assert "test_small" in sys.modules
    del lab
    gc.collect()
    assert gone() is None


# -- what breaks it off ---------------------------------------------------------------


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("odd")])
def test_what_the_caller_raises_comes_out_as_it_is(error: Exception, three: Path) -> None:
    calls: Told = []

    def told(found: Finding | Check) -> None:
        calls.append(found)
        raise error

    with pytest.raises(type(error)) as caught:
        run(own(three), told)
    assert caught.value is error
    assert len(calls) == 1  # and nothing more was run


def test_a_callers_error_at_a_check_and_at_a_failed_set_up(suite: Suite) -> None:
    path = suite(f"""
        @pytest.fixture
        def thing():
            raise OSError

        @pytest.mark.testbed_claim({ONE!r})
        def test_it(thing):
            pass
    """)

    def told(found: Finding | Check) -> None:
        raise BrokenPipeError(str(found))

    with pytest.raises(BrokenPipeError):
        run(own(path), told)
    with pytest.raises(BrokenPipeError):
        run(own(suite("def test_check():\n    pass\n", "test_check.py")), told)


@pytest.mark.parametrize("signum", HANDLED, ids=lambda s: signal.Signals(s).name)
def test_a_signal_ends_the_run_and_what_there_is_is_told(signum: int, suite: Suite) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = suite(
        confirm(ONE, "one")
        + f"""
@pytest.fixture
def thing():
    yield
    open(__file__ + ".cleaned", "w").close()

def test_that_is_interrupted(thing):
    import os, time
    os.kill(os.getpid(), {int(signum)})
    time.sleep(10)
"""
        + confirm(TWO, "two")
    )
    results = run(own(path))
    assert results.interrupted
    assert results.signum == signum
    assert ids(results) == [ONE]
    assert results.findings[0].verdict == "confirmed"
    assert results.checks == []
    assert results.missed == [TWO]
    assert Path(f"{path}.cleaned").exists()  # fixtures have put back what they changed


def test_a_broken_file_alone_is_no_wrong_use(suite: Suite) -> None:
    results = run(own(suite("import no_such_module_at_all\n")))
    assert len(results.broken) == 1
    assert (results.interrupted, results.findings, results.checks) == (False, [], [])


def test_a_signal_in_the_very_first_test_is_no_wrong_use(suite: Suite) -> None:
    path = suite(
        f"def test_it():\n    import os\n    os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
    )
    results = run(own(path))
    assert results == Results(signum=signal.SIGTERM)


def test_a_claim_that_is_interrupted_has_no_verdict(suite: Suite) -> None:
    path = suite(f"""
        @pytest.mark.testbed_claim({ONE!r})
        def test_it(observe):
            observe.holds(True, "so far")
            import os
            os.kill(os.getpid(), {int(signal.SIGTERM)})
    """)
    results = run(own(path))
    assert results.signum == signal.SIGTERM
    assert results.findings == []  # a check that is cut off has found nothing
    assert results.missed == [ONE]


def test_why_a_claim_that_was_asked_for_is_not_decided(computed: Path) -> None:
    definition = next(c.id for c in claims().values() if not c.is_testable)
    for wanted, words in (
        (definition, f"{definition} is a definition"),
        (TWO, f"no test decides {TWO}: mark one with"),
    ):
        with pytest.raises(NothingSelected) as caught:
            run(own(computed, claims=(wanted,)))
        assert words in (caught.value.hint or "")
    with pytest.raises(NothingSelected) as caught:
        runner.run(None, own(computed, claims=(ONE,)))
    assert f"{ONE} needs a lab with" in (caught.value.hint or "")


@pytest.mark.parametrize("signum", HANDLED, ids=lambda s: signal.Signals(s).name)
def test_a_signal_before_pytest_listens_ends_the_run_all_the_same(
    signum: int, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = suite(confirm(ONE, "one"))
    monkeypatch.setattr(pytest, "main", lambda *_, **__: signal.raise_signal(signum))
    results = run(own(path))
    assert results.signum == signum
    assert results.findings == []
