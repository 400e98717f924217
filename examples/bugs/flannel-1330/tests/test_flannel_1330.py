"""The MAC address of flannel.1, changed by somebody else after flanneld has announced it."""

import pytest

from testbed.polling import until

SET = "3"  # NET_ADDR_SET in the kernel's include/uapi/linux/netdevice.h; 1 is NET_ADDR_RANDOM


def mac(lab):
    (link,) = lab.node("node2").run(["ip", "-j", "link", "show", "flannel.1"]).json()
    return link["address"]


def announced(lab):
    """Return the MAC address to which node1 sends packets for node2."""
    (entry,) = lab.node("node1").run(["ip", "-j", "neigh", "show", "dev", "flannel.1"]).json()
    return entry["lladdr"]


def reaches(lab, seconds=10):
    ping = ["ping", "-c1", "-W", str(seconds), lab.container("two").address]
    return lab.container("one").run(ping, check=False).ok


def assigned(lab, link):
    return lab.node("node2").run(["cat", f"/sys/class/net/{link}/addr_assign_type"]).stdout.strip()


@pytest.fixture
def changed(lab):
    """Change the address as NetworkManager or udev did, and put the old one back."""
    node, before = lab.node("node2"), mac(lab)
    node.run(["ip", "link", "set", "flannel.1", "address", "8e:8f:a1:b5:44:c1"])
    yield
    node.run(["ip", "link", "set", "flannel.1", "address", before])
    node.run(["systemctl", "restart", "flanneld"])
    assert until(lambda: announced(lab) == before, 60)


def test_the_other_node_keeps_the_old_address_and_gets_no_answer(lab, changed):
    assert mac(lab) != announced(lab)
    assert not reaches(lab, seconds=2)


def test_flanneld_announces_the_new_address_when_it_starts_again(lab, changed):
    lab.node("node2").run(["systemctl", "restart", "flanneld"])
    assert until(lambda: announced(lab) == mac(lab), 60)
    assert reaches(lab)


def test_flannel_sets_the_address_so_that_udev_keeps_it(lab):
    assert mac(lab) == announced(lab)
    assert assigned(lab, "flannel.1") == SET
    node = lab.node("node2")
    node.run(["ip", "link", "add", "plain", "type", "vxlan", "id", "7", "dstport", "4789"])
    try:
        assert assigned(lab, "plain") != SET
    finally:
        node.run(["ip", "link", "del", "plain"])
