"""Policies and who enforces them, made wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.trials import sabotage
from testbed.suites import test_policies
from testbed.suites.cluster import Cluster
from testbed.suites.policies import IN_FORCE

if TYPE_CHECKING:
    from testbed.lab.live import LiveLab

LAB = "k8s-two-node"


@sabotage(LAB, "k8s-policy-isolates")
def somebody_enforces_policies(lab: LiveLab) -> Iterator[None]:
    """A controller watches for a policy and keeps out by nftables whom it does not let in."""
    cluster, over = Cluster(lab), threading.Event()
    guarded, stranger = test_policies.GUARDED, test_policies.STRANGER

    def enforce() -> None:
        """Rules on the nodes while the policy is there."""
        on = False
        while not over.wait(IN_FORCE / 30):
            wanted = cluster.find("NetworkPolicy", guarded) is not None
            pods = [cluster.find("Pod", name) for name in (stranger, guarded)]
            if wanted == on or (wanted and None in pods):
                continue
            if wanted:
                who, whom = (one["status"]["podIP"] for one in pods if one)
                rules = (
                    "table ip sabotage { chain way { type filter hook forward priority 0; "
                    f"ip saddr {who} ip daddr {whom} drop; }}; }}"
                )
            else:
                rules = "delete table ip sabotage"
            for node in cluster.nodes:
                node.run(["nft", "-f", "-"], input=rules.encode())
            on = wanted

    thread = threading.Thread(target=enforce)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for node in cluster.nodes:
            node.run(["nft", "delete", "table", "ip", "sabotage"], check=False)
