"""flannel's settings in etcd, for each backend, as flannel's own documents have them."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from testbed.labs.lab import Lab
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, Call, FakeNode
from testbed.nodes.marks import REWIRED, mark
from testbed.registry import ROLES
from testbed.roles.docker.containers import reach_steps
from testbed.roles.docker.daemon import daemon_config
from testbed.roles.flannel.breakage import Peer, look
from testbed.roles.flannel.daemon import (
    CONFIG_STEP,
    _epoch,
    network_config,
    options,
    reservations,
    resync,
    subnet_key,
)
from testbed.roles.flannel.section import FlannelSection
from testbed.steps.context import Context
from testbed.topology import Overrides, load, load_data, vary

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.base import Service
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

# Documentation/configuration.md: Network, SubnetLen, SubnetMin, Backend are the keys of the
# network's configuration.  Documentation/backends.md: Type is the backend's name; udp has Port
# (8285), vxlan has VNI (1) and Port (the kernel's 8472), host-gw has nothing else.
BACKENDS: dict[str, dict[str, str | int]] = {
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


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_an_overlay_has_the_port_and_vni_of_its_backend(name: str) -> None:
    found = ROLES["flannel"].overlay(load(name))
    assert found is not None
    numbers = {"Port": found.get("port"), "VNI": found.get("vni")}
    assert {key: one for key, one in numbers.items() if one is not None} == {
        key: one for key, one in BACKENDS[name].items() if key != "Type"
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


# Two nodes on one network, a third behind a router.
PLACES = """\
name: places
networks: {lan: {subnet: 10.1.0.0/24}, far: {subnet: 10.2.0.0/24}}
nodes:
  n1: {networks: {lan: 10.1.0.2}, roles: [etcd, docker, flannel]}
  n2: {networks: {lan: 10.1.0.3}, roles: [docker, flannel]}
  n3: {networks: {far: 10.2.0.2}, roles: [docker, flannel]}
  gw: {networks: {lan: 10.1.0.1, far: 10.2.0.1}, gateway: true}
