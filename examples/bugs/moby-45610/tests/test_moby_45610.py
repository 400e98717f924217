"""A port published on 127.0.0.1, from another host on the same network."""

import pytest

HOSTS = {"old": "192.168.42.10", "new": "192.168.42.11", "nft": "192.168.42.12"}


def reaches(lab, client, address):
    return lab.node(client).run(["curl", "-sSm2", f"http://{address}/"], check=False).ok


def test_a_neighbour_with_a_route_reaches_it_on_an_engine_before_28_0(lab):
    assert reaches(lab, "neighbour", f"{lab.container('web-old').address}:80")


@pytest.mark.parametrize("host", ["new", "nft"])
def test_engine_29_drops_packets_for_the_address_of_a_container(lab, host):
    address = f"{lab.container(f'web-{host}').address}:80"
    assert not reaches(lab, "neighbour", address)
    assert reaches(lab, host, address)


@pytest.mark.parametrize("host", HOSTS)
def test_the_ports_are_where_they_were_published(lab, host):
    assert reaches(lab, "neighbour", f"{HOSTS[host]}:8080")
    assert not reaches(lab, "neighbour", f"{HOSTS[host]}:8081")
    assert reaches(lab, host, "127.0.0.1:8081")
