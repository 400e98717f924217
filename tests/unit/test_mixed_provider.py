"""Several providers as one: the same contract, and each node made by its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, ClassVar

import pytest
from test_fake_provider import TestContract as FakeContract

from testbed.errors import LabError
from testbed.nodes.base import Provider
from testbed.nodes.fake import FakeMachine, FakeProvider
from testbed.nodes.mixed import MixedProvider
from testbed.nodes.wiring import Difference
from testbed.testing.fakes import teach
from testbed.testing.provider import TWO, ProviderContract, spec
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from collections.abc import Collection


def mixed(machine: FakeMachine, odd: str = "qemu") -> MixedProvider:
    """Two providers of one machine; nodes whose name ends in 1 are made by the second."""
    one, two = FakeProvider(machine, name="netns"), FakeProvider(machine, name=odd)
    return MixedProvider([one, two], lambda name: two if name.endswith("1") else one)


class TestMixedContract(ProviderContract):
    skips: ClassVar = FakeContract.skips

    @pytest.fixture
    def provider(self) -> Provider:
        return mixed(teach(FakeMachine(strict=True)))

    def again(self, provider: Provider) -> Provider:
        assert isinstance(provider, MixedProvider)
        (first, _) = provider._members
        assert isinstance(first, FakeProvider)
        return mixed(first.machine)


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def topology() -> Topology:
    return load_text(TWO, "contract.yaml")


def made(machine: FakeMachine, topology: Topology) -> MixedProvider:
    provider = mixed(machine)
    provider.create_fabric("contract", topology)
    for name in topology.nodes:
        provider.connect("contract", topology, provider.create_one("contract", spec(name)))
    return provider


def makers(machine: FakeMachine) -> dict[str, str]:
    return {name: node.maker for (_, name), node in machine.nodes.items()}


@pytest.mark.source
def test_it_hands_on_each_method_of_the_contract() -> None:
    """One that it only inherited would be asked of no member."""
    contract = {name for name, what in vars(Provider).items() if inspect.isfunction(what)}
    contract = {name for name in contract if not name.startswith("_")}
    # Machines that exist already are all of one provider.
    contract -= {"of_machines", "is_installed", "disconnect"}
    assert contract <= set(vars(MixedProvider))


def test_each_node_is_made_by_its_own(machine: FakeMachine, topology: Topology) -> None:
    provider = made(machine, topology)
    assert makers(machine) == {"node1": "qemu", "node2": "netns", "outside": "netns"}
    assert set(provider.nodes("contract")) == set(topology.nodes)
    assert provider.labs() == ["contract"]
    fabric = provider.fabric("contract")
    assert fabric is not None
    assert all(member.fabric("contract") is fabric for member in provider._members)


def test_a_node_is_removed_whoever_has_made_it(machine: FakeMachine, topology: Topology) -> None:
    made(machine, topology)
    # As after an edit: now the first is to make all of them.
    one = FakeProvider(machine, name="netns")
    edited = MixedProvider([one, FakeProvider(machine, name="qemu")], lambda _: one)
    edited.destroy("contract", ["node1"])
    assert makers(machine) == {"node2": "netns", "outside": "netns"}
    edited.create_one("contract", spec("node1"))
    assert makers(machine)["node1"] == "netns"


def test_what_another_has_left_of_a_name_goes_before_the_node_is_made(
    machine: FakeMachine, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half-made, so that `nodes` does not show it, and nobody would ask to remove it.
    FakeProvider(machine, name="qemu").create_one("contract", spec("node2"))
    monkeypatch.setattr(MixedProvider, "nodes", lambda *_: {})
    made(machine, topology)
    assert makers(machine)["node2"] == "netns"


def test_a_fabric_that_is_there_costs_no_node(machine: FakeMachine, topology: Topology) -> None:
    provider = made(machine, topology)
    before = provider.nodes("contract")
    provider.create_fabric("contract", topology)
    assert provider.nodes("contract") == before


def test_all_of_a_lab_goes(machine: FakeMachine, topology: Topology) -> None:
    provider = made(machine, topology)
    provider.destroy("contract")
    assert (machine.nodes, machine.fabrics) == ({}, {})


def test_a_snapshot_that_one_cannot_take_none_has(
    machine: FakeMachine, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = made(machine, topology)
    take = FakeProvider.snapshot

    def of_the_first(self: FakeProvider, lab: str, nodes: Collection[str], name: str) -> None:
        if self.name != "netns":
            raise LabError("no room")
        take(self, lab, nodes, name)

    monkeypatch.setattr(FakeProvider, "snapshot", of_the_first)
    with pytest.raises(LabError, match="no room"):
        provider.snapshot("contract", [*topology.nodes], "x")
    assert not any(provider.snapshots("contract").values())


def test_a_failure_is_the_makers(machine: FakeMachine, topology: Topology) -> None:
    machine.fail("create", "node1", LabError("no room"))
    with pytest.raises(LabError, match="no room"):
        made(machine, topology)


def test_what_all_need_is_said_once(machine: FakeMachine) -> None:
    assert [finding.name for finding in mixed(machine).probe()] == ["memory"]


def test_what_differs_is_asked_of_one_for_the_whole_topology(
    machine: FakeMachine, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"": [Difference("network", "network lan", "missing")]}
    asked: list[tuple[str, Topology]] = []

    def differences(_: FakeProvider, lab: str, of: Topology) -> dict[str, list[Difference]]:
        asked.append((lab, of))
        return found

    monkeypatch.setattr(FakeProvider, "differences", differences)
    assert made(machine, topology).differences("contract", topology) == found
    assert asked == [("contract", topology)]


def test_what_a_node_lacks_is_put_back_by_its_maker(
    machine: FakeMachine, topology: Topology
) -> None:
    provider = made(machine, topology)
    node = provider.nodes("contract")["node1"]
    difference = Difference("port", "port of eth0", "detached", 0)
    machine.calls.clear()
    provider.restore("contract", topology, node, [difference])
    (call,) = machine.calls
    assert (call.what, call.node, call.words) == ("restore", "node1", (str(difference),))
