"""Nodes that containerlab deploys: the contract, mixed labs, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.artifacts import Store
from testbed.errors import LabError, MachineError, NoSuchNode
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.base import Node, Setup
from testbed.nodes.containerlab import FOLDER, clabfile
from testbed.nodes.containerlab.provider import ContainerlabProvider
from testbed.nodes.wiring import Difference
from testbed.settings import settings
from testbed.testing.machine import LAB
from testbed.testing.provider import TWO, FleetContract, NodeContract, spec, until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Provider
    from testbed.nodes.containerlab.cell import Cell
    from testbed.topology import Topology


CLASHING = """\
name: clashing
provider: containerlab
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  docker0: {networks: {lan: 10.168.0.2}}
  testbed-mgmt: {networks: {lan: 10.168.0.3}}
"""


def make(state: Path) -> ContainerlabProvider:
    return ContainerlabProvider.of(Setup(state, Store()))


@pytest.fixture
def topology() -> Topology:
    return load_text(TWO, "contract.yaml")


@pytest.fixture
def provider(state: Path) -> Iterator[ContainerlabProvider]:
    provider = make(state)
    yield provider
    for lab in provider.labs():
        provider.destroy(lab)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerlabProvider]:
    """A provider with a cell that many tests share."""
    provider = make(tmp_path_factory.mktemp("lasting") / "state")
    provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
    yield provider
    provider.destroy(LAB)


@pytest.fixture(scope="module")
def seat(lasting: ContainerlabProvider) -> Node:
    """The node with terminals."""
    return lasting.create_one(LAB, spec("node2"))


class TestNode(NodeContract):
    @pytest.fixture
    def node(self, lasting: ContainerlabProvider) -> Iterator[Node]:
        yield lasting.create_one(LAB, spec("node1"))
        lasting.destroy(LAB, ["node1"])


class TestTerminal(TerminalContract):
    @pytest.fixture
    def node(self, seat: Node) -> Node:
        return seat


class TestFleet(FleetContract):
    def again(self, provider: Provider) -> Provider:
        del provider
        return make(Path(os.environ["TESTBED_STATE"]))

    @pytest.fixture
    def provider(self, provider: ContainerlabProvider) -> Provider:
        return provider


def cell_of(provider: ContainerlabProvider, lab: str = LAB) -> Cell:
    cell = provider._cell(lab)
    assert cell is not None
    return cell


def test_all_that_it_writes_is_in_the_cell_and_a_second_deploy_leaves_the_first_alone(
    provider: ContainerlabProvider, topology: Topology
) -> None:
    provider.create_fabric(LAB, topology)
    first = provider.create(LAB, [spec("node1"), spec("node2")])
    for node in first.values():
        provider.connect(LAB, topology, node)
    cell = cell_of(provider)
    assert set(cell.inspect()) == {LAB}
    before = cell.node.run(["ip", "-o", "link"]).stdout
    other = provider.create_one(LAB, spec("outside"))
    provider.connect(LAB, topology, other)
    assert set(cell.inspect()) == {LAB, f"{LAB}-2"}
    after = cell.node.run(["ip", "-o", "link"]).stdout
    numbers = {line.split(":")[0] for line in before.splitlines() if "@" in line}
    assert numbers < {line.split(":")[0] for line in after.splitlines()}
    assert other.run(["ping", "-c1", "-W5", "10.168.0.3"]).ok
    assert not Path(FOLDER).exists()
    names = {path.name for path in Path("/sys/class/net").iterdir()}
    assert not names & {clabfile.MANAGEMENT_BRIDGE, "br-lan"}


def test_nodes_with_names_of_the_cells_links(provider: ContainerlabProvider) -> None:
    topology = load_text(CLASHING, "clashing.yaml")
    provider.create_fabric(LAB, topology)
    names = [*topology.nodes]
    made = provider.create(LAB, [spec(name) for name in names])
    for node in made.values():
        provider.connect(LAB, topology, node)
    assert made[names[0]].run(["ping", "-c1", "-W5", "10.168.0.3"]).ok
    assert provider.differences(LAB, topology) == {}


@pytest.mark.parametrize("fabric", ["containerlab", "netns"])
def test_namespace_nodes_are_on_the_same_networks(
    provider: ContainerlabProvider, topology: Topology, fabric: str
) -> None:
    """Whoever makes the fabric: containerlab, or it is there and nobody told it the topology."""
    del provider._topologies  # as if another provider had made it
    provider._topologies = {}
    maker = provider if fabric == "containerlab" else provider.cells
    maker.create_fabric(LAB, topology)
    made = provider.create_one(LAB, spec("node1"))
    provider.connect(LAB, topology, made)
    assert not provider.differences(LAB, topology).get("node1")
    # Restored as they were: a port, a link's end, an address.
    cell_of(provider).node.run(["ip", "link", "delete", "dev", "node1.1"])
    made.run(["ip", "link", "set", "eth0", "down"])
    found = provider.differences(LAB, topology)["node1"]
    assert [(one.kind, one.seen, one.index) for one in found if one.seen == "missing"] == [
        ("port", "missing", 1)
    ]
    down = Difference("link", "eth0", "down", 0)
    provider.restore(LAB, topology, made, [*found, down])
    assert not provider.differences(LAB, topology).get("node1")
    addresses = made.run(["ip", "-4", "-br", "address"]).stdout
    assert "10.168.0.2/24" in addresses
    assert "10.169.0.2/24" in addresses


def test_a_node_that_ends_at_once_is_reported_with_its_last_lines(
    provider: ContainerlabProvider, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = {**clabfile.KIND, "entrypoint": 'sh -c "echo no luck; exit 7"'}
    monkeypatch.setattr(clabfile, "KIND", brief)
    provider.create_fabric(LAB, topology)
    with pytest.raises(LabError, match="node1") as caught:
        provider.create_one(LAB, spec("node1"))
    assert "no luck" in caught.value.message
    assert "7" in caught.value.message
    assert provider.nodes(LAB) == {}
    assert "no luck" in provider.ended(LAB)["node1"]
    monkeypatch.undo()
    assert provider.create_one(LAB, spec("node1")).run(["true"]).ok


def test_nodes_outlive_their_engine_and_up_restarts_it(
    provider: ContainerlabProvider, topology: Topology
) -> None:
    provider.create_fabric(LAB, topology)
    made = provider.create_one(LAB, spec("node1"))
    cell = cell_of(provider)
    for name in ("dockerd", "containerd"):
        cell.node.run(["kill", "-KILL", str(cell.node.services()[name].pid)])
    assert until(lambda: all(s.state == "dead" for s in cell.node.services().values()))
    with pytest.raises(LabError):
        cell.images()
    found = make(Path(os.environ["TESTBED_STATE"])).nodes(LAB)["node1"]
    assert found.run(["hostname"]).stdout == "node1\n"
    provider.create_fabric(LAB, topology)
    assert cell.images()
    assert made.run(["true"]).ok
    provider.destroy(LAB, ["node1"])
    assert provider.nodes(LAB) == {}
    with pytest.raises(NoSuchNode):
        made.run(["true"])


def test_a_node_stops_and_continues(provider: ContainerlabProvider, topology: Topology) -> None:
    provider.create_fabric(LAB, topology)
    made = provider.create_one(LAB, spec("node1"))
    provider.pause(LAB, "node1")
    assert provider.paused(LAB) == ["node1"]
    assert list(provider.nodes(LAB)) == ["node1"]
    with pytest.raises(NoSuchNode):
        made.run(["true"])
    provider.resume(LAB, "node1")
    assert provider.paused(LAB) == []
    assert made.run(["true"]).ok
    provider.pause(LAB, "node1")
    provider.destroy(LAB)  # a stopped node can be removed
    assert provider.labs() == []
    with pytest.raises(NoSuchNode):
        provider.pause(LAB, "node1")


def test_a_users_containerlab_that_is_too_old_is_refused(state: Path, tmp_path: Path) -> None:
    old = tmp_path / "containerlab"
    old.write_text("#!/bin/sh\necho 0.50.0\n")
    old.chmod(0o755)
    provider = ContainerlabProvider.of(Setup(state, Store(overrides={"containerlab": str(old)})))
    with pytest.raises(MachineError) as caught:
        provider.prepare(LAB, [spec("node1")])
    assert "0.50.0" in caught.value.message
    assert not [
        item for item in provider.probe() if item.name == "containerlab version" and item.ok
    ]


def test_several_labs_are_created_and_removed_beside_each_other(
    provider: ContainerlabProvider, topology: Topology
) -> None:
    def bring(lab: str) -> Node:
        provider.create_fabric(lab, topology)
        return provider.create_one(lab, spec("node1"))

    with ThreadPoolExecutor() as pool:
        one, two = pool.map(bring, ("one", "two"))
    assert one.get("/etc/machine-id") != two.get("/etc/machine-id")
    provider.destroy("one")
    assert provider.labs() == ["two"]
    assert two.run(["hostname"]).stdout == "node1\n"


LIMITED = """
name: limited
provider: containerlab
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  host: {networks: {lan: 10.168.0.2}, memory: 300M, cpus: 0.5}
  a-name-of-12: {networks: {lan: 10.168.0.3}}
"""


def test_a_lab_with_names_and_limits_is_made_and_made_whole_again(state: Path) -> None:
    topology = load_text(LIMITED, "limited.yaml")
    lab = Lab(topology.name, settings())
    try:
        lab.up(topology)
        live = LiveLab(lab.context())
        host = live.node("host")
        assert host.run(["hostname"]).stdout == "host\n"
        script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2> /dev/null"
        limit = host.run(["sh", "-c", script], check=False)
        assert int(limit.stdout) == 300 << 20
        assert host.run(["ping", "-c1", "-W5", "a-name-of-12"]).ok
        live.close()
        assert not lab.up(topology).changed
    finally:
        lab.down()
