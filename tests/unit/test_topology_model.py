"""The topology as a value: which change makes a node or a container another, who reaches whom."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
from topology_texts import CLUSTER, DOCKER, FLANNEL

from testbed.doctor import needed_with
from testbed.roles.etcd import member
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.topology import Overrides, Topology, load, load_data, load_text
from testbed.topology.shapes import duration

#: A lab in which each node has something of each kind.
TEXT = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}, wan: {subnet: 10.2.0.0/24}}
nodes:
  a:
    networks: {lan: 10.1.0.2, wan: 10.2.0.2}
    roles: [etcd, docker, flannel, namespaces]
    cpus: 2
    memory: 1G
  b: {networks: {lan: 10.1.0.3}, roles: [docker, flannel]}
  k: {networks: {lan: 10.1.0.4}, roles: [kubernetes]}
  l: {networks: {lan: 10.1.0.5}, roles: [kubernetes]}
  gw: {networks: {lan: 10.1.0.1}, gateway: true}
  plain: {networks: {lan: 10.1.0.6}}
docker: {bip: {a: 100.96.1.1/24}, engine: 29, firewall: iptables}
flannel: {backend: vxlan, port: 8472, vni: 1, subnets: {a: 100.96.1.0/24}}
kubernetes: {pods: 10.244.0.0/16, services: 10.96.0.0/16, cni: flannel, backend: vxlan}
namespaces: {ns1: {node: a}}
bridges: {br0: {node: a}}
veths:
  - {node: a, ends: [{name: v, namespace: ns1, address: 10.9.0.1/24}, {name: w, bridge: br0}]}
containers:
  c1: {node: a, image: nginx}
"""
ALL = {"a", "b", "k", "l", "gw", "plain"}
OVERLAY, CLUSTERED = {"a", "b"}, {"k", "l"}

#: A change of the file, and the nodes that are created again because of it.
CHANGES: dict[str, tuple[list[tuple[str, str]], set[str]]] = {
    "the order of its networks": (
        [("lan: 10.1.0.2, wan: 10.2.0.2", "wan: 10.2.0.2, lan: 10.1.0.2")], {"a"}
    ),
    "an address": ([("10.1.0.6", "10.1.0.7")], {"plain"}),
    "a subnet": ([("10.2.0.0/24", "10.2.0.0/25")], {"a"}),
    "a role": ([("{networks: {lan: 10.1.0.6}}", "{networks: {lan: 10.1.0.6}, roles: [docker]}")],
               {"plain"}),
    "processors": ([("cpus: 2", "cpus: 1")], {"a"}),
    "memory": ([("1G", "2G")], {"a"}),
    "a provider": ([("{networks: {lan: 10.1.0.6}}", "{networks: {lan: 10.1.0.6}, provider: qemu}")],
                   {"plain"}),
    "the gateway's address": ([("10.1.0.1}", "10.1.0.9}")], ALL),
    "no gateway": ([(", gateway: true", "")], ALL),
    "an address of docker0": ([("a: 100.96.1.1/24", "a: 100.96.1.9/24")], {"a"}),
    "the engine": ([("engine: 29", "engine: '20.10'")], OVERLAY),
    "the packet filter": ([("firewall: iptables", "firewall: iptables-legacy")], OVERLAY),
    "the backend": ([("{backend: vxlan, port: 8472, vni: 1, ", "{backend: udp, ")], OVERLAY),
    "the overlay's port": ([("port: 8472", "port: 4789")], OVERLAY),
    "the VNI": ([("vni: 1,", "vni: 2,")], OVERLAY),
    "the overlay's network": (
        [("{backend: vxlan, port", "{network: 100.96.0.0/17, backend: vxlan, port")], OVERLAY
    ),
    "a node's subnet": (
        [("a: 100.96.1.0/24", "a: 100.96.7.0/24"), ("100.96.1.1/24", "100.96.7.1/24")], OVERLAY
    ),  # b is counted on: it has the first free one now
    "etcd's address": ([("lan: 10.1.0.2", "lan: 10.1.0.9")], OVERLAY),
    "etcd's node": ([("[etcd, docker, flannel, namespaces]", "[docker, flannel, namespaces]"),
                     ("{networks: {lan: 10.1.0.6}}", "{networks: {lan: 10.1.0.6}, roles: [etcd]}")],
                    {*OVERLAY, "plain"}),
    "the Pods": ([("10.244.0.0/16", "10.245.0.0/16")], CLUSTERED),
    "the Services": ([("10.96.0.0/16", "10.97.0.0/16")], CLUSTERED),
    "a range": ([("{pods", "{ranges: {k: 10.244.9.0/24}, pods")], CLUSTERED),
    "kube-proxy's mode": ([("{pods", "{proxy: iptables, pods")], CLUSTERED),
    "the network plugin": ([("cni: flannel, backend: vxlan", "cni: bgp")], CLUSTERED),
    "the cluster's backend": ([("cni: flannel, backend: vxlan", "cni: flannel, backend: host-gw")],
                              CLUSTERED),
    "add-ons": ([("{pods", "{add-ons: [], pods")], CLUSTERED),
    "the control plane": ([("{pods", "{control-plane: l, pods")], CLUSTERED),
    "the control plane's address": ([("10.1.0.4", "10.1.0.8")], CLUSTERED),
    "a namespace": ([("ns1: {node: a}", "ns1: {node: a}, ns2: {node: a}")], {"a"}),
    "a bridge": ([("br0: {node: a}", "br0: {node: a}, br1: {node: a}")], {"a"}),
    "a pair's address": ([("10.9.0.1/24", "10.9.0.2/24")], {"a"}),
    "a pair's name": ([("name: w", "name: z")], {"a"}),
    "a container": ([("image: nginx", "image: alpine")], set()),
    "the lab's name": ([("name: t", "name: u")], set()),
}  # fmt: skip


