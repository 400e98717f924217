"""A claim: one statement of a document, and what testing it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: ``depends``: true under a condition that the document does not name, false otherwise.
Verdict = Literal["confirmed", "contradicted", "depends", "not here", "inconclusive"]
Kind = Literal["state", "reach", "path", "isolation", "arith", "perf", "definition", "api"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement.

    ``document`` is the number of the document, ``place`` its section and
    lines, ``quoted`` the values that it prints, ``needs`` what a lab must have
    (``netns``, ``docker``, ``flannel-udp``, ``flannel-vxlan``, ``none``),
    ``expect`` the verdict that a present-day system gives and ``why`` the reason
    where that is not plainly "confirmed".
    """

    id: str
    document: str
    place: str
    claim: str
    kind: Kind
    needs: tuple[str, ...]
    expect: Verdict
    check: str
    why: str = ""
    quoted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "document": self.document,
            "place": self.place,
            "claim": self.claim,
            "kind": self.kind,
            "needs": list(self.needs),
            "expect": self.expect,
            "check": self.check,
            "why": self.why,
            "quoted": list(self.quoted),
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was done and what came of it, as text."""

    what: str
    seen: str


@dataclass(slots=True)
class Finding:
    """What one check of one claim came to.  ``problem`` is set when the check itself failed."""

    claim: str
    verdict: Verdict | None
    seconds: float = 0.0
    reason: str = ""
    problem: str = ""
    evidence: list[Evidence] = field(default_factory=list)

    def as_expected(self, claim: Claim) -> bool:
        return not self.problem and self.verdict in (claim.expect, "not here")
