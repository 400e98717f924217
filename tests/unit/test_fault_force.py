"""Faults brought about and healed, on nodes in memory; and the commands' words and statuses."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from plugins import declare_greeter

from testbed import cli
from testbed.cli import common
from testbed.errors import LabError, MachineError, NodeNotRunning, TimeoutExpired, TopologyError
from testbed.faults import links
from testbed.faults.force import Faults, fault_of
from testbed.labs.lab import Lab
from testbed.nodes.base import Provider
from testbed.nodes.fake import Answer, Call, FakeProvider
from testbed.registry import PROVIDERS
from testbed.topology import load, load_text

if TYPE_CHECKING:
    from testbed.nodes.base import ServiceState
    from testbed.testing.fakes import Bench


class Fabric:
    """State of the fabric's nft and tc after their commands."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.queues: dict[str, list[str]] = {}
        self.netem = True

    def nft(self, call: Call) -> Answer:
        if call.input is not None:
            text = call.input.decode()
            self.rules = [line for line in text.splitlines() if line.startswith("add rule")]
            return Answer()
        if not self.rules:
            return Answer(status=1, err=b"No such file or directory")
        listed = [
            {"rule": {"comment": rule.split('"')[-2], "expr": [{"counter": {"packets": 1}}]}}
            for rule in self.rules
        ]
        return Answer(out=json.dumps({"nftables": listed}).encode())

    def tc(self, call: Call) -> Answer:
        if "netem" in call.words:
            return Answer() if self.netem else Answer(2, err=b"qdisc kind is unknown")
        if call.input is not None:
            for line in call.input.decode().splitlines():
                _, verb, _, port, *rest = line.split()
                if verb == "del":
                    self.queues.pop(port)
                else:
                    self.queues.setdefault(port, []).append(" ".join(rest))
            return Answer()
        listed = [
            {
                "dev": port,
                "kind": "tbf" if " tbf " in queue else "netem",
                "handle": "fa1:" if " tbf " in queue else "fa2:",
                "options": {"rate": 125000, "delay": {"delay": 0.05, "jitter": 0}},
            }
            for port, queues in self.queues.items()
            for queue in queues
        ]
        return Answer(out=json.dumps(listed).encode())


