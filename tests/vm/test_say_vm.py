"""The keys of nodes on virtual machines, and VLANs in one, whose kernel has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up
from say_keys import check, spoil_and_mend, text

from testbed import kernel
from testbed.nodes.netns import vlans
from testbed.topology import load_text
from testbed.topology.ports import Port

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node

#: Both providers' machines are of the same box; Vagrant takes a minute to bring them up.
PROVIDERS = ["qemu", pytest.param("vagrant", marks=pytest.mark.long)]
#: Ports of a switch: two in VLAN 10, one in the default one, and a trunk.
PORTS = {
    "p10": Port("lan", "eth0", vlan=10),
    "q10": Port("lan", "eth0", vlan=10),
    "p1": Port("lan", "eth0"),
    "trunk": Port("lan", "eth0", trunk=(10, 20)),
    "native": Port("lan", "eth0", vlan=1, trunk=(20,)),
}
SWITCH = f"""\
set -e
for module in bridge veth 8021q; do modprobe $module; done
ip link add name sw type bridge {vlans.FILTERS}
ip link set dev sw up
number=0
for name; do
    number=$((number + 1))
    ip netns add $name
    ip link add name $name type veth peer name eth0 netns $name
    ip link set dev $name master sw up
    ip -n $name link set dev eth0 up
    ip -n $name address add 10.7.0.$number/24 dev eth0
done
"""


@pytest.fixture(scope="module", params=PROVIDERS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    topology = load_text(text(request.param), f"{request.param}.yaml")
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


def test_nodes_are_as_the_file_says(lab: Lab) -> None:
    check(lab)


def test_what_is_lost_comes_back(lab: Lab) -> None:
    spoil_and_mend(lab)


def test_a_machine_can_have_interfaces_of_vlans(lab: Lab) -> None:
    """Frames with tags pass through the lab's network, without a VLAN of the file."""
    for number, (name, link) in enumerate((("a", "eth5"), ("b", "eth1")), 1):
        lines = (
            f"link add link {link} name v10 type vlan id 10",
            f"address add 10.5.0.{number}/24 dev v10",
            "link set dev v10 up",
        )
        node = lab.context().node(name)
        node.run(["modprobe", "8021q"])
        node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
    assert lab.context().node("b").run(["ping", "-c3", "-W5", "10.5.0.1"]).ok


def test_a_kernel_with_vlans_does_what_the_bridge_is_told(lab: Lab) -> None:
    """The commands for the bridges of the fabric, in a machine whose kernel has the filter."""
    node = lab.context().node("b")
    node.run(["sh", "-c", SWITCH, "sh", *PORTS])
    (trial,) = (one.try_it for one in kernel.FEATURES if one.name == "bridge vlan")
    assert node.run(["sh", "-c", trial]).ok
    seen = vlans.read(node.run(vlans.LOOK).json())
    lines = [one for name, port in PORTS.items() for one in vlans.lines(name, port, seen[name])]
    node.run(["bridge", "-batch", "-"], input="\n".join(lines).encode())
    seen = vlans.read(node.run(vlans.LOOK).json())
    for name, port in PORTS.items():
        assert seen[name] == vlans.wanted(port)
        assert not vlans.lines(name, port, seen[name])
    assert _reaches(node, "p10", 2)
    assert not _reaches(node, "p10", 3)
    assert _reaches(node, "p1", 5), "both without a tag in VLAN 1"
    assert not _reaches(node, "p10", 4)
    inside = ("link add link eth0 name v10 type vlan id 10", "address add 10.7.0.44/24 dev v10",
              "address del 10.7.0.4/24 dev eth0", "link set dev v10 up")  # fmt: skip
    node.run(["ip", "-n", "trunk", "-batch", "-"], input="\n".join(inside).encode())
    assert _reaches(node, "p10", 44)


def _reaches(node: Node, space: str, number: int) -> bool:
    argv = ["ip", "netns", "exec", space, "ping", "-c2", "-W2", f"10.7.0.{number}"]
    return node.run(argv, check=False).ok
