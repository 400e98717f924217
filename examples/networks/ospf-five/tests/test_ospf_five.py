"""Three routers in a row with OSPF, five networks, four PCs."""

import itertools

import pytest

from testbed.polling import until

PCS = {"pc1": "10.1.1.2", "pc2": "10.1.3.2", "pc3": "10.1.4.2", "pc4": "10.1.5.2"}
#: Networks that each router is not connected to.
LEARNED = {
    "router1": {"10.1.3.0/24", "10.1.4.0/24", "10.1.5.0/24"},
    "router2": {"10.1.1.0/24", "10.1.4.0/24", "10.1.5.0/24"},
    "router3": {"10.1.1.0/24", "10.1.2.0/24"},
}
SECONDS = 120


def learned(lab, router):
    routes = lab.node(router).run(["ip", "-j", "route", "show", "proto", "ospf"]).json()
    return {route["dst"] for route in routes}


@pytest.fixture(scope="module", autouse=True)
def converged(lab):
    for router, networks in LEARNED.items():
        assert until(lambda: learned(lab, router) == networks, SECONDS), learned(lab, router)  # noqa: B023  called at once


def test_neighbours_are_full(lab):
    said = lab.node("router2").run(["vtysh", "-c", "show ip ospf neighbor json"]).json()
    states = [one for found in said["neighbors"].values() for one in found]
    assert len(states) == 2
    assert all("Full" in str(one) for one in states)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(PCS, 2))
def test_each_pc_reaches_each_other_one(lab, one, other):
    assert lab.node(one).run(["ping", "-c1", "-W5", PCS[other]]).ok


def test_the_routers_forget_what_a_dead_one_has_told(lab):
    lab.node("router3").run(["ip", "link", "set", "eth0", "down"])
    try:
        assert until(lambda: learned(lab, "router1") == {"10.1.3.0/24"}, SECONDS)
    finally:
        lab.node("router3").run(["ip", "link", "set", "eth0", "up"])
    assert until(lambda: learned(lab, "router1") == LEARNED["router1"], SECONDS)
