"""`testbed verify` on clusters: every claim that only a cluster decides ends as expected."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from catalogues import claims, of_a_cluster
from crash.means import TESTBED
from sabotage.trials import BROUGHT

from testbed.artifacts import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.seconds(100)
def test_every_claim_about_clusters_ends_as_expected(tmp_path: Path) -> None:
    out, page = tmp_path / "clusters.json", tmp_path / "clusters.html"
    done = subprocess.run(
        [*TESTBED, "verify", "--all", "--lab", "k8s-*", "-q", "--check-machine",
         "--json", str(out), "--html", str(page)],
        env={**os.environ, "TESTBED_STATE": str(tmp_path / "state")},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(out.read_text())
    decided: set[str] = set()
    for lab in run["labs"]:
        for finding in lab["findings"]:
            where = (lab["lab"], finding["claim"])
            assert finding["as_expected"], (*where, finding["problem"], finding["reason"])
            if finding["verdict"] != "skipped":
                assert finding["evidence"], where
                decided.add(finding["claim"])
    wanted = {claim.id for claim in claims().values() if claim.is_testable and of_a_cluster(claim)}
    elsewhere = BROUGHT | ({"pods-by-cilium"} if Store().unmade("cilium") else set())
    undecided = {name for name in wanted if not set(claims()[name].needs) & elsewhere} - decided
    assert undecided == set()
    assert page.stat().st_size > 0
