"""Configuration of a cluster's programs."""

from __future__ import annotations

import re

from testbed.roles.kubernetes import config
from testbed.topology.load import load


def test_only_what_goes_to_pods_and_nodes_keeps_its_source() -> None:
    """The machine outside is on the nodes' own network, and has no way to a Pod's address."""
    rules = config.masquerade(load("k8s-two-node"))
    (kept,) = re.findall(r"ip daddr != \{ (.*) \} masquerade", rules)
    assert kept.split(", ") == ["100.96.0.0/16", "10.168.0.2", "10.168.0.3"]
