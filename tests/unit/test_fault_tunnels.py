"""Faults of networks that are tunnels from node to node, on kernels in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from testbed.errors import CommandError, LabError, MachineError
from testbed.faults import tunnels
from testbed.faults.force import Faults, fault_of
from testbed.faults.model import parse
from testbed.faults.tunnels import DEVICE, Tunnels, follow, link_rules
from testbed.labs.lab import Lab
from testbed.nodes.base import Node, Result
from testbed.topology import load

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

ADDRESSES = {"node1": "10.244.0.5", "node2": "10.244.1.5", "outside": "10.244.1.6"}


@dataclass
class Kernel:
    """The tables, devices and queues of one Pod's network, and its programs nft, ip and tc."""

    name: str
    tables: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)
    devices: dict[str, list[str]] = field(default_factory=dict)  # of faults, with their queues
    lacks: str = ""  # netem, ifb, nft or fwd
    order: list[str] = field(default_factory=list)
    slowness: float = 1.0

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        del timeout
        lines = (input or b"").decode().splitlines()
        status, out, err = self.answer(list(argv), lines)
        result = Result(tuple(argv), status, out.encode(), err.encode())
        if check and status:
            raise CommandError(argv, where=self.name, status=status, stderr=err)
        return result

    def answer(self, argv: list[str], lines: list[str]) -> tuple[int, str, str]:
        if argv[0] == self.lacks:
            return 127, "", "not found"
        if argv[:4] == ["nft", "-j", "list", "table"]:
            return self.listed(" ".join(argv[4:]))
        if argv[0] == "nft":
            return self.ruled(lines)
        if argv[:3] == ["tc", "-j", "qdisc"]:
            return (
                0,
                json.dumps([self.queue(line) for q in self.devices.values() for line in q]),
                "",
            )
        if argv[0] == "tc":
            return self.queued(argv, lines)
        if "address" in argv:
            return 0, json.dumps([{"ifname": "eth0"}]), ""
        if "show" in argv:
            return (0 if DEVICE in self.devices else 1), "", ""
        if "add" in argv:
            if self.lacks == "ifb":
                return 2, "", "Error: Unknown device type."
            self.devices[argv[3]] = []
        elif "delete" in argv:
            del self.devices[argv[-1]]
        self.order.append(" ".join(argv))
        return 0, "", ""

    def ruled(self, lines: list[str]) -> tuple[int, str, str]:
        if self.lacks == "fwd" and any(" fwd to " in line for line in lines):
            return 1, "", "Error: Could not process rule: No such file or directory"
        for line in lines:
            verb, what, family, table, *rest = line.split(maxsplit=5)
            name = f"{family} {table}"
            if (verb, what) == ("delete", "table"):
                del self.tables[name]
                self.sets.clear()
            elif what == "table":
                self.tables.setdefault(name, [])
            elif what == "rule":
                self.tables[name].append(" ".join(rest))
            elif what == "set":
                self.sets[rest[0]] = [] if verb == "flush" else self.sets.get(rest[0], [])
            elif what == "element":
                self.sets[rest[0]].append(rest[1].strip("{ }"))
        self.order.append("nft")
        return 0, "", ""

    def listed(self, table: str) -> tuple[int, str, str]:
        if table not in self.tables:
            return 1, "", "No such file or directory"
        found: list[dict[str, object]] = [
            {"rule": {"comment": rule.split('"')[-2], "expr": [{"counter": {"packets": 2}}]}}
            for rule in self.tables[table]
        ]
        found += [
            {"set": {"name": name, **({"elem": elements} if elements else {})}}
            for name, elements in self.sets.items()
        ]
        return 0, json.dumps({"nftables": found}), ""

    def queued(self, argv: list[str], lines: list[str]) -> tuple[int, str, str]:
        if "netem" in argv and self.lacks == "netem":
            return 2, "", "Error: Specified qdisc kind is unknown."
        for line in lines:
            _, verb, _, device, *rest = line.split()
            if verb == "del":
                self.devices[device].clear()
            else:
                self.devices[device].append(" ".join(rest))
        self.order.append("tc")
        return 0, "", ""

    @staticmethod
    def queue(line: str) -> Mapping[str, object]:
        rate = " tbf " in line
        options = {"rate": 125000, "delay": {"delay": 0.05, "jitter": 0}}
        return {
            "dev": DEVICE, "kind": "tbf" if rate else "netem",
            "handle": "fa1:" if rate else "fa2:", "options": options,
        }  # fmt: skip

    @property
    def whole(self) -> bool:
        """True if nothing of a fault is left."""
        return not (self.tables or self.sets or self.devices)


