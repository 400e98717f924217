"""A lab's network for other tools: the graph of :mod:`testbed.observe.graph` for Mermaid and dot.

Both have the same things and edges between them; only the syntax differs (mermaid.js.org,
"Flowcharts - Basic Syntax"; graphviz.org, "DOT Language").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from testbed.exports.mermaid import label
from testbed.observe.graph import tunnels

Graph = Mapping[str, Any]
Shape = Literal["network", "overlay", "device", "bridge", "container", "service", "node"]
Line = Literal["plain", "dashed", "arrow"]

MERMAID_SHAPES: Mapping[Shape, tuple[str, str]] = {
    "network": ("([", "])"),
    "overlay": ("{{", "}}"),
    "device": ("[", "]"),
    "bridge": ("[/", "/]"),
    "container": ("[[", "]]"),
    "service": ("(", ")"),
    "node": ("[", "]"),
}
MERMAID_LINES: Mapping[Line, str] = {"plain": "---", "dashed": "-.-", "arrow": "-.->"}
DOT_SHAPES: Mapping[Shape, str] = {
    "network": 'shape=box, style="rounded,filled", fillcolor="#eef2f7"',
    "overlay": 'shape=hexagon, style=filled, fillcolor="#faeaf6"',
    "device": 'shape=box, style=filled, fillcolor="#ffffff"',
    "bridge": 'shape=box, style="rounded,filled", fillcolor="#e5f4ea"',
    "container": 'shape=box, style=filled, fillcolor="#e2f2f7", peripheries=2',
    "service": 'shape=ellipse, style=filled, fillcolor="#fcf1d8"',
    "node": 'shape=box, style=filled, fillcolor="#f7f6f3"',
}
DOT_LINES: Mapping[Line, str] = {
    "plain": "dir=none",
    "dashed": "dir=none, style=dashed",
    "arrow": "style=dashed",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A thing of the diagram."""

    ident: str
    shape: Shape
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """A line between two things."""

    one: str
    other: str
    line: Line = "plain"
    words: str = ""


@dataclass(slots=True)
class Group:
    """A node of the lab with the things in it."""

    ident: str
    lines: tuple[str, ...]
    items: list[Item] = field(default_factory=list)


class Diagram:
    """The things of a graph.  Identifiers are numbered, as names may be words of a language."""

    def __init__(self, graph: Graph) -> None:
        self.items: list[Item] = []
        self.groups: list[Group] = []
        self.edges: list[Edge] = []
        self._graph = graph
        self._numbers = count(1)
        self._ids: dict[tuple[str, ...], str] = {}
        for network in graph["networks"]:
            lines = (network["name"], network["subnet"])
            self.items.append(self._item("network", lines, "network", network["name"]))
        for node in graph["nodes"]:
            self._add(node)
        self._join()
        self._serve()

    def _id(self, *thing: str) -> str:
        if thing not in self._ids:
            self._ids[thing] = f"{thing[0]}{next(self._numbers)}"
        return self._ids[thing]

    def _item(self, shape: Shape, lines: tuple[str, ...], *thing: str) -> Item:
        return Item(self._id(*thing), shape, tuple(filter(None, lines)))

    def _add(self, node: Mapping[str, Any]) -> None:
        name = node["name"]
        roles = ", ".join([*node["roles"], *(["gateway"] if node["gateway"] else [])])
        if members := node.get("members"):
            roles = f"{len(members)} nodes like {node['like']}"
        group = Group(self._id("node", name), tuple(filter(None, (name, roles, node["error"]))))
        paired = {tuple(end) for pair in node["pairs"] for end in pair}
        for link in node["links"]:
            if ("", link["name"]) in paired and not link["addresses"] and link["master"]:
                continue  # it is the line between a container and its bridge
            shape: Shape = "bridge" if link["kind"] == "bridge" else "device"
            lines = (link["name"], link.get("network", ""), *link["addresses"])
            group.items.append(
                self._item(
                    shape, (*lines, "" if link["up"] else "down"), "link", name, link["name"]
                )
            )
        for space in node["spaces"]:
            lines = (space["name"], *_inside(space))
            group.items.append(self._item("container", lines, "space", name, space["name"]))
        self.groups.append(group)
        self._pairs(node)

    def _pairs(self, node: Mapping[str, Any]) -> None:
        name = node["name"]
        masters = {link["name"]: link["master"] for link in node["links"]}
        for pair in node["pairs"]:
            ends, words = [], []
            for space, link in pair:
                if space:
                    ends.append(self._ids.get(("space", name, space)))
                else:
                    held = ("link", name, link)
                    through = ("link", name, masters.get(link, ""))
                    ends.append(self._ids.get(held) or self._ids.get(through))
                    words.append(link)
            one, other = ends
            if one and other:
                self.edges.append(Edge(one, other, words=" ".join(words)))
        for link in node["links"]:
            port = self._ids.get(("link", name, link["name"]))
            master = self._ids.get(("link", name, link["master"]))
            if link["master"] and port and master:
                self.edges.append(Edge(port, master))

    def _join(self) -> None:
        for network in self._graph["networks"]:
            for node, name in network.get("ports", ()):
                if port := self._ids.get(("link", node, name)):
                    self.edges.append(Edge(port, self._id("network", network["name"])))
        for one in tunnels(self._graph):
            ends = [
                self._ids[key]
                for node in self._graph["nodes"]
                for device in one["devices"]
                if (key := ("link", node["name"], device)) in self._ids
            ]
            if len(ends) > 1:
                item = self._item("overlay", (one["name"], one["about"]), "overlay", one["name"])
                self.items.append(item)
                self.edges += [Edge(end, item.ident, "dashed") for end in ends]
        for wire in self._graph.get("wires", ()):
            a, b = (self._end(end) for end in wire)
            up = all(end["up"] for end in wire)
            self.edges.append(Edge(a, b, "plain" if up else "dashed", "" if up else "down"))

    def _end(self, end: Mapping[str, Any]) -> str:
        """Return the thing at an end of a link: a device, or a place outside of the nodes."""
        for key in (("link", end["at"], end["interface"]), ("node", end["at"])):
            if key in self._ids:
                return self._ids[key]
        if ("place", end["at"]) not in self._ids:
            self.items.append(self._item("network", (end["at"],), "place", end["at"]))
        return self._ids["place", end["at"]]

    def _serve(self) -> None:
        owners = {
            address.partition("/")[0]: self._ids["space", node["name"], space["name"]]
            for node in self._graph["nodes"]
            for space in node["spaces"]
            for link in space["links"]
            for address in link["addresses"]
        }
        for one in self._graph.get("services", ()):
            lines = (one["name"], *one["addresses"], " ".join(one["ports"]))
            item = self._item("service", lines, "service", one["name"])
            self.items.append(item)
            found = {owners.get(end.rpartition(":")[0].strip("[]")) for end in one["backends"]}
            self.edges += [Edge(item.ident, end, "arrow") for end in sorted(filter(None, found))]