def digests(topology: Topology) -> dict[str, str]:
    return {name: topology.node_digest(name) for name in topology.nodes}


@pytest.mark.parametrize("what", CHANGES)
def test_the_nodes_that_a_change_makes_anew(what: str) -> None:
    changes, anew = CHANGES[what]
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    before, after = digests(load_text(TEXT, "t")), digests(load_text(text, "t"))
    assert {name for name in before if before[name] != after[name]} == anew


def test_a_digest_is_short_and_the_same_in_every_process() -> None:
    first, second = (digests(load_text(TEXT, "t")) for _ in range(2))
    assert first == second
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in first.values())
    assert len(set(first.values())) == len(first)


def test_a_peer_that_comes_makes_no_node_anew() -> None:
    more = TEXT.replace("  plain:", "  more: {networks: {lan: 10.1.0.7}}\n  plain:")
    before, after = digests(load_text(TEXT, "t")), digests(load_text(more, "t"))
    assert {name: after[name] for name in before} == before


def test_the_interface_makes_a_node_another() -> None:
    text = FLANNEL.replace(
        "networks: {lan: {subnet: 10.168.0.0/24}}",
        "networks: {lan: {subnet: 10.168.0.0/24}, wan: {subnet: 10.169.0.0/24}}",
    )
    text = text.replace("lan: 10.168.0.2}", "lan: 10.168.0.2, wan: 10.169.0.2}")
    text = text.replace("lan: 10.168.0.3}", "lan: 10.168.0.3, wan: 10.169.0.3}")
    first = load_text(text, "t")
    same = load_text(text.replace("flannel: {}", "flannel: {interface: lan}"), "t")
    by_link = load_text(text.replace("flannel: {}", "flannel: {interface: eth0}"), "t")
    other = load_text(text.replace("flannel: {}", "flannel: {interface: wan}"), "t")
    assert digests(first) == digests(same) == digests(by_link)
    assert {n for n in ["n1", "n2", "out"] if digests(first)[n] != digests(other)[n]} == {
        "n1",
        "n2",
    }
    assert (other.interface("n1"), first.interface("n1")) == ("eth1", "eth0")
    assert str(other.address("n2")) == "10.169.0.3"
    assert str(first.address("n2")) == "10.168.0.3"


# -- containers -----------------------------------------------------------------------

