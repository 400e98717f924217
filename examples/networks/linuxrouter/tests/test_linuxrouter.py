"""Three hosts in subnets of different sizes, with a router between them."""

import itertools

import pytest

HOSTS = {"h1": "192.168.1.100", "h2": "172.16.0.100", "h3": "10.0.0.100"}


@pytest.mark.parametrize(("one", "other"), itertools.permutations(HOSTS, 2))
def test_each_host_reaches_each_other_one_through_the_router(lab, one, other):
    said = lab.node(one).run(["ping", "-c1", "-W5", HOSTS[other]]).stdout
    assert "ttl=63" in said, "one router has taken one from the TTL of 64"


def test_the_router_is_connected_to_the_three_subnets(lab):
    routes = lab.node("r0").run(["ip", "-j", "route"]).json()
    assert {route["dst"]: route["dev"] for route in routes} == {
        "192.168.1.0/24": "r0-eth1",
        "172.16.0.0/12": "r0-eth2",
        "10.0.0.0/8": "r0-eth3",
    }
