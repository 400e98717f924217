"""Optional network plugins: Kube-router, Calico and Weave Net (document 004).

And BGP, the mechanism that two of them use, by itself.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from testbed.observe.capture import captures
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins import plugin_of
from testbed.roles.kubernetes.plugins.bgp import SERVICE, SOCKET
from testbed.roles.kubernetes.plugins.manifest import NAMESPACE as SYSTEM
from testbed.roles.kubernetes.plugins.manifest import ByManifest
from testbed.suites import helpers, policies
from testbed.suites.cluster import pod
from testbed.suites.helpers import (
    between,
    comes,
    fetch,
    note,
    observe_until,
    route_to,
    routes,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.claims.observation import Observation
    from testbed.nodes.base import Node, Result
    from testbed.suites.cluster import Cluster, Pod

BGP_PORT = 179  # RFC 4271, section 3
FAST, SLEEVE = 6784, 6783  # Weave Net's data planes: VXLAN in the kernel, or its own over UDP
CONFLIST = f"{config.CNI}/10-kuberouter.conflist"
#: Arguments of kube-router in the document's example.
EXAMPLE = (
    "run", "--run-router=false", "--run-firewall=false", "--run-service-proxy=false",
    "--run-egress=false", "--enable-cni=true", "--cni-bin-dir=/opt/cni/bin",
    "--cni-conf-dir=/etc/cni/net.d",
)  # fmt: skip


# -- helpers ----------------------------------------------------------------------------


def sessions(observe: Observation, node: Node) -> set[str]:
    """Return a node's BGP peers: the far ends of its TCP connections of port 179."""
    either = f"( sport = :{BGP_PORT} or dport = :{BGP_PORT} )"
    lines = observe.run(node, ["ss", "-Htn", "state", "established", either]).stdout.splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines}


def fully_meshed(cluster: Cluster, observe: Observation) -> bool:
    """Wait until each node of the cluster has a BGP session with every other.

    A speaker retries after some seconds (RFC 4271, section 8.2.1.3).  Raises Unsettled.
    """
    every = {cluster.address(node) for node in cluster.nodes}

    def meshed(notes: Observation) -> bool:
        return all(
            sessions(notes, node) >= every - {cluster.address(node)} for node in cluster.nodes
        )

    return observe_until(observe, meshed, "a BGP session of each node with each other")


def two_pods(cluster: Cluster) -> tuple[Pod, Pod]:
    """Return a Pod on the first node and one on the last."""
    return cluster.pod("web-1"), cluster.pod("web-2")


def daemon_set(cluster: Cluster, observe: Observation) -> dict[str, Any]:
    """Return the upstream DaemonSet, as the API has it."""
    plugin = plugin_of(cluster.lab.topology)
    assert isinstance(plugin, ByManifest)
    return dict(cluster.get(observe, "daemonset", plugin.daemon_set, f"--namespace={SYSTEM}"))


def inside(cluster: Cluster, observe: Observation, *argv: str) -> Result:
    """Run a command in a Pod of the DaemonSet."""
    plugin = plugin_of(cluster.lab.topology)
    assert isinstance(plugin, ByManifest)
    where = ("exec", f"--namespace={SYSTEM}", f"daemonset/{plugin.daemon_set}", "--")
    return cluster.kubectl(observe, *where, *argv, check=False)


def unique(cluster: Cluster, observe: Observation, networks: Mapping[str, str]) -> None:
    """Judge whether each container has an address of its own.

    Containers of one Pod share theirs.  ``networks`` maps each node to its range of Pod addresses.
    """
    pods = [cluster.pod(name) for name in ("web-1", "web-2", "client", "pair")]
    found = {one.name: one.address for one in pods}
    observe.note("addresses of Pods", found)
    within = all(ip_address(one.address) in ip_network(networks[one.node.name]) for one in pods)
    observe.holds_when(
        "the containers are of different Pods", len(set(found.values())) == len(pods) and within
    )
    pair = next(one for one in pods if one.name == "pair")
    both = [
        observe.run(pair.node, ["readlink", f"/proc/{pid}/ns/net"]).stdout
        for pid in pair.containers.values()
    ]
    observe.fails_when("the containers are of one Pod", len(both) == 2 and len(set(both)) == 1)


