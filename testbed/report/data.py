"""What came of a run, as data: the form of ``verify --json`` and of the record of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from testbed.claims.catalogue import claims

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.suites.runner import Results

VERSION = 1


def to_dict(
    results: Results, *, lab: str, seconds: float, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Each claim with its verdict and evidence, each check, the versions of the parts."""
    findings = []
    for finding in results.findings:
        claim = claims()[finding.claim]
        entry = {**claim.to_dict(), **asdict(finding), "claim": claim.claim}
        entry["as_expected"] = finding.as_expected
        findings.append(entry)
    return {
        "version": VERSION,
        "lab": lab,
        "seconds": round(seconds, 3),
        "versions": dict(versions),
        "claims": findings,
        "checks": [asdict(check) for check in results.checks],
        "elsewhere": results.elsewhere,
        "broken": results.broken,
        "interrupted": results.interrupted,
    }
