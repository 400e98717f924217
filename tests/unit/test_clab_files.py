"""Topology files of containerlab: nodes, links, names, and containerlab's own words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.errors import TopologyError, UsageError
from testbed.nodes.containerlab import resolve, topofile, userfile
from testbed.nodes.containerlab.format import TopoFile
from testbed.process import Completed
from testbed.registry import FORMATS
from testbed.topology import load, load_data
from testbed.topology.tree import Problems

FRR = """\
name: frr01
topology:
  groups:
    routers: {kind: linux, image: "quay.io/frrouting/frr:10.5.1"}
    hosts: {kind: linux, image: multitool}
  nodes:
    router1: {group: routers, binds: [router1/frr.conf:/etc/frr/frr.conf]}
    router2: {group: routers}
    PC1: {group: hosts}
    br-1: {kind: bridge}
  links:
    - endpoints: ["router1:eth1", "router2:eth1"]
    - endpoints: ["PC1:eth1", "router1:eth3"]
    - endpoints: ["PC1:eth2", "br-1:p1"]
"""


def read(text: str) -> dict[str, Any]:
    problems = Problems("lab.clab.yml")
    found = topofile.read(text, Path("lab.clab.yml"), problems)
    if problems:
        raise problems.error()
    return found


def ends(text: str) -> list[list[Any]]:
    head = (
        "name: x\ntopology:\n  nodes: {a: {kind: linux}, b: {kind: linux}, s: {kind: nokia_srl}}\n"
    )
    links = read(f"{head}  links:\n{text}")["foreign"]["links"]
    return [
        [end["at"], end["interface"], *end.get("addresses", ())]
        for link in links
        for end in link["ends"]
    ]


def topology(layers: str) -> topofile.Definitions:
    lines = "".join(f"  {layer}\n" for layer in layers.split("; "))
    return topofile.Definitions(topofile.parse(f"topology:\n{lines}", Problems("x")))


@pytest.mark.parametrize("value", [
    "!!binary aGk=", "!!timestamp 2026-11-30", "!!set {a, b}", "!!omap [{a: b}]", "!!int 07",
    "!!null ''",
])  # fmt: skip
def test_tags_of_yaml_are_left_to_containerlab(value: str) -> None:
    text = FRR.replace("{group: routers}", f"{{group: routers, labels: {value}}}")
    found, plain = (read(one)["foreign"]["nodes"] for one in (text, FRR))
    assert found["router2"].pop("digest") != plain["router2"].pop("digest")
    assert found == plain


def test_nodes_links_and_images() -> None:
    found = read(FRR)
    assert found["name"] == "frr01"
    assert [*found["nodes"]] == ["router1", "router2", "PC1"]
    assert found["foreign"]["nodes"]["PC1"]["image"] == "multitool"
    assert found["foreign"]["nodes"]["router1"]["image"] == "quay.io/frrouting/frr:10.5.1"
    assert len(found["foreign"]["links"]) == 3
    whole = load_data(
        {**found, "foreign": {**found["foreign"], "format": "containerlab"}}, "a record"
    )
    assert whole.foreign is not None
    assert [str(peer) for _, peer in whole.foreign.ends_of("PC1")] == ["router1:eth3", "br-1:p1"]


@pytest.mark.parametrize(
    ("layers", "kind", "image"),
    [
        ("nodes: {n: {kind: Linux, image: own}}", "linux", "own"),
        ("defaults: {kind: linux, image: d}; nodes: {n: }", "linux", "d"),
        ("defaults: {group: g}; groups: {g: {kind: linux, image: g}}; nodes: {n: }", "linux", "g"),
        (
            "kinds: {linux: {image: k}}; defaults: {image: d}; nodes: {n: {kind: linux}}",
            "linux",
            "k",
        ),
        (
            "kinds: {linux: {image: k}}; groups: {g: {image: g}}; "
            "nodes: {n: {kind: linux, group: g}}",
            "linux",
            "g",
        ),
        (
            "kinds: {linux: {group: g}}; groups: {g: {image: g}}; nodes: {n: {kind: linux}}",
            "linux",
            "g",
        ),
        ("nodes: {n: {}}", "", ""),
    ],
)  # fmt: skip
def test_values_come_from_the_nearest_layer(layers: str, kind: str, image: str) -> None:
    found = topology(layers)
    assert (found.kind("n"), found.image("n")) == (kind, image)


MANY = """\
name: many
topology:
  defaults: {kind: linux}
  nodes:
    a: {}
    b: {network-mode: none}
    c: {network-mode: "container:a"}
    d: {network-mode: host}
    br: {kind: bridge}
    "br1|a": {kind: bridge}
  links:
    - endpoints: [a:eth1, b:eth1]
    - endpoints: [b:eth2, br:p2]
    - endpoints: [a:eth2, br:p1]
    - endpoints: [b:eth3, "br1|a:p3"]
    - endpoints: [b:eth4, mgmt-net:p4]
    - endpoints: [b:eth5, host:p5]
    - endpoints: [b:eth6, "macvlan:lo"]
