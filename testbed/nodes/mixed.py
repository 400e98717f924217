"""Several providers of one fabric combined into one, for labs with mixed nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from testbed.errors import TestbedError
from testbed.nodes.base import Node, NodeSpec, Provider

if TYPE_CHECKING:
    from testbed.faults.tunnels import Tunnels
    from testbed.nodes.base import Snapshot
    from testbed.nodes.place import Place
    from testbed.nodes.wiring import Difference
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology


class MixedProvider(Provider):
    """Several providers whose nodes are on the same fabric.

    ``members`` are all providers that may have nodes of the lab, first the one that
    creates the fabric; ``maker`` returns the provider of a node by the node's name.
    """

    name = "mixed"

    def __init__(self, members: Sequence[Provider], maker: Callable[[str], Provider]) -> None:
        self._members = members
        self._maker = maker
        kept = [member.snapshot_parts for member in members]
        self.snapshot_parts = tuple(
            part for part in kept[0] if all(part in parts for parts in kept)
        )

    def probe(self) -> list[Requirement]:
        return list(dict.fromkeys(item for member in self._members for item in member.probe()))

    def prepare(self, lab: str, specs: Sequence[NodeSpec]) -> None:
        for member in self._members:
            if mine := [spec for spec in specs if self._maker(spec.name) is member]:
                member.prepare(lab, mine)

    def create_fabric(self, lab: str, topology: Topology) -> None:
        # A killed `up` may have left a node whose name another provider uses now.
        for member in self._members:
            others = [name for name in topology.nodes if self._maker(name) is not member]
            if others:
                member.destroy(lab, others)
        for member in self._members:  # the first creates it, the others are told its topology
            member.create_fabric(lab, topology)

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        made: dict[str, Node] = {}
        for member in self._members:
            if mine := [spec for spec in specs if self._maker(spec.name) is member]:
                made |= member.create(lab, mine)
        return made

    def create_one(self, lab: str, spec: NodeSpec) -> Node:
        return self._maker(spec.name).create_one(lab, spec)

    def together(self, node: str) -> bool:
        return self._maker(node).together(node)

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        self._maker(node.name).connect(lab, topology, node)

    def differences(self, lab: str, topology: Topology) -> dict[str, list[Difference]]:
        return self._members[0].differences(lab, topology)

    def outdated(self, lab: str, topology: Topology) -> Collection[str]:
        found = {name for member in self._members for name in member.outdated(lab, topology)}
        return found & topology.nodes.keys()

    def network_of(self, lab: str, node: Node) -> Place:
        return self._maker(node.name).network_of(lab, node)

    def restore(
        self, lab: str, topology: Topology, node: Node, differences: Sequence[Difference]
    ) -> None:
        self._maker(node.name).restore(lab, topology, node, differences)

    def nodes(self, lab: str) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for member in self._members:
            found |= member.nodes(lab)
        return found

    def ended(self, lab: str) -> dict[str, str]:
        return {name: words for m in self._members for name, words in m.ended(lab).items()}

    def labs(self) -> list[str]:
        return sorted({lab for member in self._members for lab in member.labs()})

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        names = None if nodes is None else list(nodes)
        for member in reversed(self._members):  # the fabric goes last
            member.destroy(lab, names)

    def fabric(self, lab: str) -> Node | None:
        return self._members[0].fabric(lab)

    def ports(self, topology: Topology, node: str) -> list[str]:
        return self._maker(node).ports(topology, node)

    def direct(self, topology: Topology, node: str) -> dict[str, str]:
        return self._maker(node).direct(topology, node)

    def tunnels(self, nodes: Mapping[str, Node]) -> Tunnels | None:
        return self._members[0].tunnels(nodes)

    def pause(self, lab: str, node: str) -> None:
        self._maker(node).pause(lab, node)

    def resume(self, lab: str, node: str) -> None:
        self._maker(node).resume(lab, node)

    def snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        with contextlib.ExitStack() as undone:
            for member, mine in self._makers(nodes):
                member.snapshot(lab, mine, name)
                undone.callback(_drop, member, lab, mine, name)
            undone.pop_all()

    def revert(self, lab: str, nodes: Collection[str], name: str) -> None:
        for member, mine in self._makers(nodes):
            member.revert(lab, mine, name)

    def drop_snapshot(self, lab: str, nodes: Collection[str], name: str) -> None:
        for member, mine in self._makers(nodes):
            member.drop_snapshot(lab, mine, name)

    def snapshots(self, lab: str) -> dict[str, list[Snapshot]]:
        return {
            node: kept for member in self._members for node, kept in member.snapshots(lab).items()
        }

    def recover(self, lab: str, nodes: Collection[str]) -> list[str]:
        return [one for member, mine in self._makers(nodes) for one in member.recover(lab, mine)]

    def _makers(self, nodes: Collection[str]) -> Iterator[tuple[Provider, list[str]]]:
        for member in self._members:
            if mine := [name for name in nodes if self._maker(name) is member]:
                yield member, mine

    def paused(self, lab: str) -> list[str]:
        return sorted({name for member in self._members for name in member.paused(lab)})


def _drop(provider: Provider, lab: str, nodes: Collection[str], name: str) -> None:
    """Remove a snapshot that other nodes could not take, if possible."""
    with contextlib.suppress(TestbedError):
        provider.drop_snapshot(lab, nodes, name)