CONTAINER: dict[str, Any] = {
    "node": "n1",
    "image": "nginx",
    "network": "bridge",
    "publish": ["8080:80/tcp"],
    "command": ["sleep", "1"],
    "env": {"A": "b"},
    "healthcheck": {"test": ["CMD", "x"], "interval": "1s", "timeout": "2s", "retries": 3,
                    "start_period": "4s"},
    "ready": {"port": "80/tcp", "command": ["x"], "timeout": "5s"},
}  # fmt: skip
OTHER: list[tuple[tuple[str, ...], Any]] = [
    (("node",), "n2"), (("image",), "alpine"), (("network",), "none"),
    (("publish",), ["8080:81/tcp"]), (("publish",), ["8080:80/udp"]), (("publish",), None),
    (("command",), ["sleep", "2"]), (("command",), None), (("env",), {"A": "c"}), (("env",), None),
    (("healthcheck",), None), (("healthcheck", "test"), ["CMD-SHELL", "x"]),
    (("healthcheck", "interval"), "2s"), (("healthcheck", "timeout"), "1s"),
    (("healthcheck", "retries"), 4), (("healthcheck", "start_period"), "0s"),
    (("healthcheck", "start_period"), None), (("ready",), None), (("ready", "port"), "81/tcp"),
    (("ready", "port"), "80/udp"), (("ready", "port"), None), (("ready", "command"), ["y"]),
    (("ready", "command"), None), (("ready", "timeout"), "6s"),
]  # fmt: skip


def with_container(body: dict[str, Any]) -> Topology:
    data: dict[str, Any] = {
        "name": "t",
        "networks": {"lan": {"subnet": "10.168.0.0/24"}},
        "nodes": {
            "n1": {"networks": {"lan": "10.168.0.2"}, "roles": ["docker"]},
            "n2": {"networks": {"lan": "10.168.0.3"}, "roles": ["docker"]},
        },
        "containers": {"web": body},
    }
    return load_data(data, "record")


@pytest.mark.parametrize(("path", "value"), OTHER)
def test_a_setting_makes_another_container(path: tuple[str, ...], value: Any) -> None:
    body = copy.deepcopy(CONTAINER)
    at = body
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    if body["network"] != "bridge":
        del body["publish"]
    first, second = with_container(CONTAINER), with_container(body)
    assert first.container_digest("web") != second.container_digest("web")
    assert second.to_dict()["containers"]["web"] == body | (
        {"ready": {**body["ready"], "timeout": body["ready"].get("timeout", "60s")}}
        if "ready" in body
        else {}
    )


def test_an_expected_end_makes_another_container() -> None:
    bodies: list[dict[str, Any]] = [
        {"node": "n1"}, {"node": "n1", "expect": "running"}, {"node": "n1", "expect": "exit 0"},
        {"node": "n1", "expect": "exit 255"},
    ]  # fmt: skip
    made = [with_container(body) for body in bodies]
    assert [one.containers["web"].expect for one in made] == [None, None, 0, 255]
    assert len({one.container_digest("web") for one in made}) == 3
    assert [len(one.running_on("n1")) for one in made] == [1, 1, 0, 0]
    assert [len(one.containers_on("n1")) for one in made] == [1, 1, 1, 1]
    assert made[0].containers_on("n2") == ()


@pytest.mark.parametrize(
    ("written", "seconds", "plain"),
    [
        ("500ms", 0.5, "500ms"), ("1ms", 0.001, "1ms"), ("2.5s", 2.5, "2500ms"),
        ("1m30s", 90.0, "90s"), ("1h", 3600.0, "3600s"), ("24h", 86400.0, "86400s"),
        ("0.5m", 30.0, "30s"), ("1s1ms", 1.001, "1001ms"),
    ],
)  # fmt: skip
def test_durations(written: str, seconds: float, plain: str) -> None:
    made = with_container({"node": "n1", "healthcheck": {"timeout": written}})
    check = made.containers["web"].healthcheck
    assert check is not None
    assert check.timeout == seconds
    assert duration(seconds) == plain


# -- who reaches whom -----------------------------------------------------------------

ROUTED = """
name: t
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/24}, c: {subnet: 10.3.0.0/24}}
nodes:
  a1: {networks: {a: 10.1.0.2}}
  a2: {networks: {a: 10.1.0.3}}
  b1: {networks: {b: 10.2.0.2}}
  c1: {networks: {c: 10.3.0.2}}
  both: {networks: {b: 10.2.0.3, a: 10.1.0.4}}
  gw: {networks: {a: 10.1.0.1, b: 10.2.0.1}, gateway: true}
  lone: {}
"""


