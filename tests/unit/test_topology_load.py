"""Topologies by name, path, text and record: defaults, round trips, hostile files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
import yaml
from topology_texts import CLUSTER, DOCKER, FLANNEL, LAN, NODES

from testbed.errors import TopologyError, UsageError
from testbed.roles.docker.section import DockerSection
from testbed.roles.flannel.section import FlannelSection
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.topology import Topology, load, load_data, load_text, names, source
from testbed.topology.containers import Publish
from testbed.topology.model import VethEnd

SHIPPED = sorted(names())


def seen(error: pytest.ExceptionInfo[TopologyError]) -> str:
    (problem,) = error.value.problems
    return f"{problem.wanted}|{problem.seen}|{problem.hint}"


# Shipped topologies


def test_shipped_names() -> None:
    assert SHIPPED == [
        "bgp-clos",
        "bgp-frr-bird",
        "docker-10-1-27",
        "docker-single",
        "k8s-ingress",
        "k8s-three-node",
        "k8s-two-node",
        "netns-experiments",
        "ospf-triangle",
        "three-node-udp",
        "two-node",
        "two-node-host-gw",
        "two-node-ipv6",
        "two-node-mixed",
        "two-node-udp",
        "vxlan-10-1-16",
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_topologies(name: str) -> None:
    topology = load(name)
    assert topology.name == name
    assert topology.description
    assert topology.provider == "netns"
    assert topology.source == str(names()[name])
    assert load(names()[name]) == topology


@pytest.mark.parametrize("name", SHIPPED)
def test_round_trips(name: str) -> None:
    topology = load(name)
    again = load_data(topology.to_dict(), "record")
    assert again == topology
    assert again.to_dict() == topology.to_dict()
    assert load_data(json.loads(json.dumps(topology.to_dict())), "record") == topology
    assert load_text(yaml.safe_dump(topology.to_dict(), sort_keys=False), "text") == topology


def test_two_node_is_as_in_document_003() -> None:
    topology = load("two-node")
    assert FlannelSection.find(topology)
    assert FlannelSection.of(topology).backend == "vxlan"
    assert FlannelSection.of(topology).port == 8472
    assert topology.address("node1") == IPv4Address("10.168.0.2")
    assert topology.gateway_of("node2") == IPv4Address("10.168.0.1")
    assert FlannelSection.of(topology).subnets == {
        "node1": IPv4Network("100.96.1.0/24"),
        "node2": IPv4Network("100.96.2.0/24"),
    }
    assert DockerSection.of(topology).bip["node1"] == IPv4Interface("100.96.1.1/24")
    assert [c.node for c in topology.containers.values()] == ["node1", "node2"]


def test_netns_experiments_is_as_in_document_002() -> None:
    topology = load("netns-experiments")
    assert topology.veths[0].ends == (
        VethEnd("veth0", "ns1", None, IPv4Interface("192.168.10.200/24")),
        VethEnd("veth1", "ns2", None, IPv4Interface("192.168.10.201/24")),
    )
    assert topology.veths[2].ends[1] == VethEnd("brvethotherend1", None, "br0")


def test_docker_single_has_every_network_mode() -> None:
    modes = {c.network for c in load("docker-single").containers.values()}
    assert modes == {"bridge", "host", "none", "container:nginx-1"}


# Names and paths


def test_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        load("two-nod")
    assert not isinstance(caught.value, TopologyError)
    assert "did you mean 'two-node'?" in str(caught.value)
    assert "docker-single" in str(caught.value)


@pytest.mark.parametrize("name", ["", "nothing-like-it", "a\0b", "x" * 5000, "ä\ud800"])
def test_strange_names(name: str) -> None:
    with pytest.raises(UsageError, match="no topology"):
        load(name)


@pytest.mark.parametrize("path", ["./none", "none.yaml", "a\0/b", "/" + "x" * 5000, "\ud800.yml"])
def test_strange_paths(path: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load(path)
    assert "a topology file" in seen(caught)


def test_a_shipped_name_with_an_ending() -> None:
    with pytest.raises(TopologyError) as caught:
        load("two-node.yaml")
    assert "two-node, without" in seen(caught)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as caught:
        load(tmp_path)
    assert "a folder" in seen(caught)


def test_a_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").write_text("name: mine\nnodes: {a: {}}\n")
    (tmp_path / "two-node").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load("lab").name == "mine"
    assert load("two-node").name == "two-node"  # a folder hides no shipped topology


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TopologyError) as caught:
        load(tmp_path / "lab.yaml")
    assert "permission" in seen(caught)


# Defaults


def test_the_smallest_topology() -> None:
    topology = load_text("name: t\nnodes: {a: {}}\n", "t.yaml")
    assert topology == load_data({"name": "t", "nodes": {"a": {}}}, "record")
    assert topology.provider == "netns"
    assert FlannelSection.find(topology) is None
    assert topology.nodes["a"].ports == ()
    assert (topology.providers, topology.provider_of("a")) == (("netns",), "netns")


def test_a_node_may_say_its_own_provider() -> None:
    text = "name: t\nprovider: qemu\nnodes: {a: {}, b: {provider: netns}, c: {provider: qemu}}\n"
    topology = load_text(text, "t.yaml")
    assert {name: topology.provider_of(name) for name in topology.nodes} == {
        "a": "qemu", "b": "netns", "c": "qemu",
    }  # fmt: skip
    assert topology.providers == ("qemu", "netns")
    said = {name: node.get("provider") for name, node in topology.to_dict()["nodes"].items()}
    assert said == {"a": None, "b": "netns", "c": "qemu"}
    assert load_data(topology.to_dict(), "record") == topology


def test_a_digest_tells_who_makes_the_node_and_not_who_said_so() -> None:
    def digest(text: str) -> str:
        return load_text(f"name: t\n{text}\n", "t.yaml").node_digest("a")

    plain = digest("nodes: {a: {}, b: {}}")
    assert digest("nodes: {a: {provider: netns}, b: {}}") == plain
    assert digest("provider: qemu\nnodes: {a: {provider: netns}, b: {}}") == plain
    assert digest("nodes: {a: {}, b: {provider: qemu}}") == plain  # a peer's is the peer's affair
    other = digest("nodes: {a: {provider: qemu}, b: {}}")
    assert other != plain
    assert digest("provider: qemu\nnodes: {a: {}, b: {}}") == other


def test_flannel_defaults() -> None:
    topology = load_text(FLANNEL, "t.yaml")
    assert FlannelSection.find(topology)
    assert FlannelSection.of(topology).backend == "vxlan"
    assert FlannelSection.of(topology).network == IPv4Network("100.96.0.0/16")
    assert FlannelSection.of(topology).vni == 1
    assert list(FlannelSection.of(topology).subnets) == ["n1", "n2"]
    assert str(FlannelSection.of(topology).subnets["n2"]) == "100.96.2.0/24"
    assert {k: str(v) for k, v in DockerSection.of(topology).bip.items()} == {
        "n1": "100.96.1.1/24",
        "n2": "100.96.2.1/24",
    }


@pytest.mark.parametrize(("backend", "port"), [("udp", 8285), ("vxlan", 8472), ("host-gw", None)])
def test_ports(backend: str, port: int | None) -> None:
    topology = load_text(NODES + f"flannel: {{backend: {backend}}}\n", "t.yaml")
    assert FlannelSection.find(topology)
    assert FlannelSection.of(topology).port == port
    assert load_data(topology.to_dict(), "record") == topology


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        ("network: 10.5.0.0/16", "10.5.1.0/24", "10.5.2.0/24"),
        ("network: 10.5.0.0/22", "10.5.1.0/24", "10.5.2.0/24"),
        ("network: 10.5.0.0/24", "10.5.0.64/26", "10.5.0.128/26"),
        ("network: 10.5.0.0/28", "10.5.0.4/30", "10.5.0.8/30"),
        ("subnets: {n2: 100.96.1.0/24}", "100.96.2.0/24", "100.96.1.0/24"),
        ("subnets: {n1: 100.96.16.0/20}", "100.96.16.0/20", "100.96.32.0/20"),
    ],
)
def test_subnets_are_counted(settings: str, first: str, second: str) -> None:
    topology = load_text(NODES + f"flannel: {{{settings}}}\n", "t.yaml")
    assert FlannelSection.find(topology)
    assert {k: str(v) for k, v in FlannelSection.of(topology).subnets.items()} == {
        "n1": first,
        "n2": second,
    }
    assert load_data(topology.to_dict(), "record") == topology


@pytest.mark.parametrize(
    ("ranges", "counted"),
    [
        ("{}", {"n1": "100.96.1.0/24", "n2": "100.96.2.0/24"}),
        # Those counted on keep clear of larger and smaller ones.
        ("{n1: 100.96.0.0/22}", {"n1": "100.96.0.0/22", "n2": "100.96.4.0/24"}),
        ("{n1: 100.96.1.0/26}", {"n1": "100.96.1.0/26", "n2": "100.96.2.0/24"}),
        ("{n1: 100.96.1.192/26}", {"n1": "100.96.1.192/26", "n2": "100.96.2.0/24"}),
        ("{n2: 100.96.2.0/23}", {"n1": "100.96.1.0/24", "n2": "100.96.2.0/23"}),
    ],
)
def test_ranges_are_counted(ranges: str, counted: dict[str, str]) -> None:
    cluster = KubernetesSection.find(
        load_text(CLUSTER + f"kubernetes: {{ranges: {ranges}}}\n", "t.yaml")
    )
    assert cluster
    assert {name: str(one) for name, one in cluster.ranges.items()} == counted


@pytest.mark.parametrize(
    ("section", "bip"),
    [
        ("", "172.17.0.1/16"),
        ("docker: {}\n", "172.17.0.1/16"),
        ("docker: {bip: 10.1.27.1/24}\n", "10.1.27.1/24"),
        ("docker: {bip: {n1: 10.1.27.1/24}}\n", "10.1.27.1/24"),
    ],
)
def test_bip(section: str, bip: str) -> None:
    assert str(DockerSection.of(load_text(DOCKER + section, "t.yaml")).bip["n1"]) == bip


def test_container_settings() -> None:
    text = DOCKER + (
        "containers:\n"
        "  c1:\n"
        "    node: n1\n"
        '    publish: ["8080:80", "53:53/udp", "10.168.0.2:8081:80/tcp", "127.0.0.1:8082:80"]\n'
        '    command: [sh, -c, "exit 0", ""]\n'
        '    env: {A: b, _C: ""}\n'
        "  c2: {node: n1, image: 'localhost:5000/team/web-x:1.2', network: 'container:c1'}\n"
    )
    topology = load_text(text, "t.yaml")
    one = topology.containers["c1"]
    assert one.image == "nginx"
    assert one.network == "bridge"
    assert one.publish[:2] == (Publish(8080, 80), Publish(53, 53, "udp"))
    assert str(one.publish[2]) == "10.168.0.2:8081:80/tcp"
    assert one.command == ("sh", "-c", "exit 0", "")
    assert one.env == {"A": "b", "_C": ""}
    assert load_data(topology.to_dict(), "record") == topology


@pytest.mark.parametrize(
    ("memory", "size"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("33554432", 32 << 20), ("65536K", 64 << 20)],
)
def test_limits(memory: str, size: int) -> None:
    node = load_text(f"name: t\nnodes: {{a: {{cpus: 2, memory: {memory}}}}}\n", "t").nodes["a"]
    assert node.memory == size
    assert node.cpus == 2.0
    assert isinstance(node.cpus, float)


def test_the_order_of_networks_is_that_of_the_file() -> None:
    text = (
        "name: t\nnetworks: {z: {subnet: 10.1.0.0/24}, a: {subnet: 10.2.0.0/24}}\n"
        "nodes: {n: {networks: {z: 10.1.0.2, a: 10.2.0.2}}}\n"
    )
    topology = load_text(text, "t.yaml")
    assert list(load_data(topology.to_dict(), "r").nodes["n"].networks) == ["z", "a"]


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: t\r\nnodes: {a: {}}\r\n")
    assert load(path).name == "t"


# Hostile files


def timed(text: str) -> float:
    """The seconds of CPU time that it takes to refuse a text, however busy the machine."""
    start = time.process_time()
    with pytest.raises(TopologyError):
        load_text(text, "t.yaml")
    return time.process_time() - start


def test_a_large_file_fails_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: [" + b"x, " * 3_500_000 + b"]\n")
    start = time.process_time()
    with pytest.raises(TopologyError) as caught:
        load(path)
    assert time.process_time() - start < 1  # reading it takes several
    assert "at most 1 MiB" in seen(caught)
    assert timed("x" * 10_000_000) < 1


def test_a_file_without_end() -> None:
    with pytest.raises(TopologyError) as caught:
        load("/dev/zero")
    assert "at most 1 MiB" in seen(caught)


@pytest.mark.parametrize(
    ("data", "place", "word"),
    [
        (b"name: t\nx: \xff\n", (2, 4), "0xff"),
        ("name: t\n".encode("utf-16"), (1, 1), "0xff"),
        (b"name: t\nab\xc3", (2, 3), "0xc3"),
        (b"name: t\0\n", (1, 8), "NUL"),
    ],
)
def test_not_text(tmp_path: Path, data: bytes, place: tuple[int, int], word: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(data)
    with pytest.raises(TopologyError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == place
    assert word in problem.seen


LARGE = 3 if "TESTBED_LONG" in os.environ else 1
BOMBS = {
    "billion laughs": "a: &a [x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)}, ' * 9}]\n" for i in range(20)),
    "aliases of itself": "a: &a [*a]\n",
    "merge keys": "a: &a {x: y}\nb: {<<: [*a, *a, *a]}\n",
    "brackets": "[" * 1_000_000,
    "braces": "{" * 1_000_000,
    "dashes": "- " * 500_000,
    "question marks": "? " * 500_000,
    "quotes": "'" * 999_999,
    "long key": "k" * 1_000_000 + ": 1\n",
    "long number": "name: " + "9" * 1_000_000,
    "long float": "name: " + "9" * 500_000 + "." + "9" * 400_000,
    "colons": "name: 1" + ":1" * 400_000,
    "hyphens in a name": "name: " + "a-" * 400_000,
    "dots in an image": DOCKER
    + f"containers: {{c1: {{node: n1, image: {'a.' * 150_000 * LARGE}}}}}",
    "digits of a date": "name: 2024-01-01 " + " " * 900_000 + "x",
    "many keys": "".join(f"k{i}: 1\n" for i in range(7_000 * LARGE)),
    "many nodes": "nodes:\n" + "".join(f"  n{i}: {{}}\n" for i in range(5_000 * LARGE)),
    "many networks": "name: t\nnodes: {a: {}}\nnetworks:\n"
    + "".join(f"  n{i}: {{subnet: 10.0.0.0/8}}\n" for i in range(3_000 * LARGE)),
    "many unknown nodes": DOCKER
    + "containers:\n"
    + "".join(f"  c{i:04}: {{node: m{i}}}\n" for i in range(2_000 * LARGE)),
    "large escapes": 'name: "\\UFFFFFFFF"\n',
    "directive": "%YAML 99999999999999999999.1\n---\nname: t\n",
    "tag directive": "%TAG ! tag:x,2000:\n---\n!x name: t\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_do_not_go_off(text: str) -> None:
    assert timed(text) < 60  # a bomb would take hours


def test_data_that_is_no_data() -> None:
    ring: dict[str, object] = {}
    ring["name"] = ring
    strange: tuple[object, ...] = (
        ring,
        {1: 2},
        {"name": object()},
        {"name": 10**5000},
        {"name": float("nan")},
        [],
    )
    for data in strange:
        with pytest.raises(TopologyError):
            load_data(data, "record")  # type: ignore[arg-type]


# Speed


def many_nodes(count: int) -> str:
    nodes = "".join(
        f"  n{i}: {{networks: {{lan: 10.168.0.{i + 1}}}, roles: [docker, flannel]}}\n"
        for i in range(2, count + 1)
    )
    first = "  n1: {networks: {lan: 10.168.0.2}, roles: [etcd, docker, flannel]}\n"
    containers = "".join(f"  c-{i}: {{node: n{i}}}\n" for i in range(1, count + 1))
    return f"{LAN}nodes:\n{first}{nodes}flannel: {{}}\ncontainers:\n{containers}"


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")
def test_thirty_nodes_take_no_time() -> None:
    text = many_nodes(30)
    best = 9.0
    for _ in range(5):
        start = time.process_time()
        load_text(text, "t.yaml")
        best = min(best, time.process_time() - start)
    assert best < 0.5


def test_importing_the_package_does_not_import_yaml() -> None:
    code = "import sys, testbed.topology; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert isinstance(load("two-node"), Topology)
    with pytest.raises(TopologyError) as caught:
        load_text("name: t\nnodes:\n\ta: {}\n", "t.yaml")
    assert "a tab" in seen(caught)
    with pytest.raises(TopologyError):
        load_text('name: "\\UFFFFFFFF"\n', "t.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", (None, "")),
        ("~", (None, "")),
        ("true", (True, "")),
        ("-7", (-7, "")),
        ("0.5", (0.5, "")),
        ("10.168.0.2", ("10.168.0.2", "")),
        ("8080:80", ("8080:80", "")),
        ("nothing", ("nothing", "")),
        ("off", ("off", "the boolean false")),
        ("9" * 30, ("9" * 30, "a number")),
    ],
)
def test_plain_scalars(text: str, value: tuple[object, str]) -> None:
    assert source.resolve(text) == value


@pytest.mark.parametrize(
    ("written", "engine"),
    [
        ("29", "29"),
        ('"29"', "29"),
        ("debian", "20.10"),
        ("20", "20.10"),
        ("20.10", "20.10"),
        ('"20.10"', "20.10"),
        ('"20"', "20.10"),
    ],
)
def test_an_engine_is_a_text_or_a_number(written: str, engine: str) -> None:
    topology = load_text(DOCKER + f"docker: {{engine: {written}}}\n", "t.yaml")
    assert DockerSection.of(topology).engine == engine
    assert load_data(topology.to_dict(), "record") == topology


def test_engine_and_packet_filter_make_another_node() -> None:
    texts = ("", "docker: {engine: 29}\n", "docker: {firewall: iptables-legacy}\n")
    made = [load_text(DOCKER + text, "t.yaml") for text in texts]
    assert DockerSection.of(made[0]).engine == "20.10"
    assert DockerSection.of(made[0]).firewall == "iptables"
    assert len({topology.node_digest("n1") for topology in made}) == len(texts)
    # A node without Docker is the same machine under either.
    plain = [load_text(FLANNEL + text, "t.yaml").node_digest("out") for text in texts]
    assert len(set(plain)) == 1


def test_the_docs_mixed_lab_is_the_shipped_one_in_short() -> None:
    page = (Path(__file__).parents[2] / "docs" / "topologies.md").read_text(encoding="utf-8")
    section = page[page.index("## Some nodes as virtual machines") :]
    printed = yaml.safe_load(section.partition("```yaml\n")[2].partition("```")[0])
    shipped = yaml.safe_load(names()["two-node-mixed"].read_text(encoding="utf-8"))
    assert printed == {key: shipped[key] for key in ("name", "networks", "nodes", "flannel")}


def test_a_section_of_a_role_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` says why it cannot; until then, the file may have the section."""
    monkeypatch.setattr("testbed.topology.declare.role_of", lambda _: None)
    node = "nodes: {a: {networks: {lan: 10.168.0.2}, roles: [kubernetes]}}"
    assert load_text(f"{LAN}{node}\nkubernetes: {{}}\n", "t.yaml").sections == {}
