"""``testbed conformance``: what the suite is told, what is heard of it, how a run ends."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from testbed import cli
from testbed.artifacts import e2e
from testbed.artifacts.inventory import INVENTORY
from testbed.cli import common
from testbed.conformance import ginkgo, run
from testbed.conformance.ginkgo import Asked, Cluster, Listener
from testbed.errors import LabBusy, LabError, NothingSelected
from testbed.nodes.base import Node, NodeSpec
from testbed.nodes.fake import Answer, Call, FakeNode, FakeProvider
from testbed.steps.context import Context
from testbed.suites.model import Check, LabRun, Results
from testbed.topology.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.testing.fakes import Bench

DNS = "[sig-network] DNS should provide DNS for the cluster [Conformance]"
PROXY = "[sig-network] Proxy version v1 should proxy through a service and a pod [Conformance]"
#: As `ginkgo -v` prints it with several processes, shortened.
PARALLEL = f"""\
Running Suite: Kubernetes e2e suite - /cache/bin
================================================
Random Seed: 1764288000 - will randomize all specs

Will run 2 of 7420 specs
Running in parallel across 4 processes
------------------------------
[SynchronizedBeforeSuite] PASSED [0.912 seconds]
[SynchronizedBeforeSuite]
k8s.io/kubernetes/test/e2e/e2e.go:71
------------------------------
• [6.105 seconds]
{DNS} [sig-network, Conformance]
k8s.io/kubernetes/test/e2e/network/dns.go:50

  Timeline >>
  STEP: Creating a kubernetes client @ 11/27/26 23:59:01.1
  << Timeline
------------------------------
Progress Report for Ginkgo Process #1
  [sig-network] Proxy version v1 should proxy through a service and a pod (Spec Runtime: 30s)
• [FAILED] [30.250 seconds]
[sig-network] Proxy version v1 [It] should proxy through a service and a pod [Conformance] \
[sig-network, Conformance]
k8s.io/kubernetes/test/e2e/network/proxy.go:101

  Timeline >>
  [FAILED] in [It] - proxy.go:200
  << Timeline

  [FAILED] 1 error: timed out
  In [It] at: k8s.io/kubernetes/test/e2e/network/proxy.go:200 @ 11/27/26 23:59:31.3
------------------------------

Summarizing 1 Failure:
  [FAIL] [sig-network] Proxy version v1 [It] should proxy through a service and a pod

Ran 2 of 7420 Specs in 31.250 seconds
FAIL! -- 1 Passed | 1 Failed | 0 Pending | 7418 Skipped
"""
#: With one process its output comes as it runs, and the name before the outcome.
SERIAL = f"""\
Will run 2 of 7420 specs
------------------------------
[SynchronizedBeforeSuite]
k8s.io/kubernetes/test/e2e/e2e.go:71
  I1127 23:59:01.100 1 e2e.go:1] something
[SynchronizedBeforeSuite] PASSED [0.912 seconds]
------------------------------
{DNS} [sig-network, Conformance]
k8s.io/kubernetes/test/e2e/network/dns.go:50
  STEP: Creating a kubernetes client @ 11/27/26 23:59:01.1
• [6.105 seconds]
------------------------------
{PROXY}
k8s.io/kubernetes/test/e2e/network/proxy.go:101
  STEP: Creating a kubernetes client @ 11/27/26 23:59:01.1
  S [SKIPPED] in [It] - proxy.go:120
S [SKIPPED] [0.250 seconds]
[sig-network] Proxy version v1 [It] should proxy through a service and a pod [Conformance]
------------------------------
"""


def spec(name: str, state: str, **more: Any) -> dict[str, Any]:
    """A test of the suite's report, as far as it is looked at."""
    return {
        "ContainerHierarchyTexts": ["[sig-network] DNS"],
        "LeafNodeType": "It",
        "LeafNodeText": name,
        "State": state,
        "RunTime": 6_105_000_000,
        **more,
    }


def report(*specs: dict[str, Any], reasons: list[str] | None = None) -> bytes:
    found = {"SpecReports": list(specs), "SpecialSuiteFailureReasons": reasons}
    return json.dumps([found]).encode()


def failure(words: str) -> dict[str, Any]:
    return {"Message": words, "Location": {"FileName": "dns.go", "LineNumber": 50}}


