"""Ports of nodes: how a file gives them, and what the parts of a lab ask them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import TYPE_CHECKING

import pytest

from testbed.errors import Problem, TopologyError
from testbed.faults import means
from testbed.faults.model import parse
from testbed.labs.base_steps import hosts
from testbed.labs.lab import Lab
from testbed.labs.preflight import kernel_features
from testbed.labs.status import status
from testbed.nodes import wiring
from testbed.nodes.kubernetes.provider import KubernetesProvider
from testbed.nodes.netns.provider import NetnsProvider, bridge_of, identities
from testbed.nodes.qemu.provider import QemuProvider
from testbed.topology import load_data, load_text
from testbed.topology.ports import Port

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.testing.fakes import Bench

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
    assert node.ports[0].interfaces == (IPv4Interface("10.2.0.2/16"),)
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
    assert [port.mtu for port in topology.nodes["n"].ports] == [None, 9000]
    assert topology.to_dict()["networks"]["a"] == {"subnet": "10.1.0.0/24", "mtu": 9000}
    changed = {n for n in plain.nodes if topology.node_digest(n) != plain.node_digest(n)}
    assert changed == {"n", "r"}, "programs read it when they start"


def test_a_provider_limits_the_mtu() -> None:
    text = LARGE.replace("r: {", "r: {provider: qemu, ")
    (problem,) = problems(text)
    assert (problem.line, "1500" in problem.wanted, problem.seen) == (3, True, "9000")
    assert problems(text.replace("9000", "1400")) == []


# -- forms of ports -------------------------------------------------------------------------------

FORMS = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}, wire: {}, wan: {subnet: 10.2.0.0/30, mtu: 1400}}
nodes:
  n:
    networks:
      wire: {name: eth1}
      lan: [10.1.0.2, {addresses: [10.1.0.3, 10.1.0.4/32, 192.0.2.1/24]}]
      wan: {address: 10.2.0.1, name: wan0, mac: "02:00:00:00:00:0A", mtu: 1300}
  m: {networks: {wan: 10.2.0.2, wire: {}}}
"""


def test_a_port_has_a_name_addresses_and_a_mac() -> None:
    topology = load_text(FORMS, "t.yaml")
    node = topology.nodes["n"]
    assert [port.name for port in node.ports] == ["eth1", "eth2", "eth3", "wan0"]
    assert [[str(one) for one in port.interfaces] for port in node.ports] == [
        [], ["10.1.0.2/24"], ["10.1.0.3/24", "10.1.0.4/32", "192.0.2.1/24"], ["10.2.0.1/30"],
    ]  # fmt: skip
    assert [port.mtu for port in node.ports] == [None, None, None, 1300]
    assert [port.mtu for port in topology.nodes["m"].ports] == [1400, None]
    assert node.ports[3].hardware == "02:00:00:00:00:0a"
    macs = [port.hardware for one in topology.nodes.values() for port in one.ports]
    assert len(set(macs)) == len(macs)
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "for one interface, given locally"
    assert node.networks == ("wire", "lan", "wan")
    assert [port.name for port in node.on("lan")] == ["eth2", "eth3"]
    assert (topology.network("n"), topology.interface("n")) == ("lan", "eth2")
    assert (topology.network("m"), topology.interface("m")) == ("wan", "eth0")


def test_a_mac_needs_no_quotes() -> None:
    for mac in ("02:00:00:00:00:01", "12:34:56:10:11:12", "0A:bc:de:f0:12:34"):
        text = PLAIN.replace("{a: 10.1.0.1}", f"{{a: {{address: 10.1.0.1, mac: {mac}}}}}")
        assert load_text(text, "t.yaml").nodes["r"].ports[0].hardware == mac.lower()


def test_a_mac_is_once_on_a_segment() -> None:
    text = FORMS.replace("wan: 10.2.0.2,", "wan: {address: 10.2.0.2, mac: 02:00:00:00:00:0a},")
    (problem,) = problems(text)
    assert (problem.line, problem.seen) == (10, "02:00:00:00:00:0a again, that of n")
    assert problems(text.replace("wire: {}}}", "wire: {mac: 02:00:00:00:00:0a}}}").replace(
        "wan: {address: 10.2.0.2, mac: 02:00:00:00:00:0a}", "wan: 10.2.0.2")) == []  # fmt: skip


