"""The plan: which steps, after which, for every shipped topology; nothing done yet."""

from __future__ import annotations

import pytest
from topology_texts import DOCKER, NODES

from testbed.labs import plan
from testbed.steps.step import Step, order
from testbed.topology import load, load_text, names

SHIPPED = sorted(names())
FLANNEL = ["two-node", "two-node-host-gw", "two-node-udp"]

#: Each step and what it needs.
TWO_NODE = {
    "fabric": (),
    "node node1": ("fabric",),
    "node node2": ("fabric",),
    "node outside": ("fabric",),
    "programs node1": ("node node1",),
    "programs node2": ("node node2",),
    "etcd node1": ("node node1",),
    "docker node1": ("node node1",),
    "docker node2": ("node node2",),
    "images node1": ("docker node1",),
    "images node2": ("docker node2",),
    "flannel config": ("etcd node1",),
    "flannel node1": ("flannel config", "node node1"),
    "flannel node2": ("flannel config", "node node2"),
    "container node1/container-1": ("images node1",),
    "container node2/container-2": ("images node2",),
    "containers node1": ("container node1/container-1",),
    "containers node2": ("container node2/container-2",),
    "reach container-1 -> container-2": (
        "container node1/container-1",
        "flannel node1",
        "container node2/container-2",
        "flannel node2",
    ),
    "reach container-2 -> container-1": (
        "container node2/container-2",
        "flannel node2",
        "container node1/container-1",
        "flannel node1",
    ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_step_comes_after_what_it_needs(name: str) -> None:
    topology = load(name)
    made = plan.make(topology)
    assert made.lab == name
    seen: set[str] = set()
    for key, step in made.steps.items():
        assert key == step.name
        assert seen.issuperset(step.needs), step
        assert step.about
        seen.add(key)
    assert seen.issuperset(f"node {node}" for node in topology.nodes)
    assert seen.issuperset(f"container {c.node}/{c.name}" for c in topology.containers.values())


@pytest.mark.parametrize("name", FLANNEL)
def test_the_steps_of_two_nodes(name: str) -> None:
    made = plan.make(load(name))
    assert {step.name: step.needs for step in made.steps.values()} == TWO_NODE


def test_dockerd_does_not_wait_for_flanneld() -> None:
    steps = plan.make(load("two-node")).steps

    def below(name: str) -> set[str]:
        return {name, *(n for need in steps[name].needs for n in below(need))}

    assert below("docker node1") == {"docker node1", "node node1", "fabric"}
    assert not [n for n in below("flannel node2") if n.startswith(("docker", "container"))]


def test_daemons_and_containers_are_heavy_and_nothing_else() -> None:
    heavy = {s.name.split()[0] for s in plan.make(load("two-node")).steps.values() if s.heavy}
    light = {s.name.split()[0] for s in plan.make(load("two-node")).steps.values() if not s.heavy}
    assert heavy == {"docker", "flannel", "container"}
    assert heavy.isdisjoint(light - {"flannel"})


def test_netns_experiments() -> None:
    steps = plan.make(load("netns-experiments")).steps
    assert {s.name: s.needs for s in steps.values()} == {
        "fabric": (),
        "node host": ("fabric",),
        "namespaces host": ("node host",),
    }


def test_a_sidecar_comes_after_all_others_of_its_node() -> None:
    text = DOCKER + (
        "containers:\n  side: {node: n1, image: nginx, network: 'container:main'}\n"
        "  main: {node: n1, image: nginx}\n  last: {node: n1, image: nginx}\n"
    )
    steps = plan.make(load_text(text, "t")).steps
    chain = [name for name in steps if name.startswith("container ")]
    assert chain == ["container n1/main", "container n1/last", "container n1/side"]
    assert [steps[name].needs for name in chain] == [
        ("images n1",),
        ("container n1/main",),
        ("container n1/last",),
    ]


def test_nobody_is_asked_for_a_page_that_has_none() -> None:
    text = NODES + "flannel: {}\ncontainers:\n  c-1: {node: n1, image: nginx}\n"
    steps = plan.make(load_text(text, "t")).steps
    assert not [name for name in steps if name.startswith("reach")]


def test_pages_are_fetched_round_in_a_ring() -> None:
    text = NODES.replace(
        "  out:", "  n3: {networks: {lan: 10.168.0.4}, roles: [docker, flannel]}\n  out:"
    ) + (
        "flannel: {}\ncontainers:\n"
        + "".join(f"  c-{i}: {{node: n{i}, image: nginx}}\n" for i in (1, 2, 3))
    )
    steps = plan.make(load_text(text, "t")).steps
    reach = [name for name in steps if name.startswith("reach")]
    assert reach == ["reach c-1 -> c-2", "reach c-2 -> c-3", "reach c-3 -> c-1"]


def test_making_a_plan_does_nothing() -> None:
    topology = load("two-node")
    before = topology.to_dict()
    plan.make(topology)
    assert topology.to_dict() == before
    assert plan.make(topology).to_dict() == plan.make(topology).to_dict()


def test_a_need_without_a_step() -> None:
    with pytest.raises(ValueError, match=r"no step \['node n9'\]"):
        order([Step("a", "a"), Step("b", "b", ("a", "node n9"))])


def test_a_circle() -> None:
    steps = [
        Step("a", "a"),
        Step("b", "b", ("a", "d")),
        Step("c", "c", ("b",)),
        Step("d", "d", ("c",)),
    ]
    with pytest.raises(ValueError, match=r"a circle among \['b', 'c', 'd'\]"):
        order(steps)
    with pytest.raises(ValueError, match="a circle"):
        order([Step("a", "a", ("a",))])


def test_two_steps_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"\['a'\]"):
        order([Step("a", "one"), Step("a", "other"), Step("b", "b")])


def test_the_order_given_is_kept_where_it_may_be() -> None:
    steps = [Step("c", "c"), Step("b", "b", ("a",)), Step("a", "a"), Step("d", "d")]
    assert list(order(steps)) == ["c", "a", "d", "b"]


def test_the_plan_as_data() -> None:
    data = plan.make(load("netns-experiments")).to_dict()
    assert data["lab"] == "netns-experiments"
    assert data["steps"][1] == {
        "name": "node host",
        "about": "machine with no network",
        "needs": ["fabric"],
    }


def test_a_machine_on_a_wire_has_no_address() -> None:
    text = "name: t\nnetworks: {wire: {}}\nnodes: {a: {networks: {wire: {}}}}\n"
    assert plan.make(load_text(text, "t.yaml")).steps["node a"].about == "machine with no address"
