"""The contract of a role, as a test suite.

Derive a class from :class:`RoleContract` and set ``role`` and ``topology``.  Its labs are in
memory; with another fixture ``settings`` the same tests run on real nodes::

    class TestWebOnNodes(TestWeb):
        @pytest.fixture
        def settings(self, tmp_path):
            return testbed.settings.settings(state_folder=tmp_path / "state")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from testbed import kernel
from testbed.claims.model import feature_words
from testbed.faults.force import Faults
from testbed.faults.model import Fault
from testbed.labs import plan as planning
from testbed.labs.lab import Lab, Settings
from testbed.registry import ROLES
from testbed.testing.fakes import Bench
from testbed.topology import load_data, load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.base import Role
    from testbed.topology import Topology


class RoleContract:
    """A role's declarations, its software on a node, and its removal by ``down``."""

    #: Name of the role.
    role: ClassVar[str]
    #: Text of a topology file with one or more nodes that have the role.
    topology: ClassVar[str]

    @pytest.fixture
    def settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
        """The settings of the lab: by default nodes in memory."""
        bench = Bench(tmp_path / "state")
        bench.install(monkeypatch)
        return bench.settings

    @pytest.fixture
    def model(self) -> Topology:
        """The topology of the lab."""
        return load_text(self.topology, "role.yaml")

    @pytest.fixture
    def lab(self, settings: Settings, model: Topology) -> Iterator[Lab]:
        """The lab; it is not created yet, and removed at the end."""
        lab = Lab(model.name, settings)
        yield lab
        lab.down()

    def nodes(self, lab: Lab, model: Topology) -> list[Node]:
        """Return the running nodes with the role."""
        return [lab.node(node.name) for node in model.nodes.values() if self.role in node.roles]

    # -- what it declares ---------------------------------------------------

    def test_it_is_registered_by_its_name(self, model: Topology) -> None:
        assert ROLES[self.role].name == self.role
        assert any(self.role in node.roles for node in model.nodes.values())

    def test_kernel_features_are_known(self, model: Topology) -> None:
        role, known = ROLES[self.role], {one.name for one in kernel.known()}
        assert set(role.kernel) <= known
        assert set(role.kernel_for(model)) <= known

    def test_features_of_a_lab_are_words_that_a_claim_can_require(self, model: Topology) -> None:
        features = ROLES[self.role].features(model)
        assert features
        assert features <= feature_words().keys()

    def test_the_topology_survives_its_record(self, model: Topology) -> None:
        assert load_data(model.to_dict(), "record").to_dict() == model.to_dict()

    def test_its_summary_is_one_line(self, model: Topology) -> None:
        assert "\n" not in ROLES[self.role].summary(model)

    def test_no_two_links_of_a_node_have_one_name(self, model: Topology) -> None:
        for node in model.nodes.values():
            names = [link.name for link in ROLES[self.role].links(model, node.name)]
            assert len(set(names)) == len(names)

    def test_planning_gives_the_same_steps_each_time(self, model: Topology) -> None:
        assert planning.make(model) == planning.make(model)

    def test_each_node_with_the_role_has_a_step(self, model: Topology) -> None:
        role: Role = ROLES[self.role]
        for node in model.nodes.values():
            if self.role in node.roles:
                assert list(role.steps(model, node))

    def test_services_of_a_node_are_those_of_the_role(self, model: Topology) -> None:
        role = ROLES[self.role]
        for node in model.nodes.values():
            if self.role in node.roles:
                assert set(role.services_on(model, node.name)) <= set(role.services)

    def test_services_that_others_need_are_of_the_lab(self, model: Topology) -> None:
        role = ROLES[self.role]
        there = {
            f"{node.name}/{service}"
            for node in model.nodes.values()
            for one in node.roles
            for service in ROLES[one].services_on(model, node.name)
        }
        for node in model.nodes.values():
            if self.role in node.roles:
                needs = role.service_needs(model, node.name)
                assert set(needs) <= set(role.services_on(model, node.name))
                assert {service for some in needs.values() for service in some} <= there

    def test_needs_are_not_negative(self, model: Topology) -> None:
        role = ROLES[self.role]
        for node in model.nodes.values():
            if self.role in node.roles:
                assert role.memory(model, node.name) >= 0

    # -- what it brings -----------------------------------------------------

    def test_its_services_run_and_no_others(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        for node in self.nodes(lab, model):
            roles = [ROLES[name] for name in model.nodes[node.name].roles]
            states = {name: one.state for name, one in node.services().items()}
            assert states == {
                service: "ready" for one in roles for service in one.services_on(model, node.name)
            }

    def test_a_second_up_changes_nothing(self, lab: Lab, model: Topology) -> None:
        first = lab.up(model)
        assert first.changed
        before = {node.name: node.services() for node in self.nodes(lab, model)}
        assert not lab.up(model).changed
        assert {node.name: node.services() for node in self.nodes(lab, model)} == before

    def test_its_programs_are_on_the_path(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        for node in self.nodes(lab, model):
            for offer in ROLES[self.role].offers_on(model, node.name):
                assert node.run(["sh", "-c", 'command -v "$1"', "sh", offer.target]).ok

    def test_its_facts_are_those_that_it_declares(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        role = ROLES[self.role]
        facts = role.facts(lab.context())
        assert facts.keys() <= set(role.fact_names)
        assert all(isinstance(value, str) for value in facts.values())
        assert all(isinstance(words, str) for words in role.described(facts))

    def test_its_parts_are_as_expected(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        for node in self.nodes(lab, model):
            found = ROLES[self.role].status(lab.context(), node)
            assert [part for parts in found.values() for part in parts if not part.ok] == []

    def test_its_links_are_complete(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        for node in self.nodes(lab, model):
            assert ROLES[self.role].differences(model, node) == []

    def test_a_killed_service_is_started_again(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        for node in self.nodes(lab, model):
            for service in ROLES[self.role].services_on(model, node.name):
                assert Faults(lab).apply(Fault("kill", node.name, service=service))
                assert lab.node(node.name).services()[service].state == "dead"
                lab.up(model)
                assert lab.node(node.name).services()[service].state == "ready"

    def test_nothing_runs_after_down(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        assert lab.down()
        assert lab.name not in lab.settings.state.labs()
        for provider in lab.settings.providers.values():
            assert provider.nodes(lab.name) == {}
            assert lab.name not in provider.labs()
        assert not lab.down()

    def test_it_can_be_created_again_after_down(self, lab: Lab, model: Topology) -> None:
        lab.up(model)
        lab.down()
        assert lab.up(model).changed
