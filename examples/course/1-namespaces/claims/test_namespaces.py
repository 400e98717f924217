"""Checks of the claims in namespaces.yaml."""

import pytest

pytestmark = pytest.mark.testbed_needs("namespaces")


def answers(observe, node, address):
    """Send one echo request from the namespace red; tell whether it is answered."""
    ping = ["ip", "netns", "exec", "red", "ping", "-c1", "-W1", address]
    return observe.run(node, ping, check=False).ok


@pytest.mark.testbed_claim("namespace-has-its-own-interfaces")
def test_interfaces(lab, observe):
    links = observe.json(lab.node("host"), ["ip", "-n", "red", "-j", "link"])
    observe.holds({link["ifname"] for link in links} == {"lo", "eth0"}, "lo and eth0 alone")


@pytest.mark.testbed_claim("bridge-joins-veth-pairs")
def test_bridge(lab, observe):
    observe.holds(answers(observe, lab.node("host"), "10.1.0.3"), "blue answers red")


@pytest.mark.testbed_claim("namespace-reaches-its-machine")
def test_machine(lab, observe):
    observe.holds(answers(observe, lab.node("host"), "10.168.0.2"), "the machine answers red")