@pytest.mark.parametrize(
    ("node", "peer", "reaches"),
    [
        ("a1", "a2", True), ("a1", "b1", True), ("b1", "a1", True), ("a1", "gw", True),
        ("gw", "a1", True), ("gw", "b1", True), ("a1", "c1", False), ("c1", "a1", False),
        ("both", "a1", True), ("both", "b1", True), ("a1", "both", True), ("gw", "c1", False),
    ],
)  # fmt: skip
def test_a_packet_goes_by_networks_and_gateways(node: str, peer: str, reaches: bool) -> None:
    assert load_text(ROUTED, "t").reaches(node, peer) is reaches


def test_gateways_that_send_to_each_other_end() -> None:
    text = ROUTED.replace(
        "gw: {networks: {a: 10.1.0.1, b: 10.2.0.1}", "gw: {networks: {a: 10.1.0.1}"
    )
    topology = load_text(text, "t")
    assert not topology.reaches("a1", "b1")
    assert not topology.reaches("gw", "b1")


def test_the_same_address_elsewhere_is_not_the_peer() -> None:
    """Of two equal subnets behind gateways, the nearer one is meant."""
    text = ROUTED.replace("10.3.0", "10.1.0").replace(
        "c1: {networks: {c: 10.1.0.2}}", "c1: {networks: {c: 10.1.0.9}}"
    )
    assert not load_text(text, "t").reaches("a1", "c1")


def test_a_gateway_is_the_first_on_the_nodes_networks() -> None:
    topology = load_text(ROUTED, "t")
    assert str(topology.gateway_of("a1")) == "10.1.0.1"
    assert str(topology.gateway_of("both")) == "10.2.0.1"
    assert topology.gateway_node("both") == ("gw", "b")
    assert topology.gateway_of("c1") is None
    assert topology.gateway_of("gw") is None
    assert topology.gateway_of("lone") is None


def test_a_peer_is_looked_for_on_a_network_of_ones_own() -> None:
    topology = load_text(ROUTED, "t")
    assert str(topology.address_for("b1", "both")) == "10.2.0.3"
    assert str(topology.address_for("a1", "both")) == "10.1.0.4"
    assert str(topology.address_for("c1", "both")) == "10.2.0.3"
    assert str(topology.address_for("a1", "b1")) == "10.2.0.2"


def test_what_a_node_has_no_network_for() -> None:
    topology = load_text(ROUTED, "t")
    with pytest.raises(StopIteration):
        topology.address("lone")
    with pytest.raises(KeyError):
        topology.network("nobody")


# -- what there is --------------------------------------------------------------------


def test_software_and_makers() -> None:
    topology = load_text(TEXT, "t")
    assert topology.software == {
        "etcd", "docker", "flannel", "namespaces", "kubernetes", "dns",
    }  # fmt: skip
    assert member(topology) is topology.nodes["a"]
    assert [node.name for node in topology.with_role("docker")] == ["a", "b"]
    assert topology.maker == "netns"
    assert load("two-node-mixed").maker == "mixed"
    outside = TEXT.replace(
        "{networks: {lan: 10.1.0.6}}", "{networks: {lan: 10.1.0.6}, provider: qemu}"
    )
    assert load_text(outside, "t").maker == "netns"  # no software is on it
    bare = load_text("name: t\nnodes: {a: {provider: qemu}, b: {}}\n", "t")
    assert bare.maker == "mixed"
    assert bare.software == frozenset()
    assert member(bare) is None


def test_images_are_named_once_and_sorted() -> None:
    text = DOCKER + "containers: {b1: {node: n1, image: redis}, a1: {node: n1}, c1: {node: n1}}\n"
    assert load_text(text, "t").images == ("nginx", "redis")


@pytest.mark.parametrize(
    ("word", "needed"),
    [("dns", ("dns", "kubernetes")), ("cilium", ("cilium", "kubernetes")), ("etcd", ("etcd",)),
     ("flannel", ("flannel",)), ("kubernetes", ("kubernetes",))],
)  # fmt: skip
def test_what_a_claim_on_software_needs(word: str, needed: tuple[str, ...]) -> None:
    assert needed_with(word) == needed


