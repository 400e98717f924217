"""Providers whose machines run in cells: namespace nodes on the fabric of namespace nodes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar, Self

from testbed.nodes.base import Provider, Setup
from testbed.nodes.netns.provider import NAT, NetnsProvider

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from testbed.nodes.netns import find
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.wiring import Difference
    from testbed.topology.model import Topology
    from testbed.vm.box import Built


class CellProvider(Provider):
    """Methods of the contract that the provider of the cells carries out."""

    fabric_of = "netns"
    shapes = True
    uplinks = True
    vlans = True
    kind: ClassVar[find.Kind]  #: of the cells

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup)

    def __init__(self, setup: Setup) -> None:
        self._store = setup.store
        self.cells = NetnsProvider(
            setup.state,
            lambda: self._store.binary("testbed-init"),
            self.exposed,
            kind=self.kind,
            nat=lambda: self._store.binary(NAT),
        )
        self._lock = threading.Lock()

    def exposed(self) -> Iterable[Path]:
        """Return the folders of this machine that cells can read."""
        return self._store.folders

    def agent(self) -> Path:
        """Return the program that runs commands on a machine."""
        return self._store.binary("testbed-agent")

    def box(self) -> Built:
        """Return the box that machines start from; build it first if necessary."""
        from testbed.vm.box import box

        return box(self._store)

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
