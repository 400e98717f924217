"""Nodes with several networks: which one their software uses, and who reaches whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.labs.base_steps import hosts
from testbed.roles.etcd import endpoint
from testbed.roles.flannel.daemon import reservations
from testbed.roles.kubernetes import config
from testbed.topology import Overrides, Topology, load, load_data, load_text, vary

if TYPE_CHECKING:
    from ipaddress import IPv4Address

#: As Vagrant makes them: each machine behind a NAT of its own, all of them on one LAN.
NATS = """
name: nats
networks:
  nat1: {subnet: 10.0.2.0/24}
  nat2: {subnet: %s}
  lan: {subnet: 172.28.128.0/24}
nodes:
  n1: {networks: {nat1: 10.0.2.15, lan: 172.28.128.2}, roles: [etcd, flannel]}
  n2: {networks: {nat2: %s, lan: 172.28.128.3}, roles: [flannel]}
  g1: {networks: {nat1: 10.0.2.2}, gateway: true}
  g2: {networks: {nat2: %s}, gateway: true}
flannel: {%s}
"""
APART = ("10.0.3.0/24", "10.0.3.15", "10.0.3.2", "")
SAME = ("10.0.2.0/24", "10.0.2.15", "10.0.2.2", "")
ROUTED = """
name: routed
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}, far: {subnet: 10.3.0.0/24}}
nodes:
  n1: {networks: {a: 10.1.0.2}, roles: [etcd, flannel]}
  n2: {networks: {b: 10.2.0.2}, roles: [flannel]}
  r: {networks: {a: 10.1.0.1, b: 10.2.0.1}, gateway: true}
  alone: {networks: {far: 10.3.0.2}}
flannel: {backend: vxlan}
"""


def of(text: str) -> Topology:
    return load_text(text, "t.yaml")


def links(topology: Topology) -> list[str]:
    return [topology.interface(node.name) for node in topology.with_role("flannel")]


@pytest.mark.parametrize("given", [APART, SAME])
def test_the_network_that_all_share_is_used(given: tuple[str, ...]) -> None:
    topology = of(NATS % given)
    assert links(topology) == ["eth1", "eth1"]
    assert str(topology.address("n2")) == "172.28.128.3"
    assert endpoint(topology) == "http://172.28.128.2:2379"
    assert "172.28.128.3" in "".join(reservations(topology).values())
    # The others have none in common with anybody's software: their first one.
    assert (topology.network("g1"), topology.interface("g1")) == ("nat1", "eth0")


def test_with_one_network_all_is_as_it_was() -> None:
    topology = load("two-node")
    assert {topology.interface(name) for name in topology.nodes} == {"eth0"}
    assert "interface" not in topology.to_dict()["flannel"]


def test_the_first_that_is_shared_in_the_order_of_the_first_node() -> None:
    text = ROUTED.replace("b: 10.2.0.2}", "b: 10.2.0.2, a: 10.1.0.3}").replace(
        "a: 10.1.0.2}", "a: 10.1.0.2, b: 10.2.0.3}"
    )
    assert links(of(text)) == ["eth0", "eth1"]


@pytest.mark.parametrize(
    ("interface", "wanted"),
    [
        ("interface: lan", ["eth1", "eth1"]),
        ("interface: eth1", ["eth1", "eth1"]),
        ("interface: {n1: lan}", ["eth1", "eth1"]),
        ("interface: {n1: lan, n2: eth1}", ["eth1", "eth1"]),
    ],
)
def test_the_file_may_say_which(interface: str, wanted: list[str]) -> None:
    topology = of(NATS % (*APART[:3], interface))
    assert links(topology) == wanted
    assert load_data(topology.to_dict(), "record") == topology
    assert topology.to_dict()["flannel"]["interface"]


def test_one_that_the_file_names_counts_for_its_node_alone() -> None:
    text = ROUTED.replace("a: 10.1.0.2}", "a: 10.1.0.2, far: 10.3.0.3}")
    text = text.replace("b: 10.2.0.1}", "b: 10.2.0.1, far: 10.3.0.1}")
    topology = of(text.replace("backend: vxlan", "interface: {n1: far}"))
    assert links(topology) == ["eth1", "eth0"]
    assert endpoint(topology) == "http://10.3.0.3:2379"


def test_a_change_of_the_network_makes_the_node_anew() -> None:
    topology, other = of(NATS % APART), of((NATS % APART).replace("lan: 172", "lan: 172"))
    assert topology.node_digest("n2") == other.node_digest("n2")
    text = ROUTED.replace("a: 10.1.0.2}", "a: 10.1.0.2, b: 10.2.0.3}")
    one = of(text.replace("backend: vxlan", "interface: {n1: a}"))
    two = of(text.replace("backend: vxlan", "interface: {n1: b}"))
    assert one.node_digest("n1") != two.node_digest("n1")
    assert one.node_digest("n2") != two.node_digest("n2")  # etcd has moved
    assert one.node_digest("r") == two.node_digest("r")


def test_each_name_leads_to_the_address_that_is_shared() -> None:
    said = hosts(of(NATS % SAME), "n1").splitlines()
    assert "172.28.128.2 n1" in said
    assert "172.28.128.3 n2" in said
    assert "10.0.2.2 g1" in said
    # On this node's own network that address is the other gateway's.
    assert not [line for line in said if line.endswith(" g2")]
    assert "10.0.3.2 g2" in hosts(of(NATS % APART), "n1")
    assert "10.0.2.15 n1" in hosts(of(NATS % SAME), "g1")


def test_who_reaches_whom() -> None:
    topology = of(ROUTED)
    assert topology.reaches("n1", "n2")
    assert topology.reaches("n2", "n1")
    assert topology.reaches("r", "n1")
    assert not topology.reaches("n1", "alone")
    assert not topology.reaches("alone", "n1")
    # Behind another NAT the same address is somebody else's.
    nats = of(NATS % SAME)
    assert not nats.reaches("g1", "g2")
    assert nats.reaches("n1", "n2")


def test_gateways_in_a_circle_lead_nowhere() -> None:
    text = """
