"""Up, up again, edited, failed, down: a whole lab on fake nodes."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from plugins import Elsewhere, declare_elsewhere

from testbed.errors import (
    ArtifactError,
    LabBusy,
    LabError,
    MachineError,
    NodeNotRunning,
    NoSuchLab,
    NoSuchNode,
    ServiceError,
    StepsFailed,
    UsageError,
)
from testbed.labs.base_steps import node_spec
from testbed.labs.lab import Lab, Outcome, labs
from testbed.labs.live import LiveLab
from testbed.labs.offers import hidden
from testbed.labs.run import Watch
from testbed.labs.status import status
from testbed.nodes import wiring
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, Behaviour, FakeMachine, FakeNode, FakeProvider
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.testing.fakes import Bench, FakeEngine
from testbed.topology import Topology, load, load_data, load_text, names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.labs.run import Done
    from testbed.nodes.base import Node

TEXT = """
name: two-node
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}, roles: [etcd, docker, flannel]}
  node2: {networks: {lan: 10.168.0.3}, roles: [docker, flannel]}
  outside: {networks: {lan: 10.168.0.1}, gateway: true}
flannel:
  backend: vxlan
  network: 100.96.0.0/16
  subnets: {node1: 100.96.1.0/24, node2: 100.96.2.0/24}
containers:
  container-1: {node: node1, image: nginx}
  container-2: {node: node2, image: nginx}
  container-3: {node: node1, image: nginx}