# -- what the suite is told ------------------------------------------------------


def test_the_command_line_of_a_run() -> None:
    asked = Asked(focus="DNS", skip="IPv6", procs=3, timeout=60)
    cluster = Cluster("/etc/kubernetes/admin.conf", "/bin/kubectl", 2)
    words = ginkgo.words("/bin/ginkgo", "/bin/e2e.test", asked, cluster, "/tmp/x")
    before, after = words[: words.index("--")], words[words.index("--") :]
    assert before[0] == "/bin/ginkgo"
    assert before[-1] == "/bin/e2e.test"
    assert {"--procs=3", "--timeout=60s", "--focus=DNS", "--skip=IPv6"} < set(before)
    assert {"--provider=skeleton", "--num-nodes=2", "--node-os-distro=custom"} < set(after)
    assert "--kubeconfig=/etc/kubernetes/admin.conf" in after


def test_an_empty_skip_is_none() -> None:
    words = ginkgo.words("g", "e", Asked(), Cluster("k", "k", 2), "/tmp/x")
    assert not [word for word in words if word.startswith("--skip=")]
    assert rf"--focus={ginkgo.FOCUS}" in words


def test_the_focus_means_conformance_tests_of_the_network() -> None:
    assert re.search(ginkgo.FOCUS, DNS)
    assert not re.search(ginkgo.FOCUS, DNS.replace("network", "node"))
    assert not re.search(ginkgo.FOCUS, DNS.removesuffix("[Conformance]"))


# -- what is heard ---------------------------------------------------------------


def heard(text: str, size: int) -> list[Check]:
    found: list[Check] = []
    listener = Listener(found.append)
    for start in range(0, len(text), size):
        listener.hear(text[start : start + size], last=start + size >= len(text))
    assert listener.ended == found
    return found


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_tests_are_told_as_they_end(size: int) -> None:
    dns, proxy = heard(PARALLEL, size)
    assert dns == Check(DNS, "passed", 6.105)
    assert (proxy.name, proxy.outcome, proxy.seconds) == (PROXY, "failed", 30.25)
    assert "1 error: timed out" in proxy.problem


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_with_one_process_the_name_comes_first(size: int) -> None:
    assert heard(SERIAL, size) == [Check(DNS, "passed", 6.105), Check(PROXY, "skipped", 0.25)]


def test_the_suites_own_failure_is_told() -> None:
    text = "------------------------------\n[SynchronizedBeforeSuite] [FAILED] [600.1 seconds]\n"
    (check,) = heard(text + "[SynchronizedBeforeSuite] \n  no node is ready\n", 1000)
    assert (check.outcome, check.seconds) == ("failed", 600.1)
    assert "no node is ready" in check.problem


# -- what the report says --------------------------------------------------------


def test_a_report_is_read() -> None:
    text = report(
        spec("good", "passed", CapturedGinkgoWriterOutput="STEP: one"),
        spec("bad", "failed", Failure=failure("no answer\n"), AdditionalFailures=[
            {"State": "failed", "Failure": failure("nor here")}
        ]),
        spec("cut", "interrupted", Failure=failure("Ctrl-C")),
        spec("itself", "skipped", Failure=failure("needs IPv6")),
        spec("another", "skipped"),
        {**spec("", "passed"), "LeafNodeType": "SynchronizedBeforeSuite",
         "ContainerHierarchyTexts": None},
    ).decode()  # fmt: skip
    good, bad, cut, itself = ginkgo.checks(text)
    assert (good.name, good.outcome, good.seconds) == ("[sig-network] DNS good", "passed", 6.105)
    assert [piece.seen for piece in good.evidence] == ["STEP: one"]
    assert bad.problem == "no answer\nat dns.go:50\n\nnor here\nat dns.go:50"
    assert (cut.outcome, cut.problem) == ("failed", "interrupted: Ctrl-C\nat dns.go:50")
    assert (itself.outcome, itself.problem) == ("skipped", "needs IPv6\nat dns.go:50")


def test_a_suite_that_cannot_begin_is_a_failed_check() -> None:
    before = {
        **spec("", "failed", Failure={"Message": "no node", "ForwardedPanic": "nil"}),
        "LeafNodeType": "SynchronizedBeforeSuite",
        "ContainerHierarchyTexts": None,
    }
    (check,) = ginkgo.checks(report(before).decode())
    assert (check.name, check.problem) == ("SynchronizedBeforeSuite", "no node\nnil")


