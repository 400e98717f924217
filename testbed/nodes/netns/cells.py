"""Providers whose machines run in cells: namespace nodes on the fabric of namespace nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.nodes.base import Provider

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.netns.provider import NetnsProvider
    from testbed.nodes.wiring import Difference
    from testbed.topology.model import Topology
    from testbed.vm.box import Built


class CellProvider(Provider):
    """Methods of the contract that the provider of the cells carries out."""

    fabric_of = "netns"
    cells: NetnsProvider

    def labs(self) -> list[str]:
        return self.cells.labs()

    def fabric(self, lab: str) -> NetnsNode | None:
        return self.cells.fabric(lab)

    def create_fabric(self, lab: str, topology: Topology) -> None:
        self.cells.create_fabric(lab, topology)

    def differences(self, lab: str, topology: Topology) -> dict[str, list[Difference]]:
        return self.cells.differences(lab, topology)

    def pause(self, lab: str, node: str) -> None:
        self.cells.pause(lab, node)

    def resume(self, lab: str, node: str) -> None:
        self.cells.resume(lab, node)

    def paused(self, lab: str) -> list[str]:
        return self.cells.paused(lab)


def box_of(store: Store) -> Built:
    """Return the box that machines start from; build it first if necessary."""
    from testbed.vm.box import box

    return box(store)
