"""Routing by OSPF and BGP (document routing).

For the labs ospf-triangle, bgp-clos and bgp-frr-bird. Their timers are short, but convergence is
waited for as long as on a busy machine: a lab that does not converge decides nothing.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import Unsettled
from testbed.observe.capture import captures
from testbed.suites import helpers
from testbed.suites.helpers import (
    LATE,
    answers,
    note,
    observe_until,
    patient,
    route_to,
    routes,
    undone,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.claims.observation import Observation
    from testbed.faults.inflict import Inflict
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

OSPF = "ip proto 89"  # RFC 2328, section 4.3
#: States of a neighbour that stay; the others are passed through (RFC 2328, section 10.1).
SETTLED_STATES = {"2-Way", "Full"}


@pytest.fixture
def triangle(lab: LiveLab) -> LiveLab:
    """The lab with three routers in a triangle."""
    return _with_nodes(lab, "router1", "router2", "router3", "pc1", "pc2")


@pytest.fixture
def clos(lab: LiveLab) -> LiveLab:
    """The lab with two leaves and two spines."""
    return _with_nodes(lab, "leaf1", "leaf2", "spine1", "spine2", "h1", "h2")


@pytest.fixture
def pair(lab: LiveLab) -> LiveLab:
    """The lab with a router of each kind."""
    return _with_nodes(lab, "frr1", "bird1", "h1", "h2")


def _with_nodes(lab: LiveLab, *names: str) -> LiveLab:
    lacking = [name for name in names if name not in lab.topology.nodes]
    if lacking:
        pytest.skip(f"the lab has no node {', '.join(lacking)}")
    return lab


def subnet(lab: LiveLab, network: str) -> str:
    return str(lab.topology.networks[network].subnet)


def hops(observe: Observation, node: Node, prefix: str) -> dict[str, str]:
    """Return the gateways of a node's route to a prefix, each with its device."""
    found: dict[str, str] = {}
    for one in routes(observe, node, prefix):
        for hop in one.get("nexthops", [one]):
            gateway = hop.get("gateway") or hop.get("via", {}).get("host")
            if gateway:
                found[gateway] = hop["dev"]
    return found


def gateway(observe: Observation, node: Node, address: object) -> str:
    """Return the gateway that a node uses for an address; empty without one."""
    route = route_to(observe, node, address)
    return str(route.get("gateway") or route.get("via", {}).get("host", ""))


def wait_for_hops(
    observe: Observation, node: Node, prefix: str, *, count: int = 1, other_than: str = ""
) -> dict[str, str]:
    """Wait until a node has a route to a prefix with so many gateways; return them."""

    def look(notes: Observation) -> dict[str, str]:
        found = hops(notes, node, prefix)
        return found if len(found) >= count and other_than not in found else {}

    return observe_until(observe, look, f"a route of {node.name} to {prefix}")


def neighbour_states(observe: Observation, node: Node) -> list[str]:
    """Return the states of a router's OSPF neighbours, without their part on the link."""
    said = observe.json(node, ["vtysh", "-c", "show ip ospf neighbor json"]) or {}
    some = [one for each in said.get("neighbors", {}).values() for one in each]
    # FRR 9 calls it nbrState.
    return [str(one.get("nbrState") or one["state"]).partition("/")[0] for one in some]


def wait_until_full(observe: Observation, node: Node) -> None:
    """Wait until both neighbours of a router in the triangle are Full."""

    def look(notes: Observation) -> bool:
        return neighbour_states(notes, node) == ["Full", "Full"]

    observe_until(observe, look, f"two neighbours of {node.name} in state Full")


def becomes(observe: Observation, look: Callable[[Observation], object]) -> bool:
    """Tell whether something comes about that the routing table needs no other router for."""
    try:
        return bool(observe_until(observe, look, "it", helpers.LATE))
    except Unsettled:
        return False


@contextlib.contextmanager
def configured(
    observe: Observation, node: Node, context: str, do: str, undo: str
) -> Iterator[None]:
    """Change a line of FRR's running configuration for the time of the block."""

    def argv(line: str) -> list[str]:
        return ["vtysh", "-c", "configure terminal", "-c", context, "-c", line]

    with undone(observe, node, argv(do), argv(undo)):
        yield


# -- OSPF -----------------------------------------------------------------------


@pytest.mark.testbed_claim("ospf-neighbours-become-full")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("ospf")
def test_neighbours_become_full(triangle: LiveLab, observe: Observation) -> None:
    for name in ("router1", "router2", "router3"):
        node = triangle.node(name)

        def look(notes: Observation, node: Node = node) -> list[str]:
            states = neighbour_states(notes, node)
            return states if len(states) == 2 and set(states) <= SETTLED_STATES else []

        states = observe_until(observe, look, f"two neighbours of {name} in a state that stays")
        observe.holds(states == ["Full", "Full"], f"both neighbours of {name} are Full")


