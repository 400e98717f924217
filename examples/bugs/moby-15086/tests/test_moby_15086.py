"""The address of a client, as a container with a published port sees it."""

import pytest

CLIENT, CLIENT6 = "10.168.0.9", "fd00:168::9"
HOSTS = {"old": 2, "new": 3, "nft": 4}


def seen(lab, client, address):
    """Return the client's address that the web server answers with."""
    page = lab.node(client).run(["curl", "-sSm9", f"http://{address}/"]).json()
    return page["client"].rpartition(":")[0].strip("[]")


def gateway(lab, container):
    (route,) = lab.container(container).run(["ip", "-j", "route", "show", "default"]).json()
    return route["gateway"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_by_ipv6_is_hidden_by_the_userland_proxy(lab, host):
    assert seen(lab, "client", f"[fd00:168::{HOSTS[host]}]:8004") == gateway(lab, f"four-{host}")


@pytest.mark.parametrize("host", HOSTS)
def test_the_host_itself_by_127_0_0_1_too(lab, host):
    assert seen(lab, host, "127.0.0.1:8004") == gateway(lab, f"four-{host}")


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_by_ipv4_is_seen(lab, host):
    assert seen(lab, "client", f"10.168.0.{HOSTS[host]}:8004") == CLIENT


@pytest.mark.parametrize("host", ["new", "nft"])
def test_on_a_network_with_ipv6_the_client_is_seen_on_engine_29(lab, host):
    assert seen(lab, "client", f"[fd00:168::{HOSTS[host]}]:8006") == CLIENT6
