"""flannel's keys of a topology file, on a lab with two networks."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.claims.observation import Observation
from testbed.faults.force import Faults
from testbed.faults.model import parse
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.observe.graph import graph
from testbed.pytest_checks import features
from testbed.suites.overlay import keys, leased
from testbed.topology import load_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from testbed.labs.lab import Lab

#: n2 is beside n1, n3 behind a router.
LAB = """\
name: say-overlay
networks:
  lan: {subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}
  far: {subnet: 10.2.0.0/24, subnet6: "fd00:2::/64"}
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
  ipv6: {subnet-len: 72}
  networks: {blue: {network: 10.20.0.0/16, ipv6: {network: "fd00:20::/48"}}}
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
        for family in "46"
        for route in live.node("n1").run(["ip", f"-{family}", "-j", "route"]).json()
    }
    assert routes["100.96.0.128/26"] == ("10.1.0.3", "eth0")
    assert routes["100.96.0.192/26"] == ("100.96.0.192", "flannel.7")
    assert routes["fd00:100:96:0:200::/72"] == ("fd00:1::3", "eth0")
    assert routes["fd00:100:96:0:300::/72"] == ("fd00:100:96:0:300::", "flannel-v6.7")


def test_containers_have_addresses_of_both_families(lab: Lab, live: LiveLab) -> None:
    """They reach each other over IPv6, through the tunnel, and nobody translates."""
    lease = leased(Observation(), live.node("n1"))
    assert lease["FLANNEL_IPV6_SUBNET"] == "fd00:100:96:0:100::1/72"
    engines = {name: live.engine(node) for name, node in (("one", "n1"), ("three", "n3"))}
    mine, theirs = (engine.inspect(name).address6 for name, engine in engines.items())
    assert IPv6Address(mine) in IPv6Network("fd00:100:96:0:100::/72")
    assert IPv6Address(theirs) in IPv6Network("fd00:100:96:0:300::/72")
    page = live.container("one").run(["curl", "-sS", "-m", "5", f"http://[{theirs}]/"]).json()
    assert (page["name"], page["client"].rpartition(":")[0]) == ("three", mine)
    (first, *_) = [one for one in status(lab.context(), []).nodes if one.name == "n1"]
    assert [mine in part.detail for part in first.containers] == [True]
    drawn = graph(live)
    assert drawn["overlay"]["network6"] == "fd00:100:96::/48"
    (node,) = [one for one in drawn["nodes"] if one["name"] == "n1"]
    assert {"flannel.7", "flannel-v6.7"} <= {link["name"] for link in node["links"]}


def test_a_further_network_is_another_overlay(live: LiveLab) -> None:
    """Each node has a flanneld for it, whose device reaches those of the other nodes."""
    node = live.node("n1")
    assert "FLANNEL_SUBNET=10.20.1.1/24" in node.get("/run/flannel/blue.env").decode()
    (device,) = node.run(["ip", "-d", "-j", "link", "show", "flannel.1"]).json()
    assert device["mtu"] == 1450
    assert node.run(["ping", "-c1", "-W5", "-I", "flannel.1", "10.20.3.0"]).ok
    assert node.run(["ping", "-c1", "-W5", "-I", "flannel-v6.1", "fd00:20:0:3::"]).ok


def test_a_lease_is_renewed_as_early_as_the_file_says(live: LiveLab) -> None:
    """Its 24 hours less the margin: flanneld logs how long it waits."""
    assert re.search(r"Waiting for \d{1,2}\.\d+s to renew", live.node("n1").logs("flanneld"))
    assert all(key.lease for key in keys(live).values())


def test_claims_about_the_usual_overlay_are_left_out(live: LiveLab) -> None:
    assert "flannel-vxlan" in features(live.topology)
    assert "flannel-defaults" not in features(live.topology)


def test_a_broken_route_is_put_back_as_it_was(lab: Lab, live: LiveLab) -> None:
    node, argv = live.node("n1"), ["sh", "-c", "ip route; ip -6 route"]
    before = node.run(argv).stdout
    Faults(lab).apply(parse(["break", "n1", "route"]))
    found = node.run(argv).stdout
    assert "100.96.0.128/26" not in found
    assert "fd00:100:96:0:300::/72" not in found
    Faults(lab).heal(kinds=["break"])
    assert sorted(node.run(argv).stdout.splitlines()) == sorted(before.splitlines())


@pytest.mark.long
@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_ipv6_with_the_present_engine(tmp_path: Path, firewall: str) -> None:
    """`up` succeeds only if each container has the other's page over both families."""
    text = LAB.replace("containers:", f"docker: {{engine: 29, firewall: {firewall}}}\ncontainers:")
    text = text.replace("  mtu: 1400\n", "").replace("say-overlay", "say-overlay-29")
    for made in brought_up(load_text(text, "say-overlay-29"), tmp_path):
        found = LiveLab(made.context())
        assert found.engine("n1").inspect("one").address6.startswith("fd00:100:96:0:100:")
        # docker0 has flannel's MTU of 1450, the tunnel over IPv6 20 bytes less: the sender learns
        # of it, and the next packets pass (RFC 8201).
        theirs = found.engine("n3").inspect("three").address6
        ping = ["ping", "-c3", "-i", "0.2", "-W5", "-s", "1402", theirs]
        assert found.container("one").run(ping, check=False).ok
        found.close()