@pytest.fixture
def fabric(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Fabric:
    made = Fabric()
    bench.provider.script(["nft"], made.nft, "fabric")
    bench.provider.script(["tc"], made.tc, "fabric")
    monkeypatch.setattr(links, "which", lambda name: f"/usr/sbin/{name}")
    return made


@pytest.fixture
def lab(bench: Bench, fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> Lab:
    topology = load("two-node")
    found = Lab("two-node", bench.settings)
    found.up(topology)
    for node in ("node1", "node2"):
        _whole(bench, node)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return found


MACS = {"node1": "02:00:00:00:00:01", "node2": "02:00:00:00:00:02"}


def _whole(bench: Bench, node: str) -> None:
    """A node whose overlay is whole, and whose daemons run."""
    other, number = ("node2", 2) if node == "node1" else ("node1", 1)
    here = bench.provider.nodes("two-node")[node]
    here.put(MACS[node].encode(), "/sys/class/net/flannel.1/address")
    for state in here.services().values():
        here.put(f"{state.pid} (x) S 1".encode(), f"/proc/{state.pid}/stat")
    address = {"node1": "10.168.0.2", "node2": "10.168.0.3"}[other]
    answers = {
        "ip route": f"100.96.{number}.0/24 via 100.96.{number}.0 dev flannel.1 onlink",
        "ip neigh": f"100.96.{number}.0 lladdr {MACS[other]} PERMANENT",
        "bridge fdb": f"{MACS[other]} dst {address} self permanent",
        "iptables -w -S": "-P FORWARD DROP",
    }
    for argv, out in answers.items():
        bench.provider.script(argv.split(), Answer(out=out.encode()), node)


def words(lab: Lab) -> list[str]:
    return [seen.fault.words for seen in Faults(lab).in_force()]


def apply(lab: Lab, text: str) -> bool:
    return Faults(lab).apply(fault_of(text, lab.topology()))


def test_nothing_is_broken_at_first(lab: Lab) -> None:
    assert words(lab) == []
    assert Faults(lab).heal() == []


def test_links_one_beside_the_other(lab: Lab, fabric: Fabric) -> None:
    assert apply(lab, "partition node1:node2")
    assert apply(lab, "loss node2 20%")
    assert words(lab) == ["partition node1:node2", "loss node2 20%"]
    assert not apply(lab, "partition node2:node1"), "once is enough"
    assert apply(lab, "loss node2 30%"), "another amount takes the place of the first"
    assert words(lab) == ["partition node1:node2", "loss node2 30%"]
    healed = Faults(lab).heal(lambda fault: fault.kind == "loss")
    assert [fault.words for fault in healed] == ["loss node2 30%"]
    assert words(lab) == ["partition node1:node2"]
    Faults(lab).heal()
    assert fabric.rules == []


def test_queues_of_a_port_are_made_as_a_whole(lab: Lab, fabric: Fabric) -> None:
    assert apply(lab, "rate node2 1mbit")
    assert apply(lab, "delay node2 50ms")
    assert [queue.split()[0] for queue in fabric.queues["node2"]] == ["root", "parent"]
    Faults(lab).heal(lambda fault: fault.kind == "delay")
    assert words(lab) == ["rate node2 1mbit"]
    assert fabric.queues["node2"][0].startswith("root handle fa1: tbf")


def test_without_netem_it_says_so_and_changes_nothing(lab: Lab, fabric: Fabric) -> None:
    fabric.netem = False
    apply(lab, "rate node2 1mbit")
    before = dict(fabric.queues)
    with pytest.raises(MachineError, match="netem") as caught:
        apply(lab, "delay node2 50ms")
    assert "tbf" in str(caught.value.hint)
    assert fabric.queues == before


def test_without_nft_it_says_so(lab: Lab, fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "which", lambda _: None)
    with pytest.raises(MachineError, match="nft"):
        apply(lab, "partition node2")
    assert words(lab) == [], "what cannot be there need not be looked for"


def test_a_kernel_without_nftables_for_bridges(lab: Lab, bench: Bench) -> None:
    refused = Answer(1, err=b"Error: Could not process rule: Operation not supported")
    bench.provider.script(["nft", "-f"], refused, "fabric")
    with pytest.raises(MachineError, match="NF_TABLES_BRIDGE"):
        apply(lab, "partition node2")


def test_a_service_is_killed_and_up_starts_it(lab: Lab, bench: Bench) -> None:
    node = bench.provider.nodes("two-node")["node1"]

    def kill(call: Call) -> Answer:
        assert call.at is not None
        call.at.end("flanneld", -signal.SIGKILL)
        return Answer()

    bench.provider.script(["kill", "-KILL", str(node.services()["flanneld"].pid)], kill, "node1")
    assert apply(lab, "kill node1/flanneld")
    (seen,) = Faults(lab).in_force()
    assert (seen.fault.words, seen.how) == ("kill node1/flanneld", "exit status -9")
    assert not apply(lab, "kill node1/flanneld")
    with pytest.raises(LabError, match="does not run"):
        apply(lab, "stop node1/flanneld")
    source = lab.record().source
    Faults(lab).heal()
    assert node.services()["flanneld"].state == "ready"
    assert lab.record().source == source, "the lab is still that of its file"


def test_a_service_is_stopped_and_goes_on(lab: Lab, bench: Bench) -> None:
    node = bench.provider.nodes("two-node")["node1"]
    pid = node.services()["etcd"].pid

    def state(letter: str) -> Callable[[Call], Answer]:
        def answer(call: Call) -> Answer:
            node.put(f"{pid} (etcd) {letter} 1".encode(), f"/proc/{pid}/stat")
            return Answer()

        return answer

    bench.provider.script(["kill", "-STOP", str(pid)], state("T"), "node1")
    bench.provider.script(["kill", "-CONT", str(pid)], state("S"), "node1")
    assert apply(lab, "stop node1/etcd")
    assert words(lab) == ["stop node1/etcd"]
    Faults(lab).heal()
    assert words(lab) == []


def test_what_is_broken_is_put_back_and_nothing_else(lab: Lab, bench: Bench) -> None:
    bench.forget()
    assert apply(lab, "break node1 route")
    assert ("ip", "route", "del", "100.96.2.0/24") in bench.provider.asked("run", "node1")
    bench.provider.script(["ip", "route", "show"], Answer(), "node1")
    assert words(lab) == ["break node1 route"]
    assert not apply(lab, "break node1 route")
    bench.forget()
    Faults(lab).heal()
    changes = [argv for argv in bench.provider.asked("run") if {"replace", "del", "-D"} & set(argv)]
    route = ("100.96.2.0/24", "via", "100.96.2.0", "dev", "flannel.1", "onlink")
    assert changes == [("ip", "route", "replace", *route)]


def test_a_role_of_others_brings_what_can_be_broken(
    bench: Bench, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fabric
    declare_greeter(monkeypatch)
    text = (
        "name: t\nnetworks: {lan: {subnet: 10.1.0.0/24}}\nnodes:\n"
        "  a: {networks: {lan: 10.1.0.2}, roles: [greeter]}\n  b: {networks: {lan: 10.1.0.3}}\n"
        "faults: {rude: break a greeting}\n"
    )
    lab = Lab("t", bench.settings)
    lab.up(load_text(text, "t.yaml"))
    said = {"hello"}

    def greeting(call: Call) -> Answer:
        for word, change in (("-d", said.discard), ("-a", said.add)):
            if word in call.words:
                change("hello")
        return Answer(out="\n".join(said).encode())

    bench.provider.script(["greeting"], greeting, "a")
    assert apply(lab, "rude")
    assert words(lab) == ["break a greeting"]
    assert [str(one) for one in Faults(lab).heal()] == ["break a greeting"]
    assert words(lab) == []
    with pytest.raises(TopologyError):
        load_text(text.replace("break a", "break b"), "t.yaml")


def test_what_goes_with_its_device_nobody_has_taken(lab: Lab, bench: Bench) -> None:
    for argv in (["ip", "route", "show"], ["ip", "neigh"], ["bridge", "fdb"]):
        bench.provider.script(argv, Answer(), "node1")
    bench.provider.script(["test", "-e", "/sys/class/net/flannel.1"], Answer(1), "node1")
    assert words(lab) == []
    with pytest.raises(LabError, match="route") as caught:
        apply(lab, "break node1 route")
    assert "testbed up -l two-node" in str(caught.value.hint)


def test_a_lab_without_a_fabric(lab: Lab, bench: Bench) -> None:
    bench.provider.machine.fabrics.clear()
    with pytest.raises(LabError, match="fabric"):
        apply(lab, "partition node2")
    assert words(lab) == []


@pytest.mark.parametrize("text", ["partition node2", "rate node2 1mbit"])
def test_a_provider_without_faults_of_links(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    bench.provider.machine.fabrics.clear()
    monkeypatch.setattr(PROVIDERS["netns"], "shapes", False)
    with pytest.raises(MachineError, match="provider netns"):
        apply(lab, text)
    assert words(lab) == []


def test_a_node_that_does_not_run(lab: Lab, bench: Bench) -> None:
    bench.provider.destroy("two-node", ["node2"])
    for text in ("stop node2", "kill node2/dockerd", "break node2 route"):
        with pytest.raises(NodeNotRunning) as caught:
            apply(lab, text)
        assert caught.value.name == "node2"


# -- nodes that are stopped -------------------------------------------------------------


def test_a_node_is_stopped_and_goes_on(lab: Lab) -> None:
    assert apply(lab, "stop node2")
    assert lab.stopped() == ["node2"]
    assert words(lab) == ["stop node2"]
    assert not apply(lab, "stop node2")
    with pytest.raises(LabError, match="node2"):
        lab.up(lab.topology())
    from testbed.labs.status import status

    found = {node.name: node for node in status(lab.context(), lab.stopped()).nodes}
    assert found["node2"].state == "stopped"
    assert not found["node2"].ok
    assert [fault.words for fault in Faults(lab).heal()] == ["stop node2"]
    assert lab.stopped() == []


def test_a_node_that_is_stopped_while_it_is_looked_at_is_stopped(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def services() -> dict[str, ServiceState]:
        looked.append("node1")
        raise TimeoutExpired("node1: no answer within 10 s")

    node = bench.provider.nodes(lab.name)["node1"]
    monkeypatch.setattr(node, "services", services)
    with pytest.raises(TimeoutExpired):
        Faults(lab).in_force()
    # By the time that this is known it is in the cgroup's file, too.
    monkeypatch.setattr(lab, "stopped", lambda: ["node1"] if looked[1:] else [], raising=False)
    assert "stop node1" in [str(seen.fault) for seen in Faults(lab).in_force()]


def test_a_provider_that_can_stop_no_node(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pause", "resume", "paused"):
        monkeypatch.setattr(FakeProvider, name, getattr(Provider, name))
    with pytest.raises(MachineError) as caught:
        apply(lab, "stop node2")
    assert caught.value.hint
    assert lab.stopped() == []


# -- the command ------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def testbed(lab: Lab, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.run(["fault", *argv])
        return (status, *capsys.readouterr())

    return run


def test_apply_list_heal(testbed: Run) -> None:
    assert testbed("ls")[0] == 0
    status, out, _ = testbed("partition", "node1:node2")
    assert (status, "is active" in out) == (0, True)
    assert "already active" in testbed("partition", "node1:node2")[1]
    assert "partition node1:node2" in testbed("ls")[1]
    assert "is healed" in testbed("heal", "partition", "node2:node1")[1]
    status, out, _ = testbed("heal")
    assert (status, out) == (0, "no faults in two-node\n")


def test_healing_one_leaves_the_others(testbed: Run, lab: Lab) -> None:
    for argv in ("partition node1:node2", "loss node2 20%", "rate node2 1mbit", "delay node2 50ms"):
        assert testbed(*argv.split())[0] == 0
    assert testbed("stop", "node2")[0] == 0
    assert "healed" in testbed("heal", "loss")[1]
    assert "healed" in testbed("heal", "delay", "node2")[1]
    assert set(words(lab)) == {"partition node1:node2", "rate node2 1mbit", "stop node2"}
    assert testbed("heal", "rate", "node1")[1] == "fault rate node1 is not active in two-node\n"
    assert "healed" in testbed("heal", "stop")[1]
    assert set(words(lab)) == {"partition node1:node2", "rate node2 1mbit"}


def test_data(testbed: Run) -> None:
    made = json.loads(testbed("loss", "node2", "20%", "--json")[1])
    wanted = {
        "fault": "loss node2 20%",
        "name": None,
        "kind": "loss",
        "target": "node2",
        "amount": "20%",
    }
    assert made == {"lab": "two-node", **wanted, "changed": True}
    listed = json.loads(testbed("ls", "--json")[1])
    assert listed == {"lab": "two-node", "faults": [{**wanted, "seen": "2 frames dropped"}]}
    assert json.loads(testbed("heal", "--json")[1]) == {"lab": "two-node", "healed": [wanted]}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("partition", "node3"), "the name of a node"),
        (("loss", "node2", "20"), "such as 20%"),
        (("apply", "cut"), "has no fault"),
        (("heal", "partion"), "did you mean 'partition'"),
        (("partition",), "Missing argument"),
        (("nonsense",), "nonsense"),
        (("stop", "node2", "--for", "0"), "range"),
    ],
)
def test_wrong_use(testbed: Run, argv: tuple[str, ...], told: str) -> None:
    status, out, err = testbed(*argv)
    assert (status, out) == (2, "")
    assert told in err


def test_no_such_lab(testbed: Run) -> None:
    assert testbed("ls", "-l", "other")[0] == 4


def sleeping(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act while a fault is in force for a time."""
    patch.setattr("testbed.cli.fault.time", SimpleNamespace(sleep=lambda _: act()))


def test_for_a_time(testbed: Run, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    sleeping(monkeypatch, lambda: seen.append(words(lab)))
    status, out, _ = testbed("partition", "node2", "--for", "5")
    assert (status, seen[0]) == (0, ["partition node2"])
    assert "is healed" in out
    assert words(lab) == []


@pytest.mark.parametrize(("signum", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_time(
    testbed: Run, lab: Lab, monkeypatch: pytest.MonkeyPatch, signum: int, wanted: int
) -> None:
    sleeping(monkeypatch, lambda: signal.raise_signal(signum))
    status, out, _ = testbed("partition", "node2", "--for", "5")
    assert status == wanted
    assert "is healed" in out
    assert words(lab) == []


def test_a_lab_that_is_taken_down_meanwhile(
    testbed: Run, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeping(monkeypatch, lab.down)
    assert testbed("partition", "node2", "--for", "5")[0] == 0


def test_names_of_the_topology(testbed: Run, lab: Lab, bench: Bench, tmp_path: Path) -> None:
    data = load("two-node").to_dict()
    data["faults"] = {"cut": "partition node1:node2"}
    from testbed.topology import load_data

    lab.up(load_data(data, ""), replace=True)
    assert testbed("apply", "cut")[0] == 0
    assert json.loads(testbed("ls", "--json")[1])["faults"][0]["name"] == "cut"
    assert "partition node1:node2 is healed" in testbed("heal", "cut")[1]
    status, _, err = testbed("apply", "cute")
    assert (status, "did you mean 'cut'" in err) == (2, True)


def test_every_kind_is_a_command_with_its_words() -> None:
    from testbed.cli.fault import command
    from testbed.faults.model import KINDS

    assert set(command.commands) == {*KINDS, "apply", "ls", "heal"}
