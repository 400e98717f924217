"""Selection and results of a run of the suites: values only, no pytest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.claims.catalogue import Catalogue
from testbed.errors import NothingTested

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.claims.model import Claim, Evidence, Finding, Measurement, Verdict
    from testbed.labs.live import LiveLab
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Beside:
    """Files of tests that belong to a topology file; ``folder`` is that of the topology file."""

    folder: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """The checks to run, by several criteria.

    ``catalogue`` has the claims that can be selected.  The criteria are pytest's ``-k``
    expression, claim ids, documents, paths of the user, and ``tests``, names of
    ordinary tests as in :class:`Check`.  Without claims and tests everything is
    selected.  ``of`` are the documents that a lab is for: claims of other documents
    are not selected.  With ``only``, claims and tests are selected only if they need
    one of its features; a claim also if its id is in ``only``.  Tests of ``beside``
    run in addition to those of the catalogue, as far as they use the lab.  Checks that
    change machines that exist already run only with ``changes``.
    """

    expression: str = ""
    claims: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    tests: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    beside: Beside | None = None
    changes: bool = False
    catalogue: Catalogue = field(default_factory=Catalogue, repr=False, compare=False)

    @property
    def names_some(self) -> bool:
        return bool(self.claims or self.tests)

    def has(self, claim: Claim) -> bool:
        """Tell whether a claim is selected, as far as known without pytest."""
        if self.names_some and claim.id not in self.claims:
            return False
        if self.only and not set(self.only) & {claim.id, *claim.needs}:
            return False
        wanted = (self.documents, self.of)
        return all(not documents or claim.document in documents for documents in wanted)

    @property
    def is_by_claims(self) -> bool:
        """True if every selected claim must be decided: nothing else narrows the tests."""
        return not (self.expression or self.paths)


@dataclass(frozen=True, slots=True)
class Check:
    """An ordinary test, without a claim, of a suite or of the user.

    ``evidence`` and ``measurements`` were recorded by ``observe``.
    """

    name: str
    outcome: str  #: passed, failed or skipped
    seconds: float
    problem: str = ""
    evidence: tuple[Evidence, ...] = ()
    measurements: tuple[Measurement, ...] = ()


@dataclass(slots=True)
class Results:
    """The results of a run on one lab.

    ``elsewhere`` are the checks that need another lab, ``missed`` the claims that
    an interrupted run did not reach.
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
        """True if every claim ended as expected and no check failed."""
        return (
            all(finding.as_expected for finding in self.findings)
            and not self.broken
            and all(check.outcome != "failed" for check in self.checks)
        )

    @property
    def tested(self) -> bool:
        """True if a claim was decided or a check ran, however it ended."""
        return any(finding.verdict != "skipped" for finding in self.findings) or any(
            check.outcome != "skipped" for check in self.checks
        )


@dataclass(slots=True)
class LabRun:
    """One lab's part of a run.  Times are in seconds.

    ``topology`` is None if no lab was needed; ``picture`` is the result of
    :func:`testbed.observe.graph.graph`.  ``error`` says why the lab could not be
    checked, ``status`` is the exit status for it; ``absent`` says why the lab was
    left out.  ``proofs`` are the outcomes of ``verify --prove``, by claim.
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
    proofs: Mapping[str, set[str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if nothing of the selection could be decided on the lab."""
        results = self.results
        something = results.findings or results.checks or results.broken
        return not (something or results.interrupted or self.error)

    def look(self, live: LiveLab) -> None:
        """Record the lab's facts and graph before any check runs on it."""
        from testbed.observe.graph import graph

        self.facts = live.facts
        self.picture = graph(live)


@dataclass(slots=True)
class Run:
    """A whole run.  ``started`` is in Unix seconds.

    ``complete`` says that every lab that could decide a part of the selection took
    part, so that one of them must have decided each claim.
    """

    selection: Selection
    labs: list[LabRun] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    signum: int | None = None
    complete: bool = False

    @property
    def catalogue(self) -> Catalogue:
        return self.selection.catalogue

    def by_claim(self) -> Mapping[str, list[tuple[LabRun, Finding]]]:
        """Return each claim's findings on all labs, in the order of the catalogue."""
        found: dict[str, list[tuple[LabRun, Finding]]] = {}
        for lab in self.labs:
            for finding in lab.results.findings:
                found.setdefault(finding.claim, []).append((lab, finding))
        return {name: found[name] for name in self.catalogue.claims if name in found}

    def worst(self) -> Mapping[str, Finding]:
        """Return each claim's worst finding, which decides its verdict."""
        return {
            name: max((finding for _, finding in found), key=_rank)
            for name, found in self.by_claim().items()
        }

    def meant(self) -> Iterator[Claim]:
        """Yield the claims that the run covers, in the order of the catalogue."""
        found = {*self.by_claim(), *(name for lab in self.labs for name in lab.results.missed)}
        for claim in self.catalogue.claims.values():
            wanted = self.selection.is_by_claims and self.selection.has(claim)
            if claim.id in found or (wanted and (self.complete or not claim.is_testable)):
                yield claim

    def undecided(self) -> list[str]:
        """Return claims that some lab should have decided, but none did."""
        found = self.by_claim()
        return [claim.id for claim in self.meant() if claim.is_testable and claim.id not in found]

    def verdict(self, claim: Claim, worst: Mapping[str, Finding]) -> Verdict | None:
        """Return a claim's verdict over all labs; None if undecided."""
        if not claim.is_testable:
            return "not testable"
        found = worst.get(claim.id)
        return found.verdict if found else None

    def proofs(self) -> Mapping[str, set[str]]:
        """Return the outcomes of ``verify --prove`` on all labs, by claim."""
        found: dict[str, set[str]] = {}
        for lab in self.labs:
            for claim, outcomes in lab.proofs.items():
                found.setdefault(claim, set()).update(outcomes)
        return found

    @property
    def tested(self) -> bool:
        """True if anything was tested on any lab: not all was skipped."""
        return any(lab.results.tested for lab in self.labs)

    @property
    def status(self) -> int:
        """The exit status: signal, failure, failed lab, or nothing tested."""
        if self.signum is not None:
            return 128 + self.signum
        if not all(lab.results.is_good and not lab.results.interrupted for lab in self.labs):
            return 1
        status = max((lab.status for lab in self.labs), default=0) or int(bool(self.undecided()))
        return status or (0 if self.tested else NothingTested.exit_code)


def _rank(finding: Finding) -> int:
    """Rank a finding by how strongly it speaks against its claim."""
    if not finding.as_expected:
        return 5
    order: tuple[Verdict, ...] = ("skipped", "inconclusive", "confirmed", "conditional")
    return order.index(finding.verdict) if finding.verdict in order else len(order)
