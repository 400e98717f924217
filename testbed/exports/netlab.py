"""netlab: the machines and networks of a lab as a topology file of netlab.

Machines are Linux hosts.  A gateway is a router (FRR), which netlab makes the default gateway of
the hosts beside it.  netlab's containerlab provider starts them; `netlab up -p libvirt` starts
virtual machines (netlab.tools, "Lab Topology Reference").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.exports.base import Export, Exported, LeftOut, Subject, dump, unsaid

if TYPE_CHECKING:
    from testbed.topology.model import Topology

FILE = "topology.yml"
LONGEST = 16  # characters of the names of a topology and a node
RESERVED = frozenset({"host", "macvlan", "ipvlan"})  # words of containerlab's endpoints
HOST, ROUTER = "linux", "frr"  # devices
HEAD = "# Lab {name}, by `testbed export --to netlab`: netlab up\n"


class Netlab(Export):
    """A topology file."""

    name = "netlab"
    about = f"netlab: {FILE}"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.gateway",
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {
        "nodes.*.cpus": "netlab limits virtual machines only",
        "nodes.*.memory": "netlab limits virtual machines only",
        "*": "netlab describes machines and links",
    }

    def export(self, subject: Subject) -> Exported:
        topology = subject.topology
        names = _names(topology)
        left_out = [
            LeftOut((f"nodes.{name}",), f"it is called {other}, because netlab refuses the name")
            for name, other in names.items()
            if name != other
        ]
        lab = _identifier(topology.name)
        if lab != topology.name:
            left_out.append(LeftOut(("name",), f"the lab is called {lab} in netlab"))
        used = {name for node in topology.nodes.values() for name in node.networks}
        if unused := [f"networks.{name}" for name in topology.networks if name not in used]:
            left_out.append(LeftOut(tuple(unused), "no node is on it"))
        left_out += unsaid(topology, networks=["mtu"], why=self.reasons["*"])
        found: dict[str, Any] = {
            "name": lab,
            **({"message": topology.description} if topology.description else {}),
            "provider": "clab",
            "defaults": {"device": HOST},
            "nodes": {
                names[node.name]: _node(gateway=node.gateway) for node in topology.nodes.values()
            },
            "links": _links(topology, names),
        }
        return Exported({FILE: HEAD.format(name=topology.name) + dump(found)}, tuple(left_out))


def _node(*, gateway: bool) -> dict[str, Any]:
    # Without a loopback, netlab takes no address of its pool, which may be one of the lab's.
    return {"device": ROUTER, "loopback": False} if gateway else {}


def _links(topology: Topology, names: Mapping[str, str]) -> list[dict[str, Any]]:
    links = []
    for network in topology.networks.values():
        ends = [
            (names[node.name], {"ipv4": str(port.interfaces[0])} if port.interfaces else {})
            for node in topology.nodes.values()
            for port in node.on(network.name)
        ]
        if ends:
            single = len(dict(ends)) == len(ends)
            each = [{"node": node, **end} for node, end in ends]
            links.append(
                {
                    "name": _identifier(network.name) if network.link >= 0 else network.name,
                    "type": "lan" if network.link < 0 else "p2p",
                    # No address of netlab's pool, which may be one of the lab's.
                    "prefix": {"ipv4": str(network.subnet)} if network.subnet else False,
                    **({"mtu": network.mtu} if network.mtu else {}),
                    **(dict(ends) if single else {"interfaces": each}),
                }
            )
    return links


def _identifier(name: str) -> str:
    """Return a name of letters, digits and underscores that begins with a letter."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return (plain if plain[0].isalpha() else f"n{plain}")[:LONGEST]


def _names(topology: Topology) -> dict[str, str]:
    """Return netlab's name of each node, which is the node's own where netlab accepts it."""
    found: dict[str, str] = {}
    for name in topology.nodes:
        other = name if name[0].isalpha() and name not in RESERVED else f"n-{name}"
        while other != name and other in topology.nodes:
            other += "-1"
        found[name] = other
    return found
