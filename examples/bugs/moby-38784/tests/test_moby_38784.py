"""A published port, from a container on another Docker network of the same host."""

import pytest

HOSTS = {"old": "10.168.0.2", "new": "10.168.0.3", "nft": "10.168.0.4"}


def reaches(lab, client, address):
    done = lab.container(client).run(["curl", "-sSm2", f"http://{address}/"], check=False)
    return done.ok


def test_the_old_engine_keeps_networks_apart_even_there(lab):
    assert not reaches(lab, "client-old", "10.168.0.2:8080")


@pytest.mark.parametrize("host", ["new", "nft"])
def test_engine_29_lets_it_pass(lab, host):
    assert reaches(lab, f"client-{host}", f"{HOSTS[host]}:8080")


@pytest.mark.parametrize("host", HOSTS)
def test_the_address_of_the_container_stays_out_of_reach(lab, host):
    address = lab.container(f"web-{host}").addresses["front"]
    assert not reaches(lab, f"client-{host}", address)
    assert lab.node(host).run(["curl", "-sSm9", f"http://{address}/"]).ok