"""


def test_networks_of_nodes_beside_their_links() -> None:
    found = topofile.Definitions(topofile.parse(MANY, Problems("x")))
    assert {name: found.networks(name) for name in "abcd"} == {
        "a": ["mgmt-net", "br", "br1|a:p3"],
        "b": ["br", "br1|a:p3", "mgmt-net"],
        "c": [],
        "d": [],
    }


def test_ports_and_direct_links_for_faults() -> None:
    whole = read(MANY)
    foreign = load_data(
        {**whole, "foreign": {**whole["foreign"], "format": "containerlab"}}, "a record"
    ).foreign
    assert foreign is not None
    assert userfile.ports(foreign, "a") == ["p1"]
    assert userfile.ports(foreign, "b") == ["p2", "p4"]
    assert userfile.direct(foreign, "a") == {"eth1": "b", "p3": "b"}
    assert userfile.direct(foreign, "b") == {"eth1": "a", "eth3": "a"}
    assert foreign.segments_of("a") & foreign.segments_of("b") == {
        "link 0", "br", "br1|a:p3", "mgmt-net",
    }  # fmt: skip
    assert not foreign.segments_of("c")


def test_scalars_are_texts_and_merges_are_made() -> None:
    text = "x: &x {kind: linux, image: 3.10}\ntopology: {nodes: {1: {<<: *x}, on: {<<: *x}}}\n"
    found = topofile.Definitions(topofile.parse(text, Problems("x")))
    assert found.nodes == ["1", "on"]
    assert found.image("on") == "3.10"


@pytest.mark.parametrize(
    ("link", "wanted"),
    [
        ('    - endpoints: ["a:eth1", "b:eth2"]', [["a", "eth1"], ["b", "eth2"]]),
        ("    - endpoints: [a:eth1, host:veth-a]", [["a", "eth1"], ["host", "veth-a"]]),
        (
            "    - endpoints: [a:e1, s:e1-1]\n      ipv4: [10.0.0.1/24, 10.0.0.2/24]\n"
            '      ipv6: ["", "2001:db8::2/64"]',
            [["a", "e1", "10.0.0.1/24"], ["s", "e1-1"]],
        ),
        (
            "    - type: veth\n      endpoints:\n"
            "        - {node: a, interface: e1, ipv4: 10.0.0.1/24, ipv6: 2001:db8::1/64}\n"
            "        - {node: b, interface: e1}",
            [["a", "e1", "10.0.0.1/24", "2001:db8::1/64"], ["b", "e1"]],
        ),
        (
            "    - type: host\n      host-interface: up\n      endpoint: {node: b, interface: e4}",
            [["b", "e4"], ["host", "up"]],
        ),
        ("    - type: dummy\n      endpoint: {node: b, interface: d}", [["b", "d"], ["dummy", ""]]),
        (
            "    - type: vxlan\n      remote: 10.0.0.9\n      vni: 7\n"
            "      endpoint: {node: a, interface: e1}",
            [["a", "e1"], ["vxlan 10.0.0.9", ""]],
        ),
        ("    - endpoints: [a:eth1]", []),
        ("    - nothing", []),
    ],
)
def test_links_of_each_form(link: str, wanted: list[list[str]]) -> None:
    assert ends(link) == wanted


def test_a_node_may_share_the_network_of_another_one() -> None:
    text = "name: x\ntopology:\n  nodes:\n    a: {kind: linux}\n"
    assert [*read(f"{text}    b: {{network-mode: container:a, kind: linux}}\n")["nodes"]] == [
        "a",
        "b",
    ]


def test_a_digest_is_of_all_that_concerns_a_node() -> None:
    before = {name: one["digest"] for name, one in read(FRR)["foreign"]["nodes"].items()}
    for old, new, changed in (
        ("group: hosts}", "group: hosts, env: {A: b}}", {"PC1"}),
        ("image: multitool", "image: other", {"PC1"}),
        ("router2:eth1", "router2:eth7", {"router1", "router2"}),
        ("name: frr01", "name: other", set()),
        ("name: frr01", "name: frr01\nprefix: x", {"router1", "router2", "PC1"}),
    ):
        after = {
            n: one["digest"] for n, one in read(FRR.replace(old, new))["foreign"]["nodes"].items()
        }
        assert {name for name in before if before[name] != after[name]} == changed, new


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("frr01", "frr01"), ("My_Lab", "my-lab"), ("2-linux-nodes", "2-linux-nodes"), ("__", "lab"),
     ("x" * 40, "x" * 30), ("", "lab")],
)  # fmt: skip
def test_names_of_labs(name: str, wanted: str) -> None:
    assert topofile.lab_name(name) == wanted


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\ntopology:\n  nodes: [\n", 4),
        ("name: x\n\ttopology: {}\n", 2),
        ("- a\n", 1),
        ("", 1),
        ("name: x\n", 0),
        ("name: x\ntopology: {nodes: {b: {kind: bridge}}}\n", 0),
        ("name: x\ntopology: []\n", 0),
        ("name: x\ntopology:\n  nodes:\n    e1: {kind: ext-container}\n", 4),
        (
            "name: x\ntopology:\n  nodes:\n    a: {kind: linux}\n"
            "    b: {kind: linux, network-mode: container:other}\n",
            5,
        ),
        ("name: !!python/object/apply:os.system [true]\ntopology: {nodes: {a: {}}}\n", 1),
    ],
)
def test_files_that_are_none(text: str, line: int) -> None:
    with pytest.raises(TopologyError) as error:
        read(text)
    (problem,) = error.value.problems
    assert problem.line == line


BANNER = "\n   ERROR  \n\n  {}   \n\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            "Failed to read topology file: yaml: unmarshal errors:\n  line 4: field imag not\n"
            "  found in type types.NodeDefinition line 6: field x not found.",
            [(4, "field imag not found in type types.NodeDefinition"), (6, "field x not found")],
        ),
        (
            "Failed to read topology file: yaml: line 3: did not find expected node",
            [(3, "did not")],
        ),
        ('Node "b" refers to kind "nosuch".', [(3, '"nosuch"')]),
        ("Something else.", [(0, "Something else.")]),
    ],
)
def test_containerlabs_words_have_lines(words: str, found: list[tuple[int, str]]) -> None:
    text = "name: x\ntopology:\n  b: nosuch\n"
    problems = Problems("x.clab.yml")
    resolve.explain(Completed((), 1, b"", BANNER.format(words).encode()), text, problems)
    seen = [(problem.line, problem.seen) for problem in problems.error().problems]
    assert [line for line, _ in seen] == [line for line, _ in found]
    assert all(part in said for (_, said), (_, part) in zip(seen, found, strict=True))


PROGRAM = """\
#!{python} -IS
import http.client, os, pathlib, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["DOCKER_HOST"].removeprefix("unix://"))
def ask(method, path):
    one = Unix("engine")
    one.request(method, path)
    return one.getresponse().read()
