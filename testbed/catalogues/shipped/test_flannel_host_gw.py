"""flannel's host-gw back end, which the documents do not mention.

Lab: two-node-host-gw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.suites.helpers import client_of, fetch, link, links, ping, routes
from testbed.suites.overlay import Walk, bare, ends, mtu_of, need, walk

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab

pytestmark = pytest.mark.testbed_needs("flannel-host-gw", "docker", "flannel-defaults")


@pytest.fixture(scope="module")
def way(lab: LiveLab) -> Walk:
    """Record the way of an echo request between containers, over every interface."""
    need(lab, "flannel-host-gw", "docker")
    return walk(lab)


@pytest.mark.testbed_changes
def test_each_host_is_the_gateway_to_its_own_subnet(lab: LiveLab, observe: Observation) -> None:
    for here, there in (ends(lab), ends(lab)[::-1]):
        (route,) = routes(observe, here.node, "exact", str(there.subnet))
        assert (route["gateway"], route["dev"]) == (there.address, here.interface)


@pytest.mark.testbed_changes
def test_there_is_no_device_of_flannels(lab: LiveLab, observe: Observation) -> None:
    for end in ends(lab):
        names = {one["ifname"] for one in links(observe, end.node)}
        assert not {name for name in names if name.startswith("flannel")}


@pytest.mark.testbed_changes
def test_containers_reach_each_other_under_their_own_addresses(
    lab: LiveLab, observe: Observation
) -> None:
    for here, there in (ends(lab), ends(lab)[::-1]):
        assert ping(observe, here.container, there.container.address)
        page = fetch(observe, here.container, f"http://{there.container.address}/")
        assert page is not None
        assert page["name"] == there.container.name
        assert client_of(page) == here.container.address


@pytest.mark.testbed_changes
def test_packets_travel_as_they_are(way: Walk) -> None:
    one, other = way.ends
    for point in (f"{one.name} {one.interface}", f"{other.name} {other.interface}"):
        packet = way.at(point)
        assert bare(packet) is packet
        assert (packet.src, packet.dst) == (one.container.address, other.container.address)


@pytest.mark.testbed_changes
def test_frames_on_the_wire_go_from_host_to_host(observe: Observation, way: Walk) -> None:
    macs = [link(observe, end.node, end.interface)["address"] for end in way.ends]
    packet = way.at(f"{way.ends[1].name} {way.ends[1].interface}")
    assert [packet.src_mac, packet.dst_mac] == macs


@pytest.mark.testbed_changes
def test_ttl_falls_by_one_at_each_host(way: Walk) -> None:
    one, other = way.ends
    points = (
        f"{one.container.name} eth0",
        f"{one.name} {one.interface}",
        f"{other.container.name} eth0",
    )
    sent, between, got = (way.at(point).ttl for point in points)
    assert (sent - between, between - got) == (1, 1)


@pytest.mark.testbed_changes
def test_mtu_is_that_of_the_wire(lab: LiveLab, observe: Observation) -> None:
    for end in ends(lab):
        mtu = {link(observe, end.node, name)["mtu"] for name in (end.interface, "docker0")}
        mtu.add(link(observe, end.container, "eth0")["mtu"])
        assert mtu == {mtu_of(lab, observe, end)}
