"""Configuration of a cluster's programs."""

from __future__ import annotations

import re

from testbed.roles.kubernetes import config
from testbed.topology import load, load_data


def test_fields_of_the_file_count_instead_of_the_labs() -> None:
    """kube-proxy ignores its flags beside a file (cmd/kube-proxy/app/options.go)."""
    data = load("k8s-two-node").to_dict()
    before, also = config.kubelet(load("k8s-two-node")), config.proxy(load("k8s-two-node"), "node1")
    data["kubernetes"]["configuration"] = {
        "kubelet": {"maxPods": 20, "evictionHard": {"memory.available": "5%"}, "resolvConf": None},
        "kube-proxy": {"nodePortAddresses": ["10.0.0.0/8"], "conntrack": {"min": 1}},
    }
    given = load_data(data, "given")
    after, proxy = config.kubelet(given), config.proxy(given, "node1")
    assert after["maxPods"] == 20
    assert after["evictionHard"] == before["evictionHard"] | {"memory.available": "5%"}
    assert "resolvConf" in before.keys() - after.keys()
    assert proxy["conntrack"] == also["conntrack"] | {"min": 1}
    assert proxy["nodePortAddresses"] == ["10.0.0.0/8"]
    assert given.node_digest("node1") == load("k8s-two-node").node_digest("node1")


def test_only_what_goes_to_pods_and_nodes_keeps_its_source() -> None:
    """The machine outside is on the nodes' own network, and has no way to a Pod's address."""
    rules = config.masquerade(load("k8s-two-node"))
    (kept,) = re.findall(r"ip daddr != \{ (.*) \} masquerade", rules)
    assert kept.split(", ") == ["100.96.0.0/16", "10.168.0.2", "10.168.0.3"]