assert not {{"CLAB_RUNTIME", "CLAB_VARS"}} & {{*os.environ}}
assert ask("HEAD", "/_ping") == b""
assert ask("GET", "/v1.44/version") == b"{{}}"
assert ask("GET", "/v1.44/containers/json?all=1") == b"[]"
text = pathlib.Path(sys.argv[sys.argv.index("--topo") + 1]).read_text()
if sys.argv[1] == "deploy":
    where = sys.argv[sys.argv.index("--export-rendered") + 1]
    files = [arg.removeprefix("--vars=") for arg in sys.argv if arg.startswith("--vars=")]
    assert all(pathlib.Path(file).is_absolute() for file in files)
    image = "-".join(["from", *(pathlib.Path(file).stem for file in files)])
    text = text.replace("{{{{ .image }}}}", image)
    pathlib.Path(where).write_text(text.replace("$TAG", os.environ.get("TAG", "$TAG")))
    print('{{"lab-name": "a-main"}}')
    pathlib.Path(os.environ["TMPDIR"], "left").touch()
elif "data:" in text:
    pathlib.Path(os.environ["CLAB_LABDIR_BASE"], "clab-a/n/new").write_text("written")
    sys.exit(not pathlib.Path(os.environ["CLAB_LABDIR_BASE"], "clab-a/n/data").is_file())