def test_ports_are_written_as_they_were_read() -> None:
    topology = load_text(FORMS, "t.yaml")
    assert topology.to_dict()["nodes"]["n"]["networks"] == {
        "wire": {"name": "eth1"},
        "lan": ["10.1.0.2", {"addresses": ["10.1.0.3", "10.1.0.4/32", "192.0.2.1/24"]}],
        "wan": {"address": "10.2.0.1", "name": "wan0", "mac": "02:00:00:00:00:0a", "mtu": 1300},
    }
    assert load_data(topology.to_dict(), "t.yaml") == topology


def test_a_node_without_an_address_has_no_peers() -> None:
    text = "name: t\nnetworks: {w: {}}\nnodes: {a: {networks: {w: {}}}, b: {networks: {w: {}}}}"
    topology = load_text(text, "t.yaml")
    assert "b" not in hosts(topology, "a").split()
    assert "127.0.1.1 a" in hosts(topology, "a")
    (problem,) = problems(text.replace("w: {}}}}", "w: {}}, roles: [docker]}}"))
    assert "role docker" in problem.wanted


def test_virtual_machines_name_their_links_in_any_order() -> None:
    names = {"eth0": "eth1", "eth1": "eth2", "eth2": "eth3", "eth3": "wan0"}
    links = list(names)
    for line in identities(load_text(FORMS, "t.yaml"), "n"):
        words = line.split()
        if words[4] == "name":
            assert words[5] not in links
            links[links.index(words[3])] = words[5]
    assert links == list(names.values())


# -- links ----------------------------------------------------------------------------------------

LINKED = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}}
links:
  - [a:eth1, b:eth1]
  - {ends: [b:eth2, c:up], subnet: 10.0.0.0/31, mtu: 9000}
  - {ends: [c:eth2, d:eth1], subnet: 10.0.1.0/30}
  - {ends: [d:eth2, a:eth2], addresses: [10.0.2.1/29, 10.0.2.6/29]}
