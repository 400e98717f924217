"""Topology files of other tools: a format that a distribution registers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from testbed import cli
from testbed.claims.load import load as load_catalogue
from testbed.errors import TopologyError, UsageError
from testbed.faults import links
from testbed.faults.force import Faults, fault_of
from testbed.labs import origin
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.nodes.base import Result
from testbed.nodes.fake import Answer, FakeProvider
from testbed.registry import FORMATS
from testbed.testing.fakes import declare
from testbed.topology import Overrides, Topology, load, load_data, load_text, names, schema
from testbed.topology.format import Format
from testbed.topology.load import beside

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from testbed.nodes.base import Node, Running
    from testbed.nodes.place import Place
    from testbed.nodes.wiring import Difference
    from testbed.testing.fakes import Bench
    from testbed.topology.format import GetStore
    from testbed.topology.tree import Problems
    from testbed.topology.variables import Variables

TOY = "PC1 image-a\nR_2 image-b\n"


class Toy(Format):
    """A format with a node and its image on each line; the first two nodes have a link."""

    name = "toy"
    patterns: ClassVar[tuple[str, ...]] = ("*.toy.yml", "*.toy")

    def recognizes(self, path: Path, text: str) -> bool:
        return self.is_named(path) or text.startswith("# toy")

    def read(
        self,
        path: Path,
        text: str,
        problems: Problems,
        store: GetStore | None,
        variables: Variables,
    ) -> dict[str, Any]:
        del store, variables
        nodes: dict[str, Any] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("#"):
                continue
            name, space, image = line.partition(" ")
            if not space:
                problems.add_at(number, 1, "NODE IMAGE", repr(line), "add an image")
            nodes[name] = {"kind": "box", "image": image, "digest": line}
            if image.endswith("@hub"):
                nodes[name]["networks"] = ["hub"]
        ends: list[dict[str, Any]] = [{"at": name, "interface": "e1"} for name in nodes]
        ends[0]["addresses"] = ["10.0.0.1/24", "2001:db8::1/64"]
        return {
            "name": path.name.partition(".")[0],
            "provider": "netns",
            "nodes": {name: {} for name in nodes},
            "foreign": {
                "lab": "toy", "file": str(path.resolve()), "text": text, "nodes": nodes,
                "links": [{"ends": ends[:2]}] if ends[1:] else [],
            },
        }  # fmt: skip


class Outside:
    """A place in a node's network, with ip(8): one node has its link with both addresses."""

    slowness = 1.0
    rules: ClassVar[dict[str, str]] = {}  # input of nft, by node

    def __init__(self, name: str, *, has_link: bool) -> None:
        self.name = name
        self.has_link = has_link

    def run(self, argv: Sequence[str], *, input: bytes | None = None, **_: Any) -> Result:
        if argv[:3] == ["nft", "-f", "-"]:
            self.rules[self.name] = (input or b"").decode()
            return Result(tuple(argv), 0, b"", b"")
        if argv[0] == "nft":
            rules = [r for r in self.rules.get(self.name, "").splitlines() if r.startswith("add r")]
            listed = [
                {"rule": {"comment": r.split('"')[-2], "expr": [{"counter": {"packets": 1}}]}}
                for r in rules
            ]
            return Result(tuple(argv), 0, json.dumps({"nftables": listed}).encode(), b"")
        if argv[0] == "tc":
            return Result(tuple(argv), 0, b"[]", b"")
        links = [{"ifname": "lo", "flags": ["UP"]}, link("eth0", ("inet", "172.20.20.2", 24))]
        if self.has_link:
            links.append(link("e1", ("inet", "10.0.0.1", 24), ("inet6", "2001:db8::1", 64)))
        return Result(tuple(argv), 0, json.dumps(links).encode() + b"\0[]\0000", b"")

    def spawn(self, argv: Sequence[str]) -> Running:
        raise AssertionError(argv)


def link(name: str, *addresses: tuple[str, str, int]) -> dict[str, Any]:
    """A link as `ip -j address` prints it."""
    return {
        "ifname": name,
        "flags": ["UP"],
        "addr_info": [
            {"family": family, "local": local, "prefixlen": length, "scope": "global"}
            for family, local, length in addresses
        ],
    }


