"""A lab's network for the terminal: the graph of :mod:`testbed.observe.graph` as a tree.

Nothing is cut: what does not fit beside a name continues on the next line. Colours are those of
click, which leaves them out where there is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from testbed.observe.graph import tunnels

Graph = Mapping[str, Any]
NARROWEST = 40  # columns; a terminal with fewer wraps the lines itself
LONGEST_NAME = 24  # columns; longer names are not aligned with others
STYLES: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "name": {"bold": True},
    "address": {"fg": "cyan"},
    "network": {"fg": "blue"},
    "overlay": {"fg": "magenta"},
    "published": {"fg": "yellow"},
    "dim": {"dim": True},
    "bad": {"fg": "red"},
}
Words = tuple[str, str]  #: a text that is kept on one line, and the name of its style


@dataclass(slots=True)
class Branch:
    """A line of the tree: a name, words beside it, and the lines below it."""

    head: Words
    about: list[Words] = field(default_factory=list)
    below: list[Branch] = field(default_factory=list)


def lines(graph: Graph, lab: str, *, width: int) -> Iterator[str]:
    """Yield the lines of a lab's graph for a terminal of ``width`` columns."""
    width = max(width, NARROWEST)
    count = sum(len(node.get("members", "1")) for node in graph["nodes"])
    nodes = "1 node" if count == 1 else f"{count} nodes"
    yield from _row(Branch((lab, "name"), [(nodes, "")]), "", "  ", 0, width)
    trees = [*_joining(graph), *(_node(node) for node in graph["nodes"])]
    if services := [_service(one) for one in graph.get("services", ())]:
        trees.append(Branch(("services", "name"), [], services))
    for tree in trees:
        yield ""
        yield from _row(tree, "", "│  " if tree.below else "   ", 0, width)
        yield from _below(tree.below, "", width)


# -- contents --------------------------------------------------------------------


def _joining(graph: Graph) -> Iterator[Branch]:
    """Yield one tree of all that joins the nodes."""
    found = []
    for network in graph["networks"]:
        ends = [f"{node}:{name}" for node, name in network.get("ports", ())]
        about = [(network["subnet"], "address")] if network["subnet"] else []
        found.append(Branch((network["name"], "network"), [*about, *((end, "") for end in ends)]))
    for one in tunnels(graph):
        on = [
            node["name"]
            for node in graph["nodes"]
            if any(link["name"] in one["devices"] for link in node["links"])
        ]
        words = [(one["about"], "address"), *((name, "") for name in on)]
        found.append(Branch((one["name"], "overlay"), words))
    for one, other in graph.get("wires", ()):
        words = [("──", "dim"), (_end(other), "")]
        words += [("down", "bad")] if not (one["up"] and other["up"]) else []
        found.append(Branch((_end(one), "network"), words))
    if found:
        yield Branch(("networks", "name"), [], found)


def _end(end: Mapping[str, Any]) -> str:
    return f"{end['at']}:{end['interface']}" if end["interface"] else str(end["at"])


def _node(node: Mapping[str, Any]) -> Branch:
    if "members" in node:
        count = len(node["members"])
        return Branch(
            (node["name"], "name"),
            [(f"{count} nodes like {node['like']}", "dim")],
            [_member(one) for one in node["members"]],
        )
    roles = [*node["roles"], *(["gateway"] if node["gateway"] else [])]
    about = [(role, "dim") for role in roles]
    about += [(node["error"], "bad")] if node["error"] else []
    return Branch((node["name"], "name"), about, list(_inside(node)))


def _member(one: Mapping[str, Any]) -> Branch:
    words: list[Words] = [(address, "address") for address in one["addresses"]]
    for name, *addresses in one["spaces"]:
        words.append((" ".join([name, *addresses]), ""))
    return Branch((one["name"], ""), words)


def _inside(node: Mapping[str, Any]) -> Iterator[Branch]:
    spaces = {space["name"]: space for space in node["spaces"]}
    peers: dict[tuple[str, str], tuple[str, str]] = {}
    for one, other in node["pairs"]:
        peers[tuple(one)], peers[tuple(other)] = tuple(other), tuple(one)
    told: set[str] = set()
    below: dict[str, list[Branch]] = {}
    own = []
    for link in node["links"]:
        branch = _link(link)
        peer = peers.get(("", link["name"]))
        if peer is not None and peer[0] in spaces:
            space = spaces[peer[0]]
            style = "dim" if link["up"] else "bad"
            branch = Branch((link["name"], style), [*_space(space, peer[1])])
            if peer[0] not in told:
                branch.below = [
                    _link_inside(space, one, peers)
                    for one in space["links"]
                    if peers.get((space["name"], one["name"]), ("?",))[0]  # by itself otherwise
                ]
            told.add(peer[0])
        below.setdefault(link["master"], []).append(branch)
        own.append(branch)
    names = {link["name"] for link in node["links"]}
    for link, branch in zip(node["links"], own, strict=True):
        branch.below += below.get(link["name"], [])
    for master, branches in below.items():
        if master not in names:
            yield from branches
    for name, space in spaces.items():
        if name not in told:
            yield _alone(space, peers)
    if routes := [_route(one) for one in node["routes"]]:
        yield Branch(("routes", ""), [], routes)