nodes: {a: {networks: {lan: 10.1.0.2}}, b: {}, c: {}, d: {provider: qemu}}
"""


def test_the_ends_of_a_link_are_ports() -> None:
    topology = load_text(LINKED, "t.yaml")
    assert {
        node.name: {port.name: [*map(str, port.interfaces)] for port in node.ports}
        for node in topology.nodes.values()
    } == {
        "a": {"eth0": ["10.1.0.2/24"], "eth1": [], "eth2": ["10.0.2.6/29"]},
        "b": {"eth1": [], "eth2": ["10.0.0.0/31"]},  # RFC 3021: both are of hosts
        "c": {"up": ["10.0.0.1/31"], "eth2": ["10.0.1.1/30"]},
        "d": {"eth1": ["10.0.1.2/30"], "eth2": ["10.0.2.1/29"]},
    }
    up = topology.nodes["c"].ports[0]
    far = topology.far(up)
    assert far is not None
    assert (far.node, far.name, up.mtu, far.mtu) == ("b", "eth2", 9000, 9000)
    assert topology.far(topology.nodes["a"].ports[0]) is None
    assert "10.0.0.0 b\n" in hosts(topology, "c")


def test_links_are_written_as_they_were_read() -> None:
    topology = load_text(LINKED, "t.yaml")
    plain = topology.to_dict()
    assert plain["links"] == [
        ["a:eth1", "b:eth1"],
        {"ends": ["b:eth2", "c:up"], "subnet": "10.0.0.0/31", "mtu": 9000},
        {"ends": ["c:eth2", "d:eth1"], "subnet": "10.0.1.0/30"},
        {"ends": ["d:eth2", "a:eth2"], "addresses": ["10.0.2.1/29", "10.0.2.6/29"]},
    ]
    assert (plain["networks"].keys(), plain["nodes"]["b"]) == ({"lan"}, {})
    assert load_data(plain, "t.yaml") == topology


def test_a_node_with_another_link_is_another_node() -> None:
    before = load_text(LINKED, "t.yaml")
    for old, new, changed in (
        ("/31", "/30", {"b", "c"}), ("c:up", "c:down", {"b", "c"}), (".6/29", ".5/29", {"a"}),
        ("  - [a:eth1, b:eth1]\n", "", {"a", "b"}),
    ):  # fmt: skip
        after = load_text(LINKED.replace(old, new), "t.yaml")
        assert {n for n in after.nodes if after.node_digest(n) != before.node_digest(n)} == changed


def test_only_namespace_nodes_are_joined_directly(tmp_path: Path) -> None:
    topology = load_text(LINKED, "t.yaml")
    provider = NetnsProvider(tmp_path, lambda: tmp_path)
    assert {name: provider.direct(topology, name) for name in topology.nodes} == {
        "a": {"eth1": "b"}, "b": {"eth1": "a", "eth2": "c"}, "c": {"up": "b"}, "d": {},
    }  # fmt: skip
    # The others are on bridges of the fabric, with names that the kernel accepts.
    assert provider.ports(topology, "a") == ["a", "a.2"]
    assert provider.ports(topology, "d") == ["d", "d.1"]
    bridges = [bridge_of(name) for name in provider._bridged(topology)]
    assert bridges[0] == "br-lan"
    assert len(bridges) == len(set(bridges)) == 3
    assert not any(set(name) & set(":/ ") or len(name) > 15 for name in bridges)
    cells = NetnsProvider(tmp_path, lambda: tmp_path, kind="cell")
    assert cells.direct(topology, "d") == {}


def test_faults_of_direct_links_are_at_their_ends() -> None:
    faults = [parse(words.split()) for words in ("partition b:c", "loss a 20%")]
    rules = means.end_rules("b", {"eth1": "a", "eth2": "c"}, faults)
    table = " ".join(means.node_table("b"))
    assert table != " ".join(means.node_table("a")), "both can be in one network namespace"
    assert [line for line in rules.splitlines() if line.startswith("add rule")] == [
        f'add rule {table} end1 counter drop comment "partition b:c"',
        f'add rule {table} end0 numgen random mod 100000 < 20000 counter drop comment "loss a 20%"',
    ]
    healed = means.end_rules("b", {"eth1": "a"}, [])
    assert healed.splitlines() == [
        f"add table {table}", f"delete table {table}",
    ]  # fmt: skip
    assert "add rule" not in means.link_rules({"b": [], "c": ["c"]}, faults[:1])


@pytest.mark.parametrize(
    ("links", "seen"),
    [
        ("[[a:eth1]]", "1"),
        ("[[a:eth1, b]]", "'b'"),
        ("[[a:eth1, x:eth1]]", "'x'"),
        ("[[a:eth1, a:eth2]]", "a twice"),
        ("[[a:eth0, b:eth1]]", "'eth0', used before"),
        ("[[a:eth1, b:eth1], [a:eth1, b:eth2]]", "'eth1', used before"),
        ("[[a:all, b:eth1]]", "'all', a folder of the kernel's settings (net.ipv4.conf.*)"),
        ("[{ends: [a:eth1, b:a-name-of-many-letters]}]", "'a-name-of-many-letters' with 22"),
        ("[{ends: [a:eth1, b:eth1], addresses: [10.0.0.1/30]}]", "1"),
        ("[{ends: [a:eth1, b:eth1], addresses: [10.0.0.1, 10.0.0.2/30]}]", "'10.0.0.1'"),
        ("[{ends: [a:eth1, b:eth1], subnet: 10.0.0.0/32}]", "'10.0.0.0/32'"),
        ("[{ends: [a:eth1, b:eth1], subnet: 10.1.0.0/30}]", "10.1.0.0/30, which overlaps with "
         "10.1.0.0/24 of lan"),
        ("[{ends: [a:eth1, b:eth1], subnet: 10.0.0.0/30, addresses: [10.0.0.1/30, 10.0.0.2/30]}]",
         "both"),
    ],
)  # fmt: skip
def test_links_that_cannot_be(links: str, seen: str) -> None:
    text = "name: t\nnetworks: {lan: {subnet: 10.1.0.0/24}}\n"
    text += "nodes: {a: {networks: {lan: 10.1.0.2}}, b: {}}\n"
    (problem,) = problems(f"{text}links: {links}\n")
    assert (problem.line, problem.seen) == (4, seen)
    assert problem.column > len("links: ")
    assert problem.hint


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("[a:eth1, b:eth1]", "a:eth1", "both ends"),
        ("links:", "links: a:eth1\nx-links:", "list of links"),
        ("{ends: [b:eth2", "{endpoints: [b:eth2", "write ends"),
        ("c:eth2, d:eth1", "c:up, d:eth1", "c:NAME"),
        ("{lan: 10.1.0.2}", "{lan: }", "{NETWORK: {}}"),
        ("{lan: 10.1.0.2}", "[lan]", "{NETWORK: {}}"),
        ("subnet: 10.0.0.0/31", 'subnet: "fd00::/64"', "subnet6"),
        ("subnet: 10.1.0.0/24", "subnet: fd00::/64", "subnet6"),
        ("b: {}", "b: {roles: [docker]}", "a subnet"),
    ],
)
def test_hints_are_of_the_form_that_was_written(old: str, new: str, hint: str) -> None:
    text = LINKED.replace("subnet: 10.0.0.0/31, ", "") if "docker" in new else LINKED
    assert hint in " ".join(problem.hint for problem in problems(text.replace(old, new)))


# -- IPv6 -----------------------------------------------------------------------------------------

SIX = """
name: t
networks:
  lan: {subnet: 10.40.0.0/24, subnet6: "fd00:40::/64"}
  six: {subnet6: "fd00:41::/64"}
