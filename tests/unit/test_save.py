"""`save`: a running lab as a topology file, with what was changed by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hands import PLAIN, Hands

from testbed.faults.force import Faults
from testbed.faults.means import Seen
from testbed.faults.model import parse
from testbed.labs import save as saving
from testbed.nodes import netstate
from testbed.nodes.fake import Answer
from testbed.roles.docker import glance
from testbed.topology import load_data, load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench

TEXT = """\
name: plain
networks:
  lan: {subnet: 10.168.0.0/24}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [docker]}
  b: {networks: {lan: 10.168.0.3}, routes: [10.7.0.0/16 via 10.168.0.2], rules: [lookup 7]}
containers:
  web: {node: a, image: nginx}
"""
ROUTE = {"dst": "10.7.0.0/16", "gateway": "10.168.0.2", "dev": "eth0"}
CONNECTED = {"dst": "10.168.0.0/24", "dev": "eth0", "protocol": "kernel", "prefsrc": "10.168.0.3"}
RULE = {"priority": 32765, "src": "all", "table": "7"}
FIRST = {"priority": 0, "src": "all", "table": "local"}
FRESH = {
    "net.ipv4.ip_forward": "0", "net.ipv4.ip_default_ttl": "64",
    "net.ipv4.conf.default.rp_filter": "0", "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.all.forwarding": "0", "net.ipv4.tcp_fastopen_key": "1-2",
}  # fmt: skip


class Looks:
    """The output of the programs of a node."""

    def __init__(self) -> None:
        self.routes: list[Mapping[str, Any]] = [CONNECTED, ROUTE]
        self.routes6: list[Mapping[str, Any]] = []
        self.rules: list[Mapping[str, Any]] = [FIRST, RULE]
        self.sysctls = {**FRESH, "net.ipv4.conf.eth0.rp_filter": "0"}
        self.fresh = dict(FRESH)
        self.links: list[Mapping[str, Any]] = [
            {"ifname": "eth0", "linkinfo": {"info_kind": "veth"}}
        ]
        self.queues: list[Mapping[str, Any]] = []

    def install(self, hands: Hands, node: str) -> None:
        provider = hands.bench.provider
        state = "\0".join(map(json.dumps, (self.routes, self.rules, self.routes6, []))) + "\0"
        provider.script(["sh", "-c", netstate.LOOK], Answer(out=state.encode()), node)
        sysctls = [
            "".join(f"{k} = {v}\n" for k, v in o.items()) for o in (self.sysctls, self.fresh)
        ]
        looks = "\0".join([*sysctls, json.dumps(self.links), json.dumps(self.queues), ""])
        provider.script(["sh", "-c", saving.LOOK], Answer(out=looks.encode()), node)


class Engine:
    """The answers of a node's Docker, by path."""

    def __init__(self) -> None:
        self.containers: list[dict[str, Any]] = [self.entry("web", labels={"testbed.labs": "x"})]
        self.networks: list[dict[str, Any]] = [{"Name": "bridge", "Driver": "bridge"}]
        self.inspected: dict[str, dict[str, Any]] = {}
        self.image: dict[str, Any] = {"Cmd": ["serve"], "Env": ["PATH=/bin"], "WorkingDir": "/"}

    @staticmethod
    def entry(name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        return {
            "Id": name * 12, "Names": [f"/{name}"], "State": "running", "Labels": labels or {},
        }  # fmt: skip

    def run(self, name: str, *, config: Any = None, host: Any = None, networks: Any = None) -> None:
        self.containers.append(self.entry(name))
        self.inspected[name * 12] = {
            "Id": name * 12,
            "Image": "sha256:1",
            "Config": {
                "Image": "nginx",
                "Hostname": (name * 12)[:12],
                **self.image,
                **(config or {}),
            },
            "HostConfig": {"NetworkMode": "default", **(host or {})},
            "NetworkSettings": {"Networks": networks or {"bridge": {}}},
        }  # fmt: skip

    def request(self, _: Node, __: str, path: str, timeout: float = 1) -> tuple[int, bytes]:
        del timeout
        answers: dict[str, Any] = {
            "/containers/json?all=1": self.containers,
            "/networks": self.networks,
            "/images/sha256:1/json": {"Config": self.image},
            **{f"/containers/{name}/json": data for name, data in self.inspected.items()},
        }
        return 200, json.dumps(answers[path]).encode()


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(glance, "request", made.request)
    return made


@pytest.fixture
def hands(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: Engine,
) -> Hands:
    del engine
    Looks().install(made := Hands(bench, monkeypatch, capsys), "b")
    bare = Looks()
    bare.routes, bare.rules = [], []
    bare.install(made, "a")
    monkeypatch.setattr(Faults, "in_force", lambda _: [])
    made.up(TEXT)
    return made


def saved(hands: Hands) -> tuple[dict[str, Any], list[str]]:
    """The saved topology, which is valid, and the comments on what it cannot say."""
    said = hands("save", "plain")
    assert said.status == 0, said.err
    load_text(said.out, "saved")
    lines = [line[4:] for line in said.out.splitlines() if line.startswith("#   ")]
    comments = [line.partition(" (wanted")[0] for line in lines]
    assert bool(comments) == bool(said.err)
    found: dict[str, Any] = yaml.safe_load(said.out)
    return found, comments


def test_a_lab_without_changes_is_its_own_file(hands: Hands) -> None:
    data, comments = saved(hands)
    assert comments == []
    assert load_text(yaml.safe_dump(data), "x") == load_text(TEXT, "x")


ROUTES: list[tuple[Mapping[str, Any], str]] = [
    ({"dst": "10.9.0.0/16", "gateway": "10.168.0.2", "dev": "eth0", "metric": 7},
     "10.9.0.0/16 via 10.168.0.2 dev eth0 metric 7"),
    ({"dst": "default", "gateway": "10.168.0.2", "dev": "eth0", "table": "77"},
     "default via 10.168.0.2 dev eth0 table 77"),
    ({"type": "blackhole", "dst": "10.9.0.0/16"}, "blackhole 10.9.0.0/16"),
    ({"dst": "10.9.0.1", "dev": "eth0", "scope": "link", "protocol": "static"},
     "10.9.0.1 dev eth0"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "text"), ROUTES)
def test_routes_by_hand(entry: Mapping[str, Any], text: str, hands: Hands, looks: Looks) -> None:
    looks.routes.append(entry)
    looks.install(hands, "b")
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["routes"] == ["10.7.0.0/16 via 10.168.0.2", text]


@pytest.mark.parametrize(
    "entry",
    [
        {"dst": "10.9.0.0/16", "dev": "eth0", "protocol": "bgp"},
        {"dst": "10.9.0.0/16", "dev": "docker0"},
        {"dst": "10.168.0.3", "dev": "eth0", "table": "local", "type": "local"},
    ],
)
def test_routes_of_others_are_not_saved(
    entry: Mapping[str, Any], hands: Hands, looks: Looks
) -> None:
    looks.routes = [entry]
    looks.install(hands, "a")
    data, comments = saved(hands)
    assert comments == []
    assert "routes" not in data["nodes"]["a"]


def test_the_way_to_the_gateway_is_not_saved(hands: Hands, looks: Looks) -> None:
    """`up` sets the default route of a node on a network with a gateway."""
    head = TEXT.partition("containers:")[0]
    hands("down", "plain")
    hands.up(head + "  gw: {networks: {lan: 10.168.0.1}, gateway: true}\n")
    looks.routes, looks.rules = [], []
    looks.install(hands, "gw")
    looks.routes = [{"dst": "default", "gateway": "10.168.0.1", "dev": "eth0"}]
    looks.install(hands, "a")
    data, comments = saved(hands)
    assert comments == []
    assert "routes" not in data["nodes"]["a"]


def test_a_route_that_no_file_can_say(hands: Hands, looks: Looks) -> None:
    looks.routes.append(
        {"dst": "10.9.0.0/16", "dev": "eth0", "encap": "mpls", "metric": 5, "src": 1}
    )
    looks.routes.append({"type": "strange", "dst": "10.9.0.0/16"})
    looks.install(hands, "b")
    _, comments = saved(hands)
    assert comments == ["ip -4 route add strange 10.9.0.0/16, on b"]


def test_routes_and_rules_that_were_removed(hands: Hands, looks: Looks) -> None:
    looks.routes, looks.rules = [CONNECTED], [FIRST]
    looks.install(hands, "b")
    data, comments = saved(hands)
    assert (data["nodes"]["b"], comments) == ({"networks": {"lan": "10.168.0.3"}}, [])


def test_rules_by_hand(hands: Hands, looks: Looks) -> None:
    looks.rules.append({"priority": 99, "src": "10.168.0.0", "srclen": 24, "table": "77"})
    looks.install(hands, "b")
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["rules"][1:] == ["from 10.168.0.0/24 lookup 77 priority 99"]


def test_sysctls_that_differ_from_those_of_a_new_namespace(hands: Hands, looks: Looks) -> None:
    looks.sysctls |= {
        "net.ipv4.ip_forward": "1", "net.ipv4.conf.all.forwarding": "1",
        "net.ipv4.ip_default_ttl": "9", "net.ipv4.conf.eth0.rp_filter": "2",
        "net.ipv4.tcp_fastopen_key": "random", "net.ipv4.conf.docker0.rp_filter": "1",
    }  # fmt: skip
    looks.install(hands, "b")
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["forward"] is True
    assert data["nodes"]["b"]["sysctls"] == {
        "net.ipv4.ip_default_ttl": 9, "net.ipv4.conf.eth0.rp_filter": 2,
    }  # fmt: skip


def test_sysctls_that_cannot_be_compared(hands: Hands, looks: Looks) -> None:
    looks.fresh = {}
    looks.install(hands, "b")
    assert saved(hands)[1] == ["b: sysctls were not compared, it has no unshare(1)"]


@pytest.mark.parametrize(
    ("there", "value"),
    [
        (("10.168.0.33/24",), "10.168.0.33"),
        (("10.168.0.3/24", "10.168.0.33/24"), {"addresses": ["10.168.0.3", "10.168.0.33"]}),
        (("10.168.0.44/24", "10.168.0.3/24"), {"addresses": ["10.168.0.3", "10.168.0.44"]}),
        (("10.168.0.3/24", "192.0.2.1/30"), {"addresses": ["10.168.0.3", "192.0.2.1/30"]}),
    ],
)
def test_addresses_of_a_port(there: tuple[str, ...], value: Any, hands: Hands) -> None:
    hands.node("b").wiring.addresses["eth0"] = there
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["networks"] == {"lan": value}


def test_another_subnet_of_the_lab(hands: Hands, looks: Looks) -> None:
    """The old routes are invalid with the new address, and the new one with the old address."""
    looks.routes = [{"dst": "10.9.0.0/16", "gateway": "10.168.0.200", "dev": "eth0"}]
    looks.install(hands, "b")
    hands.node("b").wiring.addresses["eth0"] = ("10.168.0.33/24",)
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["networks"] == {"lan": "10.168.0.33"}
    assert data["nodes"]["b"]["routes"] == ["10.9.0.0/16 via 10.168.0.200 dev eth0"]


WIRED = """\
name: plain
links:
  - {ends: ["a:eth1", "b:eth1"], subnet: 10.0.0.0/30, subnet6: "fd00::/64", mtu: 1400}
  - ["b:eth2", "c:eth1"]
nodes: {a: {}, b: {run: [ip address add 10.7.0.1/24 dev eth2]}, c: {}}
"""


def test_addresses_of_the_ends_of_links(hands: Hands) -> None:
    hands.bench.provider.destroy("plain")
    hands.up(WIRED)
    looks = Looks()
    looks.routes, looks.rules = [], []
    for name in ("a", "b", "c"):
        looks.install(hands, name)
    data, comments = saved(hands)
    before = load_text(WIRED, "x").to_dict()
    assert (data["links"], comments) == (before["links"], []), "nothing has changed"
    hands.node("a").wiring.addresses["eth1"] = ("10.0.0.1/30", "10.0.0.9/30", "fd00::1/64")
    hands.node("b").wiring.addresses["eth1"] = ("10.0.0.2/30", "fd00::2/64")
    hands.node("c").wiring.addresses["eth1"] = ("10.7.0.2/24",)
    hands.node("b").wiring.addresses["eth2"] = ("10.7.0.1/24",)
    data, comments = saved(hands)
    assert comments == []
    assert data["links"] == [
        {
            "ends": ["a:eth1", "b:eth1"],
            "addresses": [["10.0.0.1/30", "fd00::1/64", "10.0.0.9/30"],
                          ["10.0.0.2/30", "fd00::2/64"]],
            "mtu": 1400,
        },
        {"ends": ["b:eth2", "c:eth1"], "addresses": [[], "10.7.0.2/24"]},
    ], "and what the node's own command does is not said twice"  # fmt: skip
    again = load_data(data, "saved")
    assert again.to_dict() == data
    (port,) = again.nodes["a"].ports
    assert [*map(str, port.subnetted)] == ["10.0.0.1/30", "10.0.0.9/30", "fd00::1/64"]


def test_ipv6_addresses_of_ports(hands: Hands) -> None:
    hands.bench.provider.destroy("plain")
    hands.up(PLAIN.replace("0.0/24}", '0.0/24, subnet6: "fd00::/64"}'))
    looks = Looks()
    looks.fresh["net.ipv6.conf.default.accept_ra"] = "1"
    looks.sysctls["net.ipv6.conf.eth0.accept_ra"] = "0"
    looks.install(hands, "b")
    data, comments = saved(hands)
    assert comments == [], "those of the file"
    assert "sysctls" not in data["nodes"]["b"], "what `up` sets with them"
    assert data["nodes"]["b"]["networks"] == {"lan": "10.168.0.3"}
    hands.node("b").wiring.addresses["eth0"] = ("10.168.0.3/24", "fd00::3/64", "fd00::33/64")
    data, comments = saved(hands)
    assert comments == []
    assert data["nodes"]["b"]["networks"] == {
        "lan": {"addresses": ["10.168.0.3", "fd00::3", "fd00::33"]}
    }


def test_what_no_file_can_say_of_links(hands: Hands, looks: Looks) -> None:
    looks.links += [
        {"ifname": "br7", "linkinfo": {"info_kind": "bridge"}},
        {"ifname": "br-0123456789ab", "linkinfo": {"info_kind": "bridge"}},
    ]
    looks.queues = [{"dev": "eth0", "kind": "netem", "options": {"limit": 1}}, {"kind": "noqueue"}]
    looks.install(hands, "b")
    _, comments = saved(hands)
    assert sorted(comments) == [
        "ip link add br7 type bridge, on b",
        'tc qdisc add dev eth0 root netem, on b: {"limit": 1}',
    ]


def test_programs_that_print_nothing_of_links(hands: Hands) -> None:
    """The tc(8) of an image may be missing, and its ip(8) may print no JSON."""
    hands.bench.provider.script(["sh", "-c", saving.LOOK], Answer(out=b"\0" * 4), "b")
    data, _ = saved(hands)
    assert data["nodes"]["b"]["networks"] == {"lan": "10.168.0.3"}


def test_active_faults_get_names(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Seen(parse(words.split()), "") for words in ("loss a:b 20%", "kill a/dockerd")]
    monkeypatch.setattr(Faults, "in_force", lambda _: found)
    data, comments = saved(hands)
    assert (data["faults"], comments) == ({"saved-1": "loss a:b 20%"}, [])


def test_what_the_nodes_own_commands_do_is_not_saved_twice(
    hands: Hands, looks: Looks, engine: Engine
) -> None:
    """`up` of the file would do it once by the key and once by the command, which fails."""
    commands = [
        "ip link add br7 type bridge", "ip route add 10.9.0.0/16 dev eth0",
        "ip rule add from 10.168.0.9 lookup 77",
    ]  # fmt: skip
    inside = json.dumps(["docker run -d --name other nginx"])
    text = TEXT.replace("rules: [lookup 7]", f"rules: [lookup 7], run: {json.dumps(commands)}")
    assert hands("down", "plain", "-q").status == 0
    hands.up(text.replace("roles: [docker]", f"roles: [docker], run: {inside}"))
    looks.links.append({"ifname": "br7", "linkinfo": {"info_kind": "bridge"}})
    looks.links.append({"ifname": "br77", "linkinfo": {"info_kind": "bridge"}})
    looks.routes.append({"dst": "10.9.0.0/16", "dev": "eth0"})
    looks.rules.append({"priority": 99, "src": "10.168.0.9", "table": "77"})
    looks.install(hands, "b")
    engine.run("other")
    data, comments = saved(hands)
    assert comments == ["ip link add br77 type bridge, on b"]
    assert data["nodes"]["b"]["routes"] == ["10.7.0.0/16 via 10.168.0.2"]
    assert data["nodes"]["b"]["rules"] == ["lookup 7"]
    assert [*data["containers"]] == ["web"]


# -- Docker ---------------------------------------------------------------------------------


def test_a_container_by_hand(hands: Hands, engine: Engine) -> None:
    engine.run("Odd_Name")
    engine.run(
        "other",
        config={
            "Cmd": ["go", "-x"], "Env": ["PATH=/bin", "A=b=c"], "User": "web", "Hostname": "me",
        },
        host={
            "NetworkMode": "front", "CapAdd": ["CAP_NET_ADMIN"], "Binds": ["data:/srv:ro"],
            "PortBindings": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}],
                             "53/udp": [{"HostIp": "10.168.0.2", "HostPort": "53"}]},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        },
        networks={"front": {"IPAMConfig": {"IPv4Address": "172.30.0.10"}}},
    )  # fmt: skip
    engine.networks.append(
        {
            "Name": "front", "Driver": "bridge", "Internal": False, "EnableIPv6": False,
            "IPAM": {"Config": [{"Subnet": "172.30.0.0/24", "Gateway": "172.30.0.1"}]},
        }
    )  # fmt: skip
    data, comments = saved(hands)
    assert comments == []
    assert data["containers"]["odd-name"] == {"node": "a", "image": "nginx", "network": "bridge"}
    assert data["containers"]["other"] == {
        "node": "a", "image": "nginx", "command": ["go", "-x"], "env": {"A": "b=c"}, "user": "web",
        "hostname": "me", "cap_add": ["NET_ADMIN"], "volumes": ["data:/srv:ro"],
        "publish": ["8080:80/tcp", "10.168.0.2:53:53/udp"], "restart": "on-failure:3",
        "networks": {"front": {"ipv4_address": "172.30.0.10"}},
    }  # fmt: skip
    assert data["docker"]["networks"]["front"] == {
        "driver": "bridge", "subnet": "172.30.0.0/24", "gateway": "172.30.0.1",
        "nodes": ["a"],
    }  # fmt: skip


