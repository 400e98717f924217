"""``testbed verify`` in this process: what it hands on, what it writes, how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import pytest
from catalogues import claims, selection, shipped

from testbed import cli, machine_state
from testbed.claims.model import Evidence, Finding
from testbed.cli import common, verify
from testbed.cli.output import Output
from testbed.errors import OutputError, ReaderGone
from testbed.labs.lab import Lab
from testbed.report import last
from testbed.roles.flannel.section import FlannelSection
from testbed.suites import everything, runner
from testbed.suites.model import Check, LabRun, Results, Run, Selection
from testbed.topology.load import load

if TYPE_CHECKING:
    from testbed.claims.labs import Wanted
    from testbed.suites.everything import Watching
    from testbed.testing.fakes import Bench

ONE, TWO = [c.id for c in claims().values() if c.expect == "confirmed"][:2]
GOOD = Finding(
    ONE, "confirmed", expected="confirmed", evidence=[Evidence("node1# ip link", "1: lo")]
)
WRONG = Finding(
    TWO,
    "contradicted",
    expected="confirmed",
    reason="expected confirmed: it is there",
    evidence=[Evidence("does not hold", "it is there")],
)
PASSED = Check("test_own.py::test_it", "passed", 0.1)
SOME = selection(claims=(ONE, TWO))  # so that only these are meant


class Said:
    """Exit status and both outputs of a command line."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


Testbed = Callable[..., Said]


@pytest.fixture
def testbed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Testbed:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.delenv("TESTBED_LAB", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*argv: str) -> Said:
        capsys.readouterr()
        status = cli.run(["verify", *argv])
        return Said(status, *capsys.readouterr())

    return run


class Everything:
    """Stands in for what runs on every lab."""

    def __init__(self) -> None:
        self.asked: list[Selection] = []
        self.parts = [LabRun("two-node", load("two-node"), Results([GOOD]), up=0.5, seconds=1.0)]
        self.signum: int | None = None
        self.wanted: Sequence[Wanted] | None = ()
        self.labs: Sequence[str] = ()
        self.proving = False

    def __call__(
        self,
        _: Any,
        selection: Selection,
        watching: Watching,
        *,
        wanted: Sequence[Wanted] | None = None,
        labs: Sequence[str] = (),
        proving: bool = False,
    ) -> Run:
        self.asked.append(selection)
        self.proving = proving
        self.labs = labs
        self.wanted = wanted
        for part in self.parts:
            watching.began(part.name)
            watching.up(part.name, part.up)
            told: list[Finding | Check] = [*part.results.findings, *part.results.checks]
            for found in told:
                watching.found(part.name, found)
            watching.ended(part)
        return Run(selection, self.parts, seconds=1.5, signum=self.signum)

    def also_wrong(self) -> None:
        part = LabRun("docker-single", load("docker-single"), Results([WRONG]), up=0.5)
        self.parts.append(part)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Everything:
    stand_in = Everything()
    monkeypatch.setattr(everything, "run_everything", stand_in)
    return stand_in


# -- wrong use -------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--junit", "--html", "--markdown"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_run(
    option: str, testbed: Testbed, everywhere: Everything, tmp_path: Path
) -> None:
    said = testbed("--all", option, str(tmp_path / "nowhere" / "file"))
    assert (said.status, said.out) == (2, "")
    assert str(tmp_path / "nowhere") in said.err
    said = testbed("--all", option, str(tmp_path))
    assert said.status == 2
    assert str(tmp_path) in said.err
    assert everywhere.asked == []


def test_recovery_goes_without_claims(testbed: Testbed, everywhere: Everything) -> None:
    for more in (["two-node", "test_own.py"], ["--claim", ONE], ["--document", "000"]):
        said = testbed("--recovery", *more)
        assert said.status == 2
        assert "--recovery" in said.err


def test_only_some_labs_of_all(testbed: Testbed, everywhere: Everything) -> None:
    assert testbed("--all", "--lab", "k8s-*", "--lab", "two-node").status == 0
    assert everywhere.labs == ("k8s-*", "two-node")
    said = testbed("two-node", "--lab", "k8s-*")
    assert said.status == 2
    assert "--all" in said.err


