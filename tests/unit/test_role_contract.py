"""Our own roles keep the contract of roles, on nodes in memory."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from plugins import Greeter

from testbed.labs.lab import Lab
from testbed.nodes.base import Service
from testbed.nodes.wiring import Difference
from testbed.registry import ROLES
from testbed.roles.base import OwnLink, start
from testbed.roles.docker import glance
from testbed.roles.docker.glance import Glance
from testbed.roles.part import Part
from testbed.steps.step import Step, node_step
from testbed.testing import Bench, FakeEngine, RoleContract, declare
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
GREETER = """
name: greeting
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {node1: {networks: {lan: 10.168.0.2}, roles: [greeter]}}
"""
TWO_NODE = (TOPOLOGIES / "two-node.yaml").read_text(encoding="utf-8")


class TestDocker(RoleContract):
    role = "docker"
    topology = TWO_NODE

    @pytest.fixture(autouse=True)
    def _seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let status see the containers in memory: there is no socket of a daemon."""

        def containers(node: Machine) -> dict[str, Glance]:
            there = FakeEngine(node)
            found = (there.inspect(name) for name in there.names())
            return {one.name: Glance(one.name, one.status, one.address) for one in found}

        monkeypatch.setattr(glance, "containers", containers)


class TestEtcd(RoleContract):
    role = "etcd"
    topology = TWO_NODE


class TestFlannel(RoleContract):
    role = "flannel"
    topology = TWO_NODE


class TestNamespaces(RoleContract):
    role = "namespaces"
    topology = (TOPOLOGIES / "netns-experiments.yaml").read_text(encoding="utf-8")


class TestGreeter(RoleContract):
    role = "greeter"
    topology = GREETER

    @pytest.fixture(autouse=True)
    def _declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        declare(monkeypatch, ROLES, "greeter", "plugins:Greeter")


# -- roles that break it -------------------------------------------------------------


class Forgetful(Greeter):
    """Starts its daemon only if its file is missing."""

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            try:
                machine.get("/run/greeting")
            except FileNotFoundError:
                machine.put(b"", "/run/greeting")
                return "", start(machine, Service("greetd", ("greetd",)), context=context)
            return "", False

        yield Step(f"greeter {node.name}", "", (node_step(node.name),), act=act)


class Restless(Greeter):
    """Reports a change each time."""

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        (step,) = super().steps(topology, node)
        yield replace(step, act=lambda context: (step.act(context)[0], True))


class Secretive(Greeter):
    """Starts a daemon that it does not declare."""

    services: ClassVar[tuple[str, ...]] = ()


class Nameless(Greeter):
    """Has another name than its entry point."""

    name = "other"


class Fickle(Greeter):
    """Has other steps each time."""

    count: ClassVar = itertools.count()

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        yield Step(f"greeter {node.name} {next(self.count)}", "")


class Dreamer(Greeter):
    """Needs a feature of the kernel that nobody knows."""

    kernel = ("no-such-feature",)


class Idle(Greeter):
    """Does nothing for its nodes."""

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        return ()


class Wordy(Greeter):
    """Meets a word that no claim can require."""

    def features(self, topology: Topology) -> AbstractSet[str]:
        return {"no-such-feature"}


class Gossip(Greeter):
    """Tells a fact that it does not declare."""

    def facts(self, context: Context) -> Mapping[str, str]:
        return {"greeting": "hello"}


class Sad(Greeter):
    """Has a part that is not as expected."""

    def status(self, context: Context, machine: Machine) -> Mapping[str, list[Part]]:
        return {"greeting": [Part("hello", "missing", ok=False)]}


class Twin(Greeter):
    """Creates two links of one name."""

    def links(self, topology: Topology, node: str) -> Iterable[OwnLink]:
        return [OwnLink("greet0", "greetings")] * 2


class Incomplete(Greeter):
    """Lacks a link on every node."""

    def differences(self, topology: Topology, machine: Machine) -> list[Difference]:
        return [Difference("link", "eth0", "missing")]


BROKEN = {
    Wordy: "features_of_a_lab_are_words_that_a_claim_can_require",
    Gossip: "its_facts_are_those_that_it_declares",
    Sad: "its_parts_are_as_expected",
    Twin: "no_two_links_of_a_node_have_one_name",
    Nameless: "it_is_registered_by_its_name",
    Dreamer: "kernel_features_are_known",
    Fickle: "planning_gives_the_same_steps_each_time",
    Idle: "each_node_with_the_role_has_a_step",
    Secretive: "its_services_run_and_no_others",
    Restless: "a_second_up_changes_nothing",
    Incomplete: "its_links_are_complete",
    Forgetful: "a_killed_service_is_started_again",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_role_that_breaks_the_contract_fails_its_test(
    kind: type[Greeter], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, ROLES, "greeter", f"{__name__}:{kind.__name__}")
    contract, topology = TestGreeter(), load_text(GREETER, "greeting.yaml")
    given = {"lab": Lab(topology.name, bench.settings), "model": topology}
    test = getattr(contract, f"test_{BROKEN[kind]}")
    with pytest.raises(AssertionError):
        test(*(given[name] for name in list(inspect.signature(test).parameters)))
