"""`icc: false` of the daemon, on docker0 and on other Docker networks."""

import pytest

HOSTS = pytest.mark.parametrize("host", ["old", "new", "nft"])


def reaches(lab, host, network):
    address = lab.container(f"b-{host}").addresses[network]
    done = lab.container(f"a-{host}").run(["curl", "-sSm2", f"http://{address}/"], check=False)
    return done.ok


@HOSTS
def test_it_separates_containers_on_docker0(lab, host):
    assert not reaches(lab, host, "bridge")


@HOSTS
def test_it_does_not_on_a_network_of_ones_own(lab, host):
    assert reaches(lab, host, "own")


@HOSTS
def test_enable_icc_of_the_network_does(lab, host):
    assert not reaches(lab, host, "closed")
