"""Interface to the suite: command lines, its output while it runs, its report.

The suite is Go's testing with Ginkgo (onsi.github.io/ginkgo, "Ginkgo CLI Overview"): the
command ``ginkgo`` starts a process of the test binary for each of ``--procs``, gives each the
next test, and prints the result of a test when it has ended.
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

#: The network tests that a cluster must pass to be certified as Kubernetes.
FOCUS = r"\[sig-network\].*\[Conformance\]"
REPORT = "report.json"
GRACE = 15  # seconds that a test has to clean up after an interrupt

DELIMITER = re.compile(r"-{30}$")
#: The prefix of a test that has ended, or of one of the suite's own nodes.
HEADER = re.compile(
    r"(?P<what>[•↺SP]|\[\w+\])(?: \[(?P<state>[^\]]+)\]| PASSED)?"
    r" \[(?P<seconds>\d+\.\d+) seconds\]$"
)
NODE = re.compile(r"\[(?:It|BeforeEach|AfterEach|DeferCleanup \(Each\))\] ")
LABELS = re.compile(r"(?P<name>.+) \[(?P<labels>[^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Asked:
    """The selected tests: regular expressions of Go, as in upstream's options.

    ``procs`` run at once; ``timeout`` is for all of them, in seconds.
    """

    focus: str = FOCUS
    skip: str = ""
    procs: int = 1
    timeout: int = 3600


@dataclass(frozen=True, slots=True)
class Cluster:
    """Facts of the cluster that the suite needs, as seen on the control plane's node."""

    kubeconfig: str
    kubectl: str
    nodes: int


def words(ginkgo: str, suite: str, asked: Asked, cluster: Cluster, folder: str) -> list[str]:
    """Return the argv of a run; its report will be in ``folder``."""
    return [
        ginkgo,
        "--no-color",
        "-v",  # otherwise a passed test is printed as a dot without its name
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
        "--provider=skeleton",  # an existing cluster without a cloud provider
        f"--num-nodes={cluster.nodes}",
        "--master-os-distro=custom",
        "--node-os-distro=custom",
        "--disable-log-dump",  # it would connect to the nodes by ssh
        f"--kubeconfig={cluster.kubeconfig}",
        f"--kubectl-path={cluster.kubectl}",
    ]


class Listener:
    """Parser of the suite's growing output; reports each test that has ended.

    ``ended`` holds all tests reported so far: the results if no report is written.
    """

    def __init__(self, told: Callable[[Check], None] = lambda _: None) -> None:
        self._told = told
        self.ended: list[Check] = []
        self._rest = ""
        self._block: list[str] = []

    def hear(self, text: str, *, last: bool = False) -> None:
        """Take the next piece of output; ``last`` marks the final one."""
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
        # The name comes after the header.  With a single process, the name of a passed test comes
        # first, and the output of the test stands in between.
        name = next(iter(block[at + 1 :]), block[0])
        outcome = _outcome((header["state"] or "passed").lower())
        if header["what"].startswith("[") and outcome == "passed":  # one of the suite's own nodes
            return
        problem = "\n".join(block[at:]) if outcome == "failed" else ""
        check = Check(_plain(name.strip()), outcome, float(header["seconds"]), problem)
        self.ended.append(check)
        self._told(check)


def _plain(name: str) -> str:
    """Return a test's name without the failed node and the labels printed with it.

    >>> _plain("[sig-network] DNS [It] should work [Conformance] [sig-network, Conformance]")
    '[sig-network] DNS should work [Conformance]'
    """
    name = NODE.sub("", name)
    found = LABELS.fullmatch(name)
    # Kubernetes repeats each label in the name (test/e2e/framework/ginkgowrapper.go).
    if found and all(f"[{label}]" in found["name"] for label in found["labels"].split(", ")):
        return found["name"]
    return name


def checks(report: str) -> list[Check]:
    """Return the tests that ran, from the suite's own report.

    It is Ginkgo's types.Report, as JSON.  Tests that were not selected are left out; a test that
    skipped itself has its reason.
    """
    suites: Sequence[Mapping[str, Any]] = json.loads(report)
    found = [_check(spec) for suite in suites for spec in suite["SpecReports"] or ()]
    return [check for check in found if check is not None]


def reasons(report: str) -> list[str]:
    """Return why the run as a whole failed, if no single test did."""
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
    """Map a test's state (Ginkgo's types.SpecState) to the outcome of a Check."""
    if state == "passed":
        return "passed"
    return "skipped" if state in {"skipped", "pending"} else "failed"


def _said(failure: Mapping[str, Any]) -> str:
    place = failure.get("Location") or {}
    at = f"\nat {place['FileName']}:{place['LineNumber']}" if place.get("FileName") else ""
    panic = f"\n{failure['ForwardedPanic']}" if failure.get("ForwardedPanic") else ""
    return f"{failure['Message'].rstrip()}{panic}{at}"