def test_a_lab_that_was_left_out_says_why(testbed: Testbed, everywhere: Everything) -> None:
    absent = Finding(ONE, "skipped", reason="kubernetes is not built yet", expected="confirmed")
    part = LabRun("k8s-two-node", None, Results([absent]), absent="kubernetes is not built yet")
    everywhere.parts.append(part)
    said = testbed("--all", "--claim", ONE)
    assert said.status == 0
    line = next(line for line in said.out.splitlines() if line.split()[:1] == ["--"])
    assert line.split(maxsplit=2)[1:] == [
        "k8s-two-node",
        "1 claim skipped: kubernetes is not built yet",
    ]
    assert said.out.splitlines()[-1].startswith("1 claim checked on two-node, 1 as")


def test_recovery_is_a_suite_of_its_own_on_every_back_end(
    testbed: Testbed, everywhere: Everything
) -> None:
    testbed("--all")
    asked = everywhere.wanted
    assert asked is None
    testbed("--all", "--recovery")
    assert everywhere.asked[-1].paths == (runner.RECOVERY,)
    assert everywhere.wanted is not None
    backends = [FlannelSection.find(one.load()) for one in everywhere.wanted]
    assert [flannel.backend for flannel in backends if flannel] == ["vxlan", "udp", "host-gw"]
    assert runner.RECOVERY.is_file()
    assert not runner.RECOVERY.name.startswith("test_"), "no other run collects it"


def test_a_lab_and_all_of_them_exclude_each_other(testbed: Testbed, everywhere: Everything) -> None:
    said = testbed("--all", "two-node")
    assert said.status == 2
    assert "--all" in said.err
    assert everywhere.asked == []


def test_an_unknown_language(testbed: Testbed) -> None:
    assert testbed("--all", "--lang", "fr").status == 2


# -- every lab -------------------------------------------------------------------


def test_all_that_is_asked_for_is_handed_on(testbed: Testbed, everywhere: Everything) -> None:
    argv = ["-k", "fdb", "--claim", ONE, "--claim", TWO, "--document", "000"]
    testbed("--all", *argv)
    testbed("--all")
    assert everywhere.asked == [Selection("fdb", (ONE, TWO), ("000",)), Selection()]


def test_a_line_a_lab_and_what_it_came_to(testbed: Testbed, everywhere: Everything) -> None:
    said = testbed("--all", "--claim", ONE)
    assert (said.status, said.err.split()) == (0, ["two-node", "begins"])
    lines = said.out.splitlines()
    assert lines[0].split() == [
        "ok",
        "two-node",
        "up",
        "0.50",
        "s",
        "1",
        "as",
        "expected",
        "1.0",
        "s",
    ]
    assert lines[-1] == "1 claim checked on two-node, 1 as expected (1.5 s)"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *("ok", "lab", "two-node", "document"),
        claims()[ONE].document,
    ]


def test_what_is_not_as_expected_is_told_at_once_and_in_full(
    testbed: Testbed, everywhere: Everything
) -> None:
    everywhere.also_wrong()
    said = testbed("--all", "--claim", ONE, "--claim", TWO)
    assert said.status == 1
    assert "\ndocker-single  contradicted " in said.out
    assert f"\n{TWO}  on docker-single  (" in said.out
    assert "\n  FAIL  docker-single" in said.out
    assert f"two-node  {GOOD.verdict}" not in said.out, "nothing is said of the others"
    quiet = testbed("--all", "--claim", ONE, "--claim", TWO, "-q")
    assert quiet.status == 1
    assert quiet.out.startswith(f"\n{TWO}  on docker-single  (")
    assert "document" not in quiet.out


def test_evidence_on_request(testbed: Testbed, everywhere: Everything) -> None:
    said = testbed("--all", "--claim", ONE, "-v")
    assert "two-node  confirmed  " in said.out