def test_limits_and_labels_of_a_container_by_hand(hands: Hands, engine: Engine) -> None:
    """Labels of the image are there without the file's."""
    engine.image["Labels"] = {"of": "image", "both": "image"}
    labels = {"of": "image", "both": "container", "own": "x"}
    engine.run("other", config={"Labels": labels}, host={"Memory": 64 << 20, "PidsLimit": 9})
    data, comments = saved(hands)
    assert comments == []
    found = load_data(data, "saved").containers["other"]
    assert found.labels == {"both": "container", "own": "x"}
    assert (found.mem_limit, found.pids_limit) == (64 << 20, 9)


@pytest.mark.parametrize(
    ("mode", "network"),
    [("host", "host"), ("none", "none"), ("container:" + "web" * 12, "container:web")],
)
def test_modes_of_a_container(mode: str, network: str, hands: Hands, engine: Engine) -> None:
    engine.run("other", host={"NetworkMode": mode}, config={"Hostname": "a"})
    data, comments = saved(hands)
    assert comments == []
    assert data["containers"]["other"]["network"] == network


def test_what_no_file_can_say_of_containers(hands: Hands, engine: Engine) -> None:
    engine.run("other", config={"Image": "sha256:no name"})
    engine.run("mounted", host={"Mounts": [{"Type": "bind"}]})
    engine.networks.append({"Name": "far", "Driver": "strange"})
    _, comments = saved(hands)
    assert sorted(comments) == [
        "docker network create --driver strange far on a",
        "docker run --name other sha256:no name on a",
        "mounts of docker run --name mounted nginx on a",
    ]