links: [{ends: [a:up, c:up], subnet: 10.0.0.0/31, subnet6: "fd00:9::/127"}]
nodes:
  gw: {networks: {lan: 10.40.0.1, six: "fd00:41::1"}, gateway: true}
  a: {networks: {lan: 10.40.0.2}}
  b: {networks: {lan: {addresses: [10.40.0.3, "fd00:40::b0b", "fd00:40::1:3/128"]}}}
  c: {networks: {six: "fd00:41::2"}}
"""


def test_a_node_on_both_subnets_has_an_address_of_each() -> None:
    topology = load_text(SIX, "t.yaml")
    assert {
        node.name: [[str(one) for one in port.subnetted] for port in node.ports]
        for node in topology.nodes.values()
    } == {
        "gw": [["10.40.0.1/24", "fd00:40::1/64"], ["fd00:41::1/64"]],
        "a": [["10.40.0.2/24", "fd00:40::2/64"], ["10.0.0.0/31", "fd00:9::/127"]],  # RFC 6164
        "b": [["10.40.0.3/24", "fd00:40::b0b/64", "fd00:40::1:3/128"]],
        "c": [["fd00:41::2/64"], ["10.0.0.1/31", "fd00:9::1/127"]],
    }
    assert [str(one) for one in topology.nodes["c"].addresses] == ["10.0.0.1"]
    assert load_data(topology.to_dict(), "t.yaml") == topology
    assert topology.to_dict()["nodes"]["a"] == {"networks": {"lan": "10.40.0.2"}}
    plain = load_text(SIX.replace(', subnet6: "fd00:40::/64"}', "}").replace(
        '"fd00:40::b0b", "fd00:40::1:3/128"', ""), "t.yaml")  # fmt: skip
    assert plain.node_digest("a") != topology.node_digest("a")


def test_peers_have_names_for_both_addresses() -> None:
    topology = load_text(SIX, "t.yaml")
    assert hosts(topology, "b").splitlines()[2:] == [
        "10.40.0.1 gw", "10.40.0.2 a", "10.40.0.3 b", "10.0.0.1 c",
        "fd00:40::1 gw", "fd00:40::2 a", "fd00:40::b0b b", "fd00:41::2 c",
    ]  # fmt: skip
    alone = load_text(SIX.replace("links:", "x-links:"), "t.yaml")
    assert hosts(alone, "c").splitlines()[2:] == [
        "127.0.1.1 c", "fd00:41::1 gw", "fd00:40::2 a", "fd00:40::b0b b", "fd00:41::2 c",
    ]  # fmt: skip
    assert topology.gateway6_of("c") == (IPv6Address("fd00:41::1"), "eth0")
    assert topology.gateway6_of("gw") is None


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ('"fd00:41::2"', '"fd00:42::2"', "fd00:42::2"),
        ('"fd00:41::2"', '"fd00:41::1"', "fd00:41::1 again, the address of gw"),
        ('"fd00:41::2"', '"fd00:41::"', "fd00:41::"),
        ('"fd00:41::2"', '"fd00:41::2/64"', "'fd00:41::2/64'"),
        ('"fd00:41::2"', '"fd00:41::x"', "'fd00:41::x'"),
        ('"fd00:41::2"', '"fe80::1"', "fe80::1/128"),
        ('"fd00:41::2"', "10.40.0.9", "'10.40.0.9'"),
        ('"fd00:41::/64"', '"fd00:40::/48"',
         "fd00:40::/48, which overlaps with fd00:40::/64 of lan"),
        ('"fd00:9::/127"', '"fd00:9::1/127"', "'fd00:9::1/127'"),
        ('"fd00:9::/127"', '"fd00:9::/128"', "'fd00:9::/128'"),
        ('"fd00:9::/127"', '"fd00:9::"', "'fd00:9::'"),
        ('"fd00:9::/127"', '"ff00::/8"', "ff00::/8"),
        # b's address is that which follows for a.
        ("fd00:40::b0b", "fd00:40::2", "fd00:40::2 again, the address of b"),
        ("lan: {subnet", "lan: {mtu: 1279, subnet", "1279"),
        ("lan: 10.40.0.2}", "lan: {address: 10.40.0.2, mtu: 576}}", "576"),
        ('"fd00:9::/127"', '"fd00:9::/127", mtu: 1000', "1000"),
    ],
)  # fmt: skip
def test_addresses_of_ipv6_that_cannot_be(old: str, new: str, seen: str) -> None:
    found = problems(SIX.replace(old, new))
    assert seen in [problem.seen for problem in found]
    assert all(problem.hint and problem.column for problem in found)
    assert len({problem.column for problem in found if problem.seen == seen}) == 1


@pytest.mark.parametrize(
    ("port", "four", "six"),
    [
        ("10.40.0.2", "10.40.0.1", "fd00:40::1"),
        ('"fd00:40::9"', None, "fd00:40::1"),
        ('{addresses: [10.40.0.2, "fd00:40::9/128"]}', "10.40.0.1", None),
        ('{addresses: [10.40.0.2/32, "fd00:40::9"]}', None, "fd00:40::1"),
        ("{}", None, None),
    ],
)
def test_a_gateway_is_on_a_subnet_of_the_node(port: str, four: str | None, six: str | None) -> None:
    text = SIX.replace("a: {networks: {lan: 10.40.0.2", f"a: {{networks: {{lan: {port}")
    topology = load_text(text, "t.yaml")
    found = topology.gateway6_of("a")
    assert topology.gateway_of("a") == (four and IPv4Address(four))
    assert found == (six and (IPv6Address(six), "eth0"))
    assert (topology.gateway_node("a") is None) == (four is None)


def test_status_has_the_addresses_of_both_families(bench: Bench) -> None:
    text = SIX.replace("links:", "x-links:")
    lab = Lab("t", bench.settings)
    lab.up(load_text(text, "t.yaml"))
    assert {node.name: node.addresses for node in status(lab.context()).nodes} == {
        "gw": ["10.40.0.1", "fd00:40::1", "fd00:41::1"],
        "a": ["10.40.0.2", "fd00:40::2"],
        "b": ["10.40.0.3", "fd00:40::b0b", "fd00:40::1:3"],
        "c": ["fd00:41::2"],
    }


def test_a_small_mtu_is_for_ipv4_alone() -> None:
    assert problems(SIX.replace("lan: {subnet", "lan: {mtu: 1280, subnet")) == []
    assert problems(PLAIN.replace("a: {subnet", "a: {mtu: 576, subnet")) == []


# -- equal subnets --------------------------------------------------------------------------------

HOMES = """
name: t
networks: {h1: {subnet: 10.0.2.0/24}, h2: {subnet: 10.0.2.0/24}, wan: {subnet: 192.0.2.0/24}}
nodes:
  a: {networks: {h1: 10.0.2.15}}
  b: {networks: {h2: 10.0.2.15}}
  nat1: {networks: {h1: 10.0.2.2, wan: 192.0.2.1}, forward: true}
  nat2: {networks: {h2: 10.0.2.2, wan: 192.0.2.2}, forward: true}
  isp: {networks: {wan: 192.0.2.254}, gateway: true}
