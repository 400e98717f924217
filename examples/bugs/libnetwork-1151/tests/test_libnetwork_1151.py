"""Addresses that a container on an internal Docker network reaches."""

import pytest


def reaches(lab, container, address):
    done = lab.container(container).run(["curl", "-sSm2", f"http://{address}/"], check=False)
    return done.ok


@pytest.mark.parametrize("container", ["in-old", "in-new"])
def test_the_host_is_reached_by_the_address_of_the_bridge(lab, container):
    assert reaches(lab, container, "172.25.0.1:8000")


def test_an_engine_before_25_0_gives_it_a_default_route_to_all_addresses_of_the_host(lab):
    version = lab.engine("old").version["Version"]
    if int(version.partition(".")[0]) >= 25:
        pytest.skip(f"engine {version} is newer than the report")
    assert reaches(lab, "in-old", "10.168.0.2:8000")


def test_engine_29_gives_it_none(lab):
    assert not reaches(lab, "in-new", "10.168.0.3:8000")


def test_with_the_gateway_mode_isolated_the_host_has_no_address_there(lab):
    assert not reaches(lab, "alone", "172.26.0.1:8000")
    assert "172.26.0." not in lab.node("new").run(["ip", "-4", "address"]).stdout
    assert reaches(lab, "alone", lab.container("peer").addresses["isolated"])
