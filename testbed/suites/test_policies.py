"""Network policies: who enforces them, and who does not (document 004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.roles.kubernetes.plugins import plugin_of
from testbed.suites import policies
from testbed.suites.cluster import pod

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.suites.cluster import Cluster, Pod

FRIEND, STRANGER = "policy-friend", "policy-stranger"
GUARDED = "policy-guarded"
SPEC = {
    "podSelector": {"matchLabels": {"app": GUARDED}},
    "policyTypes": ["Ingress"],
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": FRIEND}}}]}],
}


def connects(observe: Observation, client: Pod, server: Pod) -> bool:
    """Whether a Pod's server answers another Pod within a moment."""
    argv = ["curl", "-s", "-o", "/dev/null", "-m", "1", f"http://{server.address}/"]
    return observe.run(client, argv, check=False).ok


@pytest.mark.testbed_claim("k8s-policy-isolates")
@pytest.mark.testbed_needs("kubernetes")
def test_a_policy_isolates_a_pod(cluster: Cluster, observe: Observation) -> None:
    here, there = cluster.nodes[0].name, cluster.nodes[-1].name
    enforces = plugin_of(cluster.lab.topology).enforces
    seconds = policies.SECONDS if enforces else policies.IN_FORCE
    wanted = [pod(GUARDED, node=there), pod(FRIEND, node=here), pod(STRANGER, node=here)]
    with cluster.pods(observe, *wanted) as (guarded, friend, stranger):
        for client in (friend, stranger):
            assert connects(observe, client, guarded), "nobody is kept out yet"
        with policies.policy(cluster, GUARDED, SPEC):
            stored = cluster.get(observe, "networkpolicy", GUARDED)
            assert stored["spec"]["podSelector"] == SPEC["podSelector"]
            isolated = policies.eventually(
                lambda: not connects(observe, stranger, guarded), seconds
            )
            observe.holds(isolated, f"{STRANGER} is kept out by the policy that lets {FRIEND} in")
            observe.holds(connects(observe, friend, guarded), f"{FRIEND} still gets in")
        again = policies.eventually(lambda: connects(observe, stranger, guarded), seconds)
        assert again, "what the policy has cut off stays so without it"