class Deploying(FakeProvider):
    """Nodes of another tool: they are created at once, and have no ip(8)."""

    batches: ClassVar[list[list[str]]] = []
    lost: ClassVar[set[str]] = set()  # nodes without their link
    old: ClassVar[set[str]] = set()  # nodes of a replaced image

    def together(self, node: str) -> bool:
        del node
        return True

    def create(self, lab: str, specs: Any) -> dict[str, Node]:
        self.batches.append([spec.name for spec in specs])
        self.old.clear()
        return super().create(lab, specs)

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        raise AssertionError("another tool connects its nodes")

    def outdated(self, lab: str, topology: Topology) -> Collection[str]:
        del lab, topology
        return self.old

    def network_of(self, lab: str, node: Node) -> Place:
        del lab
        return Outside(node.name, has_link=node.name not in self.lost)

    def direct(self, topology: Topology, node: str) -> dict[str, str]:
        assert topology.foreign is not None
        return {end.interface: peer.at for end, peer in topology.foreign.ends_of(node)}

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        del lab, topology
        assert [(one.kind, one.what) for one in differences] == [("link", "e1")]
        self.lost.discard(node.name)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    declare(monkeypatch, FORMATS, "toy", f"{__name__}:Toy")
    monkeypatch.chdir(tmp_path)
    Path("one.toy.yml").write_text(TOY)
    Path("other.yaml").write_text("name: other\nnodes: {n1: {}}\n")


