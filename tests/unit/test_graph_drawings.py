"""Drawings of a lab's graph: parts of it, the tree, Mermaid, dot, and SVG as a file."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from commands import call
from report_runs import EVIL, graph, link, node

from testbed.cli import common
from testbed.labs.lab import Lab
from testbed.nodes.fake import Answer
from testbed.observe import inventory
from testbed.observe.graph import fold, layer, tunnels
from testbed.report import branches, diagrams, picture
from testbed.testing import Bench
from testbed.topology import load_text

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.fake import Call


def tree(drawn: Any, width: int = 100) -> list[str]:
    return [click.unstyle(line) for line in branches.lines(drawn, "lab", width=width)]


def machine(number: int, **more: Any) -> dict[str, Any]:
    """A node with a container behind a bridge and a tunnel to the others."""
    name = f"node{number}"
    inside = link("eth0", 5, "veth", f"10.1.{number}.2/24")
    links = [
        link("eth0", 2, "veth", f"10.0.0.{number}/24", joins="lan"),
        link("br0", 3, "bridge", f"10.1.{number}.1/24"),
        link("flannel.1", 4, "vxlan", f"10.1.{number}.0/32", vni=1, port=8472),
        link(f"veth{number * 7}", 6, "veth", master="br0"),
    ]
    routes = [{"to": "default", "via": "10.0.0.254", "dev": "eth0"}]
    routes += [
        {"to": f"10.1.{other}.0/24", "via": f"10.1.{other}.0", "dev": "flannel.1"}
        for other in range(1, 31)
        if other != number
    ]
    spaces = [
        {"name": f"c{number}", "kind": "container", "mode": "bridge", "links": [inside],
         "published": []}
    ]  # fmt: skip
    pairs = [[["", f"veth{number * 7}"], [f"c{number}", "eth0"]]]
    return node(name, links=links, routes=routes, spaces=spaces, pairs=pairs, **more)


def many(count: int = 30) -> dict[str, Any]:
    nodes = [machine(number, roles=["etcd"] * (number == 1)) for number in range(1, count + 1)]
    ports = [[one["name"], "eth0"] for one in nodes]
    networks = [{"name": "lan", "subnet": "10.0.0.0/24", "ports": ports}]
    overlay = {"name": "flannel", "backend": "vxlan", "network": "10.1.0.0/16",
               "device": "flannel.1", "port": 8472}  # fmt: skip
    services = [
        {"name": "default/web", "addresses": ["10.9.0.1"], "ports": ["80/tcp"],
         "backends": ["10.1.1.2:8080"]},
        {"name": "default/none", "addresses": [], "ports": [], "backends": []},
    ]  # fmt: skip
    return {"networks": networks, "nodes": nodes, "overlay": overlay, "wires": [],
            "services": services}  # fmt: skip


def evil() -> dict[str, Any]:
    """A graph with hostile texts for names, as another tool's file may have."""
    names = {"host": EVIL, "web": f'{EVIL}"\\', "lan": '"]; x -> y; "', "docker0": "end"}
    text = json.dumps(graph())
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    drawn: dict[str, Any] = json.loads(text)
    drawn["wires"] = [
        [{"at": EVIL, "interface": "eth0", "up": True}, {"at": "a b", "interface": "", "up": False}]
    ]
    return drawn


# -- layers ----------------------------------------------------------------------


def test_layers_share_no_device_and_leave_out_none() -> None:
    drawn = many(2)
    parts = [layer(drawn, which)["nodes"] for which in ("underlay", "overlay")]
    for whole, under, over in zip(drawn["nodes"], *parts, strict=True):
        names = [[one["name"] for one in part["links"]] for part in (whole, under, over)]
        assert names[1] == ["eth0"]
        assert sorted(names[1] + names[2]) == sorted(names[0])
        assert {one["dev"] for one in under["routes"]} == {"eth0"}
        assert {one["dev"] for one in over["routes"]} == {"flannel.1"}
        assert (under["spaces"], len(over["spaces"])) == ([], 1)
    assert layer(drawn, "overlay")["networks"] == []
    assert layer(drawn, "underlay")["services"] == []
    assert layer(drawn, "all") is drawn


