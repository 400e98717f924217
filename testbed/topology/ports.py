"""Ports of nodes: their links to the networks of a lab.

A node has a port on each of its networks. The value of ``networks`` of a node is a tuple of
:class:`Port`, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from testbed.topology.shapes import NETWORK_NAME, Address, Shape, table

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a node on a network.

    ``name`` is that of the interface on the node. ``addresses`` are those of the node on this
    network.
    """

    network: str
    name: str
    addresses: tuple[IPv4Address, ...] = ()

    @property
    def address(self) -> IPv4Address | None:
        """The first IPv4 address; None for a port without one."""
        return next(iter(self.addresses), None)


def numbered(names: Iterable[str]) -> str:
    """Return the name of the next port without one, after ports of these names.

    >>> numbered([]), numbered(["eth0"]), numbered(["eth0", "eth1"])
    ('eth0', 'eth1', 'eth2')
    """
    return f"eth{sum(1 for _ in names)}"


class Ports(Shape[tuple[Port, ...]]):
    """The ports of a node, by network."""

    def schema(self) -> dict[str, Any]:
        return table(NETWORK_NAME.schema(), Address().schema())

    def read(self, read: Reader, at: Tree | None) -> tuple[Port, ...] | None:
        found = read.table(at, "a mapping of network to address")
        if found is None:
            return None
        ports: list[Port] = []
        for network, entry in found.entries.items():
            if (address := Address().read(read, entry.value)) is not None:
                name = numbered(port.name for port in ports)
                ports.append(Port(network, name, (address,)))
        return tuple(ports)

    def plain(self, value: tuple[Port, ...]) -> dict[str, Any]:
        return {port.network: str(port.address) for port in value}
