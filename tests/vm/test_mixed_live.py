"""A namespace node and a virtual machine in one lab: two kernels on one overlay."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exported import ansible_reaches, by_tool
from hops import all_listed, checked, devices, end, fine

from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.netns import find
from testbed.process import run
from testbed.settings import settings
from testbed.topology import names
from testbed.walk.request import Request
from testbed.walk.run import walk

LAB = "two-node-mixed"
#: docker0's addresses, the routes by either kernel, and containers that reach each other.
CLAIMS = (
    "bridge-docker0-is-linux-bridge",
    "bridge-docker0-first-address",
    "bridge-container-ip-from-subnet",
    "flannel-virtual-network-per-node",
    "flannel-unique-subnet-per-node",
    "flannel-container-ip-in-node-range",
    "flannel-overlay-connects-all",
    "flannel-vxlan-route-entry",
    "flannel-vxlan-route-used",
    "flannel-vxlan-fdb-entry",
)
PAGE = "http://{}/"
Testbed = Callable[..., str]


@pytest.fixture
def testbed(state: Path) -> Iterator[Testbed]:
    """The command, with a state folder of its own; it takes its lab down."""
    env = {**os.environ, "TESTBED_STATE": str(state)}

    def call(*words: str, seconds: float = 60) -> str:
        return run([sys.executable, "-m", "testbed", *words], env=env, timeout=seconds).stdout

    yield call
    call("down", "--all")
    assert [init.node for init in find.inits() if init.state == str(state.resolve())] == []


def status(testbed: Testbed) -> dict[str, Any]:
    nodes = json.loads(testbed("status", LAB, "--json"))["nodes"]
    return {node["name"]: node for node in nodes}


def container(node: dict[str, Any]) -> str:
    """The address of the only container on a node."""
    (one,) = node["containers"]
    return str(one["detail"])


def kinds(state: Path) -> dict[str, str]:
    inits = [init for init in find.inits() if init.state == str(state.resolve())]
    return {init.node: init.kind for init in inits}


def fetch(testbed: Testbed, node: str, name: str, address: str) -> dict[str, str]:
    """The page of a container, as one on another node gets it."""
    words = ("curl", "-sS", "--max-time", "30", PAGE.format(address))
    page: dict[str, str] = json.loads(testbed("exec", "-l", LAB, f"{node}/{name}", "--", *words))
    return page


WAY = [
    "node1/container-1:eth0 out", "node1:veth* in", "node1:docker0 in", "node1:flannel.1 out",
    "node1:eth0 out", "lan:node1 in", "lan:node2 out", "node2:eth0 in", "node2:flannel.1 in",
    "node2:docker0 out", "node2:veth* out", "node2/container-2:eth0 in",
]  # fmt: skip
OUTER = ["node1:eth0 out", "lan:node1 in", "lan:node2 out", "node2:eth0 in"]


def walk_across() -> None:
    """Walk from one kernel to the other, whose clocks tell nothing about each other."""
    request = Request("tcp", 80)
    with LiveLab(Lab(LAB, settings()).context()) as lab:
        found = checked(lab, "container-1", "container-2", request)
        there, back = found.legs
        assert fine(found) is there
        assert devices(there) == WAY
        assert len(devices(back)) == len(WAY)
        seen = [(hop, hop.view) for hop in there.hops if hop.kind == "device" and hop.view]
        assert [hop.label for hop, view in seen if view.inside is not None] == OUTER
        assert {view.carrier for _, view in seen if view.inside is not None} == {"vxlan 1"}
        assert [(view.inside or view).ttl for _, view in seen] == [*[64] * 3, *[63] * 6, *[62] * 3]
        for leg in found.legs:
            for hop in leg.hops:
                known = hop.kind == "device" and hop.spot.machine != "node2"
                assert (hop.seconds is not None) == (known or (hop.kind == "process"
                        and hop.spot.machine == "node1")), hop  # fmt: skip
        all_listed(lab, there, lambda _: "iptables-nft")
        all_listed(lab, back, lambda _: "iptables-nft")

        rule = ["FORWARD", "-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "DROP"]
        lab.node("node2").run(["iptables", "-I", *rule])
        found = walk(lab, "container-1", "container-2", replace(request, seconds=0.3))
        last = end(found)
        assert (str(last.spot), devices(found.legs[0])) == ("node2", WAY[:-3])
        assert [one.text for one in last.rules] == ["-A " + " ".join(rule)]
        all_listed(lab, found.legs[0], lambda _: "iptables-nft")
        lab.node("node2").run(["iptables", "-D", *rule])


@pytest.mark.seconds(60)
def test_a_namespace_node_and_a_machine(testbed: Testbed, state: Path, tmp_path: Path) -> None:
    text = names()[LAB].read_text(encoding="utf-8")
    file = tmp_path / "mixed.yaml"
    file.write_text(text, encoding="utf-8")
    assert f"{LAB} is up" in testbed("up", str(file), seconds=900)
    assert kinds(state) == {"fabric": "fabric", "node1": "node", "node2": "cell", "outside": "node"}
    there = status(testbed)
    assert {name: (node["state"], node["provider"]) for name, node in there.items()} == {
        "node1": ("up", "netns"),
        "node2": ("up", "qemu"),
        "outside": ("up", "netns"),
    }

    # The kernels are two.
    booted = [testbed("exec", "-l", LAB, n, "--", "cat", "/proc/cmdline")
              for n in ("node1", "node2")]  # fmt: skip
    assert booted[0] != booted[1]
    assert booted[0] == Path("/proc/cmdline").read_text(encoding="utf-8")

    # Each container has the other's page, and the other sees its own address: no NAT between.
    one, two = container(there["node1"]), container(there["node2"])
    assert fetch(testbed, "node1", "container-1", two)["client"].startswith(f"{one}:")
    assert fetch(testbed, "node2", "container-2", one)["client"].startswith(f"{two}:")

    walk_across()

    data = tmp_path / "verify.json"
    chosen = [word for claim in CLAIMS for word in ("--claim", claim)]
    testbed("verify", LAB, "-q", *chosen, "--json", str(data), seconds=600)
    (lab,) = json.loads(data.read_text(encoding="utf-8"))["labs"]
    assert lab["facts"]["provider"] == "mixed"
    found = {finding["claim"]: finding["verdict"] for finding in lab["findings"]}
    assert found == dict.fromkeys(CLAIMS, "confirmed")

    # Other tools reach both kinds, each in its way.
    for form in ("ssh-config", "ansible"):
        testbed("export", LAB, "--to", form, "--output", f"{tmp_path / form}/")
    for node in ("node1", "node2"):
        ssh = ["ssh", "-F", "ssh_config", node, "hostname"]
        assert by_tool(tmp_path / "ssh-config", ssh) == f"{node}\n"
    assert ansible_reaches(tmp_path / "ansible") == {"node1", "node2", "outside"}

    # A second `up` does nothing; with another provider a node is removed and created by that one.
    assert "unchanged" in testbed("up", str(file), seconds=120)
    file.write_text(text.replace(", provider: qemu", ""), encoding="utf-8")
    assert "removed: node2" in testbed("up", str(file), seconds=120)
    assert kinds(state) == {
        "fabric": "fabric",
        **dict.fromkeys(("node1", "node2", "outside"), "node"),
    }
    there = status(testbed)
    assert all(node["ok"] and node["provider"] == "netns" for node in there.values())
    assert fetch(testbed, "node1", "container-1", container(there["node2"]))

    testbed("down", LAB)
    assert kinds(state) == {}
    assert LAB not in testbed("ls")