def test_addresses_of_a_cluster() -> None:
    topology = load_text(CLUSTER, "t")
    cluster = KubernetesSection.of(topology)
    # kube-apiserver takes the first, kubeadm gives DNS the tenth.
    assert [str(one) for one in (cluster.api, cluster.dns, cluster.contour)] == [
        "10.97.0.1", "10.97.0.10", "10.97.0.11",
    ]  # fmt: skip
    assert cluster.control_plane == "n1"
    assert cluster.mtu(topology, "n1") == 1450


@pytest.mark.parametrize(
    ("settings", "mtu"),
    [("backend: udp", 1472), ("backend: host-gw", 1500), ("cni: bgp", 1500), ("cni: cilium", 1500)],
)
def test_the_mtu_of_pods(settings: str, mtu: int) -> None:
    topology = load_text(CLUSTER + f"kubernetes: {{{settings}}}\n", "t")
    assert KubernetesSection.of(topology).mtu(topology, "n1") == mtu


def test_the_plain_form_has_no_more_than_the_file() -> None:
    assert load_text("name: t\nnodes: {a: {}}\n", "t").to_dict() == {
        "name": "t", "provider": "netns", "nodes": {"a": {}},
    }  # fmt: skip


#: Digests of nodes by the release before roles brought their sections (version 0.1): running nodes
#: with these digests are kept by `up`, so a change here creates all of them again.
DIGESTS = {
    "two-node": ({}, {"node1": "54b778e00448", "node2": "4dee5aa9687c", "outside": "1e7e646bd6c0"}),
    "two-node-host-gw": ({}, {"node1": "11e0bee579cf", "node2": "ba959164843c"}),
    "docker-single": ({"docker": "29"}, {"host": "299570ca59b4", "outside": "1e7e646bd6c0"}),
    "netns-experiments": ({}, {"host": "ca337da12bba"}),
    "k8s-two-node": ({"cni": "bgp"}, {"node1": "1517f98f4d73", "node2": "aeb422c4dc6f"}),
}
#: A record's topology by that release.
RECORDED: dict[str, Any] = {
    "name": "two-node-udp",
    "description": "udp",
    "provider": "netns",
    "networks": {"lan": {"subnet": "10.168.0.0/24"}},
    "nodes": {
        "node1": {"networks": {"lan": "10.168.0.2"}, "roles": ["etcd", "docker", "flannel"]},
        "node2": {"networks": {"lan": "10.168.0.3"}, "roles": ["docker", "flannel"]},
        "outside": {"networks": {"lan": "10.168.0.1"}, "gateway": True, "provider": "netns"},
    },
    "docker": {
        "bip": {"node1": "100.96.1.1/24", "node2": "100.96.2.1/24"},
        "engine": "20.10",
        "firewall": "iptables",
    },
    "flannel": {
        "backend": "udp",
        "network": "100.96.0.0/16",
        "subnets": {"node1": "100.96.1.0/24", "node2": "100.96.2.0/24"},
        "port": 8285,
    },
    "containers": {
        "container-1": {"node": "node1", "image": "nginx", "network": "bridge"},
        "container-2": {"node": "node2", "image": "nginx", "network": "bridge"},
    },
}


@pytest.mark.parametrize("name", DIGESTS)
def test_nodes_of_earlier_labs_are_kept(name: str) -> None:
    options, digests = DIGESTS[name]
    topology = load(name, Overrides(**options))
    assert {node: topology.node_digest(node) for node in digests} == digests


def test_a_record_of_an_earlier_release_is_read() -> None:
    recorded = load_data(RECORDED, "record")
    assert recorded.to_dict() == RECORDED
    shipped = load("two-node-udp")
    assert {n: recorded.node_digest(n) for n in recorded.nodes} == {
        n: shipped.node_digest(n) for n in shipped.nodes
    }
    assert recorded.containers == shipped.containers


LAZY = """
import sys
from testbed.topology import load
load("two-node")
assert "testbed.roles.flannel.section" in sys.modules
heavy = {"testbed.roles.kubernetes", "testbed.roles.docker.daemon", "testbed.roles.flannel.daemon"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_roles_that_a_file_does_not_name_are_not_imported() -> None:
    subprocess.run([sys.executable, "-c", LAZY], check=True)
