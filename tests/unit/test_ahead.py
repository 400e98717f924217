"""Steps that are done on a machine before its lab exists: their order and their key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.labs import base_steps
from testbed.labs.lab import Lab
from testbed.registry import ROLES
from testbed.steps.context import Context
from testbed.testing.fakes import be_a_machine
from testbed.topology import Overrides, Topology, load, load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node, NodeSpec
    from testbed.steps.step import Step
    from testbed.testing.fakes import Bench


def ahead(topology: Topology, node: str) -> list[str]:
    steps = [s for name in topology.nodes[node].roles for s in node_steps(topology, node, name)]
    return [step.name for step in base_steps.ahead_of(steps)]


def node_steps(topology: Topology, node: str, role: str) -> list[Step]:
    return list(ROLES[role].steps(topology, topology.nodes[node]))


def test_what_needs_no_peer_is_done_ahead_each_after_what_it_needs() -> None:
    topology = load("two-node")
    first = ahead(topology, "node1")
    assert set(first) == {
        "etcd node1", "flannel config", "docker node1", "images node1",
        "container node1/container-1",
    }  # fmt: skip
    assert first.index("etcd node1") < first.index("flannel config")
    assert first.index("docker node1") < first.index("images node1")
    assert first.index("images node1") < first.index("container node1/container-1")
    # flanneld asks etcd, which is elsewhere; and so it is left out on both.
    assert ahead(topology, "node2") == [
        "docker node2", "images node2", "container node2/container-2",
    ]  # fmt: skip


def test_a_port_of_one_address_waits_for_the_networks_and_so_do_those_after_it() -> None:
    text = """
name: ports
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {host: {networks: {lan: 10.168.0.2}, roles: [docker]}}
containers:
  one: {node: host, publish: ["8080:80"]}
  two: {node: host, publish: ["10.168.0.2:8081:80"]}
  three: {node: host}
"""
    assert ahead(load_text(text, "t.yaml"), "host")[2:] == ["container host/one"]


@pytest.fixture
def real(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A store whose files are there."""

    def path(name: str) -> Path:
        made = tmp_path / name
        if not made.exists():
            made.touch()
        return made

    monkeypatch.setattr(bench.settings.store, "_path", path)
    return bench


def key(bench: Bench, topology: Topology, node: str) -> str:
    spec = base_steps.full_spec(
        topology, topology.nodes[node], bench.provider, bench.settings.store
    )
    assert spec.ahead is not None
    return spec.ahead().key


def test_the_key_is_that_of_all_that_is_done(real: Bench) -> None:
    plain = load("two-node")
    renamed = load("two-node", Overrides(name="other"))
    variants = [
        plain,
        renamed,  # containers bear the lab's name
        load("two-node", Overrides(backend="udp")),  # another MTU of containers
        load("two-node", Overrides(docker="29")),
        dataclasses.replace(
            plain,
            containers={
                name: dataclasses.replace(c, env={"PORT": "81"})
                for name, c in plain.containers.items()
            },
        ),
    ]
    for node in ("node1", "node2"):
        keys = [key(real, topology, node) for topology in variants]
        assert len(set(keys)) == len(keys)
        assert key(real, load("two-node"), node) == keys[0]
    assert key(real, plain, "node1") != key(real, plain, "node2")


def test_another_program_makes_another_key(real: Bench, tmp_path: Path) -> None:
    topology = load("two-node")
    before = key(real, topology, "node2")
    (tmp_path / "dockerd").write_bytes(b"newer")
    assert key(real, topology, "node2") != before


def test_a_node_without_such_steps_has_nothing_ahead(bench: Bench) -> None:
    topology = load("two-node")
    outside = topology.nodes["outside"]
    spec = base_steps.full_spec(topology, outside, bench.provider, bench.settings.store)
    assert spec.ahead is None


def test_what_was_done_ahead_is_found_done(bench: Bench) -> None:
    topology = load("two-node")
    lab = Lab("two-node", bench.settings)
    lab.up(topology)
    machine = bench.provider.nodes("two-node")["node1"]
    spec = base_steps.full_spec(
        topology, topology.nodes["node1"], bench.provider, bench.settings.store
    )
    # Done once more, as on a machine that is kept, it changes nothing.
    before = machine.services()
    ahead = spec.ahead
    assert ahead is not None
    steps = [s for role in ("etcd", "docker") for s in node_steps(topology, "node1", role)]
    context = Context(topology, bench.provider, bench.settings.store, {"node1": machine})
    assert [step.act(context)[1] for step in base_steps.ahead_of(steps)] == [False] * 4
    assert machine.services() == before


def test_what_a_machine_woke_with_is_not_looked_at_again_but_containers_are(
    real: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a provider that keeps machines does: the steps are taken as the node is made."""
    be_a_machine(monkeypatch)
    create = real.provider.create_one

    def wake(lab: str, spec: NodeSpec) -> Node:
        node = create(lab, spec)
        if spec.ahead:
            spec.ahead().act(node)
        return node

    monkeypatch.setattr(real.provider, "create_one", wake)
    outcome = Lab("two-node", real.settings).up(load("two-node"))
    changed = {done.step.name for done in outcome.changed}
    assert not {name for name in changed if name.startswith(("docker", "images", "container"))}
    said = {done.step.name: done.words for done in outcome.steps}
    assert said["docker node1"].startswith("dockerd 20.10.24")
    started = [c for c in real.provider.calls if c.what == "start" and c.words == ("dockerd",)]
    assert len(started) == 2  # once on each, before the lab was there
    assert said["container node1/container-1"]  # seen to run
    # Nodes that are there are looked at.
    real.provider.nodes("two-node")["node1"].stop("dockerd")
    again = Lab("two-node", real.settings).up(load("two-node"))
    assert "docker node1" in {done.step.name for done in again.changed}


def test_an_etcd_that_woke_is_another_life_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases are those of the snapshot: each flanneld must register again."""
    be_a_machine(monkeypatch)
    lab = Lab("two-node", bench.settings)
    lab.up(load("two-node"))
    nodes = bench.provider.nodes("two-node")
    before = {name: node.services().get("flanneld") for name, node in nodes.items()}
    nodes["node1"].put(b"another-life\n", "/etc/machine-id")
    lab.up(load("two-node"))
    after = {name: node.services().get("flanneld") for name, node in nodes.items()}
    for name in ("node1", "node2"):
        old, new = before[name], after[name]
        assert old is not None
        assert new is not None
        assert old.digest != new.digest
