"""ARP replies of a host with two addresses on the same segment."""

import pytest

from testbed.observe.capture import capture

FLUX = ["10.30.0.10", "10.30.0.11"]
FIXED = {"eth0": "10.30.0.20", "eth1": "10.30.0.21"}


def macs(lab, host):
    links = lab.node(host).run(["ip", "-j", "link"]).json()
    return {link["ifname"]: link["address"] for link in links if link["ifname"] != "lo"}


def answering(lab, address):
    """Return the MAC addresses in the answers to an ARP request for ``address``."""
    peer = lab.node("peer")
    peer.run(["ip", "neigh", "flush", "to", address])
    with capture(peer, "eth0", "arp") as seen:
        peer.run(["ping", "-c1", "-W10", address])
    return {
        packet.arp.sender_mac
        for packet in seen.packets
        if packet.arp and packet.arp.op == 2 and packet.arp.sender == address
    }


@pytest.mark.parametrize("address", FLUX)
def test_both_interfaces_answer_for_each_address(lab, address):
    assert answering(lab, address) == set(macs(lab, "flux").values())


@pytest.mark.parametrize(("link", "address"), FIXED.items())
def test_with_arp_ignore_only_the_interface_that_has_it_answers(lab, link, address):
    assert answering(lab, address) == {macs(lab, "fixed")[link]}