def announced(cluster: Cluster, observe: Observation, protocols: set[str]) -> None:
    """Judge whether BGP announces Pod addresses as ranges, not one by one."""
    here, there = two_pods(cluster)
    route = to_range(observe, here.node, there)
    observe.holds_when(
        "the table is asked for a range with the address", route.get("protocol") in protocols
    )
    alone = routes(observe, here.node, "exact", f"{there.address}/32")
    observe.fails_when("the table is asked for the address alone", not alone)


def to_range(observe: Observation, node: Node, to: Pod) -> dict[str, Any]:
    """Wait for a node's route to a range with a Pod's address, of any protocol."""

    def look(notes: Observation) -> dict[str, Any] | None:
        wide = [one for one in routes(notes, node) if one.get("dst") not in ("default", to.address)]
        return next((o for o in wide if ip_address(to.address) in ip_network(o["dst"])), None)

    return observe_until(observe, look, f"a route of {node.name} to the range of {to.address}")


def wire(cluster: Cluster, observe: Observation, filter: str) -> list[Any]:
    """Capture the packets to the other node while a Pod there is asked for its page."""
    here, there = two_pods(cluster)
    with captures((here.node, "eth0", filter)) as (capture,):
        page = fetch(observe, here, f"http://{there.address}/")
        assert page, "the Pod does not answer"
        capture.wait_for(lambda packets: packets)
    note(observe, capture)
    return list(capture.packets)


def ranges(cluster: Cluster) -> dict[str, str]:
    """Return the Pod range of each node."""
    return {name: str(network) for name, network in cluster.spec.ranges.items()}


# -- BGP ----------------------------------------------------------------------------------


@pytest.mark.testbed_needs("pods-by-bgp")
def test_each_node_has_a_session_with_each_other(cluster: Cluster, observe: Observation) -> None:
    assert fully_meshed(cluster, observe)
    birdc = cluster.lab.context.store.binary("birdc")
    for node in cluster.nodes:
        argv = [node.provide(birdc), "-r", "-s", SOCKET, "show", "protocols"]

        def established(
            notes: Observation, node: Node = node, argv: list[str] = argv
        ) -> list[list[str]] | None:
            lines = [line.split() for line in notes.run(node, argv).stdout.splitlines()]
            peers = [words for words in lines if words[1:2] == ["BGP"]]
            return peers if all(words[-1] == "Established" for words in peers) else None

        peers = observe_until(observe, established, f"established sessions of {node.name}")
        assert len(peers) == len(cluster.nodes) - 1


@pytest.mark.testbed_needs("pods-by-bgp")
def test_each_node_has_a_route_to_each_others_range(cluster: Cluster, observe: Observation) -> None:
    for node in cluster.nodes:
        others = {other for other in cluster.nodes if other is not node}
        wanted = {str(cluster.spec.ranges[other.name]): cluster.address(other) for other in others}

        def learnt(notes: Observation, node: Node = node, wanted: dict[str, str] = wanted) -> bool:
            found = routes(notes, node, "proto", "bird")
            return {one["dst"]: one.get("gateway") for one in found} == wanted

        assert observe_until(observe, learnt, f"the routes {wanted} of {node.name}")


@pytest.mark.testbed_needs("pods-by-bgp")
def test_packets_of_pods_cross_as_they_are(cluster: Cluster, observe: Observation) -> None:
    here, there = two_pods(cluster)
    packets = wire(cluster, observe, "ip and not port 6443 and not port 179")
    assert between(packets, here.address, there.address), "the Pods' own addresses are on the wire"
    assert not [p for p in packets if p.vxlan()], "nothing is in a tunnel"


@pytest.mark.testbed_needs("pods-by-bgp")
def test_a_route_goes_with_who_announced_it(cluster: Cluster, observe: Observation) -> None:
    """A session that ends withdraws its routes (RFC 4271, section 9)."""
    node, other = cluster.nodes[0], cluster.other
    network = str(cluster.spec.ranges[other.name])

    def learnt() -> bool:
        return network in {r["dst"] for r in routes(observe, node, "proto", "bird")}

    wait_until(learnt, f"the route to {network}")
    pid = other.services()[SERVICE].pid
    birdc = other.provide(cluster.lab.context.store.binary("birdc"))
    try:
        observe.run(other, [birdc, "-s", SOCKET, "disable", '"peer*"'])
        wait_until(lambda: not learnt(), f"the end of the route to {network}")
        assert other.services()[SERVICE].pid == pid
    finally:
        observe.run(other, [birdc, "-s", SOCKET, "enable", '"peer*"'])
    wait_until(learnt, f"the route to {network} again")