@pytest.fixture
def lab(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab of the file; it has the images, and the provider above."""
    provider = Deploying()
    Deploying.batches.clear()
    Deploying.lost.clear()
    Deploying.old.clear()
    monkeypatch.setattr(bench.settings, "providers", {"netns": provider})
    monkeypatch.setattr(type(bench.settings.store), "lacking_images", lambda *_: None)
    return Lab("one", bench.settings)


def test_a_file_is_read_by_its_format() -> None:
    topology = load("one.toy.yml")
    assert topology.foreign is not None
    assert (topology.name, topology.foreign.format, [*topology.nodes]) == (
        "one", "toy", ["PC1", "R_2"],
    )  # fmt: skip
    assert topology.images == ("image-a", "image-b")
    assert topology.file == str(Path("one.toy.yml").resolve())
    assert load("other.yaml").foreign is None


def test_a_format_may_know_a_file_by_its_text() -> None:
    Path("odd.yaml").write_text("# toy\nA x\nB y\n")
    assert [*load("odd.yaml").nodes] == ["A", "B"]


def test_shipped_topologies_are_no_foreign_files() -> None:
    assert all(load(name).foreign is None for name in names())


def test_problems_of_a_file_have_its_lines() -> None:
    Path("bad.toy").write_text("A x\nB\nC\n")
    with pytest.raises(TopologyError) as error:
        load("bad.toy")
    assert error.value.source == "bad.toy"
    assert [p.line for p in error.value.problems] == [2, 3]


def test_a_topology_goes_through_a_record() -> None:
    topology = load("one.toy.yml")
    assert load_data(json.loads(json.dumps(topology.to_dict())), "a record") == topology


def test_a_copy_has_another_name() -> None:
    copy = load("one.toy.yml", Overrides(name="two"))
    assert copy.name == "two"
    assert copy.foreign == load("one.toy.yml").foreign


def test_options_that_do_not_apply_are_refused() -> None:
    for given in (Overrides(provider="qemu"), Overrides(backend="udp")):
        with pytest.raises(UsageError):
            load("one.toy.yml", given)
    assert load("one.toy.yml", Overrides(provider="netns")).provider == "netns"


def test_faults_of_links_need_a_link_or_a_network() -> None:
    Path("hubs.toy").write_text("a x\nb x@hub\nc x@hub\nalone x\n")
    topology = load("hubs.toy")
    for words in ("partition a:b", "loss b:c 5%", "rate c 1mbit", "delay a 5ms", "stop alone"):
        assert fault_of(words, topology).words == words
    for words in ("partition a:c", "partition alone:b", "loss alone 5%", "rate alone 1mbit"):
        with pytest.raises(UsageError):
            fault_of(words, topology)


def test_faults_act_in_the_networks_of_nodes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "which", lambda name: f"/usr/sbin/{name}")
    topology = load("one.toy.yml")
    lab.up(topology)
    provider = lab.settings.providers["netns"]
    assert isinstance(provider, Deploying)
    provider.script(["nft", "-j"], Answer(1, err=b"No such file or directory"), "fabric")
    Outside.rules.clear()
    Faults(lab).apply(fault_of("partition PC1:R_2", topology))
    assert [*Outside.rules] == ["PC1", "R_2"], "from outside of the nodes, which have no nft"
    assert all('device "e1"' in rules for rules in Outside.rules.values())
    assert [seen.fault.words for seen in Faults(lab).in_force()] == ["partition PC1:R_2"]
    Faults(lab).heal()
    assert not any("add rule" in rules for rules in Outside.rules.values())


def test_shipped_topologies_need_no_format(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, FORMATS, "toy", "nowhere:Toy")
    monkeypatch.setattr(FORMATS, "usable", None)
    assert load("two-node").name == "two-node"


def test_nobody_writes_what_testbed_sets() -> None:
    with pytest.raises(TopologyError) as error:
        load_text("name: a\nnodes: {n1: {}}\nforeign: {format: toy}\n", "t.yaml")
    (problem,) = error.value.problems
    assert problem.line == 3
    assert "foreign" not in schema()["properties"]


def test_names_of_other_tools_are_theirs_alone() -> None:
    with pytest.raises(TopologyError):
        load_text("name: a\nnodes: {PC1: {}}\n", "t.yaml")
    Path("slash.toy").write_text("a/b x\n")
    with pytest.raises(TopologyError):
        load("slash.toy")


def test_topologies_in_a_folder() -> None:
    Path("notes.yaml").write_text("a: 1\n")
    found = [path.name for path in beside(Path.cwd())]
    assert found == ["one.toy.yml", "other.yaml"]
    assert beside(Path("nowhere")) == []


def test_claims_beside_a_file_are_for_its_lab() -> None:
    Path("claims").mkdir()
    Path("claims/runbook.yaml").write_text(
        "title: Runbook\nclaims:\n  - id: r-1\n    claim: It works.\n"
    )
    Path("claims/test_runbook.py").write_text(
        "import pytest\n\n@pytest.mark.testbed_claim('r-1')\ndef test_it(): ...\n"
    )
    wanted = [lab.topology for lab in load_catalogue(Path("claims")).labs]
    assert [Path(one).name for one in wanted] == ["one.toy.yml", "other.yaml"]


def test_a_broken_format_leaves_other_files_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, FORMATS, "toy", "nowhere:Toy")
    assert load("other.yaml").name == "other"


def test_up_lets_the_provider_wire_the_nodes(lab: Lab) -> None:
    topology = load("one.toy.yml")
    outcome = lab.up(topology)
    assert Deploying.batches == [["PC1", "R_2"]]
    assert {done.step.name for done in outcome.changed} >= {"node PC1", "node R_2"}
    assert lab.record().source == topology.file
    assert lab.up(load("one.toy.yml")).changed == []
    assert len(Deploying.batches) == 1


def test_an_edited_file_changes_what_differs(lab: Lab) -> None:
    lab.up(load("one.toy.yml"))
    Path("one.toy.yml").write_text("PC1 image-a\nR_2 image-c\n")
    lab.up(load("one.toy.yml"))
    assert Deploying.batches == [["PC1", "R_2"], ["R_2"]]


def test_nodes_of_a_replaced_image_are_created_again(lab: Lab) -> None:
    lab.up(load("one.toy.yml"))
    Deploying.old.add("R_2")
    outcome = lab.up(load("one.toy.yml"))
    assert outcome.removed == ["R_2"]
    assert Deploying.batches == [["PC1", "R_2"], ["R_2"]]
    assert lab.up(load("one.toy.yml")).changed == []


def test_status_shows_the_links_of_the_file(lab: Lab) -> None:
    lab.up(load("one.toy.yml"))
    Deploying.lost.add("R_2")
    first, second = status(lab.context()).nodes
    assert [(one.name, one.state, one.ok) for one in first.links] == [
        ("eth0", "up", True), ("e1", "up", True),
    ]  # fmt: skip
    assert first.links[1].detail.startswith("to R_2:e1")
    assert first.addresses == ["172.20.20.2", "10.0.0.1"]
    assert [(one.name, one.state, one.ok) for one in second.links] == [
        ("eth0", "up", True), ("e1", "missing", False),
    ]  # fmt: skip


def test_up_restores_lost_links(lab: Lab) -> None:
    lab.up(load("one.toy.yml"))
    Deploying.lost.add("PC1")
    assert [done.step.name for done in lab.up(load("one.toy.yml")).changed] == ["node PC1"]
    assert status(lab.context()).ok


def test_a_lab_is_found_by_its_file(lab: Lab) -> None:
    lab.up(load("one.toy.yml"))
    assert origin.named(lab.settings, "./one.toy.yml") == "one"
    copy = load("one.toy.yml", Overrides(name="two"))
    Lab("two", lab.settings).up(copy)
    assert origin.named(lab.settings, "./one.toy.yml") == "one"


def test_plan_shows_kinds_and_all_missing_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "--json", "one.toy.yml"]) == 0
    plan = json.loads(capsys.readouterr().out)
    steps = {step["name"]: step["about"] for step in plan["steps"]}
    assert steps["node PC1"] == "box, image-a"
    assert plan["missing_images"] == ["image-a", "image-b"]
