"""Two leaves and two spines with BGP unnumbered, two hosts, a management network."""

import pytest

from testbed.polling import until

SECONDS = 120


def hops(lab, leaf, network):
    """Return the link and the family of the next hop of each path to a network."""
    routes = lab.node(leaf).run(["ip", "-j", "route", "show", network]).json()
    return {
        (hop["dev"], (hop.get("via") or {}).get("family"))
        for route in routes
        for hop in route.get("nexthops", [route])
    }


BOTH = {("swp1", "inet6"), ("swp2", "inet6")}


@pytest.fixture(scope="module", autouse=True)
def converged(lab):
    assert until(lambda: hops(lab, "leaf1", "172.16.2.0/24") == BOTH, SECONDS)
    assert until(lambda: hops(lab, "leaf2", "172.16.1.0/24") == BOTH, SECONDS)


def test_the_hosts_reach_each_other_through_leaf_spine_and_leaf(lab):
    said = lab.node("h1").run(["ping", "-c1", "-W5", "172.16.2.2"]).stdout
    assert "ttl=61" in said


def test_links_between_routers_have_no_ipv4_address(lab):
    for router in ("leaf1", "leaf2", "spine1", "spine2"):
        for link in ("swp1", "swp2"):
            (found,) = lab.node(router).run(["ip", "-j", "address", "show", "dev", link]).json()
            assert {one["family"] for one in found["addr_info"]} == {"inet6"}


def test_one_path_is_left_without_the_other_spine(lab):
    lab.node("spine1").run(["ip", "link", "set", "swp2", "down"])
    try:
        left = {("swp2", "inet6")}
        assert until(lambda: hops(lab, "leaf1", "172.16.2.0/24") <= left, SECONDS)
        assert lab.node("h1").run(["ping", "-c1", "-W5", "172.16.2.2"]).ok
    finally:
        lab.node("spine1").run(["ip", "link", "set", "swp2", "up"])
    assert until(lambda: hops(lab, "leaf1", "172.16.2.0/24") == BOTH, SECONDS)


@pytest.mark.parametrize("node", ["leaf1", "leaf2", "spine1", "spine2", "h1", "h2"])
def test_each_machine_reaches_the_collector(lab, node):
    assert lab.node(node).run(["curl", "-fsS", "-m", "10", "http://172.100.100.8:8008/"]).ok
