"""Commands of `ip` for plain namespaces, bridges and veth pairs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from testbed.errors import StepsFailed
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.nodes.fake import Answer
from testbed.roles.namespaces import batches, differences
from testbed.topology import load, load_text

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

# Document 002's own names and addresses, as `ip -batch` takes them.
NODE = """\
netns add ns1
netns add ns2
link add name br0 type bridge
link set dev br0 up
link add name veth0 netns ns1 type veth peer name veth1 netns ns2
link add name br-veth0 netns ns1 type veth peer name brvethotherend0
link set dev brvethotherend0 master br0 up
link add name br-veth1 netns ns2 type veth peer name brvethotherend1
link set dev brvethotherend1 master br0 up
"""
NS1 = """\
link set dev lo up
address add 192.168.10.200/24 dev veth0
link set dev veth0 up
address add 192.168.11.200/24 dev br-veth0
link set dev br-veth0 up
"""
NS2 = NS1.replace("veth0", "veth1").replace(".200/", ".201/")


def test_netns_experiments() -> None:
    lines = batches(load("netns-experiments"), "host")
    assert {name: "\n".join(of) + "\n" for name, of in lines.items()} == {
        "": NODE,
        "ns1": NS1,
        "ns2": NS2,
    }


def test_a_node_gets_its_own_only() -> None:
    text = (
        "name: t\nnodes:\n  h: {roles: [namespaces]}\n  i: {roles: [namespaces]}\n"
        "namespaces:\n  a: {node: h}\n  b: {node: i}\nbridges:\n  br0: {node: i}\n"
        "veths:\n  - node: i\n    ends:\n"
        "      - {name: v0, namespace: b, address: 192.0.2.1/24}\n      - {name: v1, bridge: br0}\n"
    )
    topology = load_text(text, "t")
    assert batches(topology, "h") == {"": ["netns add a"], "a": ["link set dev lo up"]}
    assert "netns add a" not in batches(topology, "i")[""]
    assert list(batches(topology, "i")) == ["", "b"]


def test_they_are_made_once(bench: Bench) -> None:
    lab = Lab("netns-experiments", bench.settings)
    lab.up(load("netns-experiments"))
    inputs = [(c.words, (c.input or b"").decode()) for c in bench.provider.calls if c.input]
    assert inputs == [
        (("ip", "-batch", "-"), NODE.rstrip("\n")),
        (("ip", "-n", "ns1", "-batch", "-"), NS1.rstrip("\n")),
        (("ip", "-n", "ns2", "-batch", "-"), NS2.rstrip("\n")),
    ]
    bench.forget()
    assert lab.up(load("netns-experiments")).changed == []
    assert len(bench.provider.asked("run")) == 2  # its wiring, and theirs, are looked at


#: What is done to the links of the node, and the difference that it makes.
LOSSES = {
    "netns delete ns1": [
        "namespace ns1 (missing)", "veth0 (missing)", "veth1 (missing)", "br-veth0 (missing)",
        "brvethotherend0 (missing)",
    ],
    "link delete br0": [
        "bridge br0 (missing)", "brvethotherend0 (detached)", "brvethotherend1 (detached)"
    ],
    "link set dev br0 down": ["bridge br0 (down)"],
    "link delete brvethotherend1": ["br-veth1 (missing)", "brvethotherend1 (missing)"],
    "link set dev brvethotherend1 nomaster": ["brvethotherend1 (detached)"],
    "-n ns1 link set dev veth0 down": ["veth0 (down)"],
    "-n ns2 address flush dev veth1": ["veth1 (without 192.168.10.201/24)"],
}  # fmt: skip


@pytest.mark.parametrize("what", LOSSES)
def test_what_has_gone_is_seen_and_put_back(bench: Bench, what: str) -> None:
    lab = Lab("netns-experiments", bench.settings)
    topology = load("netns-experiments")
    lab.up(topology)
    whole = copy.deepcopy(bench.links.there)
    context = lab.context()
    context.nodes["host"].run(["ip", *what.split()])
    seen = [str(difference) for difference in differences(topology, context.nodes["host"])]
    assert sorted(seen) == sorted(LOSSES[what])
    (node,) = status(context).nodes
    assert [part.name for part in node.links if not part.ok] == [
        difference.rpartition(" (")[0] for difference in seen
    ]
    (done,) = lab.up(topology).changed
    assert all(difference in done.words for difference in seen)
    assert bench.links.there == whole
    assert lab.up(topology).changed == []


def test_what_was_cut_off_is_cleared_first(bench: Bench) -> None:
    lab = Lab("netns-experiments", bench.settings)
    bench.provider.script(["ip", "-n", "ns2"], Answer(1, err=b"killed"))
    with pytest.raises(StepsFailed):
        lab.up(load("netns-experiments"), keep=True)
    bench.forget()
    bench.provider.script(["ip", "-n", "ns2"], Answer())
    lab.up(load("netns-experiments"))
    ran = [" ".join(words) for words in bench.provider.asked("run")]
    first = ran.index("ip -batch -")
    assert {"ip netns delete ns1", "ip netns delete ns2", "ip link delete dev br0"} <= set(
        ran[:first]
    )


def test_a_namespaces_link_may_have_the_name_of_the_nodes(bench: Bench) -> None:
    """It is never on the node, where `ip` would refuse it, and a retry would delete eth0."""
    text = (
        "name: t\nnetworks: {lan: {subnet: 10.0.0.0/24}}\n"
        "nodes: {h: {roles: [namespaces], networks: {lan: 10.0.0.2}}}\n"
        "namespaces: {a: {node: h}, b: {node: h}}\n"
        "veths:\n  - node: h\n    ends:\n"
        "      - {name: eth0, namespace: a, address: 192.0.2.1/24}\n"
        "      - {name: eth0, namespace: b, address: 192.0.2.2/24}\n"
    )
    topology = load_text(text, "t")
    (line,) = [line for line in batches(topology, "h")[""] if line.startswith("link")]
    assert line == "link add name eth0 netns a type veth peer name eth0 netns b"
    Lab("t", bench.settings).up(topology)
    assert "ip link delete dev eth0" not in [" ".join(w) for w in bench.provider.asked("run")]
