"""Some of upstream's own tests on the cluster: those done in seconds, and a run that is cut off.

All of them: `make conformance`.
"""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from crash.means import SECONDS

from k8s.conftest import LAB
from testbed.artifacts import Store

if TYPE_CHECKING:
    from pathlib import Path

    from k8s.conftest import Cluster

pytestmark = pytest.mark.skipif(
    bool(missing := Store().unmade("conformance")),
    reason=f"not made yet ({', '.join(missing)}): testbed doctor --role conformance --fix",
)
#: A Service and its Endpoints by name, through the API server to a Pod, and a node's own port.
QUICK = (
    "should provide DNS for the cluster|"
    "should serve multiport endpoints from pods|"
    "should be able to create a functioning NodePort service|"
    "should have Endpoints and EndpointSlices pointing to API Server"
)
FOCUS = rf"\[sig-network\].*({QUICK}).*\[Conformance\]"
MINUTES = 300  # seconds; the first run of all makes the suite besides


def namespaces(cluster: Cluster) -> set[str]:
    return {one["metadata"]["name"] for one in cluster.get("namespaces")["items"]}


@pytest.mark.seconds(60)
def test_upstreams_tests_pass(cluster: Cluster, tmp_path: Path) -> None:
    before, written = namespaces(cluster), tmp_path / "run.json"
    done = cluster.bed.run("conformance", LAB, "--focus", FOCUS, "--json", str(written))
    assert done.returncode == 0, done.stdout + done.stderr
    checks: list[dict[str, Any]] = json.loads(written.read_text())["labs"][0]["checks"]
    assert [check["outcome"] for check in checks] == ["passed"] * 4
    assert namespaces(cluster) == before


@pytest.mark.seconds(15)
def test_a_run_ends_when_it_is_interrupted(cluster: Cluster) -> None:
    before = namespaces(cluster)
    run = cluster.bed.start("conformance", LAB, "--focus", FOCUS)
    deadline = time.monotonic() + MINUTES
    while namespaces(cluster) <= before:
        assert run.poll() is None, "it has ended before it made a namespace"
        assert time.monotonic() < deadline
    run.send_signal(signal.SIGINT)
    assert run.wait(SECONDS) == 128 + signal.SIGINT
    assert namespaces(cluster) == before
