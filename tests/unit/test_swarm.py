"""A swarm of a lab's Docker nodes: it becomes what the file says, whatever there was before."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import yaml
from topology_texts import DOCKER, LAN, bad, problems

from testbed.errors import LabError
from testbed.labs import plan
from testbed.labs.preflight import kernel_features
from testbed.nodes.base import Node, NodeSpec
from testbed.nodes.fake import FakeProvider
from testbed.nodes.marks import marked
from testbed.roles.docker import containers, glance, status, swarm
from testbed.roles.docker.engine import Engine
from testbed.roles.docker.glance import Membership
from testbed.roles.docker.swarm import MEMBER, Swarm
from testbed.steps.context import Context
from testbed.testing.fakes import FakeStore
from testbed.topology import Topology, load_data, load_text
from testbed.topology.containers import Container

NAMES = ("a", "b", "c")
REFUSED = "This node is not a swarm manager"


@dataclass
class Cluster:
    """A swarm: its nodes by ID, each with its name and role, and those that are gone."""

    nodes: dict[str, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    ids = itertools.count(1)

    def add(self, name: str, role: str) -> str:
        found = f"{name}-{next(self.ids)}"
        self.nodes[found] = [name, role]
        return found

    @property
    def has_quorum(self) -> bool:
        managers = [one for one, (_, role) in self.nodes.items() if role == "manager"]
        return 2 * len([one for one in managers if one not in self.gone]) > len(managers)


class Daemon:
    """The part of the SDK's client that a swarm uses, for one node."""

    def __init__(self, name: str, world: dict[str, Daemon]) -> None:
        self.name = name
        self.world = world
        self.cluster: Cluster | None = None
        self.id = ""
        self.state = "inactive"
        self.late = 0  # updates that come too late

    def info(self) -> dict[str, Any]:
        manages = bool(self.cluster) and self.cluster.nodes.get(self.id, ["", ""])[1] == "manager"  # type: ignore[union-attr]
        return {"Swarm": {"NodeID": self.id, "LocalNodeState": self.state,
                          "ControlAvailable": manages}}  # fmt: skip

    def _managed(self) -> Cluster:
        if not self.info()["Swarm"]["ControlAvailable"]:
            raise LabError(REFUSED)
        assert self.cluster is not None
        return self.cluster

    def init_swarm(self, *, force_new_cluster: bool, **given: Any) -> None:
        if force_new_cluster:
            cluster = self._managed()
            for one in cluster.gone & cluster.nodes.keys():
                cluster.nodes[one][1] = "worker"
        else:
            assert self.state == "inactive"
            self.cluster = Cluster()
            self.id, self.state = self.cluster.add(self.name, "manager"), "active"
        assert self.cluster is not None
        self.cluster.log.append(f"init {self.name} {given['default_addr_pool']}")

    def inspect_swarm(self) -> dict[str, Any]:
        self._managed()
        return {"JoinTokens": {"Manager": "manager", "Worker": "worker"}}

    def join_swarm(self, *, remote_addrs: list[str], join_token: str, **given: Any) -> None:
        assert self.state == "inactive"
        number = int(remote_addrs[0].removesuffix(":2377").rpartition(".")[2])
        assert given["advertise_addr"] == f"10.168.0.{2 + NAMES.index(self.name)}"
        cluster = self.world[NAMES[number - 2]]._managed()
        self.cluster, self.state = cluster, "active"
        self.id = cluster.add(self.name, join_token)
        cluster.log.append(f"join {self.name} {join_token}")

    def leave_swarm(self, *, force: bool) -> None:
        assert force
        assert self.state != "inactive"
        self.cluster, self.id, self.state = None, "", "inactive"

    def nodes(self) -> list[dict[str, Any]]:
        cluster = self._managed()
        if not cluster.has_quorum:
            raise LabError("The swarm does not have a leader")
        return [self.inspect_node(one) for one in cluster.nodes]

    def inspect_node(self, node: str) -> dict[str, Any]:
        cluster = self._managed()
        name, role = cluster.nodes[node]
        return {
            "ID": node,
            "Spec": {"Role": role, "Availability": "active"},
            "Version": {"Index": 7},
            "Description": {"Hostname": name},
            "Status": {"State": "down" if node in cluster.gone else "ready"},
        }

    def update_node(self, node: str, version: int, spec: Mapping[str, Any]) -> None:
        assert version == 7
        assert spec["Availability"] == "active"
        cluster = self._managed()
        if self.late:
            self.late -= 1
            raise LabError("rpc error: code = Unknown desc = update out of sequence")
        cluster.log.append(f"{cluster.nodes[node][0]} becomes a {spec['Role']}")
        cluster.nodes[node][1] = spec["Role"]

    def remove_node(self, node: str, *, force: bool) -> None:
        assert force
        cluster = self._managed()
        assert cluster.nodes[node][1] == "worker", "a manager must be demoted first"
        cluster.log.append(f"remove {cluster.nodes.pop(node)[0]}")