# -- a run -----------------------------------------------------------------------


class Namespaces:
    """Stands in for the API: namespaces that go when they are asked to, at the second look."""

    def __init__(self, *names: str) -> None:
        self.there: dict[str, dict[str, str]] = {name: {"name": name} for name in names}
        self.asked: list[str] = []

    def ask(self, method: str, path: str) -> dict[str, Any]:
        self.asked.append(f"{method} {path}")
        if method == "DELETE":
            self.there[path.rpartition("/")[2]]["deletionTimestamp"] = "now"
            return {}
        found = [{"metadata": dict(one)} for one in self.there.values()]
        self.there = {n: one for n, one in self.there.items() if "deletionTimestamp" not in one}
        return {"items": found}


Suite = Callable[[Call], Answer]


class Lab:
    """A cluster of fake nodes, on which the suite is a function."""

    def __init__(self, bench: Bench, patch: pytest.MonkeyPatch) -> None:
        self.provider = FakeProvider()
        topology = load("k8s-two-node")
        nodes: dict[str, Node] = {
            name: self.provider.create_one("lab", NodeSpec(name, "-")) for name in topology.nodes
        }
        self.context = Context(topology, self.provider, bench.store, nodes)
        self.namespaces = Namespaces()
        patch.setattr("testbed.roles.kubernetes.client.api", lambda _: self.namespaces)
        patch.setattr(run, "POLL", 0.01)

    @property
    def node(self) -> FakeNode:
        node = self.context.node("node1")
        assert isinstance(node, FakeNode)
        return node

    def suite(self, answer: Answer, written: bytes | None) -> None:
        """Have the suite end like this, and leave that report."""

        def act(call: Call) -> Answer:
            assert call.at
            if written is not None:
                call.at.files[f"{run.FOLDER}/{ginkgo.REPORT}"] = written
            return answer

        self.provider.script(["flock"], act)


@pytest.fixture
def lab(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(bench, monkeypatch)


def test_a_run_tells_what_ends_and_returns_what_the_report_says(lab: Lab) -> None:
    lab.suite(
        Answer(1, PARALLEL.encode()),
        report(spec("good", "passed"), spec("bad", "failed", Failure=failure("no"))),
    )
    lab.namespaces = Namespaces("dns-1234")
    told: list[Check] = []
    results = run.run(lab.context, Asked(), told=told.append)
    assert [check.outcome for check in told] == ["passed", "failed"]
    assert [check.name for check in results.checks] == [
        "[sig-network] DNS good", "[sig-network] DNS bad"
    ]  # fmt: skip
    assert not results.is_good
    assert "DELETE /api/v1/namespaces/dns-1234" in lab.namespaces.asked
    assert lab.namespaces.there == {}
    (begun,) = [words for words in lab.provider.asked("run") if words[0] == "flock"]
    assert begun[begun.index(run.LOCK) + 1].endswith("ginkgo")


def test_a_run_that_fails_without_a_failed_test_says_why(lab: Lab) -> None:
    written = report(spec("good", "passed"), reasons=["Suite Timeout Elapsed"])
    lab.suite(Answer(1, PARALLEL.encode()), written)
    _, whole = run.run(lab.context, Asked()).checks
    assert whole == Check(run.WHOLE, "failed", 0.0, "Suite Timeout Elapsed")


def test_a_run_that_fails_without_any_reason_says_that(lab: Lab) -> None:
    lab.suite(Answer(3, PARALLEL.encode()), report(spec("good", "passed")))
    _, whole = run.run(lab.context, Asked()).checks
    assert whole.problem == "its status was 3, and no test has failed"


def test_without_a_report_there_is_what_was_heard(lab: Lab) -> None:
    lab.suite(Answer(-signal.SIGKILL, PARALLEL.encode()), None)
    results = run.run(lab.context, Asked())
    assert [check.outcome for check in results.checks] == ["passed", "failed"]


def test_a_suite_that_does_not_come_so_far(lab: Lab) -> None:
    lab.suite(Answer(2, err=b"flag provided but not defined: -x\n"), None)
    with pytest.raises(LabError, match=r"(?s)status 2.*flag provided"):
        run.run(lab.context, Asked())


def test_a_second_run_is_refused(lab: Lab) -> None:
    lab.suite(Answer(run.BUSY), None)
    lab.namespaces = Namespaces("of-the-first")
    with pytest.raises(LabBusy, match="another run"):
        run.run(lab.context, Asked())
    assert "of-the-first" in lab.namespaces.there, "that is the other run's"


def test_no_test_that_fits(lab: Lab) -> None:
    lab.suite(Answer(0, b"Ran 0 of 7420 Specs\n"), report(spec("another", "skipped")))
    with pytest.raises(NothingSelected, match="--focus 'x' --skip 'y'"):
        run.run(lab.context, Asked(focus="x", skip="y"))


def test_ctrl_c_is_handed_on_and_the_rest_is_told(lab: Lab) -> None:
    told: list[Check] = []

    def stop(check: Check) -> None:
        told.append(check)
        signal.raise_signal(signal.SIGINT)

    def end(call: Call) -> Answer:
        assert call.at
        for running in list(call.at._running):
            running.kill()
        return Answer()

    lab.suite(Answer(1, PARALLEL.encode(), seconds=3600), report(spec("good", "passed")))
    lab.provider.script(["kill"], end)
    results = run.run(lab.context, Asked(), told=stop)
    assert results.signum == signal.SIGINT
    assert told
    (pid,) = [words[-1] for words in lab.provider.asked("run") if words[0] == "kill"]
    assert pid.startswith("-"), "the whole group, each process of which ends its own test"


def test_who_does_not_end_is_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.1)
    lab.suite(Answer(0, PARALLEL.encode(), seconds=60), None)
    results = run.run(lab.context, Asked(timeout=0))
    assert [check.outcome for check in results.checks] == ["passed", "failed"]


