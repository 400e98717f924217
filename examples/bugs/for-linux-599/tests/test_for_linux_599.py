"""Subnets for new Docker networks, from the address pools of the daemon."""

import pytest

#: What engine 20.10 and engine 29 say.
FULL = ("could not find an available, non-overlapping IPv4 address pool", "fully subnetted")


def create(node, name, *options):
    """Create a network; return None, or what the engine says."""
    done = node.run(["docker", "network", "create", *options, name], check=False)
    return None if done.ok else done.stderr


@pytest.fixture
def node(lab, host):
    found = lab.node(host)
    yield found
    found.run(["docker", "network", "prune", "--force"])


@pytest.mark.parametrize("host", ["old", "new"])
def test_a_pool_of_two_subnets_is_full_after_two_networks(node):
    assert create(node, "one") is None
    assert create(node, "two") is None
    said = create(node, "three")
    assert said
    assert any(words in said for words in FULL)


@pytest.mark.parametrize("host", ["vpn-old", "vpn-new"])
def test_a_route_of_the_host_takes_the_whole_pool(node):
    said = create(node, "one")
    assert said
    assert any(words in said for words in FULL)


@pytest.mark.parametrize("host", ["old", "new", "vpn-old", "vpn-new"])
def test_a_network_with_a_subnet_of_its_own_needs_no_pool(node):
    create(node, "one")
    create(node, "two")
    assert create(node, "mine", "--subnet", "10.99.0.0/24") is None


@pytest.mark.parametrize("host", ["vpn-old", "vpn-new"])
def test_without_the_route_the_pool_can_be_used(node):
    node.run(["ip", "route", "del", "192.168.0.0/16", "dev", "eth0"])
    try:
        assert create(node, "one") is None
        node.run(["docker", "network", "rm", "one"])
    finally:
        node.run(["ip", "route", "add", "192.168.0.0/16", "dev", "eth0"])