"""
NODES = ["node1", "node2", "outside"]


def two(edit: Callable[[str], str] = lambda text: text, source: str = "two.yaml") -> Topology:
    return dataclasses.replace(load_text(edit(TEXT), source), file=f"/labs/{source}")


def up(
    bench: Bench, topology: Topology | None = None, *, keep: bool = False, replace: bool = False
) -> Outcome:
    topology = topology or two()
    return Lab(topology.name, bench.settings).up(topology, keep=keep, replace=replace)


def changed(outcome: Outcome) -> set[str]:
    return {done.step.name for done in outcome.changed}


def nodes(bench: Bench) -> list[str]:
    return sorted(bench.provider.nodes("two-node"))


def made_by(bench: Bench, lab: str = "two-node") -> dict[str, str]:
    """Return the provider of each node of a lab."""
    return {
        node: name
        for name, provider in bench.settings.providers.items()
        for node in provider.nodes(lab)
    }


# -- up ---------------------------------------------------------------------


#: A cluster is made by asking its API, and no fake answers for one.
WITHOUT_API = [name for name in sorted(names()) if KubernetesSection.find(load(name)) is None]


@pytest.mark.parametrize("name", WITHOUT_API)
def test_every_shipped_topology_comes_up_and_goes(bench: Bench, name: str) -> None:
    topology = load(name)
    lab = Lab(name, bench.settings)
    outcome = lab.up(topology)
    assert made_by(bench, name) == {node: topology.provider_of(node) for node in topology.nodes}
    assert {n for n, what in bench.engine_log if what.startswith("start")} == {
        c.node for c in topology.containers.values()
    }
    assert lab.topology() == topology
    assert outcome.removed == []
    again = lab.up(topology)
    assert again.changed == []
    assert lab.down()
    assert labs(bench.settings) == []


def test_what_is_done_to_the_nodes(bench: Bench) -> None:
    up(bench)
    started = sorted((c.node, c.words[0]) for c in bench.provider.calls if c.what == "start")
    assert started == [
        ("node1", "containerd"),
        ("node1", "dockerd"),
        ("node1", "etcd"),
        ("node1", "flanneld"),
        ("node2", "containerd"),
        ("node2", "dockerd"),
        ("node2", "flanneld"),
    ]
    assert bench.provider.asked("connect", "node2") == [("10.168.0.3",)]
    order = [what for node, what in bench.engine_log if node == "node1"]
    assert order == ["load nginx", "start container-1", "start container-3"]


def test_flannels_keys_are_written_in_one_transaction_before_any_flanneld(bench: Bench) -> None:
    up(bench)
    calls = bench.provider.calls
    (at,) = [i for i, c in enumerate(calls) if c.what == "run" and c.words[-1] == "txn"]
    assert not [c for c in calls[:at] if c.what == "start" and c.words == ("flanneld",)]
    text = (calls[at].input or b"").decode()
    assert text.startswith("\nput ")  # no comparison, then what to do
    found = re.findall(r"^put /coreos.com/network/(\S+) ", text, re.MULTILINE)
    assert found == ["subnets/100.96.1.0-24", "subnets/100.96.2.0-24", "config"]
    assert text.endswith("\n\n\n")  # end of what to do, and nothing to do otherwise


def test_the_record_says_what_ran(bench: Bench) -> None:
    began = time.time()
    up(bench)
    record = Lab("two-node", bench.settings).record()
    assert began - 1 < record.created < time.time() + 1  # the clock may be set by a little
    assert record.topology == two().to_dict()
    assert record.source == "/labs/two.yaml"
    assert record.versions["etcd"] == "3.4.23"
    assert record.seconds > 0
    assert {s["name"] for s in record.steps} >= {"fabric", "reach container-1 -> container-2"}


def test_progress_is_told_from_the_callers_thread(bench: Bench) -> None:
    told: list[tuple[str, threading.Thread]] = []
    watch = Watch(step=lambda done: told.append((done.step.name, threading.current_thread())))
    Lab("two-node", bench.settings).up(two(), watch=watch)
    assert {thread for _, thread in told} == {threading.current_thread()}
    assert told[0][0] == "fabric"


def test_artifacts_are_had_before_anything_is_made(bench: Bench) -> None:
    bench.store.missing = ArtifactError("no such thing")
    with pytest.raises(ArtifactError):
        up(bench)
    assert bench.provider.calls == []
    assert labs(bench.settings) == []


def test_a_provider_is_told_what_is_to_be_made_before_anything_is(bench: Bench) -> None:
    up(bench)
    whats = [call.what for call in bench.provider.calls]
    assert whats.index("prepare") < whats.index("create_fabric")
    assert bench.provider.asked("prepare") == [tuple(NODES)]
    bench.forget()
    up(bench)
    bench.provider.destroy("two-node", ["node2"])
    up(bench)
    assert bench.provider.asked("prepare") == [("node2",)]  # the first time there was none


def test_a_provider_is_told_all_that_a_node_is_to_be() -> None:
    node = "  big: {networks: {lan: 10.168.0.9, wan: 10.9.0.2}, cpus: 1.5, memory: 256M}\n"
    wan = "}, wan: {subnet: 10.9.0.0/24}}\nnodes:\n"
    topology = two(lambda text: text.replace("}}\nnodes:\n", wan + node))
    big = topology.nodes["big"]
    assert node_spec(topology, big) == NodeSpec(
        "big", topology.node_digest("big"), 1.5, 256 << 20, 2, hidden(topology, big)
    )
    assert node_spec(topology, topology.nodes["node1"]).interfaces == 1
    assert "dockerd" in hidden(topology, big)


def test_a_machine_that_has_no_room_is_told_before_anything_is_made(bench: Bench) -> None:
    bench.provider.fail("prepare", "", MachineError("too little memory"))
    with pytest.raises(MachineError, match="too little memory"):
        up(bench)
    assert labs(bench.settings) == []


def test_what_is_made_at_hand_can_be_interrupted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it was held back")

    monkeypatch.setattr(bench.provider, "prepare", prepare)
    with pytest.raises(KeyboardInterrupt):
        up(bench)
    assert labs(bench.settings) == []


def test_an_unknown_provider(bench: Bench) -> None:
    topology = dataclasses.replace(two(), provider="moon")
    with pytest.raises(UsageError, match="no provider 'moon'") as caught:
        up(bench, topology)
    assert caught.value.hint == "there are: netns, qemu"


def test_a_topology_of_another_name_is_none_of_the_labs(bench: Bench) -> None:
    with pytest.raises(ValueError, match="docker-single"):
        Lab("two-node", bench.settings).up(load("docker-single"))


@pytest.mark.parametrize("stopped", [["node1"], ["node1", "node2"]])
def test_a_lab_with_nodes_that_are_stopped_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stopped: list[str]
) -> None:
    up(bench)
    bench.forget()
    held = {"two-node": stopped}
    monkeypatch.setattr(bench.provider, "paused", lambda lab: held.get(lab, []))
    with pytest.raises(LabError, match=", ".join(stopped)) as caught:
        up(bench)
    assert "testbed fault heal -l two-node stop" in str(caught.value.hint)
    assert bench.provider.calls == []
    assert Lab("two-node", bench.settings).stopped() == stopped
    other = Lab("docker-single", bench.settings)
    assert other.stopped() == []  # another lab on the machine is not held up
    other.up(load("docker-single"))


def test_the_outcome_says_how_long_it_took_and_what_is_new(bench: Bench) -> None:
    outcome = up(bench)
    assert 0 < outcome.seconds < 3600
    assert outcome.changed == [done for done in outcome.steps if done.changed]
    assert up(bench).removed == []


# -- what has gone ------------------------------------------------------------


def fake(bench: Bench, node: str) -> FakeNode:
    return bench.provider.machine.nodes["two-node", node]


def broken(bench: Bench, node: str, how: str) -> None:
    """Take one thing of a node's wiring."""
    here = fake(bench, node).wiring
    if how == "link":
        del here.addresses["eth0"]
    elif how == "down":
        here.down.add("eth0")
    elif how == "address":
        here.addresses["eth0"] = ()
    elif how == "prefix":
        here.addresses["eth0"] = tuple(one.replace("/24", "/25") for one in here.addresses["eth0"])
    elif how == "route":
        here.gateway = ""
    elif how == "other route":
        here.gateway = "10.168.0.99"
    elif how == "forwarding":
        here.settings.clear()
    elif how == "port":
        difference = wiring.Difference("port", "port of eth0 on lan", "detached", 0)
        bench.provider.machine.differences["two-node", node] = [difference]