def _inside(space: Mapping[str, Any]) -> Iterator[str]:
    for link in space["links"]:
        yield " ".join([link["name"], *link["addresses"]])
    for port in space.get("published", ()):
        yield f"published {port}"
    if space.get("mode") == "host":
        yield "network: the host's"
    if space.get("mode") == "container":
        yield f"network of {space['shares']}"


# -- Mermaid ---------------------------------------------------------------------


def mermaid(graph: Graph, title: str) -> str:
    """Return the graph as a Mermaid flowchart."""
    made = Diagram(graph)
    # A string of JSON is one of YAML, too.
    lines = ["---", f"title: {json.dumps(title)}", "---", "flowchart TB"]
    lines += [f"  {_mermaid_item(one)}" for one in made.items]
    for group in made.groups:
        head = f"{group.ident}[{label(*group.lines)}]"
        if group.items:
            inside = [f"    {_mermaid_item(one)}" for one in group.items]
            lines += [f"  subgraph {head}", *inside, "  end"]
        else:
            lines.append(f"  {head}")
    for edge in made.edges:
        words = f"|{label(edge.words)}|" if edge.words else ""
        lines.append(f"  {edge.one} {MERMAID_LINES[edge.line]}{words} {edge.other}")
    return "\n".join(lines) + "\n"


def _mermaid_item(one: Item) -> str:
    begin, end = MERMAID_SHAPES[one.shape]
    return f"{one.ident}{begin}{label(*one.lines)}{end}"


# -- dot -------------------------------------------------------------------------


def dot(graph: Graph, title: str) -> str:
    """Return the graph in the language of Graphviz."""
    made = Diagram(graph)
    lines = [
        f"digraph {_quoted(title)} {{",
        f"  graph [label={_quoted(title)}, labelloc=t, rankdir=TB, compound=true,"
        ' fontname="Helvetica", newrank=true]',
        '  node [fontname="Helvetica", fontsize=10, color="#5a554d"]',
        '  edge [fontname="Helvetica", fontsize=9, color="#5a554d"]',
    ]
    empty = set()
    for group in made.groups:
        if not group.items:
            empty.add(group.ident)
            lines.append(f"  {_dot_item(Item(group.ident, 'node', group.lines))}")
            continue
        lines += [
            f"  subgraph cluster_{group.ident} {{",
            f'    label={_quoted(*group.lines)}; style=filled; color="#dedad3";'
            ' fillcolor="#f7f6f3"',
            *(f"    {_dot_item(one)}" for one in group.items),
            "  }",
        ]
    lines += [f"  {_dot_item(one)}" for one in made.items]
    inner = {group.ident: group.items[0].ident for group in made.groups if group.items}
    for edge in made.edges:
        words = f", label={_quoted(edge.words)}" if edge.words else ""
        more = "".join(
            f", {side}=cluster_{end}"
            for side, end in (("ltail", edge.one), ("lhead", edge.other))
            if end in inner
        )
        one, other = (inner.get(end, end) for end in (edge.one, edge.other))
        lines.append(f"  {one} -> {other} [{DOT_LINES[edge.line]}{words}{more}]")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_item(one: Item) -> str:
    return f"{one.ident} [label={_quoted(*one.lines)}, {DOT_SHAPES[one.shape]}]"


def _quoted(*lines: str) -> str:
    r"""Return lines as a string of dot.

    >>> print(_quoted('a "b"', "c"))
    "a \"b\"\nc"
    """
    texts = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"{}"'.format("\\n".join(texts))
