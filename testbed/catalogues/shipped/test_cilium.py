"""Cilium: the effects of its programs in the kernel (document 004)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from testbed.roles.kubernetes.plugins.cilium import AGENT, PINS
from testbed.suites import helpers, policies
from testbed.suites.cluster import NAMESPACE, pod
from testbed.suites.helpers import comes, fetch, link, links, patient, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed.claims.observation import Observation
    from testbed.nodes.base import Node
    from testbed.suites.cluster import Cluster, Pod

pytestmark = pytest.mark.testbed_needs("pods-by-cilium")

OURS = "cil_"  # prefix of the names of Cilium's programs
METRICS = f"{PINS}/tc/globals/cilium_metrics"  # forwarded and dropped packets, by reason
KIND, VERSION = "CiliumNetworkPolicy", "cilium.io/v2"


def attached(cluster: Cluster, observe: Observation, node: Node) -> dict[str, list[str]]:
    """Map each link to the names of Cilium's programs on it."""
    bpftool = node.provide(cluster.lab.context.store.binary("bpftool"))
    (seen,) = observe.json(node, [bpftool, "-j", "net", "show"])
    found: dict[str, list[str]] = {}
    for one in seen["tc"]:
        if str(one.get("name", "")).startswith(OURS):
            found.setdefault(one["devname"], []).append(one["name"])
    return found


def device(observe: Observation, one: Pod) -> str:
    """Return the node's end of a Pod's link."""
    index = link(observe, one, "eth0")["link_index"]
    return next(str(x["ifname"]) for x in links(observe, one.node) if x["ifindex"] == index)


def counted(cluster: Cluster, observe: Observation, node: Node) -> int:
    """Return the packet count of Cilium's programs on a node, forwarded or dropped."""
    bpftool = node.provide(cluster.lab.context.store.binary("bpftool"))
    rows = observe.json(node, [bpftool, "-j", "map", "dump", "pinned", METRICS])
    return sum(_count(value["value"]) for row in rows for value in row["values"])


def _count(octets: Sequence[str]) -> int:
    """Return a value's first 64-bit number: packets, then octets (bpf/lib/common.h)."""
    return int.from_bytes(bytes(int(one, 16) for one in octets[:8]), "little")


@contextlib.contextmanager
def agents_stopped(cluster: Cluster, observe: Observation) -> Iterator[None]:
    """Stop every node's agent for the time of the block."""
    pids = {node: str(node.services()[AGENT].pid) for node in cluster.nodes}
    try:
        for node, pid in pids.items():
            observe.run(node, ["kill", "-STOP", pid])
        yield
    finally:
        for node, pid in pids.items():
            node.run(["kill", "-CONT", pid])


@contextlib.contextmanager
def of_cilium(cluster: Cluster, name: str, spec: Mapping[str, Any]) -> Iterator[None]:
    """Create a policy of Cilium's own kind for the time of the block."""
    folder = f"/apis/{VERSION}/namespaces/{NAMESPACE}/ciliumnetworkpolicies"
    body = {"apiVersion": VERSION, "kind": KIND, "metadata": {"name": name}, "spec": dict(spec)}
    cluster.api.ask("POST", folder, body)
    try:
        yield
    finally:
        cluster.api.ask("DELETE", f"{folder}/{name}")


def status(
    observe: Observation, client: Pod, url: str, method: str = "GET", seconds: float = 1.0
) -> str:
    """Return the HTTP status that a Pod gets within some seconds, "000" for none."""
    limit = f"{patient(client, seconds):g}"
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", limit, "-X", method, url]
    return observe.run(client, argv, check=False).stdout.strip()


@pytest.mark.testbed_claim("cni-cilium-ebpf")
def test_programs_of_bpf_are_on_every_pods_link(cluster: Cluster, observe: Observation) -> None:
    pods = [cluster.pod(name) for name in ("web-1", "web-2", "client")]
    for node in cluster.nodes:
        found = attached(cluster, observe, node)
        observe.holds("eth0" in found, f"{node.name} has programs of Cilium's on eth0")
        for one in pods:
            if one.node is node:
                name = device(observe, one)
                observe.holds(name in found, f"and on {name}, the link of {one.name}")


