"""Variants: other backends and providers, more and fewer nodes."""

from __future__ import annotations

import pytest
from plugins import declare_elsewhere
from topology_texts import DOCKER, FLANNEL, NODES

from testbed.errors import TopologyError, UsageError
from testbed.roles.docker.section import DockerSection
from testbed.roles.etcd import member
from testbed.roles.flannel.section import FlannelSection
from testbed.topology import Overrides, load, load_data, load_text, vary


def test_nothing_to_change() -> None:
    topology = load("two-node")
    assert vary(topology, Overrides()) is topology
    assert load("two-node", Overrides()) == topology


@pytest.mark.parametrize("backend", ["udp", "host-gw"])
def test_backend_is_that_of_the_shipped_file(backend: str) -> None:
    variant = load("two-node", Overrides(backend=backend))
    assert FlannelSection.find(variant) == FlannelSection.find(load(f"two-node-{backend}"))
    assert variant.nodes == load("two-node").nodes


def test_an_own_port_stays_with_its_backend() -> None:
    topology = load_text(NODES + "flannel: {port: 4789, vni: 7}\n", "t.yaml")
    same = FlannelSection.find(vary(topology, Overrides(backend="vxlan")))
    other = FlannelSection.find(vary(topology, Overrides(backend="udp")))
    assert same
    assert other
    assert (same.port, same.vni) == (4789, 7)
    assert (other.port, other.vni) == (8285, 1)


def test_engine_and_packet_filter() -> None:
    variant = load("two-node", Overrides(docker="29", firewall="nftables", nodes=3))
    assert (DockerSection.of(variant).engine, DockerSection.of(variant).firewall) == (
        "29",
        "nftables",
    )
    assert str(DockerSection.of(variant).bip["node3"]) == "100.96.3.1/24"
    assert load_data(variant.to_dict(), "record") == variant
    assert DockerSection.of(vary(variant, Overrides(nodes=2))).engine == "29"
    assert DockerSection.find(load("two-node", Overrides(docker="20"))) == DockerSection.find(
        load("two-node")
    )


def test_provider_and_name() -> None:
    variant = load("two-node", Overrides(provider="vagrant", name="my-lab"))
    assert (variant.provider, variant.name) == ("vagrant", "my-lab")
    assert variant.source == load("two-node").source


def test_a_provider_is_that_of_the_nodes_that_do_not_say_their_own() -> None:
    mixed = load("two-node-mixed")
    assert mixed.providers == ("netns", "qemu")
    variant = load("two-node-mixed", Overrides(provider="vagrant"))
    made = {name: variant.provider_of(name) for name in variant.nodes}
    assert made == {"node1": "vagrant", "node2": "qemu", "outside": "netns"}


def test_more_nodes_are_made_as_those_that_they_are_like() -> None:
    variant = load("two-node-mixed", Overrides(nodes=3))
    made = {name: variant.provider_of(name) for name in variant.nodes}
    assert made == {"node1": "netns", "node2": "qemu", "node3": "qemu", "outside": "netns"}


def test_a_provider_that_would_make_none() -> None:
    each = load_text("name: t\nnodes: {a: {provider: qemu}, b: {provider: netns}}\n", "t.yaml")
    with pytest.raises(UsageError, match=r"each node of t .* netns"):
        vary(each, Overrides(provider="netns"))


def test_a_provider_that_cannot_share_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_elsewhere(monkeypatch)
    with pytest.raises(TopologyError, match=r"can share a lab with elsewhere.*nodes\.node2"):
        load("two-node-mixed", Overrides(provider="elsewhere"))


def test_a_plain_node_has_the_provider_that_the_others_can_be_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare_elsewhere(monkeypatch)
    variant = load("two-node", Overrides(provider="elsewhere"))
    assert variant.providers == ("elsewhere",)
    assert load("two-node", Overrides(provider="qemu")).provider_of("outside") == "netns"


@pytest.mark.parametrize("name", ["docker", "elsewhere"])
def test_a_provider_that_nothing_declares(name: str) -> None:
    with pytest.raises(UsageError):
        load("two-node", Overrides(provider=name))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 250])
def test_nodes(count: int) -> None:
    variant = load("two-node", Overrides(nodes=count))
    members = [f"node{i}" for i in range(1, count + 1)]
    assert list(variant.nodes) == [*members, "outside"]
    assert variant.nodes["outside"] == load("two-node").nodes["outside"]
    assert variant.nodes["node1"].roles == ("etcd", "docker", "flannel")
    assert {variant.nodes[n].roles for n in members[1:]} <= {("docker", "flannel")}
    assert [str(variant.address(n)) for n in members] == [
        f"10.168.0.{i + 1}" for i in range(1, count + 1)
    ]
    assert FlannelSection.find(variant)
    assert {n: str(FlannelSection.of(variant).subnets[n]) for n in members} == {
        f"node{i}": f"100.96.{i}.0/24" for i in range(1, count + 1)
    }
    assert str(DockerSection.of(variant).bip[members[-1]]) == f"100.96.{count}.1/24"
    assert {c.name: c.node for c in variant.containers.values()} == {
        f"container-{i}": f"node{i}" for i in range(1, count + 1)
    }
    assert load_data(variant.to_dict(), "record") == variant