LOSSES = [
    ("node1", "link", "link"),
    ("node1", "down", "link"),
    ("node2", "address", "address"),
    ("node2", "prefix", "address"),
    ("node2", "route", "route"),
    ("node2", "other route", "route"),
    ("outside", "forwarding", "setting"),
    ("node1", "port", "port"),
]


@pytest.mark.parametrize(("node", "how", "kind"), LOSSES)
def test_what_of_a_node_has_gone_is_seen_and_put_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, node: str, how: str, kind: str
) -> None:
    monkeypatch.setattr("testbed.roles.docker.glance.containers", lambda _: {})
    up(bench)
    broken(bench, node, how)
    context = Lab("two-node", bench.settings).context()
    differences = context.provider.differences("two-node", context.topology).get(node, [])
    differences += wiring.differences(context.topology, node, wiring.look(context.nodes[node]))
    assert [difference.kind for difference in differences] == [kind]
    (seen,) = (one for one in status(context).nodes if one.name == node)
    assert not all(part.ok for part in (*seen.links, *seen.routes, *seen.settings))
    bench.forget()
    outcome = up(bench)
    assert changed(outcome) >= {f"node {node}"}
    assert bench.provider.asked("restore", node) == [tuple(map(str, differences))]
    (done,) = (done for done in outcome.steps if done.step.name == f"node {node}")
    assert str(differences[0]) in done.words
    # What has set routes and devices on the link starts again, and nothing else does.
    flanneld = {f"flannel {node}"} if node != "outside" else set()
    assert changed(outcome) == {f"node {node}"} | flanneld
    bench.forget()
    assert changed(up(bench)) == set()
    assert bench.provider.asked("restore") == []


def test_a_network_that_has_gone_is_put_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.roles.docker.glance.containers", lambda _: {})
    up(bench)
    gone = wiring.Difference("network", "lan", "missing")
    bench.provider.machine.differences["two-node", ""] = [gone]
    seen = status(Lab("two-node", bench.settings).context())
    assert [(one.name, one.state, one.ok) for one in seen.networks] == [("lan", "missing", False)]
    assert not seen.ok
    outcome = up(bench)
    assert changed(outcome) == {"fabric"}
    assert str(gone) in outcome.changed[0].words


def test_what_cannot_be_put_back_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    up(bench)
    broken(bench, "node2", "link")
    monkeypatch.setattr(FakeProvider, "restore", lambda *_: None)
    with pytest.raises(StepsFailed) as caught:
        up(bench)
    ((step, error),) = caught.value.failures
    assert step == "node node2"
    assert isinstance(error, LabError)
    assert "eth0" in error.message


# -- up again ---------------------------------------------------------------


def test_a_second_up_does_nothing(bench: Bench) -> None:
    up(bench)
    before = bench.provider.nodes("two-node")
    bench.forget()
    outcome = up(bench)
    assert changed(outcome) == set()
    assert bench.provider.nodes("two-node") == before
    assert bench.engine_log == []
    assert bench.provider.asked("create") == []
    # It puts nothing on the nodes: daemons are only waited for, pages fetched, links looked at.
    assert bench.provider.asked("put") == []
    assert {w[0] for w in bench.provider.asked("run")} == {"nsenter", "sh"}
    looked = [w for w in bench.provider.asked("run") if w[0] == "sh"]
    assert looked == [wiring.LOOK] * len(NODES)  # once a node


