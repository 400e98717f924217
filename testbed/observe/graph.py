"""A lab's current network: devices, bridge ports, veth pairs, containers, routes.

Each node is inspected once, all nodes at the same time: its own links, those of every named
network namespace and of every container, and its routes.  The result is plain data,
fit for JSON; :mod:`testbed.report.picture` draws it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from testbed.errors import TestbedError
from testbed.limits import FILES_PER_NODE, at_once
from testbed.registry import ROLES

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

#: Arguments: a name and a network namespace for each container.  Every part is
#: printed on its own line, after a character that JSON text cannot contain.
LINKS = r"""
part() { printf '\036%s\n' "$1"; }
part links; ip -j -d addr
part routes; ip -j route
"""
LOOK = rf"""
{LINKS}
for namespace in /run/netns/*; do
    [ -e "$namespace" ] || continue
    part "namespace ${{namespace##*/}}"; nsenter --net="$namespace" ip -j -d addr
done
while [ $# -gt 1 ]; do
    part "container $1"; nsenter --net="$2" ip -j -d addr; shift 2
done
exit 0
"""
SEPARATOR = "\036"


@dataclass(frozen=True, slots=True)
class End:
    """A link as seen by its peer.  ``space`` is "" for the node's own namespace."""

    space: str
    name: str
    index: int
    peer: int  #: the peer's index
    netns: int | None  #: this namespace's id of the peer's; None if both are the same


def graph(lab: LiveLab) -> dict[str, Any]:
    """Return a running lab's networks, nodes and links; a silent node has an ``error``."""
    names = [name for name in lab.topology.nodes if name in lab.nodes]
    with ThreadPoolExecutor(at_once(min(8, len(names)), files=FILES_PER_NODE)) as pool:
        nodes = list(pool.map(lambda name: _node(lab, name), names))
    return {
        "networks": _networks(lab),
        "nodes": nodes,
        "overlay": _overlay(lab),
        "wires": list(wires(lab.topology, nodes)),
    }


def _networks(lab: LiveLab) -> list[dict[str, Any]]:
    topology = lab.topology
    return [
        {
            "name": network.name,
            "subnet": network.words if network.subnet or network.subnet6 else "",
            "ports": [
                [node.name, port.name]
                for node in topology.nodes.values()
                for port in node.on(network.name)
            ],
        }
        for network in topology.networks.values()
        if network.link < 0
    ]


def wires(topology: Topology, nodes: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield both ends of each link between two nodes, in our file or another tool's.

    ``at`` is a node, or a bridge or another place outside of the nodes.  An end is not ``up`` if
    its node has no such interface, or one that is down.
    """
    seen = {node["name"]: {link["name"] for link in node["links"] if link["up"]} for node in nodes}
    for pair in topology.links:
        yield [
            {"at": node, "interface": name, "up": node not in seen or name in seen[node]}
            for node, name in pair.ends
        ]
    for link in topology.foreign.links if topology.foreign else ():
        yield [
            {
                "at": end.at,
                "interface": end.interface,
                "up": end.at not in seen or end.interface in seen[end.at],
            }
            for end in link.ends
        ]


def _overlay(lab: LiveLab) -> dict[str, Any] | None:
    found = (ROLES[role].overlay(lab.topology) for role in lab.topology.roles)
    return next((dict(one) for one in found if one is not None), None)


def _node(lab: LiveLab, name: str) -> dict[str, Any]:
    spec = lab.topology.nodes[name]
    found: dict[str, Any] = {
        "name": name,
        "roles": list(spec.roles),
        "gateway": spec.gateway,
        "links": [],
        "routes": [],
        "spaces": [],
        "pairs": [],
        "error": "",
    }
    try:
        containers = [dict(one) for role in spec.roles for one in ROLES[role].drawn(lab, name)]
        known = {k: v for role in spec.roles for k, v in ROLES[role].link_names(lab, name).items()}
        if lab.topology.foreign is None:
            printed = _look(lab.node(name), containers)
        else:  # the node may be of any image
            printed = lab.network(name).run(["sh", "-c", LINKS], timeout=10).stdout
    except TestbedError as error:
        found["error"] = str(error)
        return found
    try:
        _describe(found, _parts(printed), containers)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        found["error"] = f"cannot parse the output of ip on {name}: {error!r}"
    for link in found["links"]:
        if link["name"] in known:
            link["network"] = known[link["name"]]
    return found


def _describe(
    found: dict[str, Any],
    parts: Mapping[str, list[dict[str, Any]]],
    containers: list[dict[str, Any]],
) -> None:
    found["links"] = [_link(link) for link in parts.get("links", ()) if _shown(link)]
    found["routes"] = [_route(route) for route in parts.get("routes", ())]
    ends = list(_ends("", parts.get("links", ())))
    for part, links in parts.items():
        kind, _, space = part.partition(" ")
        if kind == "namespace":
            found["spaces"].append({"name": space, "kind": kind, "links": links})
            ends += _ends(space, links)
    for container in containers:
        links = parts.get(f"container {container['name']}", [])
        found["spaces"].append({**container, "kind": "container", "links": links})
        ends += _ends(container["name"], links)
    for one in found["spaces"]:
        one["links"] = [_link(link) for link in one["links"] if _shown(link)]
        one.pop("pid", None)
    found["pairs"] = [[[a.space, a.name], [b.space, b.name]] for a, b in pairs(ends)]


def _look(node: Node, containers: list[dict[str, Any]]) -> str:
    argv = ["sh", "-c", LOOK, "look"]
    for one in containers:
        if one["mode"] not in {"host", "container"}:
            argv += [one["name"], f"/proc/{one['pid']}/ns/net"]
    return node.run(argv, timeout=10).stdout


def _parts(printed: str) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in printed.split(SEPARATOR)[1:]:
        name, _, text = part.partition("\n")
        with contextlib.suppress(ValueError):  # a namespace that was removed meanwhile
            # iproute2 prints {} for what it leaves out
            parts[name] = [entry for entry in json.loads(text or "[]") if entry]
    return parts


def _shown(link: Mapping[str, Any]) -> bool:
    """Tell whether to show a link: not loopback, nor the kernel's default tunnels."""
    fallback = {"tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0"}
    fallback.add("ip6_vti0")
    return link.get("link_type") != "loopback" and link["ifname"] not in fallback


def _link(link: Mapping[str, Any]) -> dict[str, Any]:
    info = link.get("linkinfo", {})
    data = info.get("info_data", {})
    found: dict[str, Any] = {
        "name": link["ifname"],
        "index": link["ifindex"],
        "kind": info.get("info_kind", ""),
        "mac": link.get("address", "") if link.get("link_type") == "ether" else "",
        "mtu": link.get("mtu", 0),
        "up": "UP" in link.get("flags", ()),
        "master": link.get("master", ""),
        "addresses": [
            f"{one['local']}/{one['prefixlen']}"
            for one in link.get("addr_info", ())
            if not ip_address(one["local"]).is_link_local or one["family"] == "inet"
        ],
    }
    if found["kind"] == "vxlan":
        found["vni"], found["port"] = data.get("id"), data.get("port")
    return found


def _route(route: Mapping[str, Any]) -> dict[str, str]:
    return {
        "to": route["dst"],
        "via": route.get("gateway", ""),
        "dev": route.get("dev", ""),
    }


def _ends(space: str, links: Any) -> Iterator[End]:
    for link in links:
        if link.get("linkinfo", {}).get("info_kind") == "veth" and "link_index" in link:
            yield End(
                space,
                link["ifname"],
                link["ifindex"],
                link["link_index"],
                link.get("link_netnsid"),
            )


def pairs(ends: list[End]) -> list[tuple[End, End]]:
    """Return the veth pairs among the ends of a node and its namespaces.

    Each end names its peer's index, and the peer's namespace by an id of its own.
    Indexes repeat from namespace to namespace: ambiguous pairs are resolved by the
    ids that are known already, or left out.
    """
    left, found = list(ends), []
    known: dict[tuple[str, int], str] = {}

    def fit(one: End, other: End) -> bool:
        if one is other or (one.peer, other.peer) != (other.index, one.index):
            return False
        if (one.netns is None) != (one.space == other.space):
            return False
        return all(
            a.netns is None or known.get((a.space, a.netns), b.space) == b.space
            for a, b in ((one, other), (other, one))
        )

    progress = True
    while progress:
        progress = False
        for one in left:
            peers = [other for other in left if fit(one, other)]
            if len(peers) != 1 or [end for end in left if fit(peers[0], end)] != [one]:
                continue
            (other,) = peers
            found.append((one, other))
            for a, b in ((one, other), (other, one)):
                if a.netns is not None:
                    known[a.space, a.netns] = b.space
            left = [end for end in left if end not in (one, other)]
            progress = True
            break
    return found