# -- Kube-router ----------------------------------------------------------------------------


@pytest.mark.testbed_claim("cni-kube-router-bgp")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_router_speaks_bgp(cluster: Cluster, observe: Observation) -> None:
    observe.holds(fully_meshed(cluster, observe), "each node has a BGP session with each other")


@pytest.mark.testbed_claim("cni-kube-router-virtual-network")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_router_routes_where_it_can(cluster: Cluster, observe: Observation) -> None:
    here, there = two_pods(cluster)
    packets = wire(cluster, observe, f"host {here.address} or ip proto 4 or udp port 5555")
    plain = between(packets, here.address, there.address)
    observe.holds_when("it need not be more than that Pods reach each other", packets)
    observe.fails_when("virtual means wrapped up, between nodes of one segment", plain)


@pytest.mark.testbed_claim("cni-kube-router-unique-ip")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_router_gives_each_pod_an_address(cluster: Cluster, observe: Observation) -> None:
    unique(cluster, observe, ranges(cluster))


@pytest.mark.testbed_claim("cni-kube-router-bgp-routes")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_router_announces_ranges(cluster: Cluster, observe: Observation) -> None:
    announced(cluster, observe, {"17", "zebra", "bgp"})


@pytest.mark.testbed_claim("cni-kube-router-image")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_routers_image(cluster: Cluster, observe: Observation) -> None:
    (container,) = daemon_set(cluster, observe)["spec"]["template"]["spec"]["containers"]
    image = container["image"].removeprefix("docker.io/")
    observe.holds(image.startswith("kube-router/kube-router:"), f"its makers' manifest has {image}")


@pytest.mark.testbed_claim("cni-kube-router-switches")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_routers_switches(cluster: Cluster, observe: Observation) -> None:
    said = inside(cluster, observe, "kube-router", "--help")
    text = said.stdout + said.stderr
    for flag in ("--run-router", "--run-firewall", "--run-service-proxy", "--enable-cni"):
        observe.holds(f"{flag} " in text, f"kube-router knows {flag}")


@pytest.mark.testbed_claim("cni-kube-router-other-flags")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_routers_other_flags(cluster: Cluster, observe: Observation) -> None:
    said = inside(cluster, observe, "kube-router", "--help")
    text = said.stdout + said.stderr
    assert "--run-router" in text, "its help was not printed"
    for flag in ("--run-egress", "--cni-bin-dir", "--cni-conf-dir", "--cni-network-config"):
        observe.holds(f"{flag} " in text, f"kube-router knows {flag}")


@pytest.mark.testbed_claim("cni-kube-router-cni-type")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_routers_cni_configuration(cluster: Cluster, observe: Observation) -> None:
    written = json.loads(observe.run(cluster.control, ["cat", CONFLIST]).stdout)
    observe.holds(written["cniVersion"] == "0.3.1", f"cniVersion is {written['cniVersion']}")
    kind = written["plugins"][0]["type"]
    observe.holds(kind == "kube-router", f"the first plugin's type is {kind}")


@pytest.mark.testbed_claim("cni-kube-router-hostpath")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_kube_router_reaches_the_nodes_files(cluster: Cluster, observe: Observation) -> None:
    spec = daemon_set(cluster, observe)["spec"]["template"]["spec"]
    paths = [Path(one["hostPath"]["path"]) for one in spec["volumes"] if "hostPath" in one]
    for wanted in (config.CNI, plugin_of(cluster.lab.topology).folder):
        found = any(Path(wanted).is_relative_to(path) for path in paths)
        observe.holds(found, f"a hostPath volume gives its Pod {wanted}")


@pytest.mark.testbed_claim("cni-kube-router-pod-manages-network")
@pytest.mark.testbed_needs("pods-by-kube-router")
def test_the_documents_pod_manages_nothing(cluster: Cluster, observe: Observation) -> None:
    (container,) = daemon_set(cluster, observe)["spec"]["template"]["spec"]["containers"]
    one = {"name": "kube-router", "image": container["image"], "args": list(EXAMPLE),
           "imagePullPolicy": "IfNotPresent"}  # fmt: skip
    example = pod("kube-router-pod", containers=[one], restartPolicy="Never")

    def phase() -> str:
        found = cluster.find("Pod", "kube-router-pod") or {}
        return str(found.get("status", {}).get("phase", ""))

    cluster.create(example)
    try:
        began = {"Running", "Failed", "Succeeded"}
        cluster.until(lambda: phase() in began, "the begin of the document's Pod")
        ends = comes(lambda: phase() != "Running", helpers.LATE)  # it ends at once
        observe.note("its log", cluster.kubectl(observe, "logs", "kube-router-pod").stdout)
        observe.holds(not ends, "a Pod with the document's words runs")
    finally:
        cluster.delete("Pod", "kube-router-pod")