@pytest.mark.testbed_claim("ospf-shortest-path")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("ospf")
def test_the_path_with_the_lowest_cost_is_used(triangle: LiveLab, observe: Observation) -> None:
    router, target = triangle.node("router1"), triangle.topology.address("pc2")
    direct = str(triangle.topology.nodes["router2"].address_on("r1r2"))
    detour = str(triangle.topology.nodes["router3"].address_on("r1r3"))
    prefix = subnet(triangle, "pc2r2")
    wait_until_full(observe, router)
    wait_for_hops(observe, router, prefix)
    # The first route may be from before the second neighbour was Full.
    is_direct = becomes(observe, lambda n: gateway(n, router, target) == direct)
    observe.holds(is_direct, "with equal costs the path over one link is used")
    if not is_direct:
        return
    link = next(port.name for port in triangle.topology.nodes["router1"].on("r1r2"))
    lines = (f"interface {link}", "ip ospf cost 100", "no ip ospf cost")
    with configured(observe, router, *lines):
        wait_for_hops(observe, router, prefix, other_than=direct)
        used = gateway(observe, router, target)
        observe.holds(used == detour, "with a cost of 100 for that link the other path is used")
    wait_for_hops(observe, router, prefix, other_than=detour)


@pytest.mark.testbed_claim("ospf-failure-moves-traffic")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("ospf")
def test_a_failure_moves_traffic_to_the_other_path(
    triangle: LiveLab, observe: Observation, fault: Inflict
) -> None:
    one, two, pc = (triangle.node(name) for name in ("router1", "router2", "pc1"))
    there, back = subnet(triangle, "pc2r2"), subnet(triangle, "pc1r1")
    over_two = str(triangle.topology.nodes["router2"].address_on("r1r2"))
    over_one = str(triangle.topology.nodes["router1"].address_on("r1r2"))
    wait_for_hops(observe, one, there)
    fault("partition router1:router2")
    wait_for_hops(observe, one, there, other_than=over_two)
    wait_for_hops(observe, two, back, other_than=over_one)
    target = triangle.topology.address("pc2")
    observe.holds(answers(observe, pc, target), "pc2 answers pc1 by way of router3")
    fault.heal()
    observe_until(observe, lambda n: over_two in hops(n, one, there), "the path as before")


@pytest.mark.testbed_claim("ospf-equal-cost-paths")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("ospf")
def test_paths_of_equal_cost_are_all_installed(triangle: LiveLab, observe: Observation) -> None:
    router, prefix = triangle.node("router1"), subnet(triangle, "r2r3")

    wait_until_full(observe, router)
    wait_for_hops(observe, router, prefix)
    # The second path comes with the second neighbour's database, a moment later.
    both = becomes(observe, lambda n: len(hops(n, router, prefix)) == 2)
    observe.holds(both, f"the kernel's route to {prefix} has a gateway on each link")


@pytest.mark.testbed_claim("ospf-passive-interface")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("ospf")
def test_a_passive_interface_is_announced_and_sends_nothing(
    triangle: LiveLab, observe: Observation
) -> None:
    pc, router = triangle.node("pc1"), triangle.node("router1")
    wait_for_hops(observe, triangle.node("router2"), subnet(triangle, "pc1r1"))
    with captures((pc, "eth0", OSPF), (router, "eth0", OSPF)) as (quiet, loud):
        loud.wait_for(lambda packets: len(packets) >= 6)  # hellos of two routers, each second
    note(observe, quiet, loud)
    observe.holds(len(loud.packets) > 1, "hellos pass on the link between routers")
    observe.holds(not quiet.packets, "none is sent on the passive interface")


@pytest.mark.testbed_claim("ttl-falls-by-one-at-each-router")
@pytest.mark.testbed_needs("ospf")
def test_each_router_takes_one_from_the_ttl(triangle: LiveLab, observe: Observation) -> None:
    pc, target = triangle.node("pc1"), triangle.topology.address("pc2")
    for name, prefix in (("router1", "pc2r2"), ("router2", "pc1r1")):
        wait_for_hops(observe, triangle.node(name), subnet(triangle, prefix))
    observe_until(observe, lambda n: answers(n, pc, target), "answers of pc2")
    seen = [_who_answers(observe, pc, target, ttl) for ttl in (1, 2, 3)]
    first = {str(one) for one in triangle.topology.nodes["router1"].addresses}
    second = {str(one) for one in triangle.topology.nodes["router2"].addresses}
    observe.holds(seen[0] in first, "a packet with TTL 1 ends at the first router")
    observe.holds(seen[1] in second, "a packet with TTL 2 ends at the second router")
    observe.holds(seen[2] == str(target), "a packet with TTL 3 passes two routers and arrives")