def test_files_are_written_and_the_run_is_kept(
    testbed: Testbed, everywhere: Everything, tmp_path: Path, bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    everywhere.also_wrong()
    seen: list[str] = []

    def render(run: dict[str, Any], *, lang: str) -> str:
        seen.append(lang)
        return f"<html>{len(run['labs'])} 容器"

    monkeypatch.setattr("testbed.report.html.render", render)
    data, junit, html = (tmp_path / name for name in ("a.json", "a.xml", "a.html"))
    argv = ["--claim", ONE, "--claim", TWO, "--json", str(data), "--junit", str(junit)]
    said = testbed("--all", *argv, "--html", str(html), "--lang", "zh")
    assert said.status == 1
    found = json.loads(data.read_text(encoding="utf-8"))
    assert [lab["lab"] for lab in found["labs"]] == ["two-node", "docker-single"]
    assert [case.get("name") for case in ET.parse(junit).iter("testcase")] == [ONE, TWO]  # our own
    assert (html.read_text(encoding="utf-8"), seen) == ("<html>2 容器", ["zh"])
    assert f"report written to {html}" in said.out
    kept = json.loads((bench.state.path / last.FOLDER / last.FILE).read_text())
    assert kept == found
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.xml", "a.html", "state"}


def test_data_alone_on_standard_output(testbed: Testbed, everywhere: Everything) -> None:
    everywhere.also_wrong()
    said = testbed("--all", "--json", "-")
    assert said.status == 1
    assert len(json.loads(said.out)["labs"]) == 2
    assert said.err == ""


@pytest.mark.parametrize("option", ["--json", "--junit", "--html", "--markdown"])
def test_each_form_can_go_to_standard_output(
    option: str, testbed: Testbed, everywhere: Everything
) -> None:
    written = {}
    for place in ("-", "/dev/stdout"):
        said = testbed("--all", option, place, "--claim", ONE)
        assert (said.status, said.err) == (0, "")
        written[place] = said.out
    assert written["-"][:1] in {"{", "<", "#"}
    assert written["-"].rstrip()[-1:] in {"}", ">", "|"}
    assert len(written["-"]) == len(written["/dev/stdout"])
    said = testbed("--all", option, "-", "--json" if option != "--json" else "--html", "-")
    assert (said.status, said.out) == (2, "")


@pytest.mark.parametrize("bad", ["--json", "--junit", "--html", "--markdown"])
def test_a_file_that_fails_keeps_nothing_from_the_others(
    bad: str, testbed: Testbed, everywhere: Everything, tmp_path: Path
) -> None:
    """Neither from the terminal, nor from the other files."""
    everywhere.also_wrong()
    full = tmp_path / "full"
    full.symlink_to("/proc/self/fd/999")  # what cannot be written, but is found out only then
    check = Output.refuse
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "refuse", lambda _: None)
        argv = [
            word
            for option in ("--json", "--junit", "--html", "--markdown")
            for word in (option, str(full if option == bad else tmp_path / option))
        ]
        said = testbed("--all", "--claim", ONE, "--claim", TWO, *argv)
    assert Output.refuse is check
    assert said.status == 3
    assert str(full) in said.err
    assert "2 claims checked" in said.out
    others = {"--json", "--junit", "--html", "--markdown"} - {bad}
    assert {path.name for path in tmp_path.glob("--*")} == others
    assert all((tmp_path / other).stat().st_size for other in others)


