"""Claims of arithmetic need no lab: they are decided where nothing can be brought up."""

from __future__ import annotations

import json
import subprocess
import sys

from catalogues import claims

# In a process of its own: it is pytest that is run, and this is in pytest already.
RUN = """
import json
from testbed.claims.choose import choose
from testbed.suites.runner import Selection, run
results = run(None, Selection(catalogue=choose(["shipped"])))
assert not results.broken, results.broken
print(json.dumps({f.claim: [f.verdict, f.problem, len(f.evidence)] for f in results.findings}))
"""


def test_what_needs_no_lab_is_decided_without_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout)
    wanted = {c.id: c for c in claims().values() if c.is_testable and "none" in c.needs}
    assert {claim.kind for claim in wanted.values()} >= {"arith"}
    assert found.keys() == wanted.keys()
    for name, (verdict, problem, evidence) in found.items():
        assert not problem, name
        assert verdict == wanted[name].expect, name
        assert evidence, name


def test_nothing_is_needed_besides_no_lab() -> None:
    for claim in claims().values():
        assert "none" not in claim.needs or claim.needs == ("none",), claim.id