def test_so_does_one_of_another_process(bench: Bench) -> None:
    up(bench)
    outcome = Lab("two-node", bench.again()).up(two())
    assert changed(outcome) == set()


def test_a_node_that_has_died_is_made_again(bench: Bench) -> None:
    up(bench)
    others = {n: bench.provider.nodes("two-node")[n] for n in ("node1", "outside")}
    bench.provider.destroy("two-node", ["node2"])
    outcome = up(bench)
    assert changed(outcome) == {
        "node node2",
        "programs node2",
        "docker node2",
        "images node2",
        "container node2/container-2",
        "flannel node2",
    }
    assert {n: bench.provider.nodes("two-node")[n] for n in others} == others


def test_a_daemon_that_has_died_is_started_again(bench: Bench) -> None:
    up(bench)
    node = bench.provider.nodes("two-node")["node2"]
    node.end("flanneld", 1, "gone\n")  # type: ignore[attr-defined]
    outcome = up(bench)
    assert changed(outcome) == {"flannel node2"}
    assert node.services()["flanneld"].state == "ready"


def test_with_a_new_etcd_every_flanneld_registers_again(bench: Bench) -> None:
    up(bench)
    bench.provider.destroy("two-node", ["node1"])
    outcome = up(bench)
    assert {"flannel config", "flannel node1", "flannel node2"} <= changed(outcome)
    assert {"docker node2", "container node2/container-2"}.isdisjoint(changed(outcome))


def test_a_node_half_made_is_made_anew(bench: Bench) -> None:
    bench.provider.fail("connect", "node2", KeyError("killed here"))
    with pytest.raises(StepsFailed):
        up(bench, keep=True)
    half = bench.provider.nodes("two-node")["node2"]
    bench.provider.fail("connect", "node2", None)
    up(bench)
    assert bench.provider.nodes("two-node")["node2"] is not half
    assert nodes(bench) == NODES


# -- an edited topology -----------------------------------------------------


def added(text: str) -> str:
    text = text.replace(
        "  outside:", "  node3: {networks: {lan: 10.168.0.4}, roles: [docker]}\n  outside:"
    )
    return text + "  container-4: {node: node3, image: nginx}\n"


def test_a_node_that_is_added_is_all_that_changes(bench: Bench) -> None:
    up(bench)
    before = bench.provider.nodes("two-node")
    outcome = up(bench, two(added))
    # The others stay; they learn its name.
    assert changed(outcome) == {
        *(f"node {name}" for name in NODES),
        "node node3",
        "programs node3",
        "docker node3",
        "images node3",
        "container node3/container-4",
    }
    after = bench.provider.nodes("two-node")
    assert {n: after[n] for n in before} == before
    for name in after:
        assert b"10.168.0.4 node3\n" in after[name].get("/etc/hosts")


def test_a_node_that_is_taken_out_is_removed(bench: Bench) -> None:
    up(bench, two(added))
    outcome = up(bench)
    assert outcome.removed == ["node3"]
    assert changed(outcome) == {f"node {name}" for name in NODES}
    for node in bench.provider.nodes("two-node").values():
        assert b"node3" not in node.get("/etc/hosts")
    assert nodes(bench) == NODES


def test_a_node_with_another_role_is_made_anew(bench: Bench) -> None:
    up(bench)
    before = bench.provider.nodes("two-node")
    outcome = up(
        bench, two(lambda t: t.replace("gateway: true}", "gateway: true, roles: [docker]}"))
    )
    assert outcome.removed == ["outside"]
    assert changed(outcome) == {"node outside", "programs outside", "docker outside"}
    assert bench.provider.nodes("two-node")["node1"] is before["node1"]
    assert bench.provider.nodes("two-node")["outside"] is not before["outside"]


def test_another_backend_makes_the_flannel_nodes_anew(bench: Bench) -> None:
    up(bench)
    outcome = up(bench, two(lambda t: t.replace("backend: vxlan", "backend: udp")))
    assert outcome.removed == ["node1", "node2"]