@pytest.fixture
def kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, Kernel]:
    made = {name: Kernel(name) for name in ADDRESSES}

    def found(nodes: Mapping[str, Node]) -> Tunnels:
        return Tunnels(
            14789,
            {name: ADDRESSES[name] for name in nodes},
            {name: made[name] for name in nodes},
        )

    monkeypatch.setattr(bench.provider, "tunnels", found)
    return made


@pytest.fixture
def lab(bench: Bench, kernels: dict[str, Kernel]) -> Lab:
    assert kernels
    found = Lab("two-node", bench.settings)
    found.up(load("two-node"))
    bench.provider.machine.fabrics.clear()
    return found


def words(lab: Lab) -> list[str]:
    kinds = ("partition", "loss", "rate", "delay")
    return [s.fault.words for s in Faults(lab).in_force() if s.fault.kind in kinds]


def apply(lab: Lab, text: str) -> bool:
    return Faults(lab).apply(fault_of(text, lab.topology()))


def heal(lab: Lab, kind: str) -> None:
    Faults(lab).heal(lambda fault: fault.kind == kind, kinds=[kind])


def test_a_link_is_cut_at_one_end_both_ways(lab: Lab, kernels: dict[str, Kernel]) -> None:
    assert apply(lab, "partition node1:node2")
    assert words(lab) == ["partition node1:node2"]
    assert not apply(lab, "partition node2:node1"), "once is enough"
    assert kernels["node1"].tables["ip testbed-faults"] == [
        'input udp dport 14789 ip saddr @node-node2 counter drop comment "partition node1:node2"',
        'output udp dport 14789 ip daddr @node-node2 counter drop comment "partition node1:node2"',
    ]
    assert kernels["node1"].sets == {"node-node2": ["10.244.1.5"]}
    assert kernels["node2"].whole
    assert kernels["outside"].whole


def test_faults_of_links_are_undone_exactly(lab: Lab, kernels: dict[str, Kernel]) -> None:
    for text in ("partition node1:node2", "loss node1 20%", "loss node2 10%"):
        assert apply(lab, text)
    assert apply(lab, "loss node1 30%"), "another amount takes the place of the first"
    assert sorted(words(lab)) == ["loss node1 30%", "loss node2 10%", "partition node1:node2"]
    heal(lab, "loss")
    assert words(lab) == ["partition node1:node2"]
    assert kernels["node2"].whole
    heal(lab, "partition")
    assert all(kernel.whole for kernel in kernels.values())


def test_a_node_is_cut_off_whatever_its_peers_addresses_are() -> None:
    nowhere = Tunnels(14789, {}, {})
    rules = link_rules("b", nowhere, [parse(["partition", "b"]), parse(["loss", "a:b", "50%"])])
    assert "saddr" not in rules
    assert rules.count("udp dport 14789 counter drop") == 2, "the other one is caused at a"
    chance = link_rules("a", nowhere, [parse(["loss", "a:b", "50%"])])
    assert chance.count("@node-b numgen random mod 100000 < 50000 counter drop") == 2
    assert link_rules("a", nowhere, []).splitlines()[-1].startswith("delete table")


