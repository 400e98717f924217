"""What a run of the suites is asked for, and what it came to: values only, no pytest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.claims.catalogue import claims
from testbed.errors import NothingTested

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.claims.model import Claim, Evidence, Finding, Measurement, Verdict
    from testbed.labs.live import LiveLab
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Selection:
    """Which checks to run: pytest's ``-k`` expression, claim ids, document numbers, own paths.

    ``tests`` are names of ordinary tests, as :class:`Check` has them.  With
    neither claims nor tests everything is meant.  ``of`` are the documents that
    a lab is for: of the claims, no others are meant there, nor those that need
    none of the features ``only`` and are not named there themselves; nor other
    tests that need none of them.
    """

    expression: str = ""
    claims: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    tests: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def names_some(self) -> bool:
        return bool(self.claims or self.tests)

    def has(self, claim: Claim) -> bool:
        """Whether a claim of the catalogue is meant, as far as can be told without pytest."""
        if self.names_some and claim.id not in self.claims:
            return False
        if self.only and not set(self.only) & {claim.id, *claim.needs}:
            return False
        wanted = (self.documents, self.of)
        return all(not documents or claim.document in documents for documents in wanted)

    @property
    def is_by_claims(self) -> bool:
        """Whether every claim that it has is to be decided: no test was picked by other means."""
        return not (self.expression or self.paths)


@dataclass(frozen=True, slots=True)
class Check:
    """An ordinary test, without a claim, of a suite or of the user.

    ``evidence`` and ``measurements`` are what it has kept by ``observe``.
    """

    name: str
    outcome: str  #: passed, failed or skipped
    seconds: float
    problem: str = ""
    evidence: tuple[Evidence, ...] = ()
    measurements: tuple[Measurement, ...] = ()


@dataclass(slots=True)
class Results:
    """What a run on one lab came to.

    ``elsewhere`` are the checks that need another lab, ``missed`` the claims that
    an interrupted run did not come to.
    """

    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    signum: int | None = None  #: the signal that ended the run early

    @property
    def interrupted(self) -> bool:
        return self.signum is not None

    @property
    def is_good(self) -> bool:
        """True when every claim ended as expected and no check failed."""
        return (
            all(finding.as_expected for finding in self.findings)
            and not self.broken
            and all(check.outcome != "failed" for check in self.checks)
        )

    @property
    def tested(self) -> bool:
        """True when some claim was decided or some check was run, however it ended."""
        return any(finding.verdict != "not here" for finding in self.findings) or any(
            check.outcome != "skipped" for check in self.checks
        )


@dataclass(slots=True)
class LabRun:
    """One lab's part of a run.  Times are in seconds.

    ``topology`` is None where no lab was needed; ``picture`` is what
    :func:`testbed.observe.graph.graph` saw.  ``error`` says why the lab could
    not be put to the test, ``status`` is the exit status that goes with it; ``absent``
    why it was not even tried.
    """

    name: str
    topology: Topology | None = None
    results: Results = field(default_factory=Results)
    facts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    picture: Mapping[str, Any] = field(default_factory=dict)
    up: float = 0.0
    seconds: float = 0.0
    down: float = 0.0
    error: str = ""
    absent: str = ""
    status: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the lab had nothing to say: nothing of the selection could be decided there."""
        results = self.results
        something = results.findings or results.checks or results.broken
        return not (something or results.interrupted or self.error)

    def look(self, live: LiveLab) -> None:
        """Take down what the lab is like before anything is tried on it."""
        from testbed.observe.graph import graph

        self.facts = live.facts
        self.picture = graph(live)


@dataclass(slots=True)
class Run:
    """A whole run.  ``started`` is in Unix seconds.

    ``complete`` says that every lab that could decide any of the selection took
    part, so that each claim must have been decided by one of them.
    """

    selection: Selection
    labs: list[LabRun] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    signum: int | None = None
    complete: bool = False

    def by_claim(self) -> Mapping[str, list[tuple[LabRun, Finding]]]:
        """What each claim came to on each lab, in the order of the catalogue."""
        found: dict[str, list[tuple[LabRun, Finding]]] = {}
        for lab in self.labs:
            for finding in lab.results.findings:
                found.setdefault(finding.claim, []).append((lab, finding))
        return {name: found[name] for name in claims() if name in found}

    def worst(self) -> Mapping[str, Finding]:
        """Each claim's finding that tells most against it: a claim is as good as that."""
        return {
            name: max((finding for _, finding in found), key=_rank)
            for name, found in self.by_claim().items()
        }

    def meant(self) -> Iterator[Claim]:
        """The claims that the run is about, in the order of the catalogue."""
        found = {*self.by_claim(), *(name for lab in self.labs for name in lab.results.missed)}
        for claim in claims().values():
            wanted = self.selection.is_by_claims and self.selection.has(claim)
            if claim.id in found or (wanted and (self.complete or not claim.is_testable)):
                yield claim

    def undecided(self) -> list[str]:
        """Claims that some lab should have decided, and none has."""
        found = self.by_claim()
        return [claim.id for claim in self.meant() if claim.is_testable and claim.id not in found]

    def verdict(self, claim: Claim, worst: Mapping[str, Finding]) -> Verdict | None:
        """What a claim came to in all; None when it could not be told."""
        if not claim.is_testable:
            return "not testable"
        found = worst.get(claim.id)
        return found.verdict if found else None

    @property
    def tested(self) -> bool:
        """True when anything was tested on any lab: not all was skipped."""
        return any(lab.results.tested for lab in self.labs)

    @property
    def status(self) -> int:
        """The exit status: of a signal, a failure, a lab that did not come up, nothing tested."""
        if self.signum is not None:
            return 128 + self.signum
        if not all(lab.results.is_good and not lab.results.interrupted for lab in self.labs):
            return 1
        status = max((lab.status for lab in self.labs), default=0) or int(bool(self.undecided()))
        return status or (0 if self.tested else NothingTested.exit_code)


def _rank(finding: Finding) -> int:
    """How much a finding tells against its claim."""
    if not finding.as_expected:
        return 5
    order: tuple[Verdict, ...] = ("not here", "inconclusive", "confirmed", "depends")
    return order.index(finding.verdict) if finding.verdict in order else len(order)
