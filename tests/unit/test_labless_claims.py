"""Claims of arithmetic need no lab: they are decided where nothing can be brought up."""

from __future__ import annotations

from catalogues import claims, selection
from inner_pytest import kept_apart

from testbed.suites.runner import run


def test_what_needs_no_lab_is_decided_without_one() -> None:
    with kept_apart():
        results = run(None, selection())
    assert not results.broken
    found = {finding.claim: finding for finding in results.findings}
    wanted = {c.id: c for c in claims().values() if c.is_testable and "none" in c.needs}
    assert {claim.kind for claim in wanted.values()} >= {"arith"}
    assert found.keys() == wanted.keys()
    for name, finding in found.items():
        assert not finding.problem, name
        assert finding.verdict == wanted[name].expect, name
        assert finding.evidence, name


def test_nothing_is_needed_besides_no_lab() -> None:
    for claim in claims().values():
        assert "none" not in claim.needs or claim.needs == ("none",), claim.id
