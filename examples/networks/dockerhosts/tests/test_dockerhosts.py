"""Hosts and Docker containers on the same two switches."""

import pytest


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("address", ["10.0.0.251", "10.0.0.252"])
def test_hosts_reach_the_containers_on_their_switch(lab, host, address):
    said = lab.node(host).run(["ping", "-c1", "-W5", address]).stdout
    assert "ttl=64" in said, "no router is between them"


def test_a_container_reaches_a_host(lab):
    assert lab.container("d1").run(["ping", "-c1", "-W5", "10.0.0.2"]).ok


def test_a_container_on_both_switches_reaches_both(lab):
    assert lab.container("d2").run(["ping", "-c1", "-W5", "11.0.0.253"]).ok
    assert lab.container("d2").run(["ping", "-c1", "-W5", "10.0.0.1"]).ok


def test_the_switches_are_apart(lab):
    assert not lab.container("d3").run(["ping", "-c1", "-W1", "10.0.0.1"], check=False).ok


def test_each_container_has_a_page_on_its_switch(lab):
    page = lab.node("h1").run(["curl", "-fsS", "-m", "10", "http://10.0.0.251/"]).json()
    assert (page["name"], page["client"].rpartition(":")[0]) == ("d1", "10.0.0.1")


def test_a_container_has_the_limits_of_the_file(lab):
    (found,) = lab.node("machine").run(["docker", "inspect", "d2"]).json()
    assert found["HostConfig"]["NanoCpus"] == 500_000_000
    assert found["HostConfig"]["Memory"] == 64 << 20
