"""Document 003, flannel's udp back end: flanneld wraps packets itself.  Lab: two-node-udp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.suites.overlay import (
    Walk,
    addresses,
    need,
    walk,
)

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.lab.live import LiveLab

PORT = 8285
OVERHEAD = 28  # octets: an IP and a UDP header
TUN = "/dev/net/tun"

udp = pytest.mark.needs("flannel-udp")
udp_docker = pytest.mark.needs("flannel-udp", "docker")


@pytest.fixture(scope="module")
def way(lab: LiveLab) -> Walk:
    """The way of one echo request from container to container, over every interface."""
    need(lab, "flannel-udp", "docker")
    return walk(lab)


# -- the environment and node1's routes ----------------------------------


@pytest.mark.claim("flannel-udp-node1-addresses")
@udp_docker
def test_node1_and_container_1_have_the_printed_addresses(
    lab: LiveLab, observe: Observation
) -> None:
    _holds_addresses(lab, observe, "node1", "100.96.1.1/24")
    address = lab.container("container-1").address
    observe.holds(address == "100.96.1.2", f"container-1 is {address}")


@pytest.mark.claim("flannel-udp-node2-addresses")
@udp_docker
def test_node2_and_its_second_container_have_the_printed_addresses(
    lab: LiveLab, observe: Observation, extra: ExtraContainers
) -> None:
    _holds_addresses(lab, observe, "node2", "100.96.2.1/24")
    # The document's container-2 has the second free address: the lab's has the first.
    second = extra("node2")
    observe.note(
        "containers of node2", {c: s.address for c, s in _containers(lab, "node2").items()}
    )
    observe.holds(second.address == "100.96.2.3", f"a second container is {second.address}")


def _holds_addresses(lab: LiveLab, observe: Observation, node: str, wanted: str) -> None:
    docker0 = observe.json(lab.node(node), ["ip", "-j", "addr", "show", "docker0"])[0]
    observe.holds(addresses(docker0) == [wanted], f"docker0 of {node} is {addresses(docker0)}")