def test_containers_of_others_are_theirs(hands: Hands, engine: Engine) -> None:
    engine.containers.append(engine.entry("c", labels={"com.docker.compose.project": "x"}))
    stopped = engine.entry("s")
    engine.containers.append({**stopped, "State": "exited"})
    assert [*saved(hands)[0]["containers"]] == ["web"]


def test_a_container_that_was_removed(hands: Hands, engine: Engine) -> None:
    engine.containers.clear()
    assert "containers" not in saved(hands)[0]


def test_a_daemon_that_does_not_answer_is_told(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "request", lambda *_: (500, b'{"message": "broken"}'))
    _, comments = saved(hands)
    assert len(comments) == 1
    assert "broken" in comments[0]


# -- the command ------------------------------------------------------------------------------


def test_to_a_file_and_as_data(hands: Hands, tmp_path: Path) -> None:
    said = hands("save", "plain", "-o", str(tmp_path / "out.yaml"))
    assert (said.status, said.out) == (0, "")
    assert load_text((tmp_path / "out.yaml").read_text(), "x").name == "plain"
    data = json.loads(hands("save", "plain", "--json").out)
    assert data["unsaid"] == []
    assert data["topology"]["name"] == "plain"


def test_a_folder_that_does_not_exist(hands: Hands, tmp_path: Path) -> None:
    assert hands("save", "plain", "-o", str(tmp_path / "nosuch" / "out.yaml")).status == 2


