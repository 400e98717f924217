"""Checks of the claims in overlay.yaml."""

import pytest

pytestmark = pytest.mark.testbed_needs("flannel-vxlan")

HEADERS = 14 + 20 + 8 + 8  # Ethernet, IPv4, UDP, VXLAN (RFC 7348)


@pytest.mark.testbed_claim("overlay-translates-nothing")
@pytest.mark.testbed_needs("docker")
def test_addresses(lab, observe):
    client, server = lab.container("client"), lab.container("server")
    page = observe.json(client, ["curl", "-s", f"http://{server.address}/"])
    observe.holds(page["client"].startswith(f"{client.address}:"), "server saw client's address")


@pytest.mark.testbed_claim("overlay-entry-leads-to-the-node")
def test_entry(lab, observe):
    entries = observe.json(lab.node("node1"), ["bridge", "-j", "fdb", "show", "dev", "flannel.1"])
    address = str(lab.topology.address("node2"))
    observe.holds(address in {entry.get("dst") for entry in entries}, f"an entry to {address}")


@pytest.mark.testbed_claim("overlay-takes-fifty-octets")
def test_mtu(lab, observe):
    links = observe.json(lab.node("node1"), ["ip", "-j", "link"])
    mtu = {link["ifname"]: link["mtu"] for link in links}
    observe.holds(mtu["eth0"] - mtu["flannel.1"] == HEADERS, f"{HEADERS} octets below eth0")