"""


@pytest.mark.parametrize("forward", ["forward", "gateway"])
def test_equal_subnets_behind_routers_are_apart(forward: str) -> None:
    text = HOMES.replace("forward", forward).replace(", gateway: true}\n  isp", "}\n  isp")
    topology = load_text(text.replace("254}, gateway: true", "254}"), "t.yaml")
    assert "10.0.2.15 a" in hosts(topology, "a")
    assert not {"b", "nat2"} & set(hosts(topology, "a").split()), "10.0.2.15 is a itself"
    assert "192.0.2.2 nat2" in hosts(topology, "nat1")
    # One of them would be out of reach for a node on both.
    (problem,) = problems(text.replace("254}, gateway: true", "254}").replace(
        "h1: 10.0.2.15", "h1: 10.0.2.15, h2: 10.0.2.16"))  # fmt: skip
    assert problem.seen == "10.0.2.0/24 again, the subnet of h1"


# -- rate, delay, loss ----------------------------------------------------------------------------

SHAPED = """
name: t
networks:
  lan: {subnet: 10.1.0.0/24, rate: 10000kbit}
  far: {delay: 0.05s, loss: 1.0%, rate: 1gbit}
links: [{ends: [a:up, b:up], delay: 5ms 1ms}, [a:eth9, b:eth9]]
nodes: {a: {networks: {lan: 10.1.0.2, far: {}}}, b: {networks: {lan: 10.1.0.3}}}
"""


def test_networks_and_links_have_a_rate_a_delay_and_a_loss(tmp_path: Path) -> None:
    topology = load_text(SHAPED, "t.yaml")
    ports = {port.name: port for port in topology.nodes["a"].ports}
    lines = {name: means.shaping_lines(name, port.shaping) for name, port in ports.items()}
    assert lines == {
        "eth0": ["qdisc replace dev eth0 root handle ba2: tbf rate 10000000bit burst 32768b "
                 "latency 50ms"],
        "eth1": ["qdisc replace dev eth1 root handle ba1: netem limit 10000 delay 50ms loss 1%",
                 "qdisc replace dev eth1 parent ba1:1 handle ba2: tbf rate 1000000000bit "
                 "burst 1250000b latency 50ms"],
        "up": ["qdisc replace dev up root handle ba1: netem limit 10000 delay 5ms 1ms"],
        "eth9": [],
    }  # fmt: skip
    assert [wiring.queue_of(port) for port in ports.values()] == ["tbf", "netem", "netem", ""]
    plain = topology.to_dict()
    assert plain["networks"] == {
        "lan": {"subnet": "10.1.0.0/24", "rate": "10mbit"},
        "far": {"rate": "1gbit", "delay": "50ms", "loss": "1%"},
    }
    assert plain["links"][0] == {"ends": ["a:up", "b:up"], "delay": "5ms 1ms"}
    assert load_data(plain, "t.yaml") == topology
    # The queues of a direct link are for its faults.
    provider = NetnsProvider(tmp_path, lambda: tmp_path)
    assert provider.direct(topology, "a") == {"eth9": "b"}


def test_the_kernel_must_have_the_queues() -> None:
    assert {"tbf", "netem"} <= kernel_features(load_text(SHAPED, "t.yaml"))
    assert not {"tbf", "netem"} & kernel_features(load_text(PLAIN, "t.yaml"))
    slow = PLAIN.replace("10.1.0.0/24}", "10.1.0.0/24, rate: 1mbit}")
    assert {"tbf", "netem"} & kernel_features(load_text(slow, "t.yaml")) == {"tbf"}
    for key in ("delay: 5ms", 'loss: "1%"'):
        late = PLAIN.replace("10.1.0.0/24}", f"10.1.0.0/24, {key}}}")
        assert {"tbf", "netem"} & kernel_features(load_text(late, "t.yaml")) == {"netem"}


@pytest.mark.parametrize(
    ("provider", "needs"),
    [
        ("netns", {"netem"}),
        ("containerlab", {"netem"}),
        ("qemu", set()),
        ("vagrant", set()),
        ("kubernetes", set()),
    ],
)
def test_the_kernel_that_shapes_is_that_of_the_nodes(provider: str, needs: set[str]) -> None:
    slow = PLAIN.replace("10.1.0.0/24}", "10.1.0.0/24, delay: 5ms}")
    found = kernel_features(load_text(f"{slow}provider: {provider}\n", "t.yaml"))
    assert {"tbf", "netem"} & found == needs


@pytest.mark.parametrize(
    ("given", "seen"),
    [("rate: 10", "10"), ("rate: 10Mbit", "'10Mbit'"), ("loss: 100%", "'100%'"),
     ("delay: 5", "5"), ("delay: 2ms 3ms", "'3ms'"), ("delay: 61s", "'61s'")],
)  # fmt: skip
def test_amounts_that_cannot_be(given: str, seen: str) -> None:
    (problem,) = problems(PLAIN.replace("10.1.0.0/24}", f"10.1.0.0/24, {given}}}"))
    assert (problem.line, seen in problem.seen, bool(problem.hint)) == (3, True, True)


def test_only_some_providers_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QemuProvider, "shapes", False)
    text = PLAIN.replace("10.1.0.0/24}", "10.1.0.0/24, rate: 1mbit}")
    (problem,) = problems(text.replace("r: {", "r: {provider: qemu, "))
    assert (problem.line, "qemu" in problem.wanted) == (3, True)
    assert "testbed fault rate" in problem.hint
    monkeypatch.setattr(KubernetesProvider, "shapes", False)
    found = [one.hint for one in problems(f"{text}provider: kubernetes\n") if "rate" in one.wanted]
    assert found
    assert not any("testbed fault" in hint for hint in found), "its links have no faults either"