def _link(link: Mapping[str, Any]) -> Branch:
    words: list[Words] = [(address, "address") for address in link["addresses"]]
    if link.get("joins"):
        words.append((link["joins"], "network"))
    if link.get("network"):
        words.append((link["network"], "network"))
    kind = link["kind"]
    if kind == "vxlan":
        kind = f"vxlan {link.get('vni')}"
    if kind and not (kind == "veth" and link.get("joins")):
        words.append((kind, "dim"))
    words.append((f"MTU {link['mtu']}", "dim"))
    words += [] if link["up"] else [("down", "bad")]
    return Branch((link["name"], ""), words)


def _space(space: Mapping[str, Any], link: str) -> Iterator[Words]:
    """Yield the words of a container behind a device of its node."""
    yield "──", "dim"
    yield space["name"], "name"
    for one in space["links"]:
        if one["name"] == link:
            yield " ".join([link, *one["addresses"]]), "address"
    yield from _more(space)


def _more(space: Mapping[str, Any]) -> Iterator[Words]:
    for port in space.get("published", ()):
        yield f"published {port}", "published"
    if space["kind"] != "container":
        yield space["kind"], "dim"


def _alone(space: Mapping[str, Any], peers: Mapping[tuple[str, str], tuple[str, str]]) -> Branch:
    """Return a container without a device of its node."""
    words = list(_more(space))
    if space.get("mode") == "host":
        return Branch((space["name"], "name"), [*words, ("network: the host's", "dim")])
    if space.get("mode") == "container":
        return Branch(
            (space["name"], "name"), [*words, ("network of", "dim"), (space["shares"], "")]
        )
    if not space["links"]:
        return Branch((space["name"], "name"), [*words, ("no link but lo", "dim")])
    inside = [_link_inside(space, link, peers) for link in space["links"]]
    return Branch((space["name"], "name"), words, inside)


def _link_inside(
    space: Mapping[str, Any],
    link: Mapping[str, Any],
    peers: Mapping[tuple[str, str], tuple[str, str]],
) -> Branch:
    """Return a device of a container, with the other end if it is in another one."""
    branch = _link(link)
    if peer := peers.get((space["name"], link["name"])):
        branch.about += [("──", "dim"), (":".join(filter(None, peer)), "")]
    return branch


def _route(route: Mapping[str, str]) -> Branch:
    via = [(f"via {route['via']}", "")] if route["via"] else []
    return Branch((route["to"], "address"), [*via, (f"dev {route['dev']}", "")])


def _service(one: Mapping[str, Any]) -> Branch:
    words: list[Words] = [(address, "address") for address in one["addresses"]]
    words += [(port, "published") for port in one["ports"]]
    words.append(("→", "dim"))
    words += [(backend, "") for backend in one["backends"]] or [("no backend", "bad")]
    return Branch((one["name"], ""), words)


# -- lines -----------------------------------------------------------------------


def _below(branches: Sequence[Branch], guide: str, width: int) -> Iterator[str]:
    names = [len(one.head[0]) for one in branches if len(one.head[0]) <= LONGEST_NAME]
    column = max(names, default=0)
    for index, one in enumerate(branches):
        last = index == len(branches) - 1
        bend, on = ("└─ ", "   ") if last else ("├─ ", "│  ")
        further = guide + on + ("│  " if one.below else "   ")
        yield from _row(one, guide + bend, further, column, width)
        yield from _below(one.below, guide + on, width)


def _row(one: Branch, first: str, further: str, column: int, width: int) -> Iterator[str]:
    """Yield a branch's own lines; those after the first begin with ``further``."""
    text, style = one.head
    line = click.style(first, dim=True) + click.style(text, **STYLES[style])
    used = len(first) + len(text)
    room = max(used, len(first) + column) + 2
    if room + max((len(words) for words, _ in one.about), default=0) > width:
        room = len(further) + 1  # beside the name there is no place
    pad = " " * max(0, room - used) if room > used else " "
    fresh = False
    for words, kind in one.about:
        if used + len(pad) + len(words) > width and not fresh:
            yield line.rstrip()
            line, used, pad = click.style(further, dim=True), len(further), ""
            pad = " " * max(0, room - used)
        line += pad + click.style(words, **STYLES[kind])
        used += len(pad) + len(words)
        pad, fresh = "  ", False
    yield line
