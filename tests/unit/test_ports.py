"""Ports of nodes: how a file gives them, and what the parts of a lab ask them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

from testbed.errors import Problem, TopologyError
from testbed.topology import load_text
from testbed.topology.ports import Port

PLAIN = """
name: t
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/16}}
nodes:
  n: {networks: {b: 10.2.0.2, a: 10.1.0.2}}
  r: {networks: {a: 10.1.0.1}, gateway: true}
  alone: {}
"""


def problems(text: str) -> list[Problem]:
    try:
        load_text(text, "t.yaml")
    except TopologyError as error:
        return list(error.problems)
    return []


def test_a_node_has_a_port_on_each_network_in_the_files_order() -> None:
    topology = load_text(PLAIN, "t.yaml")
    node = topology.nodes["n"]
    assert [(port.network, port.name) for port in node.ports] == [("b", "eth0"), ("a", "eth1")]
    assert node.networks == ("b", "a")
    assert node.addresses == (IPv4Address("10.2.0.2"), IPv4Address("10.1.0.2"))
    assert node.address_on("a") == IPv4Address("10.1.0.2")
    assert node.address_on("c") is None
    assert topology.interfaces(node.ports[0]) == (IPv4Interface("10.2.0.2/16"),)
    assert topology.nodes["alone"].ports == ()
    assert Port("c", "eth0").address is None


def test_the_form_of_a_file_and_the_digests_stay() -> None:
    topology = load_text(PLAIN, "t.yaml")
    assert topology.to_dict()["nodes"] == {
        "n": {"networks": {"b": "10.2.0.2", "a": "10.1.0.2"}},
        "r": {"networks": {"a": "10.1.0.1"}, "gateway": True},
        "alone": {},
    }
    # Without ports of another form the digests are those of the labs that run already.
    assert {name: topology.node_digest(name) for name in topology.nodes} == {
        "n": "9f0bd76e84e6",
        "r": "53e01adb4b55",
        "alone": "1120b6fd09be",
    }


# -- MTU ------------------------------------------------------------------------------------------

LARGE = PLAIN.replace("a: {subnet: 10.1.0.0/24}", "a: {subnet: 10.1.0.0/24, mtu: 9000}")


def test_the_mtu_of_a_network_is_that_of_its_ports() -> None:
    topology, plain = load_text(LARGE, "t.yaml"), load_text(PLAIN, "t.yaml")
    assert [topology.mtu(port) for port in topology.nodes["n"].ports] == [None, 9000]
    assert topology.to_dict()["networks"]["a"] == {"subnet": "10.1.0.0/24", "mtu": 9000}
    changed = {n for n in plain.nodes if topology.node_digest(n) != plain.node_digest(n)}
    assert changed == {"n", "r"}, "programs read it when they start"


def test_a_provider_limits_the_mtu() -> None:
    text = LARGE.replace("r: {", "r: {provider: qemu, ")
    (problem,) = problems(text)
    assert (problem.line, "1500" in problem.wanted, problem.seen) == (3, True, "9000")
    assert problems(text.replace("9000", "1400")) == []