def test_namespaces_that_do_not_go_are_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CLEANED", 0.05)
    stuck = {"items": [{"metadata": {"name": "stuck", "deletionTimestamp": "now"}}]}
    monkeypatch.setattr(lab.namespaces, "ask", lambda *_: stuck)
    assert run.clean(lab.context) == ["stuck"]


def test_images_are_imported_where_they_are_missing(lab: Lab) -> None:
    listed = "\n".join([*e2e.IMAGES, "registry.k8s.io/another:1"]).encode()
    lab.provider.script(
        [lab.node.provide(lab.context.store.binary("e2e.test"))], Answer(out=listed)
    )
    ctr = lab.node.provide(lab.context.store.binary("ctr"))
    has = f"{e2e.PAUSE}\n".encode()
    lab.provider.script(
        [ctr],
        lambda call: Answer(out=has if "list" in call.words and call.node == "node1" else b""),
    )
    run.prepare(lab.context, lambda _: None)
    imported = [
        (call.node, call.words[-1].rpartition("cache/")[2])
        for call in lab.provider.calls
        if call.words[:1] == (ctr,) and "import" in call.words
    ]
    both = [(node, image) for node in ("node1", "node2") for image in e2e.IMAGES]
    both.remove(("node1", e2e.PAUSE))
    assert sorted(imported) == sorted(both)


def test_a_suite_of_another_version_is_refused(lab: Lab) -> None:
    lab.provider.script(
        [lab.node.provide(lab.context.store.binary("e2e.test"))], Answer(out=b"agnhost:9\n")
    )
    with pytest.raises(LabError, match="agnhost"):
        run.prepare(lab.context, lambda _: None)


# -- the parts -------------------------------------------------------------------


def test_the_parts_are_in_the_catalogue_and_no_lab_makes_them() -> None:
    for image, part in e2e.IMAGES.items():
        assert INVENTORY.images[image] == part
        assert INVENTORY.roles[part] == "conformance"
    for program in ("e2e.test", "ginkgo", "agnhost"):
        assert INVENTORY.programs[program] == "e2e"
    assert e2e.SUITE.version() == INVENTORY.parts["kubernetes"].version()


def test_a_new_certificate_makes_a_new_image() -> None:
    keys = {INVENTORY.parts[part].key() for part in e2e.IMAGES.values()}
    assert len(keys) == len(e2e.IMAGES)
    agnhost = INVENTORY.parts[e2e.IMAGES[e2e.AGNHOST]]
    assert agnhost.recipe()["of"] == e2e.SUITE.key()