def test_a_changed_container_is_all_that_changes(bench: Bench) -> None:
    up(bench)
    bench.forget()
    one = "container-3: {node: node1, image: nginx"
    outcome = up(bench, two(lambda t: t.replace(one, one + ", env: {A: b}")))
    assert changed(outcome) == {"container node1/container-3"}
    assert bench.engine_log == [("node1", "remove container-3"), ("node1", "start container-3")]


def test_a_container_that_is_taken_out_is_ended(bench: Bench) -> None:
    up(bench)
    bench.forget()
    up(bench, two(lambda t: t.replace("  container-3: {node: node1, image: nginx}\n", "")))
    assert bench.engine_log == [("node1", "remove container-3")]


def test_a_sidecar_follows_the_container_whose_network_it_has(bench: Bench) -> None:
    topology = load("docker-single")
    up(bench, topology)
    bench.forget()
    first = dataclasses.replace(topology.containers["nginx-1"], env={"A": "b"})
    edited = dataclasses.replace(topology, containers={**topology.containers, "nginx-1": first})
    outcome = up(bench, edited)
    assert changed(outcome) == {"container host/nginx-1", "container host/sidecar"}


def test_the_record_is_that_of_the_edited_one(bench: Bench) -> None:
    up(bench)
    up(bench, two(added))
    assert Lab("two-node", bench.settings).topology() == two(added)


def test_another_file_is_refused_unless_it_may_replace(bench: Bench) -> None:
    up(bench)
    other = two(added, source="other.yaml")
    with pytest.raises(
        UsageError, match=r"/labs/two\.yaml .*, not from /labs/other\.yaml"
    ) as caught:
        up(bench, other)
    for way in ("testbed down two-node", "--name", "--replace"):
        assert way in str(caught.value.hint)
    assert nodes(bench) == NODES
    up(bench, other, replace=True)
    assert nodes(bench) == ["node1", "node2", "node3", "outside"]


def test_nothing_is_made_where_images_are_not_available(bench: Bench) -> None:
    bench.store.absent = {"nginx"}
    with pytest.raises(ArtifactError, match="nginx"):
        up(bench)
    assert labs(bench.settings) == []
    assert bench.store.asked == [], "told before anything is downloaded or compiled"


# -- failure ----------------------------------------------------------------


def test_a_failed_up_leaves_nothing(bench: Bench) -> None:
    bench.provider.behave("etcd", Behaviour(log="bind: address already in use\n", dies=1))
    with pytest.raises(StepsFailed) as caught:
        up(bench)
    ((step, error),) = caught.value.failures
    assert step == "etcd node1"
    assert isinstance(error, ServiceError)
    assert (error.service, error.node) == ("etcd", "node1")
    assert "bind: address already in use" in error.log
    assert caught.value.hint is None
    assert labs(bench.settings) == []
    assert bench.provider.fabric("two-node") is None


def test_keep_leaves_it_for_a_look(bench: Bench) -> None:
    bench.provider.fail("start", "node2", LabError("no"))
    with pytest.raises(StepsFailed):
        up(bench, keep=True)
    assert labs(bench.settings) == ["two-node"]
    assert Lab("two-node", bench.settings).topology() == two()


def test_a_failed_change_removes_the_new_nodes_only(bench: Bench) -> None:
    up(bench)
    before = bench.provider.nodes("two-node")
    bench.provider.behave("dockerd", Behaviour(dies=1), node="node3")
    with pytest.raises(StepsFailed, match="docker node3") as caught:
        up(bench, two(added))
    assert "`testbed down two-node`" in (caught.value.hint or "")
    assert bench.provider.nodes("two-node") == before
    assert bench.provider.fabric("two-node") is not None
    assert changed(up(bench)) <= {f"node {name}" for name in NODES}
    assert changed(up(bench)) == set()


def test_every_failure_is_reported(bench: Bench) -> None:
    bench.provider.fail("create", "node1", LabError("first"))
    bench.provider.fail("create", "node2", LabError("second"))
    barrier = threading.Barrier(2)
    fail = bench.provider.machine.note

    def together(call: object) -> None:
        if getattr(call, "what", "") == "create" and getattr(call, "node", "") != "outside":
            barrier.wait(60)
        fail(call)  # type: ignore[arg-type]

    bench.provider.machine.note = together  # type: ignore[method-assign]
    with pytest.raises(StepsFailed) as caught:
        up(bench)
    assert {step for step, _ in caught.value.failures} == {"node node1", "node node2"}


