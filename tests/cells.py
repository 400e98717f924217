"""The contract of virtual machines that run in cells of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from testbed.nodes.netns.cells import CellProvider
from testbed.testing.machine import LAB, MachineContract, Pair
from testbed.testing.provider import TWO
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.nodes.netns import find


class CellContract(MachineContract):
    """Machines on the fabric of namespace nodes."""

    kind: ClassVar[find.Kind]  #: of the process that they run in

    def test_a_machine_is_none_of_the_namespace_nodes(self, pair: Pair) -> None:
        provider = pair[0]
        assert isinstance(provider, CellProvider)
        # Another process's lab may have the same name, in another state folder.
        kinds = {init.kind for init in provider.cells._ours() if init.lab == LAB}
        assert kinds == {"fabric", self.kind}

    def test_mac_addresses_follow_from_the_topology(self, pair: Pair) -> None:
        topology = load_text(TWO, "contract.yaml")

        def links(node: Node) -> dict[str, str]:
            found = node.run(["ip", "-j", "link"]).json()
            return {one["ifname"]: one["address"] for one in found}

        for node in pair[1]:
            there = links(node)
            for port in topology.nodes[node.name].ports:
                assert there[port.name] == port.hardware