def test_two_nodes_are_the_two_nodes() -> None:
    variant, topology = load("two-node", Overrides(nodes=2)), load("two-node")
    assert variant.nodes == topology.nodes
    assert FlannelSection.find(variant) == FlannelSection.find(topology)
    assert DockerSection.find(variant) == DockerSection.find(topology)
    assert variant.node_digest("node2") == topology.node_digest("node2")


def test_addresses_that_are_taken_are_left_out() -> None:
    text = FLANNEL.replace(
        "  out: {networks: {lan: 10.168.0.1}", "  out: {networks: {lan: 10.168.0.4}"
    )
    variant = vary(load_text(text, "t.yaml"), Overrides(nodes=4))
    assert [str(variant.address(f"node{i}")) for i in range(1, 5)] == [
        "10.168.0.2",
        "10.168.0.3",
        "10.168.0.5",
        "10.168.0.6",
    ]


def test_what_is_on_other_nodes_stays() -> None:
    text = FLANNEL.replace(
        "  out:",
        "  store: {networks: {lan: 10.168.0.9}, roles: [etcd]}\n"
        "  node2: {networks: {lan: 10.168.0.8}, roles: [docker, namespaces], cpus: 1}\n  out:",
    ).replace("[etcd, docker, flannel]}", "[docker, flannel], memory: 512M}")
    text += (
        "docker: {bip: {node2: 10.1.27.1/24}}\n"
        "containers:\n  own: {node: node2}\n  c1: {node: n1, image: alpine, env: {A: b}}\n"
        "namespaces: {ns: {node: node2}}\nbridges: {br0: {node: node2}}\n"
        "veths:\n  - {node: node2, ends: [{name: a, namespace: ns}, {name: b, bridge: br0}]}\n"
    )
    variant = vary(load_text(text, "t.yaml"), Overrides(nodes=3))
    assert list(variant.nodes) == ["node1", "node3", "node4", "store", "node2", "out"]
    assert variant.nodes["node1"].roles == ("docker", "flannel")
    assert variant.nodes["node1"].memory == 512 << 20
    assert member(variant) is variant.nodes["store"]
    assert str(DockerSection.of(variant).bip["node2"]) == "10.1.27.1/24"
    assert variant.containers["container-2"].node == "node3"
    assert variant.containers["container-2"].image == "alpine"
    assert variant.containers["container-2"].env == {"A": "b"}
    assert variant.containers["own"].node == "node2"
    assert len(variant.veths) == 1
    assert load_data(variant.to_dict(), "record") == variant


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("two-node", Overrides(backend="vxlna"), "no backend 'vxlna'|did you mean 'vxlan'"),
        (
            "two-node",
            Overrides(provider="docker"),
            "no provider 'docker'|known: containerlab, ",
        ),
        ("two-node", Overrides(nodes=0), "from 1 to 250"),
        ("two-node", Overrides(nodes=251), "from 1 to 250"),
        ("two-node", Overrides(nodes=True), "from 1 to 250"),
        ("two-node", Overrides(docker="27"), "no engine '27'|known: 20.10, 24, 26, 28, 29"),
        ("two-node", Overrides(firewall="nft"), "no packet filter 'nft'|nftables"),
        ("two-node", Overrides(firewall="nftables"), "docker.firewall|engine: 29"),
        ("netns-experiments", Overrides(docker="29"), "no node with Docker|engine 29"),
        ("netns-experiments", Overrides(firewall="iptables-nft"), "firewall iptables-nft"),
        ("docker-single", Overrides(nodes=3), "no flannel nodes|two-node"),
        ("docker-single", Overrides(backend="udp"), "no flannel network|two-node"),
        ("two-node", Overrides(name="My Lab"), "at name|RFC 1123"),
    ],
)
def test_overrides_that_make_no_sense(name: str, overrides: Overrides, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name, overrides)
    for word in words.split("|"):
        assert word in str(caught.value)
    assert isinstance(caught.value, TopologyError) or caught.value.hint


def test_no_room_for_the_nodes() -> None:
    text = FLANNEL.replace("10.168.0.0/24", "10.168.0.0/29")
    assert len(vary(load_text(text, "t.yaml"), Overrides(nodes=5)).nodes) == 6
    with pytest.raises(UsageError, match=r"\b5 nodes"):
        vary(load_text(text, "t.yaml"), Overrides(nodes=6))


def test_no_room_for_the_subnets() -> None:
    topology = load_text(NODES + "flannel: {network: 100.96.0.0/24}\n", "t.yaml")
    with pytest.raises(TopologyError, match="4 flannel nodes"):
        vary(topology, Overrides(nodes=4))


def test_flannel_on_a_gateway_alone_is_no_pattern() -> None:
    text = DOCKER.replace("[docker]", "[etcd, docker, flannel], gateway: true") + "flannel: {}\n"
    with pytest.raises(UsageError, match="no flannel nodes"):
        vary(load_text(text, "t.yaml"), Overrides(nodes=2))
