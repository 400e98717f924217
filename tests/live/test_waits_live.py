"""Nodes with several networks, and waits whose way is blocked, on real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up, hour_passes_at

from testbed.errors import PathError, StepsFailed, TimeoutExpired
from testbed.labs.status import status
from testbed.roles import way
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

#: Each machine behind a NAT of its own, with the same address there, and both on one LAN.
TEXT = """
name: nats
networks:
  nat1: {subnet: 10.0.2.0/24}
  nat2: {subnet: 10.0.2.0/24}
  lan: {subnet: 172.28.128.0/24}
nodes:
  n1: {networks: {nat1: 10.0.2.15, lan: 172.28.128.2}, roles: [etcd, flannel]}
  n2: {networks: {nat2: 10.0.2.15, lan: 172.28.128.3}, roles: [flannel]}
  g1: {networks: {nat1: 10.0.2.2}, gateway: true}
  g2: {networks: {nat2: 10.0.2.2}, gateway: true}
flannel: {subnets: {n1: 100.96.1.0/24, n2: 100.96.2.0/24}}
"""
#: What blocks the way to etcd, what opens it again, and how it looks meanwhile.
BLOCKS = {
    way.NO_ROUTE: (
        "ip route add unreachable 172.28.128.2",
        "ip route del unreachable 172.28.128.2",
    ),
    way.REFUSED: (
        "iptables -I OUTPUT -p tcp --dport 2379 -j REJECT --reject-with tcp-reset",
        "iptables -D OUTPUT -p tcp --dport 2379 -j REJECT --reject-with tcp-reset",
    ),
    way.SILENT: (
        "iptables -I OUTPUT -p tcp --dport 2379 -j DROP",
        "iptables -D OUTPUT -p tcp --dport 2379 -j DROP",
    ),
}


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load_text(TEXT, "nats.yaml")


@pytest.fixture(scope="module")
def lab(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


def test_software_uses_the_network_that_its_nodes_share(lab: Lab) -> None:
    context = lab.context()
    assert status(context).ok
    node = context.node("n2")
    shown = node.run(["ip", "-j", "-d", "link", "show", "dev", "flannel.1"]).json()
    below = shown[0]["linkinfo"]["info_data"]
    assert (below["link"], below["local"]) == ("eth1", "172.28.128.3")
    # The VTEPs' own addresses: each node's subnet, its first address.
    node.run(["ping", "-c", "1", "-W", "10", "-q", "-I", "100.96.2.0", "100.96.1.0"])
    assert node.run(["getent", "hosts", "n1"]).stdout.split()[0] == "172.28.128.2"


@pytest.mark.parametrize("reason", BLOCKS)
def test_a_blocked_way_is_named_and_given_up(
    lab: Lab, topology: Topology, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(way, "PATIENCE", dict.fromkeys(way.PATIENCE, 1.0))
    block, again = BLOCKS[reason]
    node = lab.context().node("n2")
    node.stop("flanneld")
    node.run(block.split())
    try:
        with pytest.raises(StepsFailed) as caught:
            lab.up(topology, keep=True)
    finally:
        node.run(again.split())
    ((step, error),) = caught.value.failures
    assert step == "flannel n2"
    assert isinstance(error, PathError)
    assert (error.reason, error.address, error.port) == (reason, "172.28.128.2", 2379)
    assert {done.step.name for done in lab.up(topology).changed} <= {"flannel n2"}
    assert status(lab.context()).ok


def test_all_of_up_has_a_bound(
    lab: Lab, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes once flanneld is waited for, however long it takes to come that far."""
    watch = hour_passes_at(monkeypatch, "flanneld", idle_seconds=0.1)
    node = lab.context().node("n2")
    node.stop("flanneld")
    node.run(BLOCKS[way.SILENT][0].split())
    try:
        with pytest.raises(TimeoutExpired, match="flannel n2"):
            lab.up(topology, keep=True, timeout=1800, watch=watch)
    finally:
        node.run(BLOCKS[way.SILENT][1].split())
    lab.up(topology)
    assert status(lab.context()).ok
