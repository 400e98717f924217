"""Where faults of links and of traffic to a node are caused, detected and healed.

Most labs have a fabric, where each node has a port. Networks that are tunnels from node to node
have none: :mod:`testbed.faults.tunnels`.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from testbed.errors import MachineError
from testbed.faults import means
from testbed.process import which

if TYPE_CHECKING:
    from testbed.faults.means import Seen
    from testbed.faults.model import Fault
    from testbed.nodes.base import Node, Provider
    from testbed.nodes.place import Place, Runs
    from testbed.topology.model import Topology


class Links(ABC):
    """The links of one lab.

    Faults are given as a whole: ``present`` are the active ones, ``wanted`` those that shall be
    active afterwards.
    """

    @abstractmethod
    def links(self) -> list[Seen]:
        """Return the active faults of :data:`testbed.faults.model.LINK_KINDS`."""

    @abstractmethod
    def set_links(self, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        """Change the faults of links.  Raises MachineError, LabError."""

    @abstractmethod
    def queues(self) -> list[Seen]:
        """Return the active faults of :data:`testbed.faults.model.QUEUE_KINDS`."""

    @abstractmethod
    def set_queues(self, node: str, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        """Change the faults of traffic to a node.  Raises MachineError, LabError."""


def need_netem(place: Runs) -> None:
    """Raise MachineError if the kernel of a place cannot delay packets."""
    if not place.run(means.PROBE_NETEM, check=False).ok:
        raise MachineError(
            "this kernel has no netem (CONFIG_NET_SCH_NETEM), which delays packets",
            hint="load it (modprobe sch_netem), use a kernel with it, or "
            "the faults `rate` (tbf) and `loss` (nftables)",
        )
    place.run(means.UNPROBE)


def delays(node: str, wanted: Iterable[Fault]) -> bool:
    """Tell whether one of the faults delays the traffic to a node."""
    return any(fault.kind == "delay" and fault.node == node for fault in wanted)


class FabricLinks(Links):
    """Links on a lab's fabric, and links that lead directly from one node to another.

    ``nodes`` are the nodes that run, ``stopped`` the names of those that do not answer.
    """

    def __init__(
        self,
        fabric: Node,
        topology: Topology,
        provider: Provider,
        nodes: Mapping[str, Node],
        stopped: Iterable[str],
    ) -> None:
        self._fabric = fabric
        self._topology = topology
        self._provider = provider
        self._nodes = nodes
        self._stopped = frozenset(stopped)

    @functools.cached_property
    def _ports(self) -> dict[str, Sequence[str]]:
        """The names of the ports of each node on the fabric."""
        ports = self._provider.ports
        return {name: ports(self._topology, name) for name in self._topology.nodes}

    @functools.cached_property
    def _direct(self) -> dict[str, Mapping[str, str]]:
        """Interfaces that lead directly to another node, each with that node's name, by node."""
        direct = self._provider.direct
        found = ((name, direct(self._topology, name)) for name in self._topology.nodes)
        return {name: ends for name, ends in found if ends}

    def _ends(self) -> list[Place]:
        """Return the networks of the nodes with links that lead directly to another one."""
        found = []
        for node in self._nodes.values():
            if node.name in self._direct:
                place = self._provider.network_of(self._topology.name, node)
                if place is not node or node.name not in self._stopped:
                    found.append(place)
        return found

    def links(self) -> list[Seen]:
        if which("nft") is None:  # without nft there are no rules of ours
            return []
        places: list[tuple[Place, Sequence[str]]] = [(self._fabric, means.TABLE)]
        places += [(place, means.node_table(place.name)) for place in self._ends()]
        listed = [
            place.run(["nft", "-j", "list", "table", *table], check=False)
            for place, table in places
        ]
        return means.links_seen(*(one.stdout for one in listed if one.ok))

    def set_links(self, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        del present
        if which("nft") is None:
            raise MachineError(
                "nft, which cuts links, is missing on this machine", hint="apt-get install nftables"
            )
        rules = means.link_rules(self._ports, wanted)
        done = self._fabric.run(["nft", "-f", "-"], input=rules.encode(), check=False)
        if not done.ok and "not supported" in done.stderr:
            raise MachineError(
                "this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE), "
                "which cuts links",
                hint="use a kernel with it, or the fault `rate` (tbf)",
            )
        self._fabric.require(done)
        for place in self._ends():
            rules = means.end_rules(place.name, self._direct[place.name], wanted)
            place.run(["nft", "-f", "-"], input=rules.encode())

    def queues(self) -> list[Seen]:
        show = ["tc", "-j", "qdisc", "show"]
        found = means.queues_seen(self._fabric.run(show).stdout, self._ports)
        for place in self._ends():
            ends = self._direct[place.name]
            # The far end of a link delays what goes to a node.
            ports = {peer: [name] for name, peer in ends.items()}
            found += means.queues_seen(place.run(show).stdout, ports)
        return list({seen.fault: seen for seen in reversed(found)}.values())[::-1]

    def set_queues(self, node: str, present: Sequence[Fault], wanted: Sequence[Fault]) -> None:
        if delays(node, wanted):
            need_netem(self._fabric)
        there = means.has_queue(node, present)
        places: list[tuple[Place, Sequence[str]]] = [(self._fabric, self._ports[node])]
        for peer in self._ends():
            ends = self._direct[peer.name]
            places.append((peer, [name for name, far in ends.items() if far == node]))
        for place, ports in places:
            lines = means.queue_lines(ports, node, wanted, there=there)
            if lines:
                place.run(["tc", "-batch", "-"], input=lines.encode())
