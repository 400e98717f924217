"""The default route of a container on two Docker networks."""

import pytest

FRONTEND, BACKEND = "172.20.0.1", "172.21.0.1"


def gateways(lab, container):
    routes = lab.container(container).run(["ip", "-j", "route", "show", "default"]).json()
    return [route["gateway"] for route in routes]


@pytest.mark.parametrize("container", ["rose-old", "rose-new"])
def test_the_first_name_in_the_alphabet_has_the_default_route(lab, container):
    assert gateways(lab, container) == [BACKEND]


def test_the_network_with_the_highest_priority_has_it_on_engine_29(lab):
    assert gateways(lab, "chosen") == [FRONTEND]


@pytest.mark.parametrize(("node", "container"), [("old", "rose-old"), ("new", "rose-new")])
def test_a_network_that_is_connected_later_takes_it_away(lab, node, container):
    lab.node(node).run(["docker", "network", "disconnect", "backend", container])
    assert gateways(lab, container) == [FRONTEND]
    lab.node(node).run(["docker", "network", "connect", "backend", container])
    assert gateways(lab, container) == [BACKEND]
