"""Containers on two nodes, with and without flannel's rules for forwarded packets."""

import pytest

from testbed.polling import until

NODES = ["node1", "node2"]
JUMP = ["FORWARD", "-m", "comment", "--comment", "flanneld forward", "-j", "FLANNEL-FWD"]


def reaches(lab, seconds=10):
    ping = ["ping", "-c1", "-W", str(seconds), lab.container("two").address]
    return lab.container("one").run(ping, check=False).ok


def has_rules(lab, node):
    return lab.node(node).run(["iptables", "-C", *JUMP], check=False).ok


@pytest.fixture
def without_rules(lab):
    """Take away flanneld and its rules in FORWARD: version 0.7 had none."""
    for node in NODES:
        lab.node(node).run(["systemctl", "stop", "flanneld"])
        lab.node(node).run(["iptables", "-D", *JUMP])
    yield
    for node in NODES:
        lab.node(node).run(["systemctl", "start", "flanneld"])
    assert until(lambda: all(has_rules(lab, node) for node in NODES), 60)


def test_docker_drops_what_comes_from_the_other_node(lab, without_rules):
    assert "-P FORWARD DROP" in lab.node("node2").run(["iptables", "-S", "FORWARD"]).stdout
    assert not reaches(lab, seconds=2)


def test_it_passes_once_the_policy_is_accept(lab, without_rules):
    for node in NODES:
        lab.node(node).run(["iptables", "-P", "FORWARD", "ACCEPT"])
    try:
        assert reaches(lab)
    finally:
        for node in NODES:
            lab.node(node).run(["iptables", "-P", "FORWARD", "DROP"])


def test_flannel_today_accepts_it_itself(lab):
    assert all(has_rules(lab, node) for node in NODES)
    assert reaches(lab)