name: circle
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}, c: {subnet: 10.3.0.0/24}}
nodes:
  x: {networks: {a: 10.1.0.1}, gateway: true}
  y: {networks: {a: 10.1.0.2}}
  z: {networks: {c: 10.3.0.2}}
"""
    assert not of(text).reaches("y", "z")


def test_a_variant_with_more_nodes_finds_its_network_anew() -> None:
    text = (NATS % (*APART[:3], "interface: {n1: lan}")).replace(
        "nat2: 10.0.3.15", "nat1: 10.0.2.16"
    )
    topology = vary(of(text), Overrides(nodes=3))
    assert links(topology) == ["eth0"] * 3  # now they share the first one, too
    kept = vary(of(text.replace("{n1: lan}", "lan")), Overrides(nodes=3))
    assert links(kept) == ["eth1"] * 3


CLUSTER = (
    (NATS % APART)
    .replace("[etcd, flannel]", "[kubernetes]")
    .replace("[flannel]", "[kubernetes]")
    .replace("flannel: {}", "kubernetes: {cni: bgp}")
)


def test_a_cluster_uses_the_network_that_its_nodes_share() -> None:
    from testbed.roles.kubernetes.plugins import bgp

    topology = of(CLUSTER)
    assert config.server(topology) == "https://172.28.128.2:6443"
    assert "--node-ip=172.28.128.3" in config.kubelet_words(topology, "n2")
    assert config.proxy(topology, "n2")["bindAddress"] == "172.28.128.3"
    settings = bgp.settings(topology, "n2")
    assert 'interface "eth1"' in settings
    assert "neighbor 172.28.128.2 as" in settings
    other = of(CLUSTER.replace("{cni: bgp}", "{cni: bgp, interface: {n1: nat1, n2: nat2}}")
               .replace("nat2: 10.0.3.15", "nat1: 10.0.2.16, nat2: 10.0.3.15")
               .replace("n2: nat2", "n2: nat1"))  # fmt: skip
    assert config.server(other) == "https://10.0.2.15:6443"


def test_the_names_for_alike_nodes_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Topology.address_for

    def address_for(self: Topology, node: str, peer: str) -> IPv4Address:
        asked.append((node, peer))
        return original(self, node, peer)

    monkeypatch.setattr(Topology, "address_for", address_for)
    nodes = "".join(f"  n{i}: {{networks: {{a: 10.0.0.{i + 1}}}}}\n" for i in range(20))
    other = "  b1: {networks: {b: 10.0.1.1}}\n"
    networks = "networks: {a: {subnet: 10.0.0.0/24}, b: {subnet: 10.0.1.0/24}}\n"
    topology = of(f"name: many\n{networks}nodes:\n{nodes}{other}")
    texts = {name: hosts(topology, name) for name in topology.nodes}
    assert len(asked) == 2 * 21  # by a node of each network, for all
    assert len(set(texts.values())) == 1  # separate networks, but no address is on both
    assert texts["n3"].splitlines()[2:] == [f"10.0.0.{i + 1} n{i}" for i in range(20)] + [
        "10.0.1.1 b1"
    ]