@pytest.mark.testbed_needs("pods-by-kube-router", "gateway")
def test_kube_router_enforces_policies(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    policies.enforced(cluster, outside, observe)


# -- Calico -----------------------------------------------------------------------------------


@pytest.mark.testbed_claim("cni-calico-bgp")
@pytest.mark.testbed_needs("pods-by-calico")
def test_calico_speaks_bgp(cluster: Cluster, observe: Observation) -> None:
    observe.holds(fully_meshed(cluster, observe), "each node has a BGP session with each other")


@pytest.mark.testbed_claim("cni-calico-routing-tables")
@pytest.mark.testbed_needs("pods-by-calico")
def test_calico_carries_by_routing_tables(cluster: Cluster, observe: Observation) -> None:
    here, there = two_pods(cluster)
    local = route_to(observe, here.node, here.address)
    observe.holds(local["dev"].startswith("cali"), "a Pod of the node has a route by its own link")
    to_range(observe, here.node, there)
    remote = route_to(observe, here.node, there.address)
    observe.holds(
        remote.get("gateway") == cluster.address(there.node), "another's has one by its node"
    )


@pytest.mark.testbed_claim("cni-calico-unique-ip")
@pytest.mark.testbed_needs("pods-by-calico")
def test_calico_gives_each_pod_an_address(cluster: Cluster, observe: Observation) -> None:
    unique(cluster, observe, dict.fromkeys(ranges(cluster), str(cluster.spec.pods)))


@pytest.mark.testbed_claim("cni-calico-bgp-routes")
@pytest.mark.testbed_needs("pods-by-calico")
def test_calico_announces_ranges(cluster: Cluster, observe: Observation) -> None:
    announced(cluster, observe, {"bird"})


@pytest.mark.testbed_claim("cni-calico-security")
@pytest.mark.testbed_needs("pods-by-calico")
def test_calico_enforces_policies(cluster: Cluster, outside: Node, observe: Observation) -> None:
    policies.enforced(cluster, outside, observe)


# -- Weave Net --------------------------------------------------------------------------------


@pytest.mark.testbed_claim("cni-weave-vxlan-or-udp")
@pytest.mark.testbed_needs("pods-by-weave")
def test_weave_carries_by_udp(cluster: Cluster, observe: Observation) -> None:
    here, there = two_pods(cluster)
    packets = wire(cluster, observe, f"udp portrange {SLEEVE}-{FAST} or host {there.address}")
    seen = {packet.dport for packet in packets}
    observe.holds(seen & {FAST, SLEEVE}, "what Pods send crosses in datagrams of Weave Net's ports")
    plain = between(packets, here.address, there.address)
    observe.holds(not plain, "and not with the Pods' own addresses outside")


@pytest.mark.testbed_claim("cni-weave-virtual-network")
@pytest.mark.testbed_needs("pods-by-weave")
def test_weave_makes_a_virtual_network(cluster: Cluster, observe: Observation) -> None:
    here, there = two_pods(cluster)
    page = fetch(observe, here, f"http://{there.address}/")
    observe.holds(page and page["name"] == there.name, "Pods reach each other")
    for node in cluster.nodes:
        found = observe.run(node, ["ip", "link", "show", "weave"], check=False).ok
        observe.holds(found, f"{node.name} has the link weave")


@pytest.mark.testbed_claim("cni-weave-unique-ip")
@pytest.mark.testbed_needs("pods-by-weave")
def test_weave_gives_each_pod_an_address(cluster: Cluster, observe: Observation) -> None:
    unique(cluster, observe, dict.fromkeys(ranges(cluster), str(cluster.spec.pods)))


@pytest.mark.testbed_needs("pods-by-weave", "gateway")
def test_weave_enforces_policies(cluster: Cluster, outside: Node, observe: Observation) -> None:
    policies.enforced(cluster, outside, observe)