@pytest.mark.testbed_claim("cni-cilium-kernel-interception")
def test_no_process_is_in_the_way(cluster: Cluster, observe: Observation) -> None:
    here, there = cluster.nodes[0].name, cluster.nodes[-1].name
    spec = {"podSelector": {"matchLabels": {"app": "kernel-guarded"}}, "policyTypes": ["Ingress"]}
    wanted = [pod("kernel-open", node=there), pod("kernel-guarded", node=there),
              pod("kernel-client", node=here)]  # fmt: skip
    with (
        cluster.pods(observe, *wanted) as (free, guarded, client),
        policies.policy(cluster, "kernel-guarded", spec),
    ):
        url = f"http://{guarded.address}/"

        def shut() -> bool:
            return status(observe, client, url) == "000"

        wait_until(shut, "the policy kernel-guarded in force")
        with agents_stopped(cluster, observe):
            page = fetch(observe, client, f"http://{free.address}/")
            observe.holds(page, "with the agents stopped a Pod is answered by another")
            observe.holds(shut(), "and the policy is still in force")


@pytest.mark.testbed_claim("cni-cilium-filter-per-node")
def test_programs_come_with_pods(cluster: Cluster, observe: Observation) -> None:
    node = cluster.control
    before = sum(map(len, attached(cluster, observe, node).values()))
    with cluster.pods(observe, pod("one-more", node=node.name)) as (one,):
        among = attached(cluster, observe, node)
        packets = counted(cluster, observe, node)
        assert fetch(observe, cluster.pod("client"), f"http://{one.address}/")
        grown = counted(cluster, observe, node) > packets
        observe.holds_when("all programs of a node count as its filter", before and grown)
        own = device(observe, one) in among
        observe.fails_when("one filter a node is meant", before > 1 and own)


@pytest.mark.testbed_claim("cni-cilium-l3-to-l7")
def test_rules_of_each_layer(cluster: Cluster, observe: Observation) -> None:
    here, there = cluster.nodes[0].name, cluster.nodes[-1].name
    chosen = {"endpointSelector": {"matchLabels": {"app": "layers-server"}}}
    mine = [{"matchLabels": {"app": "layers-client"}}]
    get = {"rules": {"http": [{"method": "GET"}]}}
    ports = {"ports": [{"port": "80", "protocol": "TCP"}]}
    wanted = [pod("layers-server", node=there), pod("layers-client", node=here),
              pod("layers-other", node=here)]  # fmt: skip
    with cluster.pods(observe, *wanted) as (server, client, other):
        url = f"http://{server.address}/"

        def only_mine() -> bool:
            mine = status(observe, client, url, seconds=helpers.LATE)
            return (mine, status(observe, other, url)) == ("200", "000")

        def no_port() -> bool:
            return status(observe, client, url) == "000"

        def no_post() -> bool:
            return status(observe, client, url, "POST") == "403" and only_mine()

        with of_cilium(cluster, "layers", chosen | {"ingress": [{"fromEndpoints": mine}]}):
            in_force = wait_until(only_mine, "the rule of layer 3 in force")
            observe.holds_when("a rule is about who sends (layer 3)", in_force)
        closed = {"ports": [{"port": "81", "protocol": "TCP"}]}
        rule = {"fromEndpoints": mine, "toPorts": [closed]}
        with of_cilium(cluster, "layers", chosen | {"ingress": [rule]}):
            in_force = wait_until(no_port, "the rule of layer 4 in force")
            observe.holds_when("a rule is about a port (layer 4)", in_force)
        rule = {"fromEndpoints": mine, "toPorts": [ports | get]}
        with of_cilium(cluster, "layers", chosen | {"ingress": [rule]}):
            in_force = comes(no_post, policies.IN_FORCE)
            observe.fails_when("a rule is about HTTP, without Cilium's Envoy", not in_force)


@pytest.mark.testbed_claim("cni-cilium-security")
@pytest.mark.testbed_needs("gateway")
def test_cilium_enforces_policies(cluster: Cluster, outside: Node, observe: Observation) -> None:
    policies.enforced(cluster, outside, observe)