def test_a_bridge_with_a_port_on_the_labs_network_belongs_to_the_underlay() -> None:
    links = [
        link("eth0", 2, "veth", joins="lan", master="br0"),
        link("br0", 3, "bridge", "10.0.0.1/24"),
    ]
    drawn = {"nodes": [node("a", links=links)], "networks": [], "overlay": None, "wires": []}
    assert len(layer(drawn, "underlay")["nodes"][0]["links"]) == 2
    assert layer(drawn, "overlay")["nodes"] == [], "nothing is built on it"


def test_tunnels_that_no_role_knows_are_overlays_too() -> None:
    drawn = many(2)
    assert [(one["name"], one["about"]) for one in tunnels(drawn)] == [
        ("flannel", "vxlan 10.1.0.0/16 · UDP 8472")
    ]
    drawn["overlay"] = None
    assert [(one["name"], one["about"]) for one in tunnels(drawn)] == [
        ("flannel.1", "vxlan 1 · UDP 8472")
    ]


# -- many nodes ------------------------------------------------------------------


def test_few_nodes_stay_as_they_are() -> None:
    names = [f"node{number}" for number in range(1, 9)]
    assert [one["name"] for one in fold(many(8))["nodes"]] == names


def test_nodes_of_one_kind_become_one() -> None:
    drawn = many()
    before = copy.deepcopy(drawn)
    found = fold(drawn)
    assert drawn == before
    assert [one["name"] for one in found["nodes"]] == ["node1", "node2", "node3 … node30"]
    crowd = found["nodes"][2]
    assert (crowd["like"], len(crowd["members"])) == ("node2", 28)
    assert crowd["members"][0] == {
        "name": "node3", "addresses": ["10.0.0.3/24"], "spaces": [["c3", "10.1.3.2/24"]],
    }  # fmt: skip
    (lan,) = found["networks"]
    assert lan["ports"] == [["node1", "eth0"], ["node2", "eth0"], ["node3 … node30", "eth0"]]


@pytest.mark.parametrize("what", ["error", "down", "container", "mtu", "vni", "route"])
def test_a_node_that_differs_is_shown_by_itself(what: str) -> None:
    drawn = many()
    odd = drawn["nodes"][9]
    if what == "error":
        odd["error"] = "does not answer"
    elif what == "down":
        odd["links"][0]["up"] = False
    elif what in ("mtu", "vni"):
        odd["links"][2][what] = 7
    elif what == "route":
        del odd["routes"][-1]
    else:
        odd["spaces"] = []
    names = [one["name"] for one in fold(drawn)["nodes"]]
    assert names == ["node1", "node2", "node3 … node30", "node10"]
    assert len(fold(drawn)["nodes"][2]["members"]) == 27


def test_many_routes_by_one_device_become_one() -> None:
    routes = fold(many(2))["nodes"][0]["routes"]
    assert routes == [
        {"to": "default", "via": "10.0.0.254", "dev": "eth0"},
        {"to": "10.1.2.0/24", "via": "10.1.2.0", "dev": "flannel.1"},
        {"to": "10.1.3.0/24 … 10.1.30.0/24", "via": "28 gateways", "dev": "flannel.1"},
    ]


# -- the tree --------------------------------------------------------------------


def test_the_tree_has_everything_once() -> None:
    lines = tree(graph())
    text = "\n".join(lines)
    assert lines[0].split() == ["lab", "2", "nodes"]
    for words in (
        "lan  10.168.0.0/24", "host  docker", "docker0  172.17.0.1/16  bridge",
        "veth1  ──  web  eth0 172.17.0.2/16  published 8080:80/tcp", "no link but lo",
        "network: the host's", "network of  web", "via 10.168.0.1  dev eth0", "outside  gateway",
    ):  # fmt: skip
        found = [re.sub(r" {2,}", "  ", line) for line in lines]
        assert sum(words in line for line in found) == 1, (words, text)


def test_a_container_is_below_its_bridge() -> None:
    lines = tree(many(1))
    (bridge,) = (index for index, line in enumerate(lines) if "br0" in line)
    assert re.search(r"^│  └─ veth7 +── +c1 +eth0 10.1.1.2/24$", lines[bridge + 1])


def test_namespaces_that_are_joined_directly_name_each_other() -> None:
    spaces = [
        {"name": name, "kind": "namespace", "links": [link("veth0", 2, "veth")]} for name in "ab"
    ]
    pairs = [[["a", "veth0"], ["b", "veth0"]]]
    drawn = {"nodes": [node("n", spaces=spaces, pairs=pairs)], "networks": [], "overlay": None}
    text = "\n".join(tree(drawn))
    assert "──  b:veth0" in text
    assert "──  a:veth0" in text