def test_an_error_of_the_engine_is_the_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"container-2": LabError("dockerd on node2: cannot start")}
    monkeypatch.setattr(FakeEngine, "refuse", refused)
    with pytest.raises(StepsFailed) as caught:
        up(bench)
    assert caught.value.failures == (("container node2/container-2", refused["container-2"]),)


def test_a_page_that_is_not_had_says_what_has_died(bench: Bench) -> None:
    def curl(_: object) -> Answer:
        node = bench.provider.nodes("two-node")["node1"]
        node.end("flanneld", -9, "panic: no route\n")  # type: ignore[attr-defined]
        return Answer(7, err=b"curl: (7) no route to host\n")

    bench.provider.script(["nsenter"], curl, node="node1")
    with pytest.raises(StepsFailed, match=r"flanneld on node1 has died\n.*panic: no route"):
        up(bench)


def test_an_interrupt_ends_the_waits_and_leaves_nothing(bench: Bench) -> None:
    bench.provider.behave("dockerd", Behaviour(seconds=60))

    def step(done: Done) -> None:
        if done.step.name == "etcd node1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lab("two-node", bench.settings).up(two(), watch=Watch(step=step))
    assert labs(bench.settings) == []
    assert [t for t in threading.enumerate() if t.name == "testbed step"] == []


def test_up_after_a_failure(bench: Bench) -> None:
    bench.provider.behave("etcd", Behaviour(dies=1))
    with pytest.raises(StepsFailed):
        up(bench)
    bench.provider.behave("etcd", Behaviour())
    up(bench)
    assert nodes(bench) == NODES


# -- down and looking -------------------------------------------------------


def test_down_of_nothing(bench: Bench) -> None:
    assert not Lab("two-node", bench.settings).down()


def test_down_with_a_record_but_no_nodes(bench: Bench) -> None:
    up(bench)
    bench.provider.destroy("two-node")
    lab = Lab("two-node", bench.settings)
    assert lab.down()
    assert not lab.down()


def test_down_with_nodes_but_no_record(bench: Bench) -> None:
    up(bench)
    bench.state.remove("two-node")
    assert labs(bench.settings) == ["two-node"]
    assert Lab("two-node", bench.settings).down()
    assert labs(bench.settings) == []


def test_up_with_nodes_but_no_record(bench: Bench) -> None:
    up(bench)
    bench.state.remove("two-node")
    assert changed(up(bench, two(source="other.yaml"))) == set()


def test_down_leaves_other_labs(bench: Bench) -> None:
    up(bench)
    up(bench, load("docker-single"))
    Lab("two-node", bench.settings).down()
    assert labs(bench.settings) == ["docker-single"]


def test_a_lab_that_is_not_up(bench: Bench) -> None:
    up(bench, load("docker-single"))
    with pytest.raises(NoSuchLab, match="not up") as caught:
        Lab("two-node", bench.settings).context()
    assert (caught.value.name, caught.value.known) == ("two-node", ("docker-single",))


def test_a_lab_of_which_no_node_runs_is_not_up(bench: Bench) -> None:
    up(bench)
    lab = Lab("two-node", bench.settings)
    bench.provider.destroy("two-node", ["node1", "node2"])
    assert list(lab.context().nodes) == ["outside"]
    bench.provider.destroy("two-node")
    for use in (lab.context, lambda: lab.node("node1")):
        with pytest.raises(NoSuchLab) as caught:
            use()
        assert (caught.value.name, caught.value.exit_code) == ("two-node", 4)
        assert "testbed up -l two-node" in str(caught.value.hint)
    assert {node.state for node in status(lab.remains()).nodes} == {"missing"}
    assert up(bench).changed
    assert lab.context().nodes


def test_a_lab_whose_record_is_lost_is_not_called_down(bench: Bench) -> None:
    up(bench)
    bench.state.remove("two-node")
    with pytest.raises(NoSuchLab, match="record") as caught:
        Lab("two-node", bench.settings).context()
    assert "testbed down two-node" in str(caught.value.hint)


def test_a_lab_that_is_not_up_is_brought_up_by_what_there_is(bench: Bench) -> None:
    for name, way in (("two-node", "testbed up two-node"), ("mine", "testbed up FILE")):
        with pytest.raises(NoSuchLab, match="not up") as caught:
            Lab(name, bench.settings).record()
        assert caught.value.name == name
        assert way in str(caught.value.hint)