"""


def placed(tmp_path: Path, section: str) -> Topology:
    file = tmp_path / "places.yaml"
    file.write_text(f"{PLACES}flannel: {section}\n", encoding="utf-8")
    return load(file)


def dual(tmp_path: Path, section: str) -> Topology:
    """Return two nodes of flannel with IPv6."""
    file = tmp_path / "dual.yaml"
    text = (
        'name: dual\nnetworks: {lan: {subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}}\nnodes:\n'
        "  n1: {networks: {lan: 10.1.0.2}, roles: [etcd, docker, flannel]}\n"
        "  n2: {networks: {lan: 10.1.0.3}, roles: [docker, flannel]}\n"
    )
    file.write_text(f"{text}flannel: {section}\n", encoding="utf-8")
    return load(file)


def test_keys_of_the_file_are_those_of_flannels_configuration(tmp_path: Path) -> None:
    topology = placed(
        tmp_path,
        "{mtu: 1400, port: 4789, vni: 7, direct-routing: true, subnet-len: 26,"
        " public-ip: {n2: 192.0.2.9}, subnet-lease-renew-margin: 1439}",
    )
    flannel = FlannelSection.of(topology)
    config = network_config(flannel)
    # Documentation/backends.md: MTU is that of the packets on the wire.
    assert config["Backend"] == {
        "Type": "vxlan", "Port": 4789, "VNI": 7, "MTU": 1400, "DirectRouting": True,
    }  # fmt: skip
    assert flannel.mtu(topology, "n1") == 1350
    assert config["SubnetLen"] == 26
    assert [str(subnet) for subnet in flannel.subnets.values()] == [
        "100.96.0.64/26", "100.96.0.128/26", "100.96.0.192/26",
    ]  # fmt: skip
    values = [json.loads(value) for value in list(reservations(topology).values())[:-1]]
    assert [value["PublicIP"] for value in values] == ["10.1.0.2", "192.0.2.9", "10.2.0.2"]
    first = topology.nodes["n1"]
    (step,) = [s for s in ROLES["flannel"].steps(topology, first) if s.name == CONFIG_STEP]
    assert step.about.startswith("vxlan, port 4789, VNI 7, MTU 1400, direct routing over")
    margin = "--subnet-lease-renew-margin=1439"
    assert options(topology, flannel, "n1") == [margin]
    assert options(topology, flannel, "n2") == ["--public-ip=192.0.2.9", margin]


def test_a_variant_has_only_keys_of_its_backend(tmp_path: Path) -> None:
    topology = placed(
        tmp_path, "{mtu: 1400, port: 4789, vni: 7, direct-routing: true, public-ip: {n2: 10.1.0.9}}"
    )
    udp = FlannelSection.of(vary(topology, Overrides(backend="udp")))
    assert (udp.port, udp.outer_mtu, udp.direct_routing) == (8285, None, False)
    assert {str(address) for address in udp.public_ip.values()} == {"10.1.0.9"}
    assert vary(topology, Overrides(backend="vxlan")) == topology


def test_a_variant_has_no_addresses_of_replaced_nodes() -> None:
    topology = load("two-node")
    data = topology.to_dict()
    data["flannel"]["public-ip"] = {"node2": "10.168.0.9"}
    more = vary(load_data(data, "two"), Overrides(nodes=3))
    assert FlannelSection.of(more).public_ip == {}


def test_other_nodes_settings_do_not_create_a_node_again(tmp_path: Path) -> None:
    plain = placed(tmp_path, "{}")
    other = placed(tmp_path, "{public-ip: {n2: 10.1.0.9}}")
    assert plain.node_digest("n1") == other.node_digest("n1")
    assert plain.node_digest("n2") != other.node_digest("n2")


@pytest.mark.parametrize("section", [
    "{port: 4789}", "{vni: 7}", "{direct-routing: true}", "{public-ip: {n2: 10.1.0.9}}",
    "{allow-direct-routing: false}",
])  # fmt: skip
def test_claims_about_the_usual_way_do_not_apply_to_another(tmp_path: Path, section: str) -> None:
    role = ROLES["flannel"]
    assert "flannel-defaults" not in role.features(placed(tmp_path, section))
    for same in ("{}", "{port: 8472, vni: 1}", "{mtu: 1400, subnet-len: 26}"):
        assert role.features(placed(tmp_path, same)) >= {"flannel-vxlan", "flannel-defaults"}


def test_nodes_on_one_network_need_no_tunnel_with_direct_routing(tmp_path: Path) -> None:
    topology = placed(tmp_path, "{direct-routing: true}")
    flannel = FlannelSection.of(topology)
    assert flannel.is_direct(topology, "n1", "n2")
    assert not flannel.is_direct(topology, "n1", "n3")
    plain = placed(tmp_path, "{}")
    assert not FlannelSection.of(plain).is_direct(plain, "n1", "n2")
    peers = [
        Peer("n2", "10.1.0.3", "100.96.2.0/24", "ae:28:62:41:9b:b8", direct=True),
        Peer("n3", "10.2.0.2", "100.96.3.0/24", "ae:28:62:41:9b:b9"),
    ]
    assert look(topology, "route", peers).entries == (
        "100.96.2.0/24 via 10.1.0.3",
        "100.96.3.0/24 via 100.96.3.0 dev flannel.1",
    )
    assert look(topology, "fdb", peers).entries == ("ae:28:62:41:9b:b9 dst 10.2.0.2",)
    assert len(look(topology, "neighbour", peers).entries) == 1


def test_there_is_no_tunnel_to_break_between_nodes_on_one_network() -> None:
    data = load("two-node").to_dict()
    role = ROLES["flannel"]
    assert role.unbreakable(load_data(data, "two"), "node1", "fdb") is None
    data["flannel"]["direct-routing"] = True
    direct = load_data(data, "two")
    assert role.unbreakable(direct, "node1", "fdb") is not None
    assert role.unbreakable(direct, "node1", "port") is not None
    assert role.unbreakable(direct, "node1", "route") is None


def test_each_further_network_has_a_flanneld_and_keys_of_its_own(tmp_path: Path) -> None:
    """Documentation/running.md, "Multiple networks": a prefix and a subnet file for each."""
    topology = placed(
        tmp_path,
        "{vni: 2, networks: {blue: {network: 10.20.0.0/16, mtu: 1400},"
        " red: {network: 10.30.0.0/16, vni: 9, subnets: {n2: 10.30.9.0/24}}}}",
    )
    flannel = FlannelSection.of(topology)
    blue, red = flannel.further().values()
    assert (blue.device, blue.mtu(topology, "n1")) == ("flannel.1", 1350)
    assert (red.device, str(red.subnets["n2"])) == ("flannel.9", "10.30.9.0/24")
    keys = reservations(topology)
    assert "/blue/network/subnets/10.20.1.0-24" in keys
    assert json.loads(keys["/red/network/config"])["Backend"]["VNI"] == 9
    assert json.loads(keys["/coreos.com/network/config"])["Backend"]["VNI"] == 2
    role = ROLES["flannel"]
    assert role.services_on(topology, "n1") == ("flanneld", "flanneld-blue", "flanneld-red")
    assert [link.name for link in role.links(topology, "n1")] == [
        "flannel.2", "flannel.1", "flannel.9",
    ]  # fmt: skip
    names = [step.name for step in role.steps(topology, topology.nodes["n2"])]
    assert names == ["flannel n2", "flannel n2 blue", "flannel n2 red"]
    assert load_data(topology.to_dict(), "record").to_dict() == topology.to_dict()
    more = FlannelSection.of(vary(topology, Overrides(nodes=3)))
    assert set(more.networks["red"].subnets) == {"node1", "node2", "node3"}


def test_other_flannelds_leave_the_rules_of_the_first_alone(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, tuple[str, ...]] = {}
    real = FakeNode.start

    def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
        told[service.name] = service.argv
        real(node, service, timeout=timeout)

    monkeypatch.setattr(FakeNode, "start", start)
    started(bench, placed(tmp_path, "{networks: {blue: {network: 10.20.0.0/16}}}"))
    assert "--ip-masq" in told["flanneld"]
    assert not any(word.startswith("--etcd-prefix") for word in told["flanneld"])
    blue = told["flanneld-blue"]
    assert {"--etcd-prefix=/blue/network", "--iptables-forward-rules=false"} <= {*blue}
    assert "--subnet-file=/run/flannel/blue.env" in blue
    assert "--ip-masq" not in blue
    rules = [c.words for c in bench.provider.calls if "DOCKER-USER" in " ".join(c.words)]
    assert {rule[-4:] for rule in rules} == {("-d", "10.20.0.0/16", "-j", "ACCEPT")}


def test_ipv6_of_the_file_is_that_of_flannels_configuration(tmp_path: Path) -> None:
    topology = dual(
        tmp_path, "{ipv6: {public-ip: {n2: '2001:db8::2'}, subnets: {n1: 'fd00:100:96:8::/64'}}}"
    )
    flannel = FlannelSection.of(topology)
    config = network_config(flannel)
    # Documentation/configuration.md; the default length is 64, and the first subnet is left out.
    assert {name: value for name, value in config.items() if "IPv6" in name} == {
        "EnableIPv6": True, "IPv6Network": "fd00:100:96::/48",
        "IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00:100:96:1::",
    }  # fmt: skip
    keys = reservations(topology)
    # pkg/subnet: MakeSubnetKey joins both subnets by "&".
    first = keys["/coreos.com/network/subnets/100.96.1.0-24&fd00:100:96:8::-64"]
    second = keys["/coreos.com/network/subnets/100.96.2.0-24&fd00:100:96:1::-64"]
    assert json.loads(first) == {"PublicIP": "10.1.0.2", "PublicIPv6": "fd00:1::2"}
    assert json.loads(second) == {"PublicIP": "10.1.0.3", "PublicIPv6": "2001:db8::2"}
    # The interface may have several addresses of IPv6.
    assert options(topology, flannel, "n1") == ["--public-ipv6=fd00:1::2"]
    assert options(topology, flannel, "n2") == ["--public-ipv6=2001:db8::2"]
    role = ROLES["flannel"]
    assert role.features(topology) == {"flannel", "flannel-vxlan", "flannel-ipv6"}
    assert [link.name for link in role.links(topology, "n1")] == ["flannel.1", "flannel-v6.1"]
    assert "ip6tables nat" in role.kernel_for(topology)
    overlay = role.overlay(topology)
    assert overlay is not None
    assert (overlay["network6"], overlay["device6"]) == ("fd00:100:96::/48", "flannel-v6.1")
    assert load_data(topology.to_dict(), "record").to_dict() == topology.to_dict()


def test_a_lab_without_ipv6_is_as_before() -> None:
    topology = load("two-node")
    flannel = FlannelSection.of(topology)
    assert not [name for name in network_config(flannel) if "IPv6" in name]
    assert "ipv6" not in str(topology.to_dict())
    assert options(topology, flannel, "node1") == []
    assert "ip6tables nat" not in ROLES["flannel"].kernel_for(topology)
    assert not [word for word in daemon_config(topology, "node1", (29, 0, 0)) if "v6" in word]


def test_variants_keep_ipv6_where_they_can(tmp_path: Path) -> None:
    topology = dual(tmp_path, "{ipv6: {subnets: {n2: 'fd00:100:96:8::/64'}}}")
    assert FlannelSection.of(vary(topology, Overrides(backend="udp"))).ipv6 is None
    routed = FlannelSection.of(vary(topology, Overrides(backend="host-gw")))
    assert routed.devices == ()
    assert routed.ipv6 is not None
    more = FlannelSection.of(vary(topology, Overrides(nodes=3))).ipv6
    assert more is not None
    assert [str(one) for one in more.subnets.values()] == [
        "fd00:100:96:1::/64", "fd00:100:96:8::/64", "fd00:100:96:2::/64",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "more"),
    [((20, 10, 24), True), ((26, 1, 5), True), ((27, 0, 0), False), ((29, 0, 0), False)],
)
def test_docker_has_its_subnet_of_ipv6(
    tmp_path: Path, version: tuple[int, int, int], more: bool
) -> None:
    config = daemon_config(dual(tmp_path, "{ipv6: {}}"), "n2", version)
    assert (config["ipv6"], config["fixed-cidr-v6"]) == (True, "fd00:100:96:2::/64")
    # moby 27.0: ip6tables is no longer experimental, and the default.
    assert (config.get("experimental"), config.get("ip6tables")) == (
        (True, True) if more else (None, None)
    )


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_packets_of_both_families_are_admitted(tmp_path: Path, bench: Bench, firewall: str) -> None:
    section = (
        "{ipv6: {}, networks: {blue: {network: 10.20.0.0/16, ipv6: {network: 'fd00:20::/48'}}}}"
    )
    data = dual(tmp_path, section).to_dict()
    data["docker"] |= {"engine": "29", "firewall": firewall}
    bench.provider.calls.clear()
    started(bench, load_data(data, "dual"))
    calls = [c for c in bench.provider.calls if c.node == "n1" and c.what == "run"]
    ran = [" ".join((*c.words, (c.input or b"").decode())) for c in calls]
    for network, tables, family in (
        ("100.96.0.0/16", "iptables", "ip"), ("10.20.0.0/16", "iptables", "ip"),
        ("fd00:100:96::/48", "ip6tables", "ip6"), ("fd00:20::/48", "ip6tables", "ip6"),
    ):  # fmt: skip
        (one,) = [words for words in ran if f"-d {network}" in words or f"daddr {network}" in words]
        if firewall == "nftables":
            assert f"{family} daddr {network} meta mark set" in one
        else:
            assert f" sh {tables} " in one
    assert any("net.ipv6.conf.all.forwarding=1" in words for words in ran)


def test_a_break_is_of_both_families(tmp_path: Path) -> None:
    topology = dual(tmp_path, "{ipv6: {}}")
    four = Peer("n2", "10.1.0.3", "100.96.2.0/24", "02:00:00:00:00:01")
    six = Peer("n2", "fd00:1::3", "fd00:100:96:2::/64", "02:00:00:00:00:02")
    routes = look(topology, "route", [four], [six])
    assert routes.entries == (
        "100.96.2.0/24 via 100.96.2.0 dev flannel.1",
        "fd00:100:96:2::/64 via fd00:100:96:2:: dev flannel-v6.1",
    )
    # One of the two that is missing is put back alone.
    assert routes.missing(f"{routes.entries[0]} onlink\n") == [1]
    assert routes.back[1][:4] == ("ip", "-6", "route", "replace")
    entries = look(topology, "fdb", [four], [six])
    assert entries.entries == (f"{four.mac} dst 10.1.0.3", f"{six.mac} dst fd00:1::3")
    assert "flannel-v6.1" in entries.gone[1]
    rules = look(topology, "forward", [four], [six])
    assert [argv[0] for argv in rules.gone] == ["iptables", "ip6tables"]
    host_gw = vary(topology, Overrides(backend="host-gw"))
    assert look(host_gw, "route", [four], [six]).entries[1] == "fd00:100:96:2::/64 via fd00:1::3"


def test_a_closed_door_stays_closed() -> None:
    data = load("two-node").to_dict()
    assert "allow-direct-routing" not in data["flannel"]
    data["flannel"]["allow-direct-routing"] = False
    data["docker"]["engine"] = "29"
    closed = load_data(data, "two")
    assert closed.to_dict()["flannel"]["allow-direct-routing"] is False
    config = daemon_config(closed, "node1", (29, 0, 0))
    assert "allow-direct-routing" not in config
    assert config["mtu"] == 1450
    assert "bridge-accept-fwmark" not in config
    assert not list(reach_steps(closed)), "there is no way from container to container"


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
    topology = load(name)
    assert FlannelSection.of(topology).mtu(topology, "node1") == mtu
    # flanneld takes the MTU of its link.
    data = topology.to_dict()
    data["networks"]["lan"]["mtu"] = 9000
    larger = load_data(data, "larger")
    assert FlannelSection.of(larger).mtu(larger, "node2") == mtu + 7500


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
        # The second has a key from the time when it had another address.
        values = {"100.96.1.0-24": "10.168.0.2", "100.96.2.0-24": "10.168.0.99"}
        lines = [f'{key}{name}\n{{"PublicIP":"{ip}"}}\n' for name, ip in values.items()]
        there = "--prefix" in options and key.endswith("/subnets/")
        return Answer(out="".join(lines).encode() if there else b"")

    bench.provider.script([str(bench.store.binary("etcdctl"))], get)
    started(bench, topology)
    (text,) = [(c.input or b"").decode() for c in bench.provider.calls if c.words[-1:] == ("txn",)]
    puts = [line.split()[1] for line in text.splitlines() if line]
    # Documentation/reservations.md: the public address is how flanneld finds its lease.
    assert puts == ["/coreos.com/network/subnets/100.96.2.0-24", "/coreos.com/network/config"]
    assert node.get("/run/testbed/done/flannel-epoch") == epoch


def changed(bench: Bench, topology: Topology) -> list[str]:
    """Bring a lab up again; return the steps that changed something."""
    return sorted(one.step.name for one in Lab(topology.name, bench.settings).up(topology).changed)


def test_flanneld_starts_again_after_each_repair_of_a_link(bench: Bench) -> None:
    topology = load("two-node")
    started(bench, topology)
    node = bench.provider.nodes("two-node")["node2"]
    for when in ("first", "second"):
        mark(node, REWIRED, when)
        assert changed(bench, topology) == ["flannel node2"], when
        assert changed(bench, topology) == []


def test_every_flanneld_starts_again_with_new_data_of_etcd(bench: Bench) -> None:
    """The leases are in etcd: every flanneld has to register again."""
    topology = load("two-node")
    started(bench, topology)
    assert changed(bench, topology) == []
    mark(bench.provider.nodes("two-node")["node1"], "flannel-epoch", "another")
    assert changed(bench, topology) == ["flannel node1", "flannel node2"]


def test_an_etcd_of_another_machine_has_other_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines from one snapshot have the same etcd in it, and each an ID of its own."""
    monkeypatch.setattr(FakeNode, "wakes", True)
    topology = load("two-node")
    made = bench.provider.create(topology.name, [NodeSpec("node1", "d")])
    made["node1"].put(b"", "/run/testbed/done/flannel-epoch")
    found = []
    for number in (b"one\n", b"other\n", b"other\n"):
        made["node1"].put(number, "/etc/machine-id")
        found.append(_epoch(Context(topology, bench.provider, bench.store, made)))
    assert found[0] != found[1] == found[2]


