"""flannel's settings in etcd, for each backend, as flannel's own documents have them."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from testbed.labs.lab import Lab
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, Call, FakeNode
from testbed.registry import ROLES
from testbed.roles.flannel.daemon import (
    CONFIG_STEP,
    network_config,
    reservations,
    resync,
    subnet_key,
)
from testbed.roles.flannel.section import FlannelSection
from testbed.steps.context import Context
from testbed.topology import Overrides, load

if TYPE_CHECKING:
    from testbed.nodes.base import Service
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

# Documentation/configuration.md: Network, SubnetLen, SubnetMin, Backend are the keys of the
# network's configuration.  Documentation/backends.md: Type is the backend's name; udp has Port
# (8285), vxlan has VNI (1) and Port (the kernel's 8472), host-gw has nothing else.
BACKENDS = {
    "two-node-udp": {"Type": "udp", "Port": 8285},
    "two-node": {"Type": "vxlan", "Port": 8472, "VNI": 1},
    "two-node-host-gw": {"Type": "host-gw"},
}


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_network_config(name: str) -> None:
    flannel = FlannelSection.find(load(name))
    assert flannel is not None
    config = network_config(flannel)
    # 100.96.0.0/16 in /24s; SubnetMin is the first that is handed out, and by default that
    # would be 100.96.1.0, the same as here: the first subnet of a network is left free.
    assert config == {
        "Network": "100.96.0.0/16",
        "SubnetLen": 24,
        "SubnetMin": "100.96.1.0",
        "Backend": BACKENDS[name],
    }


def test_the_first_subnet_can_be_the_networks_own() -> None:
    # Document 003 has 10.1.15.0/24 and .16.0/24; flannel itself would begin at 10.1.1.0.
    subnets = {"a": IPv4Network("10.1.16.0/24"), "b": IPv4Network("10.1.0.0/24")}
    flannel = FlannelSection(
        backend="vxlan", network=IPv4Network("10.1.0.0/16"), subnets=subnets, port=4789, vni=7
    )
    config = network_config(flannel)
    assert config["SubnetMin"] == "10.1.0.0"
    # RFC 7348 section 8: IANA's port for VXLAN; section 5: a VNI of 24 bits.
    assert config["Backend"] == {"Type": "vxlan", "Port": 4789, "VNI": 7}


def test_keys_have_a_hyphen_for_the_slash() -> None:
    # pkg/subnet: MakeSubnetKey joins address and length by "-", for a key must not hold a "/".
    assert subnet_key(IPv4Network("100.96.1.0/24")) == "/coreos.com/network/subnets/100.96.1.0-24"


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_reservations(name: str) -> None:
    keys = reservations(load(name))
    assert list(keys) == [
        "/coreos.com/network/subnets/100.96.1.0-24",
        "/coreos.com/network/subnets/100.96.2.0-24",
        "/coreos.com/network/config",
    ]
    # Documentation/reservations.md: the value of a reservation is the node's public address;
    # BackendType and BackendData are left for the flanneld that takes it over.
    values = [json.loads(value) for value in list(keys.values())[:-1]]
    assert values == [
        {"PublicIP": "10.168.0.2", "PublicIPv6": None},
        {"PublicIP": "10.168.0.3", "PublicIPv6": None},
    ]
    assert json.loads(keys["/coreos.com/network/config"])["Backend"] == BACKENDS[name]


@pytest.mark.parametrize(
    ("name", "mtu"),
    [
        # 1500 less IPv4 (20) and UDP (8): backends.md and RFC 768, 791.
        ("two-node-udp", 1472),
        # Less IPv4 (20), UDP (8), VXLAN (8) and the inner Ethernet header (14): RFC 7348.
        ("two-node", 1450),
        ("two-node-host-gw", 1500),
    ],
)
def test_mtu(name: str, mtu: int) -> None:
    flannel = FlannelSection.find(load(name))
    assert flannel is not None
    assert flannel.mtu == mtu


def started(bench: Bench, topology: Topology) -> None:
    Lab(topology.name, bench.settings).up(topology)


def test_a_value_is_quoted_for_etcdctls_transaction(bench: Bench) -> None:
    started(bench, load("two-node"))
    (text,) = [(c.input or b"").decode() for c in bench.provider.calls if c.words[-1:] == ("txn",)]
    # etcdctl reads a line as Go's %q has it, so the value is one quoted word.
    (line,) = [line for line in text.splitlines() if "/config " in line]
    _, _, quoted = line.split(" ", 2)
    assert json.loads(json.loads(quoted))["Network"] == "100.96.0.0/16"


def test_keys_that_hold_a_lease_are_left_alone(bench: Bench) -> None:
    topology = load("two-node")
    started(bench, topology)
    node = bench.provider.nodes("two-node")["node1"]
    epoch = node.get("/run/testbed/done/flannel-epoch")
    node.put(b"{}", "/run/testbed/done/flannel-keys")  # as if other subnets had been asked for
    bench.forget()

    def get(call: Call) -> Answer:
        *options, key = call.words
        there = {"--prefix", "--keys-only"} <= set(options) and key.endswith("/subnets/")
        return Answer(out=f"{key}100.96.1.0-24\n\n".encode() if there else b"")

    bench.provider.script([str(bench.store.binary("etcdctl"))], get)
    started(bench, topology)
    (text,) = [(c.input or b"").decode() for c in bench.provider.calls if c.words[-1:] == ("txn",)]
    puts = [line.split()[1] for line in text.splitlines() if line]
    assert puts == ["/coreos.com/network/subnets/100.96.2.0-24", "/coreos.com/network/config"]
    assert node.get("/run/testbed/done/flannel-epoch") == epoch


@pytest.mark.parametrize("nodes", [127, 128, 250])
def test_a_large_lab_takes_several_transactions(bench: Bench, nodes: int) -> None:
    topology = load("two-node", Overrides(nodes=nodes))
    node = topology.nodes["node1"]
    (step,) = [s for s in ROLES["flannel"].steps(topology, node) if s.name == CONFIG_STEP]
    made = bench.provider.create(topology.name, [NodeSpec(node.name, "d")])
    step.act(Context(topology, bench.provider, bench.store, made))  # and no whole lab
    texts = [(c.input or b"").decode() for c in bench.provider.calls if c.words[-1:] == ("txn",)]
    puts = [[line.split()[1] for line in text.splitlines() if line] for text in texts]
    assert all(len(some) <= 128 for some in puts), "etcd refuses more (--max-txn-ops)"
    keys = [key for some in puts for key in some]
    assert len({*keys}) == len(keys) == nodes + 1
    # flanneld reads its own subnet once it sees the network.
    assert keys[-1] == "/coreos.com/network/config"


def seconds(option: str) -> int:
    name, _, value = option.partition("=")
    assert name == "--iptables-resync"
    return int(value)


@pytest.mark.parametrize("nodes", [2, 3, 10, 30, 100, 250])
def test_a_lab_looks_at_its_rules_as_often_whatever_its_size(nodes: int) -> None:
    """A look is twenty runs of iptables, some 30 ms of processor time: 0.6 % of one, in all."""
    interval = seconds(resync(nodes, slow=False))
    assert nodes / interval <= 1 / 5
    assert interval >= 30
    assert seconds(resync(nodes, slow=True)) >= max(60, interval)


@pytest.mark.parametrize(("nodes", "wanted"), [(2, 30), (12, 60)])
def test_every_flanneld_is_told_how_often_to_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, nodes: int, wanted: int
) -> None:
    told: dict[str, list[int]] = {}
    real = FakeNode.start

    def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
        if service.name == "flanneld":
            options = [word for word in service.argv if word.startswith("--iptables-resync")]
            told[node.name] = [seconds(option) for option in options]
        real(node, service, timeout=timeout)

    monkeypatch.setattr(FakeNode, "start", start)
    started(bench, load("two-node", Overrides(nodes=nodes)))
    assert len(told) == nodes
    assert set(map(tuple, told.values())) == {(wanted,)}