def test_a_node_that_has_ended_by_itself_says_its_last_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(bench)
    bench.provider.destroy("two-node", ["node2"])
    monkeypatch.setattr(bench.provider, "ended", lambda _: {"node2": "oops\nKernel panic"})
    lab = Lab("two-node", bench.settings)
    with pytest.raises(NodeNotRunning) as caught:
        lab.node("node2")
    assert (caught.value.name, caught.value.output) == ("node2", "oops\nKernel panic")
    (seen,) = (node for node in status(lab.context()).nodes if node.name == "node2")
    assert (seen.state, seen.words) == ("missing", "oops\nKernel panic")


def test_a_node_by_name(bench: Bench) -> None:
    up(bench)
    lab = Lab("two-node", bench.settings)
    assert lab.node("node1").name == "node1"
    with pytest.raises(NoSuchNode) as caught:
        lab.node("node9")
    assert caught.value.name == "node9"
    assert caught.value.known == ("node1", "node2", "outside")


def test_two_at_once_are_one_after_the_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    seen: list[set[str]] = []
    waits = threading.Event()
    monkeypatch.setattr(FakeProvider, "prepare", lambda *_: waits.wait(60))

    def told(text: str) -> None:
        words.append(text)
        waits.set()

    def one() -> None:
        watch = Watch(words=told)
        seen.append(changed(Lab("two-node", bench.again()).up(two(), watch=watch)))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(len(s) for s in seen) == 0
    assert len(words) == 1
    assert re.fullmatch(r"waiting for testbed up two-node \(pid \d+\)", words[0])


def test_a_lab_that_is_held_for_too_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = bench.state.lock

    def impatient(lab: str, purpose: str, **options: object) -> object:
        return lock(lab, purpose, timeout=0.05)

    monkeypatch.setattr(bench.state, "lock", impatient)
    with lock("two-node", "up two-node"), pytest.raises(LabBusy, match="testbed up two-node"):
        Lab("two-node", bench.settings).down()


# -- nodes of several providers ------------------------------------------------


def second_by_qemu(text: str) -> str:
    return text.replace("roles: [docker, flannel]}", "roles: [docker, flannel], provider: qemu}")


MIXED = {"node1": "netns", "node2": "qemu", "outside": "netns"}
OF_NODE2 = {
    "node node2", "programs node2", "docker node2", "images node2", "flannel node2",
    "container node2/container-2",
}  # fmt: skip


def test_a_mixed_lab_comes_up_again_and_goes(bench: Bench) -> None:
    up(bench, two(second_by_qemu))
    assert made_by(bench) == MIXED
    assert changed(up(bench, two(second_by_qemu))) == set()
    again = Lab("two-node", bench.again())
    assert sorted(again.context().nodes) == NODES
    assert again.node("node2").name == "node2"
    assert again.down()
    assert made_by(bench) == {}
    assert labs(bench.settings) == []


def test_a_node_with_another_provider_is_made_anew_by_that(bench: Bench) -> None:
    up(bench)
    before = bench.provider.nodes("two-node")
    outcome = up(bench, two(second_by_qemu))
    assert (outcome.removed, changed(outcome)) == (["node2"], OF_NODE2)
    assert made_by(bench) == MIXED
    kept = {name: before[name] for name in ("node1", "outside")}
    assert bench.provider.nodes("two-node") == kept
    outcome = up(bench)
    assert (outcome.removed, changed(outcome)) == (["node2"], OF_NODE2)
    assert made_by(bench) == dict.fromkeys(NODES, "netns")


def test_a_lab_with_another_provider_is_made_anew_by_that(bench: Bench) -> None:
    up(bench)
    outcome = up(bench, two(lambda text: text + "provider: qemu\n"))
    assert outcome.removed == NODES
    assert made_by(bench) == dict.fromkeys(NODES, "qemu")


def test_a_node_that_says_what_all_are_made_by_stays(bench: Bench) -> None:
    up(bench)
    said = two(lambda text: text.replace("gateway: true}", "gateway: true, provider: netns}"))
    outcome = up(bench, said)
    assert (outcome.removed, changed(outcome)) == ([], set())


def test_a_machine_that_is_taken_out_is_removed(bench: Bench) -> None:
    up(bench, two(lambda text: added(text).replace("roles: [docker]}", "provider: qemu}")
                  .replace("  container-4: {node: node3, image: nginx}\n", "")))  # fmt: skip
    assert made_by(bench)["node3"] == "qemu"
    assert up(bench).removed == ["node3"]
    assert made_by(bench) == dict.fromkeys(NODES, "netns")