@pytest.mark.parametrize("width", [0, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("drawn", [graph(), many(), fold(many()), evil()])
def test_no_word_is_lost_on_a_narrow_terminal(drawn: Any, width: int) -> None:
    whole = " ".join(tree(drawn, 10_000)).split()
    lines = tree(drawn, width)
    words = " ".join(lines).replace("│", " ").replace("├─", " ").replace("└─", " ").split()
    assert words == [word for word in whole if word not in {"│", "├─", "└─"}]
    for line in lines:
        guide = re.match(r"[│├└─ ]*", line)
        assert guide is not None
        # Only a line of one word, which cannot be broken, may be longer.
        assert len(line) <= max(width, 40) or "  " not in line[guide.end() :], line


def test_what_is_down_or_silent_is_said() -> None:
    silent = node("b", error="b does not answer")
    drawn = {
        "nodes": [node("a", links=[link("eth0", 2, up=False)]), silent],
        "networks": [],
        "overlay": None,
        "wires": [[{"at": "a", "interface": "eth0", "up": False},
                   {"at": "b", "interface": "eth1", "up": True}]],
    }  # fmt: skip
    text = "\n".join(tree(drawn))
    assert re.search(r"a:eth0 +── +b:eth1 +down", text)
    assert re.search(r"eth0 +MTU 1500 +down", text)
    assert "b  b does not answer" in text


# -- other tools -----------------------------------------------------------------

TEXT = r'"(?:[^"#]|#\d+;)+"'
IDENT = r"[a-z]+\d+"
SHAPES = [r"\(\[{}\]\)", r"\[\[{}\]\]", r"\[/{}/\]", r"\[{}\]", r"\(\({}\)\)", r"\{{\{{{}\}}\}}",
          r"\({}\)"]  # fmt: skip
MERMAID = {
    "start": r"flowchart TB",
    "vertex": rf"({IDENT})(?:{'|'.join(shape.format(TEXT) for shape in SHAPES)})",
    "subgraph": rf"subgraph ({IDENT})\[{TEXT}\]",
    "end": r"end",
    "edge": rf"({IDENT}) (?:---|-\.-|-\.->)(?:\|{TEXT}\|)? ({IDENT})",
}
GRAPHS = {"few": graph(), "many": many(), "folded": fold(many()), "evil": evil(),
          "none": {"nodes": [], "networks": [], "overlay": None}}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_mermaid_has_lines_of_the_grammar_and_edges_between_what_is_there(name: str) -> None:
    head, body = diagrams.mermaid(GRAPHS[name], EVIL).split("---\n")[1:]
    assert yaml.safe_load(head) == {"title": EVIL}
    defined: set[str] = set()
    edges: set[str] = set()
    for line in body.splitlines():
        kinds = {k: m for k, form in MERMAID.items() if (m := re.fullmatch(form, line.strip()))}
        assert len(kinds) == 1, line
        ((kind, found),) = kinds.items()
        if kind in {"vertex", "subgraph"}:
            assert found[1] not in defined
            defined.add(found[1])
        elif kind == "edge":
            edges |= {found[1], found[2]}
    assert edges <= defined
    assert bool(edges) == (name != "none")


@pytest.mark.parametrize("name", GRAPHS)
def test_quotes_of_dot_are_closed_and_edges_are_between_what_is_there(name: str) -> None:
    text = diagrams.dot(GRAPHS[name], EVIL)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    assert bare.count('"') % 2 == 0
    assert bare.count("{") == bare.count("}")
    defined = set(re.findall(r'^ *(\w+) \[label=""', bare, re.MULTILINE))
    edges = re.findall(r"^ *(\w+) -> (\w+) ", bare, re.MULTILINE)
    assert {end for edge in edges for end in edge} <= defined
    assert bool(edges) == (name != "none")


@pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")
@pytest.mark.parametrize("name", GRAPHS)
def test_graphviz_draws_it_without_a_warning(name: str) -> None:
    said = subprocess.run(
        ["dot", "-Tsvg"],
        input=diagrams.dot(GRAPHS[name], EVIL),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert said.stderr == ""
    ET.fromstring(said.stdout)


def test_a_service_leads_to_the_containers_behind_it() -> None:
    made = diagrams.Diagram(many(2))
    items = {one.ident: one.lines[0] for one in made.items}
    inside = {one.ident: one.lines[0] for group in made.groups for one in group.items}
    arrows = [(items[e.one], inside[e.other]) for e in made.edges if e.line == "arrow"]
    assert arrows == [("default/web", "c1")]


# -- SVG as a file ---------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", GRAPHS)
def test_a_picture_in_a_file_needs_nothing_else(name: str) -> None:
    text = picture.page(GRAPHS[name], title=EVIL)
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "var(" not in text
    assert "url(" not in text
    style = root.findtext(f"{SVG}style") or ""
    classes = {word for one in root.iter() for word in one.attrib.get("class", "").split()}
    wanted = {word for word in classes if word.startswith("pic-")} - {"pic-network"}
    assert all(f".{word}" in style for word in wanted), wanted
    assert "prefers-color-scheme: dark" in style


def test_the_card_of_many_nodes_names_each_of_them() -> None:
    root = ET.fromstring(picture.page(fold(many()), title="many"))
    texts = [one.text or "" for one in root.iter(f"{SVG}text")]
    for number in range(3, 31):
        words = f"node{number} 10.0.0.{number} · c{number} 10.1.{number}.2"
        assert texts.count(words) == 1
    assert any("default/web" in text and "10.1.1.2:8080" in text for text in texts)
    width = float(root.attrib["width"])
    for one in root.iter(f"{SVG}rect"):
        if one.attrib["width"] != "100%":
            assert float(one.attrib["x"]) + float(one.attrib["width"]) <= width


# -- the command -----------------------------------------------------------------

PAIR = """
name: pair
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  one: {networks: {lan: 10.168.0.2}}
  two: {networks: {lan: 10.168.0.3}}
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.install(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)

    def answer(call: Call) -> Answer:
        shown = ["br-lan", "one", "two"] if call.node == "fabric" else ["eth0"]
        links = [
            {"ifname": name, "ifindex": index, "link_type": "ether", "flags": ["UP"]}
            for index, name in enumerate(shown, 2)
        ]
        return Answer(out=f"{inventory.SEPARATOR}links\n{json.dumps(links)}".encode())

    bench.provider.script(["sh", "-c"], answer)
    lab = Lab("pair", bench.settings)
    lab.up(load_text(PAIR, "pair.yaml"))
    yield bench
    lab.down()


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("--svg", "<svg"), ("--mermaid", "---"), ("--dot", "digraph"), ("--json", "{"),
        ("--layer=underlay", "pair, underlay"),
    ],
)  # fmt: skip
def test_each_format_goes_to_standard_output(
    pair: Bench, form: str, begins: str, tmp_path: Path
) -> None:
    said = call(tmp_path, "graph", "pair", form)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(begins)
    assert said.out.endswith("\n")
    assert "\n\n\n" not in said.out


@pytest.mark.parametrize(
    ("name", "begins"),
    [("a.svg", "<svg"), ("a.mmd", "---"), ("a.gv", "digraph"), ("a.json", "{"), ("a", "pair")],
)
def test_the_name_of_a_file_chooses_the_format(
    pair: Bench, name: str, begins: str, tmp_path: Path
) -> None:
    said = call(tmp_path, "graph", "-o", str(tmp_path / name))
    assert (said.status, said.out, said.err) == (0, "", "")
    assert (tmp_path / name).read_text().startswith(begins)


def test_json_has_all_that_was_found(pair: Bench, tmp_path: Path) -> None:
    found = json.loads(call(tmp_path, "graph", "pair", "--json").out)
    assert (found["format"], found["lab"]) == (inventory.FORMAT, "pair")
    eth0 = found["machines"][0]["spaces"][0]["links"][0]
    assert eth0["peer"] == {"machine": "fabric", "space": "", "link": "one"}


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["pair", "--json", "--full"], 2), (["pair", "--json", "--layer", "overlay"], 2),
        (["pair", "--layer", "physical"], 2), (["pare"], 4),
        (["pair", "-o", "/proc/none/a.svg"], 2),
    ],
)  # fmt: skip
def test_wrong_use(pair: Bench, argv: list[str], status: int, tmp_path: Path) -> None:
    said = call(tmp_path, "graph", *argv)
    assert (said.status, said.out) == (status, "")
    assert "Traceback" not in said.err
