"""Routers that are set wrong, or that do not forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed
from sabotage.trials import sabotage
from testbed.claims.observation import Observation
from testbed.suites.helpers import observe_until, sysctl_set

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

TRIANGLE, CLOS, PAIR = "ospf-triangle", "bgp-clos", "bgp-frr-bird"


def set_lines(node: Node, *lines: str) -> None:
    """Change FRR's running configuration."""
    words = [word for line in ("configure terminal", *lines) for word in ("-c", line)]
    node.run(["vtysh", *words])


@contextlib.contextmanager
def lines(node: Node, context: str, do: str, undo: str) -> Iterator[None]:
    set_lines(node, context, do)
    try:
        yield
    finally:
        set_lines(node, context, undo)


@contextlib.contextmanager
def not_forwarding(node: Node) -> Iterator[None]:
    with sysctl_set(Observation(), node, "net.ipv4.ip_forward", "0"):
        yield


@sabotage(TRIANGLE, "ospf-neighbours-become-full")
def no_router_is_designated(lab: LiveLab) -> Iterator[None]:
    """On the link between two routers neither may become the designated router."""
    ends = (lab.node("router1"), lab.node("router2"))
    for node in ends:
        set_lines(node, "interface eth0", "ip ospf network broadcast", "ip ospf priority 0")
    try:
        yield
    finally:
        for node in ends:
            set_lines(
                node, "interface eth0", "no ip ospf priority", "ip ospf network point-to-point"
            )


@sabotage(TRIANGLE, "ospf-shortest-path")
def a_better_route_leads_astray(lab: LiveLab) -> Iterator[None]:
    """A route of the kernel with a lower metric leads over the third router."""
    route = "192.168.12.0/24 via 192.168.2.2 metric 5"
    with changed(lab.node("router1"), f"ip route add {route}", f"ip route del {route}"):
        yield


@sabotage(TRIANGLE, "ospf-failure-moves-traffic")
def the_third_router_forwards_nothing(lab: LiveLab) -> Iterator[None]:
    """The router on the other path speaks OSPF, but forwards no packets."""
    with not_forwarding(lab.node("router3")):
        yield


@sabotage(TRIANGLE, "ospf-equal-cost-paths")
def one_path_is_the_most(lab: LiveLab) -> Iterator[None]:
    """OSPF on router1 may install one path only."""
    with lines(lab.node("router1"), "router ospf", "maximum-paths 1", "no maximum-paths"):
        yield


@sabotage(TRIANGLE, "ospf-passive-interface")
def the_interface_is_not_passive(lab: LiveLab) -> Iterator[None]:
    """router1 sends hellos on the interface to pc1, ten each second."""
    fast = "ip ospf dead-interval minimal hello-multiplier 10"
    node = lab.node("router1")
    with (
        lines(node, "interface eth2", fast, "no ip ospf dead-interval"),
        lines(node, "interface eth2", "no ip ospf passive", "ip ospf passive"),
    ):
        # A timer that runs keeps its interval, ten seconds, until the interface is new to OSPF.
        set_lines(node, "interface eth2", "no ip ospf area 0")
        set_lines(node, "interface eth2", "ip ospf area 0")
        yield


@sabotage(TRIANGLE, "ttl-falls-by-one-at-each-router")
def a_router_renews_the_ttl(lab: LiveLab) -> Iterator[None]:
    """router1 sets the TTL of each packet to 64 before it routes it."""
    do = """nft add table ip sabotage
    nft add chain ip sabotage before { type filter hook prerouting priority -300 ; }
    nft add rule ip sabotage before ip ttl set 64"""
    with changed(lab.node("router1"), do, "nft delete table ip sabotage"):
        yield


@sabotage(CLOS, "bgp-next-hop-is-link-local")
def a_link_gets_addresses(lab: LiveLab) -> Iterator[None]:
    """Both ends of a link get IPv4 addresses, which are next hops then."""
    leaf, spine = lab.node("leaf1"), lab.node("spine1")
    with (
        changed(leaf, "ip address add 10.9.9.1/30 dev eth0", "ip address del 10.9.9.1/30 dev eth0"),
        changed(
            spine, "ip address add 10.9.9.2/30 dev eth0", "ip address del 10.9.9.2/30 dev eth0"
        ),
    ):
        leaf.run(["vtysh", "-c", "clear bgp eth0"])
        observe_until(
            Observation(),
            lambda n: "10.9.9.2" in n.run(leaf, ["vtysh", "-c", "show bgp ipv4 unicast"]).stdout,
            "the new next hop",
        )
        yield
    leaf.run(["vtysh", "-c", "clear bgp eth0"])


@sabotage(CLOS, "bgp-multipath")
def paths_must_have_the_same_as(lab: LiveLab) -> Iterator[None]:
    """Paths through different AS are not used at once."""
    line = "bgp bestpath as-path multipath-relax"
    with lines(lab.node("leaf1"), "router bgp 65001", f"no {line}", line):
        yield


@sabotage(CLOS, "bgp-withdrawn-prefix-goes")
def another_route_stays(lab: LiveLab) -> Iterator[None]:
    """leaf1 has a route of the kernel to the same prefix, which BGP does not know."""
    route = "172.16.2.0/24 dev eth0 metric 300"
    with changed(lab.node("leaf1"), f"ip route add {route}", f"ip route del {route}"):
        yield


@sabotage(PAIR, "bgp-frr-and-bird-exchange-routes")
def the_router_with_bird_forwards_nothing(lab: LiveLab) -> Iterator[None]:
    """The router with BIRD speaks BGP, but forwards no packets."""
    with not_forwarding(lab.node("bird1")):
        yield