def lab_of(managers: str, **more: Any) -> Topology:
    nodes = {
        name: {"networks": {"lan": f"10.168.0.{number}"}, "roles": ["docker"]}
        for number, name in enumerate(NAMES, 2)
    }
    docker = {"swarm": yaml.safe_load(managers), **more}
    networks = {"lan": {"subnet": "10.168.0.0/24"}}
    return load_data({"name": "t", "networks": networks, "nodes": nodes, "docker": docker}, "t")


class World:
    """Three nodes, each with a daemon."""

    def __init__(self) -> None:
        self.provider = FakeProvider()
        self.daemons: dict[str, Daemon] = {}
        for name in NAMES:
            self.daemons[name] = Daemon(name, self.daemons)
        self.machines: dict[str, Node] = {
            name: self.provider.create_one("t", NodeSpec(name, "d")) for name in NAMES
        }

    def converge(self, managers: str) -> bool:
        engines = {}
        for name in NAMES:
            engines[name] = Engine.__new__(Engine)
            engines[name]._node = self.machines[name]
            engines[name].api = cast("Any", self.daemons[name])
        context = Context(lab_of(managers), self.provider, FakeStore(), self.machines)
        changed = Swarm(context, engines).converge()
        cluster = self.cluster
        assert all(one.cluster is cluster for one in self.daemons.values())
        wanted = yaml.safe_load(managers)
        roles = {name: "manager" if name in wanted else "worker" for name in NAMES}
        assert sorted(cluster.nodes.values()) == sorted(
            [name, role] for name, role in roles.items()
        )
        assert all(marked(machine, MEMBER) for machine in self.machines.values())
        assert changed == bool(cluster.log)
        return changed

    @property
    def cluster(self) -> Cluster:
        """The swarm of the node that manages one, by preference."""
        found = [one for one in self.daemons.values() if one.cluster]
        found.sort(key=lambda one: not one.info()["Swarm"]["ControlAvailable"])
        assert found[0].cluster is not None
        return found[0].cluster

    def create_again(self, name: str) -> None:
        """The node has a new daemon, and the swarm has an old entry."""
        self.cluster.gone.add(self.daemons[name].id)
        self.cluster.log.clear()
        self.daemons[name] = Daemon(name, self.daemons)

    def log(self) -> list[str]:
        found = list(self.cluster.log)
        self.cluster.log.clear()
        return found


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_manager_makes_it_and_the_others_join(world: World) -> None:
    assert world.converge("[b]")
    assert world.log() == ["init b None", "join a worker", "join c worker"]
    assert not world.converge("[b]"), "a second time nothing changes"


def test_a_node_created_again_leaves_its_old_entry_and_joins_anew(world: World) -> None:
    world.converge("[a]")
    world.create_again("c")
    assert world.converge("[a]")
    assert world.log() == ["remove c", "join c worker"]


def test_a_manager_created_again_joins_the_others(world: World) -> None:
    world.converge("[a, b, c]")
    world.create_again("a")
    assert world.converge("[a, b, c]")
    assert world.log() == ["a becomes a worker", "remove a", "join a manager"]


def test_without_a_majority_the_swarm_and_its_services_stay(world: World) -> None:
    world.converge("[a, b]")
    world.create_again("a")
    assert world.converge("[a, b]")
    assert world.log() == ["init b None", "remove a", "join a manager"]


def test_without_any_manager_there_is_a_new_swarm(world: World) -> None:
    world.converge("[a]")
    world.create_again("a")
    assert world.converge("[a]")
    assert world.log() == ["init a None", "join b worker", "join c worker"]


def test_other_managers_take_over(world: World) -> None:
    world.converge("[a]")
    world.log()
    world.daemons["b"].late = 3  # the swarm has changed its own records meanwhile
    assert world.converge("[b, c]")
    assert world.log() == [
        "b becomes a manager", "c becomes a manager", "a becomes a worker"
    ]  # fmt: skip


def test_a_node_in_a_swarm_of_its_own_leaves_it(world: World) -> None:
    world.daemons["c"].init_swarm(force_new_cluster=False, default_addr_pool=None)
    world.daemons["c"].state = "locked"
    world.daemons["c"].id = ""
    world.converge("[a]")


def test_a_node_leaves_when_the_file_has_no_swarm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.converge("[a]")
    machine = world.machines["b"]

    class Client(Engine):
        def __init__(self, node: Node) -> None:
            self._node = node
            self.api = cast("Any", world.daemons[node.name])

        def close(self) -> None:
            return

    monkeypatch.setattr(swarm, "Engine", Client)
    swarm.leave(machine)
    assert world.daemons["b"].state == "inactive"
    assert not marked(machine, MEMBER)


# -- the file -----------------------------------------------------------------------------


