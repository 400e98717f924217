"""A lab's current network as a graph: what :mod:`testbed.observe.inventory` found, for drawings.

The result is plain data, fit for JSON; :mod:`testbed.report.picture` draws it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from testbed.observe.inventory import Inventory, Link, Machine, Space, inventory

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab


def graph(lab: LiveLab) -> dict[str, Any]:
    """Return a running lab's networks, nodes and links; a silent node has an ``error``."""
    return of(inventory(lab))


def of(found: Inventory) -> dict[str, Any]:
    """Return the graph of an inventory."""
    return {
        "networks": [
            {
                "name": one.name,
                "subnet": one.subnet,
                "uplink": one.uplink,
                "ports": [list(port) for port in one.ports],
            }
            for one in found.networks
        ],
        "nodes": [node(one) for one in found.nodes],
        "overlay": found.overlay,
        "wires": [[asdict(end) for end in wire] for wire in found.wires],
        "services": [asdict(one) for one in found.services],
    }


def node(machine: Machine) -> dict[str, Any]:
    """Return the graph of one node."""
    return {
        "name": machine.name,
        "roles": list(machine.roles),
        "gateway": machine.gateway,
        "links": [_link(link) for link in machine.own.links if link.shown],
        "routes": [
            {"to": route.to, "via": step.via, "dev": step.dev}
            for route in machine.own.routes
            if (route.family, route.table) == ("inet", "main")
            for step in route.steps
        ],
        "spaces": [_space(space) for space in machine.spaces[1:]],
        "pairs": list(_pairs(machine)),
        "error": machine.error,
    }


def _pairs(machine: Machine) -> list[list[list[str]]]:
    """Return the veth pairs within a machine, each once."""
    found = {}
    for space in machine.spaces:
        for link in space.links:
            if link.peer is not None and link.peer.machine == machine.name:
                ends = [[space.name, link.name], [link.peer.space, link.peer.link]]
                found[frozenset(map(tuple, ends))] = ends
    return list(found.values())


def _space(space: Space) -> dict[str, Any]:
    links = [_link(link) for link in space.links if link.shown]
    found: dict[str, Any] = {"name": space.name, "kind": space.kind, "links": links}
    if space.kind != "namespace":
        found |= {"mode": space.mode, "published": list(space.published)}
    if space.shares:
        found["shares"] = space.shares
    return found


def _link(link: Link) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": link.name,
        "index": link.index,
        "kind": link.kind,
        "mac": link.mac,
        "mtu": link.mtu,
        "up": link.up,
        "master": link.master,
        "addresses": list(link.global_addresses),
    }
    if link.kind == "vxlan":
        found["vni"], found["port"] = link.data.get("id"), link.data.get("port")
    if link.network:
        found["network"] = link.network
    return found