def test_relative_paths_are_told(hands: Hands, tmp_path: Path) -> None:
    """Relative to the folder of the first file, so the saved one belongs there."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "lab.yaml"
    own = "roles: [docker], binds: [./data:/srv/data]"
    text = TEXT.replace("name: plain", "name: beside").replace("roles: [docker]", own)
    file.write_text(text)
    assert hands("up", str(file), "-q").status == 0
    said = hands("save", "beside")
    assert said.status == 0
    assert f"keep this file in {tmp_path}" in said.out


def test_a_lab_that_is_not_whole(hands: Hands) -> None:
    hands.bench.provider.destroy("plain", ["b"])
    assert hands("save", "plain").status == 4


def test_a_record_of_another_tool_is_refused(hands: Hands) -> None:
    state = hands.bench.state
    record = state.read("plain")
    assert record is not None
    attached = {**record.topology, "foreign": {"format": "x", "attached": "there"}}
    state.write(dataclasses.replace(record, topology=attached))
    assert hands("save", "plain").status == 2


def test_a_dollar_sign_stays_one() -> None:
    """In a file it begins a variable."""
    data = {"name": "t", "description": "${HOME} $(x)", "nodes": {"a": {}}}
    text = saving.Saved(data, ["what $X was"]).text()
    assert load_text(text, "saved").description == "${HOME} $(x)"


def test_what_testbed_sets_for_ipv6_is_not_saved(hands: Hands, looks: Looks) -> None:
    """The file's subnet6 gives a node a default route, and its ports and roles settings."""
    six = TEXT.replace("/24}", '/24, subnet6: "fd00:1::/64"}').replace(
        "[docker]", "[etcd, flannel]"
    )
    gateway = "  gw: {networks: {lan: 10.168.0.1}, gateway: true}\nflannel: {ipv6: {}}\n"
    text = six.partition("containers:")[0] + gateway
    looks.routes6 = [{"dst": "default", "gateway": "fd00:1::1", "dev": "eth0"}]
    looks.routes, looks.rules = [], []
    names = ("net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.default.accept_dad")
    looks.sysctls |= {**dict.fromkeys(names, "0"), "net.ipv6.conf.eth0.autoconf": "0"}
    fresh = ("accept_ra", "accept_dad", "autoconf")
    looks.fresh |= {f"net.ipv6.conf.default.{one}": "1" for one in fresh}
    hands("down", "plain")
    hands.up(text)
    for node in ("a", "b"):
        looks.install(hands, node)
    looks.routes6 = []
    looks.install(hands, "gw")
    data, comments = saved(hands)
    assert comments == []
    assert "routes" not in data["nodes"]["a"]
    assert data["nodes"]["a"]["sysctls"] == {"net.ipv6.conf.eth0.autoconf": 0}
    # A node without the role has the port's setting alone.
    assert data["nodes"]["b"]["sysctls"] == {
        "net.ipv6.conf.default.accept_dad": 0, "net.ipv6.conf.eth0.autoconf": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("destination", "inside"),
    [
        ("100.96.2.0/24", True),
        ("100.96.0.0/16", True),
        ("100.96.0.0/12", False),
        ("10.0.0.0/24", False),
        ("fd00::/64", False),
        ("default", False),
    ],
)
def test_routes_of_an_overlay_are_its_roles(destination: str, *, inside: bool) -> None:
    assert saving._is_in(destination, "100.96.0.0/16") is inside
