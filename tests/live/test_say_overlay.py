"""flannel's keys of a topology file, on a lab with two networks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.claims.observation import Observation
from testbed.faults.force import Faults
from testbed.faults.model import parse
from testbed.labs.live import LiveLab
from testbed.pytest_checks import features
from testbed.suites.overlay import keys, leased
from testbed.topology import load_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.lab import Lab

#: n2 is beside n1, n3 behind a router.
LAB = """\
name: say-overlay
networks: {lan: {subnet: 10.1.0.0/24}, far: {subnet: 10.2.0.0/24}}
nodes:
  n1: {networks: {lan: 10.1.0.2}, roles: [etcd, docker, flannel]}
  n2: {networks: {lan: 10.1.0.3}, roles: [flannel]}
  n3: {networks: {far: 10.2.0.2}, roles: [docker, flannel]}
  gw: {networks: {lan: 10.1.0.1, far: 10.2.0.1}, gateway: true}
flannel:
  mtu: 1400
  port: 4789
  vni: 7
  direct-routing: true
  subnet-len: 26
  subnet-lease-renew-margin: 1439
  networks: {blue: {network: 10.20.0.0/16}}
containers: {one: {node: n1}, three: {node: n3}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(load_text(LAB, "say-overlay"), tmp_path_factory.mktemp("state"))


@pytest.fixture
def live(lab: Lab) -> Iterator[LiveLab]:
    found = LiveLab(lab.context())
    yield found
    found.close()


def test_device_and_containers_have_what_the_file_says(live: LiveLab) -> None:
    node = live.node("n1")
    (device,) = node.run(["ip", "-d", "-j", "link", "show", "flannel.7"]).json()
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["port"], device["mtu"]) == (7, 4789, 1350)
    lease = leased(Observation(), node)
    assert (lease["FLANNEL_SUBNET"], lease["FLANNEL_MTU"]) == ("100.96.0.65/26", "1350")
    (link,) = live.container("one").run(["ip", "-j", "link", "show", "eth0"]).json()
    assert link["mtu"] == 1350


def test_nodes_on_one_network_need_no_tunnel(live: LiveLab) -> None:
    routes = {
        route["dst"]: (route.get("gateway"), route["dev"])
        for route in live.node("n1").run(["ip", "-j", "route"]).json()
    }
    assert routes["100.96.0.128/26"] == ("10.1.0.3", "eth0")
    assert routes["100.96.0.192/26"] == ("100.96.0.192", "flannel.7")


def test_a_further_network_is_another_overlay(live: LiveLab) -> None:
    """Each node has a flanneld for it, whose device reaches those of the other nodes."""
    node = live.node("n1")
    assert "FLANNEL_SUBNET=10.20.1.1/24" in node.get("/run/flannel/blue.env").decode()
    (device,) = node.run(["ip", "-d", "-j", "link", "show", "flannel.1"]).json()
    assert device["mtu"] == 1450
    assert node.run(["ping", "-c1", "-W5", "-I", "flannel.1", "10.20.3.0"]).ok


def test_a_lease_is_renewed_as_early_as_the_file_says(live: LiveLab) -> None:
    """Its 24 hours less the margin: flanneld logs how long it waits."""
    assert re.search(r"Waiting for \d{1,2}\.\d+s to renew", live.node("n1").logs("flanneld"))
    assert all(key.lease for key in keys(live).values())


def test_claims_about_the_usual_overlay_are_left_out(live: LiveLab) -> None:
    assert "flannel-vxlan" in features(live.topology)
    assert "flannel-defaults" not in features(live.topology)


def test_a_broken_route_is_put_back_as_it_was(lab: Lab, live: LiveLab) -> None:
    node, argv = live.node("n1"), ["ip", "route"]
    before = node.run(argv).stdout
    Faults(lab).apply(parse(["break", "n1", "route"]))
    assert "100.96.0.128/26" not in node.run(argv).stdout
    Faults(lab).heal(kinds=["break"])
    assert sorted(node.run(argv).stdout.splitlines()) == sorted(before.splitlines())
