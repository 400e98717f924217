"""A node whose lease of its subnet has ended in etcd."""

import json

import pytest

from testbed.polling import until

KEY = "/coreos.com/network/subnets/100.96.2.0-24"


def has_route(lab):
    routes = lab.node("node1").run(["ip", "-j", "route", "show", "100.96.2.0/24"])
    return routes.json() != []


def is_active(lab):
    return lab.node("node2").run(["systemctl", "is-active", "flanneld"], check=False).ok


def reaches(lab, seconds=10):
    ping = ["ping", "-c1", "-W", str(seconds), lab.container("two").address]
    return lab.container("one").run(ping, check=False).ok


def lease(lab):
    """Return the ID of the lease of the key of node2's subnet."""
    answer = json.loads(lab.node("node1").run(["etcdctl", "get", KEY, "-w", "json"]).stdout)
    return f"{answer['kvs'][0]['lease']:x}"


@pytest.fixture
def ended(lab):
    """End the lease of node2, as it ends by itself after 24 hours without a renewal."""
    lab.node("node1").run(["etcdctl", "lease", "revoke", lease(lab)])
    assert until(lambda: not is_active(lab) and not has_route(lab), 60)
    yield
    lab.node("node2").run(["systemctl", "start", "flanneld"])
    assert until(lambda: has_route(lab), 60)


def test_flanneld_ends_and_the_other_node_has_no_route(lab, ended):
    assert "revoked" in lab.node("node2").logs("flanneld")
    assert not is_active(lab)
    assert not has_route(lab)
    assert not reaches(lab, seconds=2)


def test_started_again_it_leases_the_same_subnet(lab, ended):
    node = lab.node("node2")
    node.run(["systemctl", "start", "flanneld"])
    assert until(lambda: has_route(lab), 60)
    assert b"FLANNEL_SUBNET=100.96.2.1/24" in node.get("/run/flannel/subnet.env")
    assert reaches(lab)
