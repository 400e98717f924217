"""What the suite is told, and what it says: command lines, its output as it runs, its report.

The suite is Go's testing with Ginkgo (onsi.github.io/ginkgo, "Ginkgo CLI Overview"): the
command ``ginkgo`` starts a process of the test binary for each of ``--procs``, hands each the
next test, and prints what came of a test when it has ended.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.claims.model import Evidence
from testbed.claims.observation import LIMIT
from testbed.suites.model import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: The tests of the network that a cluster must pass to be called Kubernetes.
FOCUS = r"\[sig-network\].*\[Conformance\]"
REPORT = "report.json"
GRACE = 15  # seconds that a test has to clean up after an interrupt

DELIMITER = re.compile(r"-{30}$")
#: What stands before a test that has ended, or before one of the suite's own nodes.
HEADER = re.compile(
    r"(?P<what>[•↺SP]|\[\w+\])(?: \[(?P<state>[^\]]+)\]| PASSED)?"
    r" \[(?P<seconds>\d+\.\d+) seconds\]$"
)
NODE = re.compile(r"\[(?:It|BeforeEach|AfterEach|DeferCleanup \(Each\))\] ")
LABELS = re.compile(r"(?P<name>.+) \[(?P<labels>[^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tests, and how: regular expressions of Go, as upstream's options of these names.

    ``procs`` run at once; ``timeout`` is for all of them, in seconds.
    """

    focus: str = FOCUS
    skip: str = ""
    procs: int = 1
    timeout: int = 3600


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the suite has to know of the cluster, as the control plane's node sees it."""

    kubeconfig: str
    kubectl: str
    nodes: int


def words(ginkgo: str, suite: str, asked: Asked, cluster: Cluster, folder: str) -> list[str]:
    """The argv of a run; its report will be in ``folder``."""
    return [
        ginkgo,
        "--no-color",
        "-v",  # else a test that passes is a dot, and nobody knows which it was
        "--silence-skips",
        f"--procs={asked.procs}",
        f"--timeout={asked.timeout}s",
        f"--grace-period={GRACE}s",
        f"--focus={asked.focus}",
        *([f"--skip={asked.skip}"] if asked.skip else []),
        f"--output-dir={folder}",
        f"--json-report={REPORT}",
        suite,
        "--",
        "--provider=skeleton",  # a cluster that is there, of no cloud
        f"--num-nodes={cluster.nodes}",
        "--master-os-distro=custom",
        "--node-os-distro=custom",
        "--disable-log-dump",  # it would go to the nodes by ssh
        f"--kubeconfig={cluster.kubeconfig}",
        f"--kubectl-path={cluster.kubectl}",
    ]


class Listener:
    """Hears the suite's output as it grows, and tells each test that has ended.

    ``ended`` is all that was told: what there is if no report comes.
    """

    def __init__(self, told: Callable[[Check], None] = lambda _: None) -> None:
        self._told = told
        self.ended: list[Check] = []
        self._rest = ""
        self._block: list[str] = []

    def hear(self, text: str, *, last: bool = False) -> None:
        """Take the next piece of output; ``last`` if none will come."""
        *lines, self._rest = (self._rest + text).split("\n")
        if last and self._rest:
            lines.append(self._rest)
        for line in lines:
            if DELIMITER.match(line):
                self._block_ends()
            else:
                self._block.append(line)
        if last:
            self._block_ends()

    def _block_ends(self) -> None:
        block, self._block = [line for line in self._block if line.strip()], []
        headers = (number for number, line in enumerate(block) if HEADER.match(line))
        at = next(headers, None)
        if at is None:
            return
        header = HEADER.match(block[at])
        assert header
        # The name comes after the header; with one process that of a test that passes comes
        # first, and what the test wrote stands between.
        name = next(iter(block[at + 1 :]), block[0])
        outcome = _outcome((header["state"] or "passed").lower())
        if header["what"].startswith("[") and outcome == "passed":  # the suite's own
            return
        problem = "\n".join(block[at:]) if outcome == "failed" else ""
        check = Check(_plain(name.strip()), outcome, float(header["seconds"]), problem)
        self.ended.append(check)
        self._told(check)


def _plain(name: str) -> str:
    """A test's name without what is printed with it: which of its nodes failed, its labels.

    >>> _plain("[sig-network] DNS [It] should work [Conformance] [sig-network, Conformance]")
    '[sig-network] DNS should work [Conformance]'
    """
    name = NODE.sub("", name)
    found = LABELS.fullmatch(name)
    # Kubernetes has each label in the name, too (test/e2e/framework/ginkgowrapper.go).
    if found and all(f"[{label}]" in found["name"] for label in found["labels"].split(", ")):
        return found["name"]
    return name


def checks(report: str) -> list[Check]:
    """The tests that were run, from the suite's own report (Ginkgo's types.Report, as JSON).

    Tests that were not asked for are left out; one that has left itself out says why.
    """
    suites: Sequence[Mapping[str, Any]] = json.loads(report)
    found = [_check(spec) for suite in suites for spec in suite["SpecReports"] or ()]
    return [check for check in found if check is not None]


def reasons(report: str) -> list[str]:
    """Why the run as a whole has failed, where no test has."""
    return [
        reason
        for suite in json.loads(report)
        for reason in suite.get("SpecialSuiteFailureReasons") or ()
    ]


def _check(spec: Mapping[str, Any]) -> Check | None:
    failure: Mapping[str, Any] = spec.get("Failure") or {}
    outcome = _outcome(spec["State"])
    of_suite = spec["LeafNodeType"] != "It"
    if (of_suite and outcome != "failed") or (outcome == "skipped" and not failure):
        return None
    name = " ".join([*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]]).strip()
    more = (one["Failure"] for one in spec.get("AdditionalFailures") or ())
    problem = "\n\n".join(_said(one) for one in (failure, *more) if one)
    if outcome == "failed" and spec["State"] != "failed":
        problem = f"{spec['State']}: {problem}"
    said = spec.get("CapturedGinkgoWriterOutput", "") + spec.get("CapturedStdOutErr", "")
    evidence = (Evidence("what the test wrote, at the end", said[-LIMIT:]),) if said else ()
    seconds = spec["RunTime"] / 1e9  # Go's time.Duration is in nanoseconds
    return Check(name or spec["LeafNodeType"], outcome, seconds, problem, evidence)


def _outcome(state: str) -> str:
    """A test's outcome as a Check has it (Ginkgo's types.SpecState)."""
    if state == "passed":
        return "passed"
    return "skipped" if state in {"skipped", "pending"} else "failed"


def _said(failure: Mapping[str, Any]) -> str:
    place = failure.get("Location") or {}
    at = f"\nat {place['FileName']}:{place['LineNumber']}" if place.get("FileName") else ""
    panic = f"\n{failure['ForwardedPanic']}" if failure.get("ForwardedPanic") else ""
    return f"{failure['Message'].rstrip()}{panic}{at}"
