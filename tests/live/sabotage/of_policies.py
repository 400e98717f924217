"""Policies and who enforces them, made wrong."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import in_place_of, lying
from sabotage.trials import CILIUM, sabotage
from testbed.catalogues.shipped import test_policies
from testbed.catalogues.shipped.test_cilium import of_cilium
from testbed.suites.cluster import Cluster
from testbed.suites.policies import IN_FORCE

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

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


@sabotage(CILIUM, "cni-cilium-ebpf", ruins=True)
def programs_are_taken_off(lab: LiveLab) -> Iterator[None]:
    """Cilium's programs are taken off the nodes' eth0, where the agent does not look again."""
    for node in Cluster(lab).nodes:
        node.run(["tc", "qdisc", "delete", "dev", "eth0", "clsact"])
    yield


@sabotage(CILIUM, "cni-cilium-kernel-interception")
def the_tunnel_goes_with_the_agent(lab: LiveLab) -> Iterator[None]:
    """Stopping the agent takes the tunnel down, as if packets went through the agent."""
    script = """
    case "$1" in
      -STOP) ip link set cilium_vxlan down ;;
      -CONT) ip link set cilium_vxlan up ;;
    esac
    exec /usr/bin/kill "$@" """
    with contextlib.ExitStack() as stack:
        for node in Cluster(lab).nodes:
            stack.enter_context(lying(node, kill=script))
        yield


@sabotage(CILIUM, "cni-cilium-filter-per-node")
def nothing_is_counted(lab: LiveLab) -> Iterator[None]:
    """The kernel's list of Cilium's counters is empty, whatever passes."""
    node = Cluster(lab).control
    bpftool = node.provide(lab.context.store.binary("bpftool"))
    with in_place_of(node, bpftool, 'case "$*" in *dump*) echo "[]" ;; *) exec $real "$@" ;; esac'):
        yield


@sabotage(CILIUM, vain=["cni-cilium-l3-to-l7", "cni-cilium-security"])
def a_policy_lets_everybody_pass(lab: LiveLab) -> Iterator[None]:
    """A policy of Cilium's own kind lets every Pod be reached by all, and reach all."""
    everybody = {
        "endpointSelector": {},
        "ingress": [{"fromEntities": ["all"]}],
        "egress": [{"toEntities": ["all"]}],
    }
    with of_cilium(Cluster(lab), "everybody", everybody):
        yield
