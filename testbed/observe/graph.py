"""A lab's current network as a graph: what :mod:`testbed.observe.inventory` found, for drawings.

The result is plain data, fit for JSON; :mod:`testbed.report.picture` draws it as SVG,
:mod:`testbed.report.branches` as text, and :mod:`testbed.report.diagrams` writes it for other
tools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from testbed.observe.inventory import Inventory, Link, Machine, Space, inventory

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

Graph = Mapping[str, Any]
Layer = Literal["all", "underlay", "overlay"]
#: Kinds of devices that carry packets of one network in those of another.
TUNNELS = frozenset(
    {"vxlan", "geneve", "ipip", "sit", "gre", "gretap", "ip6tnl", "ip6gre", "wireguard", "tun"}
)
FEW = 8  #: graphs with so many nodes are shown whole
ALIKE = 3  #: so many nodes of one kind are shown as one, beside the first of them
ROUTES = 8  #: so many routes by one device are shown as one, beside the first of them


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
    if link.joins:
        found["joins"] = link.joins
    return found


# -- parts of it -----------------------------------------------------------------


def layer(graph: Graph, which: Layer) -> Graph:
    """Return one layer of a graph.

    ``underlay``: the nodes with the networks and links between them. ``overlay``: what is built on
    these: containers, Pods and namespaces, the bridges and pairs that join them, tunnels, and
    services; nodes without any are left out.
    """
    if which == "all":
        return graph
    nodes = []
    for one in graph["nodes"]:
        above = {link["name"] for link in one["links"] if _is_above(link, one)}
        links = [link for link in one["links"] if (link["name"] in above) == (which == "overlay")]
        names = {link["name"] for link in links}
        routes = [route for route in one["routes"] if route["dev"] in names]
        nodes.append({**one, "links": links, "routes": routes})
    if which == "overlay":
        nodes = [one for one in nodes if one["links"] or one["spaces"] or one["error"]]
        return {**graph, "nodes": nodes, "networks": [], "wires": []}
    nodes = [{**one, "spaces": [], "pairs": []} for one in nodes]
    return {**graph, "nodes": nodes, "overlay": None, "services": []}


def _is_above(link: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    """Tell whether a device is part of what is built on the lab's networks."""
    if link.get("joins"):
        return False
    if link["kind"] == "bridge":
        ports = [port for port in one["links"] if port["master"] == link["name"]]
        return not any(port.get("joins") for port in ports)
    paired = {name for pair in one["pairs"] for space, name in pair if not space}
    return link["kind"] in TUNNELS or link["name"] in paired


def tunnels(graph: Graph) -> list[dict[str, Any]]:
    """Return the tunnels that nodes have in common, as overlays; that of a role comes first.

    Each has ``name``, ``devices`` and words (``about``).
    """
    found = []
    if overlay := graph.get("overlay"):
        networks = ", ".join(overlay[key] for key in ("network", "network6") if key in overlay)
        words = [overlay.get("backend", ""), networks]
        if overlay.get("port"):
            words.append(f"· UDP {overlay['port']}")
        devices = [overlay[key] for key in ("device", "device6") if overlay.get(key)]
        about = " ".join(filter(None, words))
        found.append({"name": overlay["name"], "devices": devices, "about": about})
    known = {name for one in found for name in one["devices"]}
    for one in graph["nodes"]:
        for link in one["links"]:
            if link["kind"] in TUNNELS and link["name"] not in known:
                known.add(link["name"])
                about = link["kind"]
                if link["kind"] == "vxlan":
                    about = f"vxlan {link.get('vni')} · UDP {link.get('port')}"
                found.append({"name": link["name"], "devices": [link["name"]], "about": about})
    return found


def fold(graph: Graph) -> Graph:
    """Return a graph of many nodes in which those of one kind are shown as one.

    The first node of a kind stays as it is. The others become one node with ``members``, each
    with ``name``, ``addresses`` and ``spaces``, and with the name of the first as ``like``.
    Many routes by the same device become one, too.
    """
    alike = {one["name"]: repr(_kind(one)) for one in graph["nodes"]}  # with all its routes
    graph = {
        **graph,
        "nodes": [{**one, "routes": _fold_routes(one["routes"])} for one in graph["nodes"]],
    }
    if len(graph["nodes"]) <= FEW:
        return graph
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for one in graph["nodes"]:
        kinds.setdefault(alike[one["name"]], []).append(one)
    nodes = []
    for one in graph["nodes"]:
        first, *others = kinds[alike[one["name"]]]
        if len(others) < ALIKE or one is first:
            nodes.append(one)
        if len(others) >= ALIKE and one is first:
            nodes.append(_crowd(first, others))
    ports = {old["name"]: new["name"] for new in nodes for old in new.get("members", ())}
    networks = [
        {
            **network,
            "ports": [
                list(port)
                for port in dict.fromkeys(
                    (ports.get(at, at), name) for at, name in network["ports"]
                )
            ],
        }
        if "ports" in network
        else network
        for network in graph["networks"]
    ]
    wires = [
        [{**end, "at": ports.get(end["at"], end["at"])} for end in wire]
        for wire in graph.get("wires", ())
    ]
    return {**graph, "nodes": nodes, "networks": networks, "wires": wires}


def _fold_routes(routes: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the routes with those in a row by the same device as one, if they are many."""
    found: list[Mapping[str, str]] = []
    for _, group in groupby(routes, key=lambda one: (one["dev"], bool(one["via"]))):
        first, *others = group
        if len(others) < ROUTES:
            found += [first, *others]
            continue
        via = {one["via"] for one in others}
        words = via.pop() if len(via) == 1 else f"{len(via)} gateways"
        to = f"{others[0]['to']} … {others[-1]['to']}"
        found += [first, {"to": to, "via": words, "dev": first["dev"]}]
    return found


def _kind(one: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what nodes of one kind have in common: all but names and addresses."""
    names = {  # that of a veth device of a container is invented
        link["name"]: "" if link["kind"] == "veth" and not link.get("joins") else link["name"]
        for link in one["links"]
    }
    links = [
        (
            names[link["name"]],
            link["kind"],
            (link.get("vni"), link.get("port")),
            link["mtu"],
            link["up"],
            link["master"],
            link.get("joins", ""),
            len(link["addresses"]),
        )
        for link in one["links"]
    ]
    spaces = [
        (space["kind"], space.get("mode"), len(space["links"]), len(space.get("published", ())))
        for space in one["spaces"]
    ]
    routes = Counter(names.get(route["dev"], "") for route in one["routes"])
    return (
        one["roles"],
        one["gateway"],
        one["error"],
        sorted(links, key=repr),
        sorted(spaces, key=repr),
        sorted(routes.items()),
    )


def _crowd(first: Mapping[str, Any], others: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = [one["name"] for one in others]
    return {
        **first,
        "name": f"{names[0]} … {names[-1]}",
        "like": first["name"],
        "members": [
            {
                "name": one["name"],
                "addresses": list(_own_addresses(one)),
                "spaces": [
                    [space["name"], *(a for link in space["links"] for a in link["addresses"])]
                    for space in one["spaces"]
                ],
            }
            for one in others
        ],
        "links": [
            {**link, "addresses": []}
            for link in first["links"]
            if link.get("joins") or link["kind"] in TUNNELS
        ],
        "routes": [],
        "spaces": [],
        "pairs": [],
    }


def _own_addresses(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield the addresses of a node on the lab's networks, or those of all its devices."""
    joined = [link for link in one["links"] if link.get("joins")]
    for link in joined or one["links"]:
        yield from link["addresses"]
