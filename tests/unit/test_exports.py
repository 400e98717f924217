"""Exports: complete by construction, and right where their text is read; their tools run live."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.shell_completion import CompletionItem, ShellComplete
from exported import ODD

from testbed import cli
from testbed.errors import LabError, MachineError, NoSuchLab, UsageError
from testbed.exports.base import ALWAYS, Export, Exported, LeftOut, Subject, dump
from testbed.exports.mermaid import label
from testbed.labs.lab import Lab
from testbed.nodes.base import Login, NodeSpec
from testbed.nodes.fake import Answer, FakeNode
from testbed.nodes.ssh import sshd
from testbed.nodes.ssh.keys import pair
from testbed.nodes.ssh.node import SshNode
from testbed.nodes.stream.container import ContainerNode
from testbed.nodes.vagrant.export import ruby
from testbed.registry import EXPORTS
from testbed.testing.fakes import FakeStore, declare
from testbed.topology import load, load_data, load_text, names

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

#: Formats that need no running lab.
OF_FILES = ("compose", "containerlab", "mermaid", "netlab", "vagrant")
OF_LABS = ("ansible", "ssh-config")


def no_nodes() -> Mapping[str, Node]:
    raise NoSuchLab("not up")


def subject(topology: Topology, nodes: Callable[[], Mapping[str, Node]] = no_nodes) -> Subject:
    return Subject(topology, nodes, FakeStore(), ("testbed",))


def odd() -> Topology:
    return load_text(ODD, "odd.yaml")


def exported(form: str, topology: Topology) -> tuple[str, dict[str, str]]:
    """The only file of an export, and what it leaves out: key to reason."""
    export = EXPORTS[form]
    done = export.export(subject(topology))
    (text,) = done.files.values()
    left_out = export.left_out(topology, done)
    return text, {key: one.reason for one in left_out for key in one.keys}


def test_ours_are_declared_like_those_of_others() -> None:
    assert {*OF_FILES, *OF_LABS} <= set(EXPORTS)
    assert all(EXPORTS[name].name == name for name in EXPORTS)


# -- nothing is left out in silence -----------------------------------------------------------


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, Mapping):  # an empty one, such as a node's, has no key
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def is_said(leaf: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    """Tell whether one of the keys is this one, or contains it."""
    forms = [re.escape(key).replace(r"\*", r"[^/]+").replace(r"\.", "/") for key in keys]
    return any(re.match(f"{form}(/|$)", "/".join(leaf)) for form in forms)


@pytest.mark.parametrize("form", [*EXPORTS])
@pytest.mark.parametrize("name", [*names(), "odd"])
def test_every_key_is_expressed_or_left_out_aloud(form: str, name: str) -> None:
    topology, export = odd() if name == "odd" else load(name), EXPORTS[form]
    said = (*ALWAYS, *export.says)
    left_out = [key for one in export.left_out(topology, Exported({})) for key in one.keys]
    for leaf in leaves(topology.to_dict()):
        told = is_said(leaf, tuple(left_out))
        assert told != is_said(leaf, said), leaf


@pytest.mark.parametrize("form", [*EXPORTS])
def test_no_format_says_a_key_that_does_not_exist(form: str) -> None:
    there = list(leaves(odd().to_dict()))
    there += [("networks", "lan"), ("links",), ("docker", "bip"), ("nodes", "a", "image")]
    there += leaves(foreign().to_dict())
    unknown = [key for key in EXPORTS[form].says if not any(is_said(one, (key,)) for one in there)]
    assert unknown == []


class Terse(Export):
    name = "terse"
    about = "a test"
    says = ("nodes.*.networks",)
    reasons = {"nodes.*.roles": "no software", "*": "no more"}  # noqa: RUF012  as in a user's class

    def export(self, subject: Subject) -> Exported:
        return Exported({"one": subject.topology.name, "two/three": "3\n"}, (LeftOut(("name",)),))


def test_left_out_keys_are_those_of_the_file_with_their_reason() -> None:
    topology = load("two-node")
    one, *rest = Terse().left_out(topology, Terse().export(subject(topology)))
    assert one == LeftOut(("description", "networks", "nodes.outside.gateway", "docker", "flannel",
                           "containers"), "no more")  # fmt: skip
    assert rest == [
        LeftOut(("nodes.node1.roles", "nodes.node2.roles"), "no software"),
        LeftOut(("name",)),
    ]
    assert str(rest[0]) == "nodes.node1.roles, nodes.node2.roles: no software"
    assert str(rest[1]) == "name"


# -- compose ----------------------------------------------------------------------------------


def composed(topology: Topology) -> tuple[dict[str, Any], dict[str, str]]:
    text, left_out = exported("compose", topology)
    return yaml.safe_load(text), left_out


def test_a_node_is_a_service_with_its_addresses_and_route() -> None:
    found, left_out = composed(load("two-node"))
    node, outside = found["services"]["node1"], found["services"]["outside"]
    assert node["networks"] == {"lan": {"ipv4_address": "10.168.0.2"}, "node1-docker0": {}}
    assert node["command"][-1] == "10.168.0.1"
    assert '"$$1"' in node["command"][2]
    assert node["cap_add"] == ["NET_ADMIN"]
    assert "cap_add" not in outside
    assert outside["sysctls"] == {"net.ipv4.ip_forward": 1}
    lan = found["networks"]["lan"]
    # The engine's bridge would take the first address, which is a node's.
    assert lan["ipam"]["config"] == [{"subnet": "10.168.0.0/24", "gateway": "10.168.0.254"}]
    assert lan["internal"] is True
    docker0 = {"subnet": "100.96.1.0/24", "gateway": "100.96.1.1"}
    assert found["networks"]["node1-docker0"]["ipam"]["config"] == [docker0]
    assert found["services"]["container-1"]["networks"] == ["node1-docker0"]
    assert {"flannel", "nodes.node1.roles"} <= left_out.keys()


def test_container_networks_are_those_of_compose() -> None:
    found, left_out = composed(load("docker-single"))
    modes = {name: one.get("network_mode") for name, one in found["services"].items()}
    assert modes == {
        "host": None, "outside": None, "nginx-1": None, "nginx-2": None, "web": None,
        "in-host-mode": "service:host", "in-none-mode": "none", "sidecar": "service:nginx-1",
    }  # fmt: skip
    assert found["services"]["web"]["ports"] == ["8080:80/tcp"]
    # docker0 of the lab has the range of docker0 of every engine.
    assert found["networks"]["host-docker0"] == {}
    assert "docker.bip.host" in left_out


def test_compose_interpolates_nothing_and_confuses_no_names() -> None:
    found, left_out = composed(odd())
    services = found["services"]
    assert services["end"]["network_mode"] == "none"  # the node without a network
    box = services["end-container"]
    assert box["command"] == ["sh", "-c", 'echo "$$X" "#{a}"; exec sleep 999']
    assert box["environment"] == {"A": "it's $$Y", "B": "22:22", "C": "1e3", "D": "08"}
    assert box["healthcheck"] == {
        "test": ["CMD", "test", "-n", "$$HOSTNAME"], "interval": "90s", "timeout": "500ms",
        "retries": 3,
    }  # fmt: skip
    assert services["host"]["cpus"] == 1.5
    assert services["host"]["mem_limit"] == 512 << 20
    full = found["networks"]["full"]  # without an address for the engine's bridge
    assert "gateway" not in full["ipam"]["config"][0]
    assert "isolated" in full["driver_opts"].values()
    # One machine publishes a port once, and does not have the nodes' addresses.
    assert (box["ports"], services["web"]["ports"]) == (["2222:22/tcp", "8080:80/udp"], ["22/tcp"])
    assert {"containers.web.publish", "containers.end.publish"} <= left_out.keys()


def test_compose_has_docker_networks_and_options_of_containers() -> None:
    found, left_out = composed(odd())
    many = found["services"]["many"]
    assert many["networks"] == {
        "host-front": {
            "ipv4_address": "172.27.0.20",
            "ipv6_address": "fd00:31::20",
            "mac_address": "02:00:00:00:00:20",
            "aliases": ["end"],
        },
        "host-end": {},
        "host-docker0": {},
    }
    assert found["networks"]["host-end"] == {
        "driver": "bridge", "internal": True, "attachable": True,
    }  # fmt: skip
    front = found["networks"]["host-front"]
    assert (front["enable_ipv6"], front["ipam"]["config"]) == (
        True,
        [
            {"subnet": "172.27.0.0/24", "gateway": "172.27.0.9", "ip_range": "172.27.0.128/25"},
            {"subnet": "fd00:31::/64"},
        ],
    )
    assert many["hostname"] == "odd.example"
    assert many["labels"] == {"a.b/c": "50% of $$HOME"}
    assert many["ulimits"] == {"nofile": {"soft": 100, "hard": 200}, "core": 0}
    assert (many["cpus"], many["mem_limit"], many["pids_limit"]) == (0.5, 64 << 20, 50)
    assert (many["restart"], many["init"], many["user"]) == ("unless-stopped", True, "0:0")
    assert many["ports"] == ["9000-9002:90-92/udp", "9003:93/tcp"]
    # A volume is that of a node, whose files are not on this machine.
    assert many["volumes"] == ["host-data:/data", "host-data:/again:ro"]
    assert found["volumes"] == {"host-data": {}}
    assert "containers.many.volumes" in left_out
    bare = found["services"]["bare"]
    assert bare["networks"] == {"n-host-docker0": {"mac_address": "02:00:00:00:00:21"}}
    assert bare["privileged"] is True


def test_in_compose_a_container_on_a_link_of_a_node_is_on_its_network() -> None:
    found, left_out = composed(
        load_text(
            "name: t\nnetworks: {lan: {subnet: 10.0.0.0/29}}\n"
            "nodes: {a: {networks: {lan: 10.0.0.2}, roles: [docker]}}\n"
            "docker:\n  networks:\n"
            "    near: {driver: macvlan, subnet: 10.0.0.0/29, driver_opts: {parent: eth0}}\n"
            "    far: {driver: macvlan, driver_opts: {parent: d0}}\n"
            "containers:\n"
            "  c1: {node: a, networks: {near: {ipv4_address: 10.0.0.6}}}\n"
            "  c2: {node: a, networks: [far]}\n",
            "t",
        )
    )
    assert found["services"]["c1"]["networks"] == {"lan": {"ipv4_address": "10.0.0.6"}}
    # The bridge's own address is another one.
    assert found["networks"]["lan"]["ipam"]["config"][0]["gateway"] == "10.0.0.5"
    assert found["networks"]["a-far"] == {"driver": "macvlan"}
    assert "docker.networks.far.driver_opts.parent" in left_out
    assert "a-near" not in found["networks"]


def test_in_compose_an_overlay_is_one_network_for_all_nodes() -> None:
    text = (
        "name: t\nnetworks: {lan: {subnet: 10.0.0.0/29}}\nnodes:\n"
        "  a: {networks: {lan: 10.0.0.2}, roles: [docker]}\n"
        "  b: {networks: {lan: 10.0.0.3}, roles: [docker]}\n"
        "docker: {swarm: [a], networks: {x: {driver: overlay, attachable: true}}}\n"
        "containers: {c1: {node: a, networks: [x]}, c2: {node: b, networks: [x]}}\n"
    )
    found, left_out = composed(load_text(text, "t"))
    assert [found["services"][name]["networks"] for name in ("c1", "c2")] == [{"swarm-x": {}}] * 2
    assert found["networks"]["swarm-x"]["driver"] == "bridge"
    assert "docker.networks.x.driver" in left_out


def test_compose_publishes_no_port_of_two_ranges() -> None:
    head = "name: t\nnodes: {a: {roles: [docker], networks: {n: 10.0.0.2}}, b: {roles: [docker], "
    text = head + "networks: {n: 10.0.0.3}}}\nnetworks: {n: {subnet: 10.0.0.0/24}}\n"
    two = "containers: {c1: {node: a, publish: ['80-82:80-82']}, c2: {node: b, publish: ['82:1']}}"
    found, left_out = composed(load_text(text + two, "t"))
    assert found["services"]["c1"]["ports"] == ["80-82:80-82/tcp"]
    assert found["services"]["c2"]["ports"] == ["1/tcp"]
    assert "containers.c2.publish" in left_out


@pytest.mark.parametrize("text", [
    "1e3", "12345e67", "-1E+3", ".5e3", "1.e3", "08", "0o17", "0O17", "0X1f", "+0B1", "1_000",
    "12", "0x1f", "1.5", "yes", "null", "2026-11-30", "22:22", "0:0", "._", "-_9", "+_", "=",
])  # fmt: skip
def test_a_text_stays_a_text_for_every_reader_of_yaml(text: str) -> None:
    written = dump({"a": text})
    assert yaml.safe_load(written) == {"a": text}
    assert written == f"a: '{text}'\n"


@pytest.mark.parametrize(("value", "text"), [
    ("10.0.0.1", "10.0.0.1"), ("1e3x", "1e3x"), (".", "."), ("-", "'-'"), (12, "12"), (1.5, "1.5"),
    (1e30, "1.0e+30"),
])  # fmt: skip
def test_other_values_are_written_as_usual(value: object, text: str) -> None:
    assert dump({"a": value}) == f"a: {text}\n"


@pytest.mark.parametrize("form", OF_FILES)
def test_a_description_is_a_comment_and_no_more(form: str) -> None:
    about = "Costs\n{{ .Two }} ${THREE:?} $FOUR\x07\x85%%{init: {}}%%\u2028end"
    topology = replace(odd(), description=about)
    text, _ = exported(form, topology)
    (line,) = [line for line in text.splitlines() if "Costs" in line]
    if form == "netlab":  # a text of its own
        assert yaml.safe_load(text)["message"] == about
        return
    assert line.startswith(("# Costs", "%% Costs"))
    assert line.endswith("end")
    assert not re.search(r"\{\{|\$[\w{]|%\{|\x07", line)


# -- containerlab -----------------------------------------------------------------------------


def deployed(topology: Topology) -> tuple[dict[str, Any], dict[str, str]]:
    text, left_out = exported("containerlab", topology)
    return yaml.safe_load(text)["topology"], left_out


def test_a_network_of_two_is_a_link_and_one_of_more_a_switch() -> None:
    pair, left_out = deployed(load("docker-single"))
    assert list(pair["nodes"]) == ["host-node", "outside"]  # "host" is a word of containerlab
    assert [link["endpoints"] for link in pair["links"]] == [["host-node:eth0", "outside:eth0"]]
    assert pair["nodes"]["host-node"]["hostname"] == "host"
    assert "nodes.host" in left_out
    three, _ = deployed(load("two-node"))
    assert list(three["nodes"]) == ["node1", "node2", "outside", "switch-lan"]
    assert len(three["links"]) == 3
    ports = {link["endpoints"][1] for link in three["links"]}
    assert ports == {"switch-lan:port1", "switch-lan:port2", "switch-lan:port3"}
    joined = [line for line in three["nodes"]["switch-lan"]["exec"] if "master" in line]
    assert [line.split()[4] for line in joined] == ["port1", "port2", "port3"]
    assert three["nodes"]["node1"]["exec"] == [
        "ip address add 10.168.0.2/24 dev eth0", "ip route replace default via 10.168.0.1",
    ]  # fmt: skip


def test_an_image_of_a_node_is_that_of_its_container_whose_entry_point_does_not_run() -> None:
    text = 'name: t\nnodes: {a: {image: "alpine:3.20"}, b: {}}\n'
    found, left_out = deployed(load_text(text, "t"))
    assert found["nodes"]["a"] == {"image": "alpine:3.20", "entrypoint": "sleep infinity"}
    assert "image" not in found["nodes"]["b"]
    assert left_out == {}


def test_a_link_of_a_node_alone_is_a_dummy_and_names_do_not_collide() -> None:
    text = """\
