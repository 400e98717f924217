"""Lost wiring of a lab: `status` shows it, `up` puts it back, on real nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.faults.force import Faults
from testbed.faults.model import parse
from testbed.labs.status import status
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab, Outcome

TEXT = """
name: restore
networks: {lan: {subnet: 10.168.0.0/24}, far: {subnet: 10.169.0.0/24}}
nodes:
  a: {networks: {lan: 10.168.0.2, far: 10.169.0.2}, roles: [namespaces]}
  b: {networks: {lan: 10.168.0.3}}
  gate: {networks: {lan: 10.168.0.1, far: 10.169.0.1}, gateway: true}
namespaces: {ns1: {node: a}}
bridges: {br0: {node: a}}
veths:
  - {node: a, ends: [{name: v0, namespace: ns1, address: 192.0.2.1/24}, {name: v1, bridge: br0}]}
"""
#: Where a command is run ("" is the fabric), the command, the steps that put it right.
LOSSES = {
    "link": ("b", "ip link delete eth0", {"node b"}),
    "second link": ("a", "ip link delete eth1", {"node a"}),
    "address": ("b", "ip address flush dev eth0", {"node b"}),
    "prefix": (
        "b",
        "ip address del 10.168.0.3/24 dev eth0; ip address add 10.168.0.3/16 dev eth0",
        {"node b"},
    ),
    "default route": ("b", "ip route del default", {"node b"}),
    "other route": ("b", "ip route replace default via 10.168.0.2", {"node b"}),
    "down": ("b", "ip link set eth0 down", {"node b"}),
    "forwarding": ("gate", "sysctl -q -w net.ipv4.ip_forward=0", {"node gate"}),
    "bridge": ("", "ip link delete br-lan", {"fabric", "node a", "node b", "node gate"}),
    "bridge down": ("", "ip link set br-lan down", {"fabric"}),
    "port": ("", "ip link delete dev b", {"node b"}),
    "second port": ("", "ip link delete a.1", {"node a"}),
    "port detached": ("", "ip link set dev b nomaster", {"node b"}),
    "port on another network": ("", "ip link set dev b master br-far", {"node b"}),
    "port down": ("", "ip link set dev b down", {"node b"}),
    "namespace": ("a", "ip netns del ns1", {"namespaces a"}),
    "veth": ("a", "ip link delete v1", {"namespaces a"}),
}


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load_text(TEXT, "restore.yaml")


@pytest.fixture(scope="module")
def lab(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


@pytest.fixture
def run(lab: Lab) -> Callable[[str, str], None]:
    def run(where: str, command: str) -> None:
        context = lab.context()
        node = context.node(where) if where else context.provider.fabric(lab.name)
        assert node is not None
        node.run(["sh", "-ec", command])

    return run


def reaches(lab: Lab) -> bool:
    """Does a packet go from one node to the other's far address, by the gateway?"""
    ping = ["ping", "-c", "1", "-W", "5", "-q", "10.169.0.2"]
    return lab.context().node("b").run(ping, check=False).ok


def changed(outcome: Outcome) -> set[str]:
    return {done.step.name for done in outcome.changed}


@pytest.mark.parametrize("what", LOSSES)
def test_a_loss_is_reported_and_restored(
    lab: Lab, topology: Topology, run: Callable[[str, str], None], what: str
) -> None:
    where, command, steps = LOSSES[what]
    assert status(lab.context()).ok
    run(where, command)
    assert not status(lab.context()).ok
    outcome = lab.up(topology)
    assert changed(outcome) == steps
    assert all("restored: " in done.words for done in outcome.changed)
    assert status(lab.context()).ok
    assert reaches(lab)
    assert lab.up(topology).changed == []


def test_a_fault_stays_in_force(lab: Lab, topology: Topology) -> None:
    faults = Faults(lab)
    faults.apply(parse(["partition", "b"]))
    try:
        assert lab.up(topology).changed == []
        assert not reaches(lab)
        assert [str(seen.fault) for seen in faults.in_force()] == ["partition b"]
    finally:
        faults.heal()
    assert reaches(lab)


def test_what_others_have_added_stays(
    lab: Lab, topology: Topology, run: Callable[[str, str], None]
) -> None:
    run("b", "ip address add 10.168.0.99/24 dev eth0; ip link add extra type bridge")
    assert status(lab.context()).ok
    run("b", "ip route del default")
    lab.up(topology)
    run("b", "ip -4 address show dev eth0 | grep -q 10.168.0.99; ip link delete extra")