def test_a_signal_counts_for_more_than_a_file_that_fails(
    testbed: Testbed, everywhere: Everything, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere.signum = signal.SIGTERM
    monkeypatch.setattr(Output, "refuse", lambda _: None)
    assert testbed("--all", "--json", "/proc/self/fd/999").status == 128 + signal.SIGTERM


def test_a_defect_of_a_report_keeps_nothing_from_the_others(
    testbed: Testbed, everywhere: Everything, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def render(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("testbed.report.html.render", render)
    monkeypatch.setattr("testbed.report.junit.to_xml", render)
    data = tmp_path / "a.json"
    with pytest.raises(ZeroDivisionError):
        testbed("--all", "--html", str(tmp_path / "a.html"), "--json", str(data), "--junit", "x")
    assert "checked on" in capsys.readouterr().out
    assert json.loads(data.read_text())["labs"]


@pytest.mark.parametrize("error", [OutputError(OSError(28, "No space left")), ReaderGone()])
def test_a_terminal_that_is_lost_ends_a_run_unless_files_are_wanted(
    error: OutputError | ReaderGone, testbed: Testbed, everywhere: Everything, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def echo(*_: Any, err: bool = False, **__: Any) -> None:
        if not err:
            raise error

    monkeypatch.setattr(click, "echo", echo)
    everywhere.also_wrong()
    data = tmp_path / "a.json"
    assert testbed("--all").status == error.exit_code
    assert testbed("--all", "--json", str(data)).status == error.exit_code
    assert len(json.loads(data.read_text())["labs"]) == 2, "the run went on"


def test_a_run_that_cannot_be_kept_is_told(
    testbed: Testbed, everywhere: Everything, bench: Bench
) -> None:
    bench.state.path.mkdir(parents=True, exist_ok=True)
    (bench.state.path / last.FOLDER).write_text("in the way")
    said = testbed("--all", "--claim", ONE)
    assert said.status == 0
    assert last.FOLDER in said.err
    assert "1 claim checked" in said.out


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_what_it_has(
    signum: signal.Signals, testbed: Testbed, everywhere: Everything, tmp_path: Path
) -> None:
    everywhere.signum = signum
    data, junit = tmp_path / "a.json", tmp_path / "a.xml"
    said = testbed("--all", "--json", str(data), "--junit", str(junit))
    assert said.status == 128 + signum
    assert "; interrupted (" in said.out
    assert json.loads(data.read_text())["interrupted"] is True
    assert len(list(ET.parse(junit).iter("testcase"))) == 1  # our own


def test_labs_that_do_not_come_up(testbed: Testbed, everywhere: Everything) -> None:
    everywhere.parts.append(LabRun("b", load("two-node"), error="no vxlan\n  -> load it", status=3))
    said = testbed("--all", "--claim", ONE)
    assert said.status == 3
    assert "\nb\n  no vxlan\n    -> load it\n" in said.out
    assert "; 1 lab failed (" in said.out


@pytest.mark.parametrize(("left", "status"), [([], 0), (["new link: veth1"], 1)])
def test_the_machine_is_looked_at_on_request(
    left: list[str], status: int, testbed: Testbed, everywhere: Everything,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine_state, "snapshot", lambda _: machine_state.Snapshot({}))
    monkeypatch.setattr(machine_state, "left", lambda *_, **__: left)
    said = testbed("--all", "--claim", ONE, "--check-machine")
    assert said.status == status
    assert ("the machine is unchanged" in said.out) is not bool(left)
    assert all(line in said.out for line in left)
    assert "machine" not in testbed("--all", "--claim", ONE).out


# -- proofs ----------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "status"), [("passed", 0), ("failed", 1)])
def test_every_lab_is_broken_on_request(
    outcome: str, status: int, testbed: Testbed, everywhere: Everything, tmp_path: Path
) -> None:
    check = Check(
        f"{ONE} fails under cut", outcome, 0.1, "" if outcome == "passed" else "it passed"
    )
    everywhere.parts = [
        LabRun("no lab", results=Results(checks=[Check(f"{TWO} has a sabotage", "skipped", 0.0)]),
               proofs={TWO: {"skipped"}}),
        LabRun("a", load("two-node"), Results(checks=[check]), proofs={ONE: {outcome}}),
        LabRun("b", load("two-node"), Results(checks=[check]), proofs={ONE: {"passed"}}),
    ]  # fmt: skip
    data = tmp_path / "run.json"
    said = testbed("--all", "--prove", "--json", str(data))
    assert (said.status, everywhere.proving) == (status, True)
    last = said.out.strip().splitlines()[-1]
    assert last.startswith(f"{1 - status} of 2 ")
    assert "2 labs" in last
    assert "1 skipped" in last
    assert ("it passed" in said.out) is (outcome == "failed")
    checks = [
        check["outcome"] for lab in json.loads(data.read_text())["labs"] for check in lab["checks"]
    ]
    assert checks == ["skipped", outcome, outcome]
    testbed("--all")
    assert not everywhere.proving


@pytest.mark.parametrize("other", ["--recovery", "--rerun-failed"])
def test_proofs_go_with_no_other_kind_of_run(other: str, testbed: Testbed) -> None:
    assert testbed("--all", "--prove", other).status == 2


# -- again -----------------------------------------------------------------------


def test_what_failed_is_run_again(testbed: Testbed, everywhere: Everything) -> None:
    everywhere.also_wrong()
    everywhere.parts[0].results.checks.append(Check("test_x.py::test_it", "failed", 0.1, "no"))
    testbed("--all", "--claim", ONE, "--claim", TWO)
    testbed("--all", "--rerun-failed")
    assert everywhere.asked[1] == Selection(claims=(TWO,), tests=("test_x.py::test_it",))


def test_nothing_failed(testbed: Testbed, everywhere: Everything) -> None:
    testbed("--all", "--claim", ONE)
    said = testbed("--all", "--rerun-failed")
    assert (said.status, said.err, len(said.out.splitlines())) == (0, "", 1)
    assert len(everywhere.asked) == 1


def test_there_is_no_last_run(testbed: Testbed, everywhere: Everything) -> None:
    said = testbed("--all", "--rerun-failed")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("testbed: there is no last run")
    assert everywhere.asked == []


# -- one lab -----------------------------------------------------------------------


class StandIn:
    """A LiveLab that is not looked at."""

    closed = 0

    def __init__(self, _: Any) -> None:
        self.name = "two-node"

    def close(self) -> None:
        type(self).closed += 1

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> type[Self]:
        monkeypatch.setattr(cls, "closed", 0)
        monkeypatch.setattr("testbed.labs.live.LiveLab", cls)
        return cls


@pytest.fixture
def two_node(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A lab of fakes that is up."""
    Lab("two-node", bench.settings).up(load("two-node"))
    monkeypatch.setattr(LabRun, "look", lambda *_: None)
    return StandIn.install(monkeypatch)


def runs(monkeypatch: pytest.MonkeyPatch, outcome: Results | BaseException) -> list[Selection]:
    """Results of the checks on the one lab."""
    asked: list[Selection] = []

    def run(_: Any, selection: Selection, *, told: Callable[[Any], None]) -> Results:
        asked.append(selection)
        if isinstance(outcome, BaseException):
            raise outcome
        for found in [*outcome.findings, *outcome.checks]:
            told(found)
        return outcome

    monkeypatch.setattr(runner, "run", run)
    return asked


def test_one_lab_a_line_a_claim(
    testbed: Testbed, two_node: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = runs(monkeypatch, Results([GOOD], [PASSED], elsewhere=[TWO]))
    said = testbed("two-node", "--claim", ONE)
    assert (said.status, said.err) == (0, "")
    assert asked == [Selection(claims=(ONE,))]
    lines = said.out.splitlines()
    assert lines[0].startswith(f"  confirmed     {claims()[ONE].document}  ")
    assert lines[1] == "  passed        test_own.py::test_it"
    assert lines[-1].startswith(
        "1 claim checked on two-node, 1 as expected; 1 other checks, 0 failed; 1 need another lab ("
    )
    assert two_node.closed == 1


def test_one_lab_with_files_of_ones_own(
    testbed: Testbed, two_node: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = runs(monkeypatch, Results(checks=[PASSED]))
    testbed("two-node", "tests/a.py", "b")
    assert asked == [Selection(paths=(Path("tests/a.py"), Path("b")))]


def test_one_lab_and_its_evidence(
    testbed: Testbed, two_node: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, Results([GOOD, WRONG]))
    shown = testbed("two-node", "-v").out
    assert "      node1# ip link\n" in shown
    assert "      does not hold: it is there\n" in shown
    said = testbed("two-node", "-q", "--claim", ONE, "--claim", TWO)
    assert said.status == 1
    assert said.out.startswith(f"\n{TWO}  on two-node  (")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_lab_interrupted(
    signum: signal.Signals, testbed: Testbed, two_node: type[StandIn], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    runs(monkeypatch, Results([GOOD], signum=signum))
    data = tmp_path / "a.json"
    said = testbed("two-node", "--json", str(data))
    assert said.status == 128 + signum
    (lab,) = json.loads(data.read_text())["labs"]
    assert (lab["interrupted"], lab["findings"][0]["claim"]) == (True, ONE)


def test_one_lab_is_let_go_of_whatever_happens(
    testbed: Testbed, two_node: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        testbed("two-node")
    assert two_node.closed == 1


def test_one_lab_that_is_not_whole(testbed: Testbed, two_node: type[StandIn], bench: Bench) -> None:
    bench.provider.destroy("two-node", ["node2"])
    said = testbed("two-node")
    assert (said.status, said.out) == (4, "")
    assert "node2" in said.err.splitlines()[0]
    assert "`testbed up -l two-node`" in said.err


# -- while it goes on ---------------------------------------------------------------


def test_a_terminal_has_a_line_that_changes_and_a_file_has_only_what_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, its = os.openpty()
    out = io.StringIO()
    with os.fdopen(its, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "xterm")
        output = Output(
            json_file=None,
            junit=None,
            html=None,
            markdown=None,
            lang="en",
            evidence=False,
            quiet=False,
        )
        before = threading.enumerate()
        with verify._Progress(output, shipped()) as progress:
            threads = threading.enumerate()
            Everything()(None, SOME, progress.watching())
            progress.watching().began("docker-single")
        monkeypatch.undo()  # the terminal is about to be closed
    told = b""
    with contextlib.suppress(OSError):  # EIO at the end; before, it comes in parts
        while part := os.read(ours, 65536):
            told += part
    os.close(ours)
    seen = told.decode()
    assert set(threads) <= set(before), "processes are forked meanwhile"
    assert "two-node 1" in seen
    assert "docker-single" in seen
    assert click.unstyle(out.getvalue()).split()[:2] == ["ok", "two-node"]


def test_no_line_changes_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(
        json_file=None, junit=None, html=None, markdown=None, lang="en", evidence=False, quiet=True
    )
    with verify._Progress(output, shipped()) as progress:
        Everything()(None, SOME, progress.watching())
    assert capsys.readouterr() == ("", "")
