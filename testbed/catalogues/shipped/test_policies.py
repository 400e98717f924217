"""Network policies, with plugins that enforce them or not (document 004)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.roles.kubernetes.plugins import plugin_of
from testbed.suites import policies
from testbed.suites.cluster import pod
from testbed.suites.helpers import comes, fetch, observe_until, wait_until

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


def connects(
    observe: Observation, client: Pod, server: Pod, *, seconds: float | None = None
) -> bool:
    """Tell whether a Pod's server answers another Pod."""
    return fetch(observe, client, f"http://{server.address}/", seconds=seconds) is not None


@pytest.mark.testbed_claim("k8s-policy-isolates")
@pytest.mark.testbed_needs("kubernetes")
def test_a_policy_isolates_a_pod(cluster: Cluster, observe: Observation) -> None:
    here, there = cluster.nodes[0].name, cluster.nodes[-1].name
    enforces = plugin_of(cluster.lab.topology).enforces
    wanted = [pod(GUARDED, node=there), pod(FRIEND, node=here), pod(STRANGER, node=here)]
    with cluster.pods(observe, *wanted) as (guarded, friend, stranger):
        for client in (friend, stranger):
            assert connects(observe, client, guarded), "nobody is kept out yet"

        def shut(notes: Observation) -> bool:
            return not connects(notes, stranger, guarded, seconds=1.0)

        with policies.policy(cluster, GUARDED, SPEC):
            stored = cluster.get(observe, "networkpolicy", GUARDED)
            assert stored["spec"]["podSelector"] == SPEC["podSelector"]
            if enforces:
                isolated = observe_until(observe, shut, f"the policy {GUARDED} in force")
            else:
                isolated = comes(lambda: shut(observe), policies.IN_FORCE)
            observe.holds(isolated, f"{STRANGER} is kept out by the policy that lets {FRIEND} in")
            observe.holds(connects(observe, friend, guarded), f"{FRIEND} still gets in")
        wait_until(lambda: connects(observe, stranger, guarded), f"the end of the policy {GUARDED}")
