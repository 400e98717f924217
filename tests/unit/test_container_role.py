"""A role of somebody else that runs containers, beside Docker: found, drawn, planned, refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import NoSuchContainer
from testbed.labs import plan
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.fake import Answer
from testbed.observe.graph import graph
from testbed.observe.inventory import SEPARATOR
from testbed.registry import ROLES
from testbed.roles.base import Role
from testbed.roles.container import ContainerProcess
from testbed.steps.step import Step, node_step
from testbed.suites import everything
from testbed.testing import Bench, FakeStore, declare
from testbed.topology import load_text

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology import Topology
    from testbed.topology.model import Node

TEXT = """
name: pantry
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}, roles: [jars]}
  node2: {networks: {lan: 10.168.0.3}}
containers:
  jam: {node: node1}
"""
JAM = ContainerProcess("jam", "0123456789ab", 77, "10.9.0.2", ("SWEET=yes",))


class Jars(Role):
    """Runs containers in its own way."""

    name = "jars"
    creates = ("containers",)
    includes = ("lids",)

    def containers(self, machine: Machine) -> Mapping[str, ContainerProcess]:
        return {"jam": JAM} if machine.name == "node1" else {}

    def drawn(self, lab: LiveLab, node: str) -> Iterable[Mapping[str, Any]]:
        for one in self.containers(lab.node(node)).values():
            yield {"name": one.name, "pid": one.pid, "mode": "shelf", "published": ["80:80/tcp"]}

    def lacking(self, store: Store, topology: Topology) -> str:
        del store
        return f"no glass for {topology.name}"

    def fetch_part(self, store: Store, part: str) -> bool:
        del store
        return part == "lids"

    def lab_steps(self, topology: Topology) -> Iterable[Step]:
        def act(context: Context) -> tuple[str, bool]:
            return f"{len(context.nodes)} nodes", False

        yield Step("shelf", "all jars", tuple(map(node_step, topology.nodes)), act=act)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        del topology, node
        return ()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Lab]:
    declare(monkeypatch, ROLES, "jars", f"{__name__}:Jars")
    bench = Bench(tmp_path)
    bench.install(monkeypatch)
    links = json.dumps([{"ifname": "eth0", "ifindex": 2, "link_type": "ether"}])
    said = f"{SEPARATOR}container jam\n{links}\n".encode()
    bench.provider.script(
        ["sh", "-c"], lambda call: Answer(out=said if "jam" in call.words else b"")
    )
    lab = Lab("pantry", bench.settings)
    lab.up(load_text(TEXT, "pantry.yaml"))
    yield lab
    lab.down()


def test_its_containers_are_those_of_the_lab(lab: Lab) -> None:
    live = LiveLab(lab.context())
    for found in (live.container("jam"), live.container("0123456", node="node1")):
        assert (found.name, found.address, found.pid) == ("jam", "10.9.0.2", 77)
        assert found.env == {"SWEET": "yes"}
    assert list(live.containers) == ["jam"]


def test_where_it_runs_none_the_nodes_that_have_some_are_named(lab: Lab) -> None:
    with pytest.raises(NoSuchContainer) as caught:
        LiveLab(lab.context()).container("jam", node="node2")
    assert "node1/jam" in str(caught.value.hint)
    with pytest.raises(NoSuchContainer) as caught:
        LiveLab(lab.context()).container("honey", node="node2")
    assert str(caught.value.hint).endswith(": node1")


def test_the_graph_has_them(lab: Lab) -> None:
    nodes = {node["name"]: node for node in graph(LiveLab(lab.context()))["nodes"]}
    assert not nodes["node1"]["error"]
    (space,) = nodes["node1"]["spaces"]
    assert (space["kind"], space["name"], space["mode"]) == ("container", "jam", "shelf")
    assert space["published"] == ["80:80/tcp"]
    assert nodes["node2"]["spaces"] == []


def test_its_steps_for_the_whole_lab_are_planned_once(lab: Lab) -> None:
    del lab
    steps = plan.make(load_text(TEXT, "pantry.yaml")).steps
    assert steps["shelf"].needs == ("node node1", "node node2")


def test_a_lab_that_cannot_run_here_says_why(lab: Lab) -> None:
    del lab
    assert everything.lacking(FakeStore(), load_text(TEXT, "t")) == "no glass for pantry"