def _who_answers(observe: Observation, node: Node, target: object, ttl: int) -> str:
    """Return the address that answers an echo request with a TTL, or reports its end."""
    wait = f"-W{patient(node, LATE):g}"
    argv = ["ping", "-n", "-c1", f"-t{ttl}", wait, str(target)]
    said = observe.run(node, argv, check=False).stdout
    found = re.search(r"^(?:From|\d+ bytes from) ([\d.]+)", said, re.MULTILINE)
    return found[1] if found else ""


# -- BGP ------------------------------------------------------------------------


def paths(observe: Observation, node: Node, prefix: str) -> list[dict[str, Any]]:
    """Return the BGP paths of a node to a prefix."""
    said = observe.json(node, ["vtysh", "-c", f"show bgp ipv4 unicast {prefix} json"]) or {}
    found: list[dict[str, Any]] = said.get("paths", [])
    return found


@pytest.mark.testbed_claim("bgp-next-hop-is-link-local")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("bgp")
def test_next_hops_are_link_local(clos: LiveLab, observe: Observation) -> None:
    leaf, prefix = clos.node("leaf1"), subnet(clos, "h2l2")
    found = observe_until(
        observe,
        lambda n: found if len(found := paths(n, leaf, prefix)) == 2 else None,
        f"two paths of leaf1 to {prefix}",
    )
    used = [hop for path in found for hop in path["nexthops"]]
    observe.holds(
        used and all(hop["afi"] == "ipv6" and hop["ip"].startswith("fe80:") for hop in used),
        f"each next hop of the IPv4 prefix {prefix} is a link-local address of IPv6",
    )


@pytest.mark.testbed_claim("bgp-multipath")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("bgp")
def test_both_spines_are_used(clos: LiveLab, observe: Observation) -> None:
    leaf, prefix = clos.node("leaf1"), subnet(clos, "h2l2")
    observe_until(
        observe,
        lambda n: len(paths(n, leaf, prefix)) == 2 and routes(n, leaf, prefix),
        f"two paths of leaf1 to {prefix}, and a route",
    )

    def look(notes: Observation) -> bool:
        found = routes(notes, leaf, prefix)
        return len({hop["dev"] for one in found for hop in one.get("nexthops", [one])}) == 2

    observe.holds(becomes(observe, look), "the kernel's route has both links")


@pytest.mark.testbed_claim("bgp-withdrawn-prefix-goes")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("bgp")
def test_a_withdrawn_prefix_goes(clos: LiveLab, observe: Observation) -> None:
    leaf, prefix = clos.node("leaf1"), subnet(clos, "h2l2")
    observe_until(observe, lambda n: routes(n, leaf, prefix), f"a route of leaf1 to {prefix}")
    asn = observe.json(clos.node("leaf2"), ["vtysh", "-c", "show bgp summary json"])
    number = next(iter(asn.values()))["as"]
    argv = ["vtysh", "-c", "configure terminal", "-c", f"router bgp {number}"]
    argv += ["-c", "address-family ipv4 unicast", "-c"]
    with undone(
        observe,
        clos.node("leaf2"),
        [*argv, f"no network {prefix}"],
        [*argv, f"network {prefix}"],
    ):
        observe_until(
            observe,
            lambda n: not paths(n, leaf, prefix),
            "the withdrawal at leaf1",
        )
        gone = becomes(observe, lambda n: not routes(n, leaf, prefix))
        observe.holds(gone, f"leaf1 has no route to {prefix} any more")
    observe_until(observe, lambda n: routes(n, leaf, prefix), "the route as before")


@pytest.mark.testbed_claim("bgp-frr-and-bird-exchange-routes")
@pytest.mark.testbed_needs("frr")
@pytest.mark.testbed_needs("bird")
@pytest.mark.testbed_needs("bgp")
def test_frr_and_bird_exchange_routes(pair: LiveLab, observe: Observation) -> None:
    wait_for_hops(observe, pair.node("frr1"), subnet(pair, "right"))
    wait_for_hops(observe, pair.node("bird1"), subnet(pair, "left"))
    host, target = pair.node("h1"), pair.topology.address("h2")
    observe.holds(answers(observe, host, target), "the host behind BIRD answers the one behind FRR")