def test_the_step_is_the_first_managers_and_after_all_daemons() -> None:
    steps = plan.make(lab_of("[b, a]")).steps
    assert set(steps["swarm b"].needs) == {f"docker {name}" for name in NAMES}
    assert "ip_vs" in steps["swarm b"].about
    assert not [name for name in plan.make(lab_of("[]")).steps if name.startswith("swarm")]


def test_nodes_are_the_same_with_and_without_a_swarm_and_images() -> None:
    plain = lab_of("[]")
    for other in (lab_of("[b]"), lab_of("[b]", images=["redis:7"])):
        assert [other.node_digest(n) for n in NAMES] == [plain.node_digest(n) for n in NAMES]
        assert load_data(other.to_dict(), "record") == other


def test_its_kernel_has_vxlan_and_its_images_are_on_each_node() -> None:
    topology = lab_of("[b]", images=["redis:7"])
    assert "vxlan" in kernel_features(topology)
    assert "ip_vs" not in kernel_features(topology), "services can do without"
    assert topology.images == ("redis:7",)
    assert plan.make(topology).steps["images c"].about == "images: redis:7"


@pytest.mark.parametrize(
    ("subnet", "wanted"),
    [
        ("10.168.0.0/24", None),
        ("192.168.56.0/24", None),
        ("10.0.0.0/24", "10.1.0.0/16"),
        ("10.0.0.0/15", "10.2.0.0/16"),
        ("10.0.0.0/8", None),  # nothing is free
    ],
)
def test_overlay_networks_are_apart_from_the_labs(subnet: str, wanted: str | None) -> None:
    address = str(subnet).replace(".0/", ".2/").partition("/")[0]
    text = (
        f"name: t\nnetworks: {{lan: {{subnet: {subnet}}}}}\n"
        f"nodes: {{n1: {{networks: {{lan: {address}}}, roles: [docker]}}}}\n"
        "docker: {swarm: [n1]}\n"
    )
    assert swarm.pool(load_text(text, "t.yaml")) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DOCKER + "docker: {swarm: [n1, §n2]}\n", "name of a node"),
        (DOCKER + "docker: {swarm: §n1}\n", "list"),
        (DOCKER + "docker: {swarm: [n1], daemon: {§live-restore: true}}\n", "live-restore"),
        (
            LAN + "nodes:\n  n1: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"
            "  n2: {networks: {lan: 10.168.0.3}}\ndocker: {swarm: [§n2]}\n",
            "role docker",
        ),
    ],
)
def test_bad_swarms(text: str, words: str) -> None:
    expected = bad(text, words)
    found = problems(expected.plain)
    assert [(p.line, p.column) for p in found] == expected.places
    assert all(words in p.wanted for p in found)


@pytest.mark.parametrize(
    ("node", "seen", "ok"),
    [
        ("a", Membership("active", True, ""), True),
        ("a", Membership("active", False, ""), False),
        ("b", Membership("active", False, ""), True),
        ("b", Membership("active", True, ""), False),
        ("b", Membership("inactive", False, ""), False),
        ("b", Membership("error", False, "rpc error"), False),
    ],
)
def test_the_status_of_a_node(
    monkeypatch: pytest.MonkeyPatch, world: World, node: str, seen: Membership, *, ok: bool
) -> None:
    monkeypatch.setattr(glance, "swarm", lambda _: seen)
    context = Context(lab_of("[a]"), world.provider, FakeStore(), world.machines)
    (part,) = status.swarm(context, world.machines[node])
    assert (part.state, part.ok) == (seen.state, ok)
    assert part.name == ("manager" if node == "a" else "worker")


# -- containers on overlay networks ---------------------------------------------------------


class Late(Engine):
    """A daemon that lets a container onto an overlay network at the third attempt."""

    def __init__(self, words: str, attempts: int) -> None:
        self.words, self.attempts = words, attempts
        self.log: list[str] = []

    def start(self, lab: str, container: Container, digest: str) -> None:
        self.log.append("start")
        self.attempts -= 1
        if self.attempts:
            raise LabError(f"dockerd on b: cannot start the container c: {self.words}")

    def remove(self, container: str) -> None:
        self.log.append("remove")


def test_a_container_waits_for_the_swarm_to_know_its_node_again(world: World) -> None:
    context = Context(lab_of("[a]"), world.provider, FakeStore(), world.machines)
    container = Container(name="c", node="b")
    late = Late("attaching to network failed, make sure ...: context deadline exceeded", 3)
    containers._start(context, late, container, "d")
    assert late.log == ["start", "remove", "start", "remove", "start"]
    for other in (Late("no space left", 2), Late("attaching to network failed", 99)):
        with pytest.raises(LabError):
            containers._start(context, other, container, "d")
        assert other.log[-1] == "start", "the container stays to be looked at"
    context.given_up.set()
    ended = Late("attaching to network failed", 2)
    with pytest.raises(LabError):
        containers._start(context, ended, container, "d")
    assert ended.log == ["start"]