def test_keys_of_subnets_that_a_node_had_before_are_removed(bench: Bench, tmp_path: Path) -> None:
    """etcd on a node of its own stays when the file gives the overlay IPv6, or other subnets.

    flanneld reuses the first key with its address, and else chooses any free subnet.
    """
    topology = dual(tmp_path, "{ipv6: {}}")
    started(bench, topology)
    node = bench.provider.nodes("dual")["n1"]
    node.put(b"{}", "/run/testbed/done/flannel-keys")
    bench.forget()
    values = {
        "100.96.1.0-24": "10.1.0.2",  # of n1, without IPv6
        "100.96.9.0-24&fd00:100:96:2::-64": "10.1.0.3",  # another subnet of n2
        "100.96.2.0-24&fd00:100:96:2::-64": "10.1.0.3",
        "100.96.8.0-24": "10.1.0.77",  # somebody's own
    }

    def get(call: Call) -> Answer:
        *options, key = call.words
        lines = [f'{key}{name}\n{{"PublicIP":"{ip}"}}\n' for name, ip in values.items()]
        there = "--prefix" in options and key.endswith("/subnets/")
        return Answer(out="".join(lines).encode() if there else b"")

    bench.provider.script([str(bench.store.binary("etcdctl"))], get)
    started(bench, topology)
    (text,) = [(c.input or b"").decode() for c in bench.provider.calls if c.words[-1:] == ("txn",)]
    folder = "/coreos.com/network/subnets"
    assert [line.split()[:2] for line in text.splitlines() if line] == [
        ["del", f"{folder}/100.96.1.0-24"],
        ["del", f"{folder}/100.96.9.0-24&fd00:100:96:2::-64"],
        ["put", f"{folder}/100.96.1.0-24&fd00:100:96:1::-64"],
        ["put", "/coreos.com/network/config"],
    ]


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