def test_traffic_to_a_node_goes_through_a_queue(lab: Lab, kernels: dict[str, Kernel]) -> None:
    assert apply(lab, "rate node2 1mbit")
    here = kernels["node2"]
    assert here.order[-1] == "tc", "the queue, by which the fault is found, is made last"
    assert all(f'fwd to "{DEVICE}"' in rule for rule in here.tables["netdev testbed-faults"])
    assert apply(lab, "delay node2 50ms")
    assert [queue.split()[0] for queue in here.devices[DEVICE]] == ["root", "parent"]
    assert sorted(words(lab)) == ["delay node2 50ms", "rate node2 1mbit"]
    heal(lab, "delay")
    assert words(lab) == ["rate node2 1mbit"]
    here.order.clear()
    heal(lab, "rate")
    assert here.order == ["nft", f"ip link delete dev {DEVICE}"], "or packets would be lost"
    assert all(kernel.whole for kernel in kernels.values())


def test_a_device_that_an_interrupted_fault_left_is_used(
    lab: Lab, kernels: dict[str, Kernel]
) -> None:
    kernels["node2"].devices[DEVICE] = []
    assert words(lab) == []
    assert apply(lab, "rate node2 1mbit")
    assert words(lab) == ["rate node2 1mbit"]


@pytest.mark.parametrize(
    ("lacks", "text"),
    [("netem", "delay node2 50ms"), ("ifb", "rate node2 1mbit"), ("nft", "partition node2"),
     ("nft", "loss node2 1%")],
)  # fmt: skip
def test_what_a_kernel_or_an_image_lacks_is_named(
    lab: Lab, kernels: dict[str, Kernel], lacks: str, text: str
) -> None:
    kernels["node2"].lacks = lacks
    with pytest.raises(MachineError, match=lacks) as caught:
        apply(lab, text)
    assert caught.value.hint
    assert kernels["node2"].whole
    assert words(lab) == []


def test_a_kernel_without_a_way_to_the_queue(lab: Lab, kernels: dict[str, Kernel]) -> None:
    kernels["node2"].lacks = "fwd"
    with pytest.raises(MachineError) as caught:
        apply(lab, "rate node2 1mbit")
    assert "CONFIG_NFT_FWD_NETDEV" in (caught.value.hint or "")
    assert kernels["node2"].whole


def test_a_node_that_does_not_run_has_no_faults(lab: Lab, bench: Bench) -> None:
    bench.provider.destroy("two-node", ["node2"])
    for text in ("partition node2", "rate node2 1mbit"):
        with pytest.raises(LabError, match="node2"):
            apply(lab, text)
    assert apply(lab, "partition node1:node2"), "it is known again when it runs"
    assert words(lab) == ["partition node1:node2"]


def test_a_peer_that_was_created_again_stays_cut_off(kernels: dict[str, Kernel]) -> None:
    here = kernels["node1"]
    follow(here, ADDRESSES)
    assert here.whole, "without a fault there is nothing to do"
    fault = parse(["partition", "node1:node2"])
    here.run(["nft", "-f", "-"], input=link_rules("node1", Tunnels(1, {}, {}), [fault]).encode())
    assert here.sets == {"node-node2": []}
    for address in ("10.244.0.9", "10.244.0.10"):
        follow(here, {**ADDRESSES, "node2": address})
        assert here.sets == {"node-node2": [address]}
    here.order.clear()
    follow(here, {"node2": "10.244.0.10"})
    assert here.order == [], "what is so already is left"


def test_an_error_of_nft_that_is_no_lack_is_shown(
    lab: Lab, kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(argv: list[str], lines: list[str]) -> tuple[int, str, str]:
        return (1, "", "syntax error") if lines else Kernel.answer(kernels["node2"], argv, lines)

    monkeypatch.setattr(kernels["node2"], "answer", refuse)
    with pytest.raises(CommandError) as caught:
        apply(lab, "partition node2")
    assert caught.value.where == "node2"


def test_only_nodes_of_the_faults_are_changed(
    lab: Lab, kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real: Callable[..., str] = link_rules

    def counted(node: str, *rest: object) -> str:
        asked.append(node)
        return real(node, *rest)

    monkeypatch.setattr(tunnels, "link_rules", counted)
    apply(lab, "partition node1:node2")
    assert asked == ["node1"]
    assert not kernels["node1"].whole