elif "wrong" in text:
    sys.exit("  ERROR\\n  line 2: wrong")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that asks the engine, and fills in a template, as containerlab does."""
    path = tmp_path / "containerlab"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr("testbed.artifacts.Store.binary", lambda *_: path)
    monkeypatch.setenv("CLAB_RUNTIME", "podman")
    monkeypatch.setenv("CLAB_VARS", "values.yml")
    monkeypatch.chdir(tmp_path)
    return path


def test_containerlab_fills_in_templates(program: Path, tmp_path: Path) -> None:
    del program
    file = tmp_path / "a.clab.gotmpl"
    file.write_text("name: a\ntopology: {nodes: {n: {kind: linux, image: {{ .image }}}}}\n")
    topology = load(file)
    assert topology.images == ("from-values",)
    assert topology.variables == {"CLAB_VARS": str(tmp_path / "values.yml")}
    assert topology.foreign is not None
    assert "{{" not in topology.foreign.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.clab.gotmpl", "containerlab"]


@pytest.mark.thorough
def test_variables_of_a_file_are_given_and_recorded(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del program
    file = tmp_path / "a.clab.yml"
    file.write_text(
        "name: a\ntopology: {nodes: {n: {kind: linux, image: a-$TAG, "
        'exec: ["echo ${OTHER:=x} $$PRICE"]}}}\n'
    )
    assert load(file).images == ("a-$TAG",)
    monkeypatch.setenv("TAG", "1")
    assert (load(file).images, load(file).variables) == (("a-1",), {"TAG": "1"})
    given = load(file, variables={"TAG": "2", "OTHER": "y"})
    assert (given.images, given.variables) == (("a-2",), {"TAG": "2", "OTHER": "y"})
    for name in ("PRICE", "CLAB_VARS"):
        with pytest.raises(UsageError) as error:
            load(file, variables={name: "1"})
        assert error.value.where == "--set"


def test_a_name_with_variables_of_git(program: Path, tmp_path: Path) -> None:
    del program
    file = tmp_path / "a.clab.yml"
    file.write_text("name: a-__gitBranch__\ntopology: {nodes: {n: {kind: linux, image: x}}}\n")
    topology = load(file)
    assert topology.name == "a-main"
    assert topology.foreign is not None
    assert topology.foreign.lab == "a-main"
    assert "__git" not in topology.foreign.text


def test_a_check_sees_the_users_files_of_nodes(program: Path, tmp_path: Path) -> None:
    del program
    file, folder = tmp_path / "a.clab.yml", tmp_path / "clab-a" / "n"
    file.write_text(
        "name: a\ntopology: {nodes: {n: {kind: linux, image: x, "
        "binds: ['__clabNodeDir__/data:/data']}}}\n"
    )
    with pytest.raises(TopologyError):
        load(file)
    folder.mkdir(parents=True)
    (folder / "data").touch()
    load(file)
    assert [path.name for path in folder.iterdir()] == ["data"]


def test_files_with_values_are_an_option(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del program
    (tmp_path / "a.clab.gotmpl").write_text(
        "name: a\ntopology: {nodes: {n: {kind: linux, image: {{ .image }}}}}\n"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.yml").write_text("{}\n")
    values = ["--vars", "one.yml", "--vars=two.yml"]
    assert cli.run(["plan", "a.clab.gotmpl", *values]) == 0
    assert "from-one-two" in capsys.readouterr().out
    assert cli.run(["plan", "a.clab.gotmpl", "--vars", "missing.yml"]) == 2
    assert cli.run(["plan", "two-node", *values]) == 2
    assert "--vars" in capsys.readouterr().err


def test_containerlab_checks_each_file(program: Path, tmp_path: Path) -> None:
    del program
    file = tmp_path / "a.clab.yml"
    file.write_text("name: a\ntopology: {nodes: {n: {kind: wrong}}}\n")
    with pytest.raises(TopologyError) as error:
        load(file)
    assert [(one.line, one.seen) for one in error.value.problems] == [(2, "wrong")]


def test_files_are_known_by_name_or_text() -> None:
    kind = FORMATS["containerlab"]
    assert isinstance(kind, TopoFile)
    assert kind.recognizes(Path("x.clab.yaml"), "")
    assert kind.recognizes(Path("vpp.yml"), "name: x\ntopology:\n  nodes: {}\n")
    assert not kind.recognizes(Path("two-node.yaml"), "name: x\nnodes: {}\n")
    assert not kind.recognizes(Path("x.yaml"), "nodes: {}\ntopology: x\n")