name: t
networks: {lan: {subnet: 10.1.0.0/24}, one: {subnet: 10.2.0.0/24}, none: {subnet: 10.3.0.0/24}}
nodes:
  switch-lan: {networks: {lan: 10.1.0.2, one: 10.2.0.2}, cpus: 0.5, memory: 64M}
  b: {networks: {lan: 10.1.0.3}}
  c: {networks: {lan: 10.1.0.4}}
"""
    found, _ = deployed(load_text(text, "t"))
    assert list(found["nodes"]) == ["switch-lan", "b", "c", "switch-lan-1"]
    alone = {"node": "switch-lan", "interface": "eth1"}
    assert [link["endpoint"] for link in found["links"] if link.get("type")] == [alone]
    assert found["nodes"]["switch-lan"]["cpu"] == 0.5
    assert found["nodes"]["switch-lan"]["memory"] == f"{64 << 20}B"


# -- mermaid ----------------------------------------------------------------------------------

#: Lines of a flowchart (mermaid.js.org, "Flowcharts - Basic Syntax"); a label is in quotes, in
#: which a quote and a hash are entities.
TEXT = r'"(?:[^"#]|#\d+;)+"'
IDENT = r"[a-z]+\d+"
SHAPE = rf"(?:\(\[{TEXT}\]\)|\[\[{TEXT}\]\]|\[/{TEXT}/\]|\[{TEXT}\])"
LINES = {
    "start": r"flowchart TB",
    "comment": r"%% [^{].*",
    "vertex": rf"({IDENT}){SHAPE}",
    "subgraph": rf"subgraph ({IDENT})\[{TEXT}\]",
    "end": r"end",
    "edge": rf"({IDENT}) (?:---|-\. [a-z ]+ \.->|---\|{TEXT}\|) ({IDENT})",
}


@pytest.mark.parametrize("name", [*names(), "odd"])
def test_a_diagram_has_lines_of_the_grammar_and_edges_between_what_is_there(name: str) -> None:
    text, _ = exported("mermaid", odd() if name == "odd" else load(name))
    head, body = text.split("---\n")[1:]
    assert yaml.safe_load(head)["title"]
    defined, edges, depth = set(), [], 0
    for line in body.splitlines():
        kinds = {k: m for k, form in LINES.items() if (m := re.fullmatch(form, line.strip()))}
        assert len(kinds) == 1, line
        ((kind, found),) = kinds.items()
        depth += {"subgraph": 1, "end": -1}.get(kind, 0)
        assert depth in {0, 1}
        if kind in {"vertex", "subgraph"}:
            assert found[1] not in defined
            defined.add(found[1])
        elif kind == "edge":
            edges += [found[1], found[2]]
    assert depth == 0
    assert edges
    assert set(edges) <= defined


def test_a_label_cannot_end_itself() -> None:
    assert label('a"b#c;<x>&', "é_1") == '"a#34;b#35;c#59;#60;x#62;#38;<br/>é_1"'


# -- netlab and vagrant -----------------------------------------------------------------------


def test_netlab_gets_names_that_it_accepts() -> None:
    text, left_out = exported("netlab", odd())
    found = yaml.safe_load(text)
    assert re.fullmatch(r"[A-Za-z]\w{0,15}", found["name"])
    assert list(found["nodes"]) == ["n-host-1", "n-host", "n-1st", "end"]
    assert found["nodes"]["n-1st"]["device"] == "frr"
    lan = found["links"][0]
    assert lan["prefix"] == {"ipv4": "10.0.0.0/24"}
    assert lan["n-host-1"] == {"ipv4": "10.0.0.2/24"}
    assert lan["n-host"] == {"ipv4": "10.0.0.3/24"}
    assert [link["name"] for link in found["links"]] == ["lan", "full"]
    assert {"nodes.host", "nodes.1st", "name", "networks.lonely"} <= left_out.keys()


def test_ruby_reads_a_text_as_it_is() -> None:
    assert ruby("it's #{x} \\") == r"'it\'s #{x} \\'"


def test_vagrant_starts_the_owner_of_a_network_first() -> None:
    text, left_out = exported("vagrant", odd())
    runs = re.findall(r"docker\.run '([^']+)', image: '[^']+', args: '((?:\\.|[^'\\])*)'", text)
    order = [name for name, _ in runs]
    assert order.index("web") < order.index("side")
    arguments = dict(runs)["end"].replace("\\'", "'")
    assert shlex.split(arguments) == [
        "--network=bridge", "--publish=2222:22/tcp", "--publish=10.0.0.3:8080:80/udp",
        "--env=A=it's $Y", "--env=B=22:22", "--env=C=1e3", "--env=D=08",
        "--health-cmd=test -n '$HOSTNAME'", "--health-interval=90s", "--health-timeout=0.5s",
        "--health-retries=3",
    ]  # fmt: skip
    assert "ip: '10.0.0.2', netmask: '255.255.255.0'" in text
    assert re.findall(r"machine\.(cpus|memory) = (\d+)", text)[:2] == [
        ("cpus", "2"), ("memory", "512"),
    ]  # fmt: skip
    assert left_out["nodes.host.cpus"]
    assert "nodes.n-host.cpus" not in left_out  # a whole number


# -- nodes ------------------------------------------------------------------------------------


class Machine(FakeNode):
    """A node with an SSH server."""

    def login(self) -> Login:
        return Login(Path("/50%/key"), "ssh-ed25519 AAAA", lambda: 0, "admin")


def nodes(bench: Bench, topology: Topology, *, machines: str = "") -> Mapping[str, Node]:
    kinds = {name: Machine if name in machines.split() else FakeNode for name in topology.nodes}
    return {
        name: kind(bench.provider.machine, topology.name, NodeSpec(name, ""))
        for name, kind in kinds.items()
    }


def test_ssh_knows_the_node_by_its_key_alone(bench: Bench) -> None:
    topology = load("two-node")
    there = nodes(bench, topology, machines="node1 node2 outside")
    done = EXPORTS["ssh-config"].export(subject(topology, lambda: there))
    (text,) = done.files.values()
    blocks = {
        block.splitlines()[0]: dict(line.strip().split(" ", 1) for line in block.splitlines()[1:])
        for block in text.split("\nHost ")[1:]
    }
    assert list(blocks) == ["node1", "node2", "outside"]
    one = blocks["node1"]
    assert one["HostName"] == "10.168.0.2"
    assert one["User"] == "admin"
    assert one["IdentityFile"] == '"/50%%/key"'  # a percent sign begins a token
    assert one["ProxyCommand"] == "testbed proxy -l two-node node1"
    assert one["StrictHostKeyChecking"] == "yes"
    alias = one["HostKeyAlias"]
    assert one["KnownHostsCommand"] == f"/bin/echo {alias} ssh-ed25519 AAAA"
    assert alias != blocks["node2"]["HostKeyAlias"]


@pytest.mark.parametrize("form", OF_LABS)
def test_the_description_of_a_running_lab_is_a_comment(bench: Bench, form: str) -> None:
    topology = replace(load("two-node"), description="Costs\nHost *\n")
    done = EXPORTS[form].export(subject(topology, partial(nodes, bench, topology)))
    (line,) = [one for one in next(iter(done.files.values())).splitlines() if "Costs" in one]
    assert line == "# Costs Host *"


def test_a_node_without_a_server_gets_its_keys_once(bench: Bench) -> None:
    topology = load("two-node")
    node = nodes(bench, topology)["node1"]
    bench.provider.script(["sh", "-c", "command -v sshd"], Answer(out=b"/usr/sbin/sshd\n"))
    first = sshd.login(node, bench.store)
    again = sshd.login(node, bench.store)
    assert first.host_key == again.host_key
    assert node.get(sshd.HOST) != node.get(sshd.KEY)
    assert node.get(sshd.AUTHORIZED).startswith(b"ssh-ed25519 ")
    assert isinstance(node, FakeNode)
    secret = (sshd.KEY, sshd.HOST, sshd.AUTHORIZED)
    assert {node.modes[path] for path in secret} == {0o600}


def test_a_secret_of_a_node_at_the_end_of_a_stream_is_on_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    node = SshNode("a", "", socket.socket, key=tmp_path, host_key="", agent=Path, folder=folder)
    for data in (b"one", b"two"):
        node.keep(data, sshd.KEY)
        assert node.kept(sshd.KEY).read_bytes() == data
    assert node.kept(sshd.KEY).stat().st_mode & 0o777 == 0o600
    assert node.kept(sshd.KEY).parent == folder


def test_a_secret_of_a_container_is_in_it() -> None:
    nothing: Any = None
    node = ContainerNode(
        "a", "", lab="x", pid=7, start=nothing, agent=str, alive=bool, place=str, init=Path
    )  # fmt: skip
    assert node.kept(sshd.KEY) == Path(node.socket(sshd.KEY))


def test_a_node_that_can_have_no_server_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes(bench, load("two-node"))["node1"]
    monkeypatch.setattr(FakeNode, "shares_files", False)
    bench.provider.script(["sh", "-c", "command -v sshd"], Answer(127))
    with pytest.raises(MachineError) as lacking:
        sshd.login(node, bench.store)
    assert lacking.value.missing == (sshd.PROGRAM,)
    assert lacking.value.hint


def test_keys_are_pairs() -> None:
    private, public = pair()
    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert public.startswith("ssh-ed25519 ")
    assert pair() != pair()


def test_ansible_reaches_each_node_in_its_way(bench: Bench) -> None:
    topology = load("two-node")
    there = nodes(bench, topology, machines="node2")
    done = EXPORTS["ansible"].export(subject(topology, lambda: there))
    assert list(done.files) == [
        "inventory.yml", "ansible.cfg", "ssh_config", "connection_plugins/testbed.py",
    ]  # fmt: skip
    every = yaml.safe_load(done.files["inventory.yml"])["all"]
    assert every["vars"]["testbed_lab"] == "two-node"
    assert every["hosts"]["node1"]["ansible_connection"] == "testbed"
    assert "ssh_config" in every["hosts"]["node2"]["ansible_ssh_common_args"]
    assert "Host node1\n" not in done.files["ssh_config"]
    groups = {name: list(group["hosts"]) for name, group in every["children"].items()}
    assert groups == {
        "role_etcd": ["node1"], "role_docker": ["node1", "node2"],
        "role_flannel": ["node1", "node2"],
    }  # fmt: skip
    # Ansible would use a connection to a host of this name in another lab for this one.
    assert "ControlMaster=no" in done.files["ansible.cfg"]
    compile(done.files["connection_plugins/testbed.py"], "testbed.py", "exec")


def test_ansible_needs_no_more_than_the_nodes_do(bench: Bench) -> None:
    topology = load("two-node")
    for machines, file in (("", "connection_plugins/testbed.py"),
                           (" ".join(topology.nodes), "ssh_config")):  # fmt: skip
        there = nodes(bench, topology, machines=machines)
        done = EXPORTS["ansible"].export(subject(topology, partial(dict, there)))
        assert list(done.files) == ["inventory.yml", "ansible.cfg", file]


# -- files of other tools ---------------------------------------------------------------------


def foreign() -> Topology:
    nodes: dict[str, Any] = {"R1_x": {"kind": "linux", "image": "frr:10"}, "end": {}}
    ends = [{"at": "R1_x", "interface": "eth1", "addresses": ["10.0.0.1/30", "2001:db8::1/64"]},
            {"at": "end", "interface": "eth1"}]  # fmt: skip
    out = [{"at": "end", "interface": "eth2"}, {"at": "br-1"}]
    return load_data(
        {
            "name": "theirs",
            "provider": "containerlab",
            "nodes": {name: {} for name in nodes},
            "foreign": {
                "format": "containerlab", "lab": "theirs", "file": "/theirs.clab.yml",
                "text": "name: theirs\n", "nodes": nodes,
                "links": [{"ends": ends}, {"ends": out}, {"ends": out}],
            },
        },
        "a record",
    )  # fmt: skip


def test_a_file_of_containerlab_stays_as_it_is() -> None:
    assert exported("containerlab", foreign()) == ("name: theirs\n", {})


def test_a_diagram_has_the_links_of_another_tools_file() -> None:
    text, left_out = exported("mermaid", foreign())
    lines = [line.strip() for line in text.splitlines()]
    assert lines[4:] == [
        'node1["R1_x<br/>frr:10"]', 'node2["end"]',
        'node1 ---|"eth1 10.0.0.1/30 2001:db8::1/64<br/>eth1"| node2',
        'place3(["br-1"])', 'node2 ---|"eth2"| place3', 'node2 ---|"eth2"| place3',
    ]  # fmt: skip
    assert left_out == {}


@pytest.mark.parametrize("form", ["compose", "netlab", "vagrant"])
def test_formats_without_its_links_refuse_it(form: str) -> None:
    with pytest.raises(UsageError) as refused:
        EXPORTS[form].check(foreign())
    assert refused.value.hint


@pytest.mark.parametrize("form", [*EXPORTS])
def test_own_files_are_never_refused(form: str) -> None:
    EXPORTS[form].check(odd())


# -- the command ------------------------------------------------------------------------------

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def testbed(state: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    del state

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.run(["export", *argv])
        return (status, *capsys.readouterr())

    return run


@pytest.mark.parametrize("form", OF_FILES)
def test_a_file_goes_to_standard_output_and_the_rest_to_standard_error(
    form: str, testbed: Said, tmp_path: Path
) -> None:
    status, out, err = testbed("two-node", "--to", form)
    assert status == 0
    assert "10.168.0.2" in out
    assert all(line.startswith("left out: ") for line in err.splitlines())
    assert "flannel" in err
    assert testbed("two-node", "--to", form, "-o", "-") == (0, out, err)
    file = tmp_path / "file"
    status, nothing, _ = testbed("two-node", "--to", form, "--output", str(file))
    assert (status, nothing, file.read_text()) == (0, "", out)


def test_no_file_is_overwritten_without_force(testbed: Said, tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    status, out, err = testbed("two-node", "--to", "compose", "-o", str(file))
    assert (status, out, file.read_text()) == (2, "", "mine")
    assert "--force" in err
    link = tmp_path / "link"
    link.symlink_to(file)
    assert testbed("two-node", "--to", "compose", "-o", str(link))[0] == 2
    assert testbed("two-node", "--to", "compose", "-o", str(file), "--force")[0] == 0
    assert "services" in file.read_text()


def test_a_folder_gets_the_files_under_their_own_names(testbed: Said, tmp_path: Path) -> None:
    assert testbed("two-node", "--to", "compose", "-o", str(tmp_path))[0] == 0
    assert (tmp_path / "compose.yaml").is_file()
    assert testbed("two-node", "--to", "netlab", "-o", f"{tmp_path}/new/")[0] == 0
    assert (tmp_path / "new" / "topology.yml").is_file()
    status, _, err = testbed("two-node", "--to", "compose", "-o", str(tmp_path))
    assert status == 2
    assert "compose.yaml" in err


def test_several_files_need_a_folder(
    testbed: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_exports.Terse", Terse, raising=False)
    declare(monkeypatch, EXPORTS, "terse", f"{__name__}:Terse")
    for output in ((), ("-o", "-")):
        status, out, err = testbed("two-node", "--to", "terse", *output)
        assert (status, out) == (2, "")
        assert "--output" in err
    file = tmp_path / "file"
    file.touch()
    assert testbed("two-node", "--to", "terse", "-o", str(file))[0] == 2
    assert testbed("two-node", "--to", "terse", "-o", str(tmp_path / "new"))[0] == 0
    assert (tmp_path / "new" / "two" / "three").read_text() == "3\n"
    assert testbed("two-node", "--to", "terse", "-o", str(tmp_path / "new"))[0] == 2


def test_as_data(testbed: Said, tmp_path: Path) -> None:
    status, out, err = testbed("two-node", "--to", "compose", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["lab"], found["format"]) == ("two-node", "compose")
    assert list(found["files"]) == ["compose.yaml"]
    assert ["flannel"] in [one["keys"] for one in found["left_out"]]
    assert testbed("two-node", "--to", "compose", "--json", "-o", str(tmp_path / "x"))[0] == 2


@pytest.mark.parametrize(
    "argv",
    [["two-node"], ["--to", "compose"], ["two-node", "--to", "compos"],
     ["two-nod", "--to", "vagrant"], ["no/such.yaml", "--to", "mermaid"],
     ["two-node", "--to", "compose", "-o", "no/such/x"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use(argv: list[str], testbed: Said, monkeypatch: pytest.MonkeyPatch,
                   tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = testbed(*argv)
    assert (status, out) == (2, "")
    assert err


def test_an_unknown_format_has_its_nearest(testbed: Said) -> None:
    assert "did you mean 'compose'?" in testbed("two-node", "--to", "compos")[2]
    assert "compose" in testbed("two-node", "--to", "qqq")[2]


@pytest.mark.parametrize("form", OF_LABS)
def test_hosts_are_those_of_a_running_lab(
    form: str, testbed: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    status, out, err = testbed("two-node", "--to", form, "-o", str(tmp_path / "new"))
    assert (status, out) == (NoSuchLab.exit_code, "")
    assert "testbed up" in err
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert testbed("two-node", "--to", form)[0] == MachineError.exit_code


@pytest.fixture
def running(bench: Bench, state: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The fakes, as the settings of the command."""
    del state
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("testbed.cli.common.make_settings", lambda **_: bench.settings)
    return bench


