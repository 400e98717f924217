"""VLANs on the bridges of a lab's networks (IEEE 802.1Q), by the kernel's VLAN filter.

A network on which a port has a ``vlan`` or a ``trunk`` is a switch: its bridge filters. Other ports
of the network are in VLAN 1, the bridge's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

#: Settings of a bridge that filters, for ip-link(8).
FILTERS, PLAIN = "vlan_filtering 1", "vlan_filtering 0"
LOOK = ("bridge", "-j", "vlan", "show")
DEFAULT = 1  # VLAN of a new port of a bridge, without a tag


def networks(topology: Topology) -> set[str]:
    """Return the names of the networks with VLANs."""
    ports = (port for node in topology.nodes.values() for port in node.ports)
    return {port.network for port in ports if port.vlan or port.trunk}


def filters(link: Mapping[str, Any]) -> str:
    """Return :data:`FILTERS` for a bridge that filters, from `ip -d link`; else an empty text."""
    data = link.get("linkinfo", {}).get("info_data", {})
    return FILTERS if data.get("vlan_filtering") else ""


def wanted(port: Port) -> dict[int, bool]:
    """Return the VLANs of a port, each with True if its frames have no tag there."""
    untagged = port.vlan or (None if port.trunk else DEFAULT)
    found = {*port.trunk, untagged} if untagged else {*port.trunk}
    return {vlan: vlan == untagged for vlan in sorted(found)}


def lines(name: str, port: Port, seen: Mapping[int, bool]) -> list[str]:
    """Return the ``bridge -batch`` lines that give a port of a bridge its VLANs."""
    target = wanted(port)
    found = [f"vlan del dev {name} vid {vlan}" for vlan in seen if vlan not in target]
    for vlan, plain in target.items():
        if seen.get(vlan) is not plain:
            found.append(f"vlan add dev {name} vid {vlan}{' pvid untagged' if plain else ''}")
    return found


def read(listing: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, bool]]:
    """Return the VLANs of each port, as :func:`wanted` does, from the output of :data:`LOOK`."""
    return {entry["ifname"]: dict(_vlans(entry.get("vlans", ()))) for entry in listing}


def _vlans(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, bool]]:
    for entry in entries:
        first, plain = entry["vlan"], "PVID" in entry.get("flags", ())
        for vlan in range(first, entry.get("vlanEnd", first) + 1):
            yield vlan, plain


def words(vlans: Mapping[int, bool]) -> str:
    """Describe the VLANs of a port.

    >>> words({10: True, 20: False}), words({})
    ('10 untagged, 20 tagged', 'none')
    """
    said = (f"{vlan} {'untagged' if plain else 'tagged'}" for vlan, plain in vlans.items())
    return ", ".join(said) or "none"