# -- the command -----------------------------------------------------------------

Testbed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def testbed(
    bench: Bench, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Testbed:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.setattr(common, "whole", lambda _: lab.context)
    monkeypatch.setattr(LabRun, "look", lambda *_: None)
    monkeypatch.setattr(run, "prepare", lambda *_: None)
    monkeypatch.setattr(
        "testbed.labs.lab.Lab.record", lambda _: type("Record", (), {"versions": {}})
    )

    def go(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.run(["conformance", "k8s-two-node", *argv])
        return (status, *capsys.readouterr())

    return go


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Record the request of a run; one test passes, one fails, one is skipped."""
    found: list[Asked] = []

    def stand_in(
        _: Context, asked: Asked, *, told: Callable[[Check], None], **__: object
    ) -> Results:
        found.append(asked)
        outcomes = zip(("one", "two", "three"), ("passed", "failed", "skipped"), strict=True)
        results = Results(
            checks=[Check(n, o, 1.0, "" if o == "passed" else "why") for n, o in outcomes]
        )
        for check in results.checks:
            told(check)
        return results

    monkeypatch.setattr(run, "run", stand_in)
    return found


def test_a_failed_test_is_status_1_and_told_in_full(testbed: Testbed, ended: list[Asked]) -> None:
    status, out, _ = testbed()
    assert status == 1
    assert ended == [Asked(procs=run.processes())]
    lines = [line.split() for line in out.splitlines() if line]
    assert lines[:3] == [["passed", "one"], ["failed", "two"], ["skipped", "three"]]
    assert "\ntwo\n  why\n" in out
    assert "3 of upstream's tests on k8s-two-node: 1 passed, 1 failed, 1 skipped" in out


def test_options_are_handed_on(testbed: Testbed, ended: list[Asked]) -> None:
    testbed("--focus", "DNS", "--skip", "IPv6", "--procs", "3", "--timeout", "60")
    assert ended == [Asked("DNS", "IPv6", 3, 60)]


def test_files_are_written_and_the_last_run_of_verify_is_kept(
    testbed: Testbed, ended: list[Asked], tmp_path: Path, bench: Bench
) -> None:
    names = [tmp_path / name for name in ("a.json", "a.xml", "a.html")]
    options = zip(("--json", "--junit", "--html"), map(str, names), strict=True)
    status, _, err = testbed("-q", *itertools.chain.from_iterable(options))
    assert (status, err, len(ended)) == (1, "", 1)
    data = json.loads(names[0].read_text(encoding="utf-8"))
    assert [check["name"] for check in data["labs"][0]["checks"]] == ["one", "two", "three"]
    assert data["claims"] == []
    assert names[1].read_text(encoding="utf-8").count("<testcase ") == 3
    assert 'id="claims"' not in names[2].read_text(encoding="utf-8")
    assert not (bench.state.path / "runs").exists()


def test_a_file_that_cannot_be_written_is_told_before_anything_is_run(
    testbed: Testbed, ended: list[Asked]
) -> None:
    status, _, err = testbed("--html", "/nowhere/at/all.html")
    assert (status, ended) == (2, [])
    assert "/nowhere/at" in err


@pytest.mark.parametrize(("status", "skip", "wanted"), [
    (0, "", []),
    (1, "", [rf"--skip={run.SCTP}"]),
    (1, "IPv6", [rf"--skip=IPv6|{run.SCTP}"]),
])  # fmt: skip
def test_what_the_kernel_has_nothing_for_is_left_out_and_told(
    lab: Lab, status: int, skip: str, wanted: list[str]
) -> None:
    lab.suite(Answer(0, PARALLEL.encode()), report(spec("good", "passed")))
    lab.provider.script(["python3"], Answer(status, err=b"Protocol not supported"))
    said: list[str] = []
    run.run(lab.context, Asked(skip=skip), say=said.append)
    (begun,) = [words for words in lab.provider.asked("run") if words[0] == "flock"]
    assert [word for word in begun if word.startswith("--skip=")] == wanted
    assert ["SCTP" in line for line in said] == [True] * bool(status)
