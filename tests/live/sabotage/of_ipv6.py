"""IPv6 of containers: devices, routes and rules of the second family, made wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed, nft, sh
from sabotage.trials import IPV6, sabotage
from testbed.catalogues.shipped.test_ipv6 import SECOND, host_address, own_address
from testbed.claims.observation import Observation
from testbed.roles.flannel.role import SERVICE
from testbed.suites.overlay import ends

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab


@sabotage(IPV6, "ipv6-second-vxlan-device", ruins=True)
def the_second_device_has_another_vni(lab: LiveLab) -> Iterator[None]:
    """The first host's device for IPv6 has the VNI 2."""
    one, _ = ends(lab)
    one.node.stop(SERVICE)  # it would make its device anew by itself
    sh(
        one.node,
        f"ip link delete {SECOND}",
        f"ip link add {SECOND} type vxlan id 2 dev eth0 dstport 8472 nolearning "
        f"local {host_address(lab, one)}",
        f"ip link set {SECOND} up",
    )
    yield


@sabotage(IPV6, "ipv6-route-to-other-host")
def a_route_leads_past_the_tunnel(lab: LiveLab) -> Iterator[None]:
    """A host has a route to the other's container over the network of the hosts."""
    one, other = ends(lab)
    target = f"{own_address(Observation(), other.container)}/128"
    via = f"via {host_address(lab, other)} dev eth0"
    with changed(one.node, f"ip -6 route add {target} {via}", f"ip -6 route del {target} {via}"):
        yield


@sabotage(IPV6, "ipv6-containers-reach-each-other")
def the_other_host_drops_ipv6_of_the_overlay(lab: LiveLab) -> Iterator[None]:
    """Packets from the second host's device are dropped."""
    _, other = ends(lab)
    rules = f"filter hook forward priority -200\niifname {SECOND} drop"
    with changed(other.node, *nft(rules, "ip6")):
        yield


@sabotage(IPV6, "ipv6-published-port", "ipv6-masquerade-to-hosts")
def the_port_is_translated_with_its_client(lab: LiveLab) -> Iterator[None]:
    """The host of the published port gives its clients an address of its own."""
    _, other = ends(lab)
    rules = "nat hook postrouting priority 90\noifname docker0 tcp dport 80 masquerade"
    with changed(other.node, *nft(rules, "ip6")):
        yield