def test_a_failed_mixed_up_leaves_nothing(bench: Bench) -> None:
    bench.provider.behave("dockerd", Behaviour(dies=1), node="node2")
    with pytest.raises(StepsFailed, match="docker node2"):
        up(bench, two(second_by_qemu))
    assert made_by(bench) == {}
    assert labs(bench.settings) == []
    assert bench.provider.fabric("two-node") is None


def test_a_failed_change_of_provider_leaves_the_other_nodes(bench: Bench) -> None:
    up(bench)
    bench.provider.fail("connect", "node2", LabError("no such tap"))
    with pytest.raises(StepsFailed, match="no such tap"):
        up(bench, two(second_by_qemu))
    assert made_by(bench) == {"node1": "netns", "outside": "netns"}
    bench.provider.fail("connect", "node2", None)
    up(bench, two(second_by_qemu))
    assert made_by(bench) == MIXED


def test_down_of_a_mixed_lab_without_a_record_half_made(bench: Bench) -> None:
    bench.provider.fail("connect", "node2", LabError("killed here"))
    with pytest.raises(StepsFailed):
        up(bench, two(second_by_qemu), keep=True)
    assert made_by(bench)["node2"] == "qemu"
    bench.state.remove("two-node")
    assert Lab("two-node", bench.again()).down()
    assert made_by(bench) == {}
    assert labs(bench.settings) == []


def test_what_a_mixed_labs_claims_may_depend_on(bench: Bench) -> None:
    topology = two(second_by_qemu).to_dict()
    bare = {**topology, "nodes": {name: {} for name in NODES}, "containers": {}}
    del bare["flannel"], bare["docker"]
    for provider, seen in ((None, "netns"), ("netns", "netns"), ("qemu", "mixed")):
        nodes: dict[str, dict[str, str]] = {**bare["nodes"]}
        nodes["node2"] = {"provider": provider} if provider else {}
        lab = Lab("two-node", bench.settings)
        lab.up(load_data({**bare, "nodes": nodes}, "t.yaml"), replace=True)
        assert LiveLab(lab.context()).facts == {"provider": seen}


def test_a_lab_on_another_fabric_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_elsewhere(monkeypatch)
    up(bench)
    bench.settings.providers = {**bench.settings.providers, "elsewhere": Elsewhere()}
    other = dataclasses.replace(two(), provider="elsewhere")
    with pytest.raises(UsageError, match="netns, not elsewhere"):
        up(bench, other, replace=True)
    assert nodes(bench) == NODES


# -- nodes that are created together --------------------------------------------------


class Fleet(FakeProvider):
    """A provider that creates all nodes of a lab by one call."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__(machine, name="netns")
        self.created: list[list[str]] = []
        self.error: Exception | None = None

    def together(self, node: str) -> bool:
        return node != "outside"

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        self.created.append([spec.name for spec in specs])
        if self.error:
            raise self.error
        return super().create(lab, specs)


@pytest.fixture
def fleet(bench: Bench) -> Fleet:
    made = Fleet(bench.provider.machine)
    bench.settings.providers = {**bench.settings.providers, "netns": made}
    return made


def test_nodes_that_want_it_are_created_by_one_call(bench: Bench, fleet: Fleet) -> None:
    up(bench)
    assert fleet.created == [["node1", "node2"]]
    assert nodes(bench) == NODES
    up(bench)
    assert len(fleet.created) == 1


def test_one_that_has_gone_is_created_by_itself(bench: Bench, fleet: Fleet) -> None:
    up(bench)
    fleet.destroy("two-node", ["node2"])
    up(bench)
    assert fleet.created[1:] == [["node2"]]


def test_each_that_waits_for_a_failed_call_fails(bench: Bench, fleet: Fleet) -> None:
    fleet.error = LabError("no luck")
    with pytest.raises(StepsFailed) as caught:
        up(bench, keep=True)
    assert {name for name, _ in caught.value.failures} == {"node node1", "node node2"}
    assert len(fleet.created) == 1
    up_again = LabError("still none")
    fleet.error = up_again
    with pytest.raises(StepsFailed):
        up(bench, keep=True)
    assert len(fleet.created) == 2, "a later `up` tries again"


# -- a provider without a fabric ------------------------------------------------------


def test_a_provider_may_have_no_fabric(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProvider, "fabric", lambda *_: None)
    assert "fabric" not in changed(up(bench))
    assert changed(up(bench)) == set()