def test_a_running_lab_is_exported_as_it_was_created(running: Bench, testbed: Said) -> None:
    lan = "networks: {lan: {subnet: 10.7.0.0/24}}"
    topology = load_text(f"name: mine\n{lan}\nnodes: {{a: {{networks: {{lan: 10.7.0.9}}}}}}\n", "x")
    Lab("mine", running.settings).up(topology)
    status, out, err = testbed("mine", "--to", "compose")
    assert (status, err) == (0, "")
    assert "10.7.0.9" in out
    running.provider.script(["sh", "-c", "command -v sshd"], Answer(out=b"/usr/sbin/sshd\n"))
    status, out, _ = testbed("mine", "--to", "ssh-config")  # it came from no file
    assert status == 0
    (proxy,) = re.findall(r"ProxyCommand (.*)", out)
    # ssh may run with another home folder.
    places = {f"TESTBED_STATE={running.state.path}", f"TESTBED_CACHE={running.store.folder}"}
    assert places <= set(proxy.split())


def test_a_file_that_is_ahead_of_its_lab_has_no_hosts_yet(
    running: Bench, testbed: Said, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    text = "name: mine\nnodes: {a: {}}\n"
    file.write_text(text)
    Lab("mine", running.settings).up(load(file))
    running.provider.script(["sh", "-c", "command -v sshd"], Answer(out=b"/usr/sbin/sshd\n"))
    assert testbed(str(file), "--to", "ssh-config")[0] == 0
    file.write_text(text.replace("a: {}", "a: {}, b: {}"))
    status, _, err = testbed(str(file), "--to", "ssh-config")
    assert status == LabError.exit_code
    assert f"testbed up {file}" in err
    other = tmp_path / "other.yaml"
    other.write_text(text)
    assert testbed(str(other), "--to", "ssh-config")[0] == 2  # the lab came from another file


def test_formats_labs_and_topologies_are_completed(running: Bench) -> None:
    Lab("mine", running.settings).up(load_text("name: mine\nnodes: {a: {}}\n", "x"))

    def complete(*words: str, typed: str) -> list[str]:
        shell = ShellComplete(cli.cli, {}, "testbed", "_TESTBED_COMPLETE")
        items: list[CompletionItem] = shell.get_completions(["export", *words], typed)
        return [item.value for item in items if item.type == "plain"]

    assert complete("two-node", "--to", typed="com") == ["compose"]
    assert set(complete("two-node", "--to", typed="")) == set(EXPORTS)
    assert "two-node" in complete(typed="two")
    assert {"mine", "two-node"} <= set(complete(typed=""))


def test_help_tells_what_each_format_is(testbed: Said) -> None:
    status, out, _ = testbed("--help")
    assert status == 0
    for name, export in EXPORTS.items():
        assert re.search(rf"^  {name} +{re.escape(export.about)}$", out, re.MULTILINE), name
