"""Mermaid: a lab as a flowchart, for READMEs, wikis and documentation.

The diagram has the nodes with their links and containers, and the networks between them
(mermaid.js.org, "Flowcharts - Basic Syntax").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from testbed.exports.base import Export, Exported, Subject, comment, unsaid

if TYPE_CHECKING:
    from testbed.topology.containers import Container
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Topology, VethEnd

#: Characters that end a label or a line, begin an entity or are read as HTML.
SPECIAL = re.compile(r"[^\w .,:/()+=@-]")


def label(*lines: str) -> str:
    """Return a quoted label of several lines.

    >>> label("node1", '2 "a"')
    '"node1<br/>2 #34;a#34;"'
    """
    return f'"{"<br/>".join(SPECIAL.sub(lambda one: f"#{ord(one[0])};", line) for line in lines)}"'


class Mermaid(Export):
    """A flowchart."""

    name = "mermaid"
    about = "a diagram for Markdown: a Mermaid flowchart"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.roles", "nodes.*.gateway",
        "containers.*.node", "containers.*.image", "containers.*.network", "containers.*.networks",
        "containers.*.publish",
        "namespaces", "bridges", "veths", "foreign",
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {"*": "settings that the diagram does not show"}

    def export(self, subject: Subject) -> Exported:
        topology = subject.topology
        about = comment(topology.description)
        lines = ["---", f'title: "{topology.name}"', "---", *([f"%% {about}"] if about else [])]
        text = "\n".join([*lines, *_Drawing(topology)]) + "\n"
        left_out = unsaid(
            topology,
            networks=["subnet6"],
            ports=["name", "addresses"],
            six=True,
            why=self.reasons["*"],
        )
        return Exported({f"{topology.name}.mmd": text}, left_out)


class _Drawing:
    """The lines of the flowchart.

    Identifiers are numbered, because a name such as ``end`` is a word of Mermaid.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._numbers = count(1)
        self._ids: dict[tuple[str, ...], str] = {}

    def _id(self, *thing: str) -> str:
        """Return the identifier of a thing: its kind and its names."""
        if thing not in self._ids:
            self._ids[thing] = f"{thing[0]}{next(self._numbers)}"
        return self._ids[thing]

    def __iter__(self) -> Iterator[str]:
        topology = self._topology
        yield "flowchart TB"
        for network in topology.networks.values():
            if network.link >= 0:
                continue
            ident = self._id("network", network.name)
            yield f"  {ident}([{label(network.name, network.words)}])"
        for node in topology.nodes.values():
            about = ", ".join([*node.roles, *(["gateway"] if node.gateway else [])])
            if topology.foreign:
                about = topology.foreign.nodes[node.name].image
            head = f"{self._id('node', node.name)}[{label(node.name, *_given(about))}]"
            inside = [f"    {line}" for line in self._inside(node.name)]
            yield from [f"  subgraph {head}", *inside, "  end"] if inside else [f"  {head}"]
        for node in topology.nodes.values():
            for port in node.ports:
                if port.peer:
                    continue
                ident = self._id("link", node.name, port.name)
                yield f"  {ident} --- {self._id('network', port.network)}"
        for link in topology.links:
            one, other = (self._id("link", *end) for end in link.ends)
            yield f"  {one} --- {other}"
        yield from self._shared()
        yield from self._pairs()
        if topology.foreign:
            yield from self._links(topology.foreign)

    def _inside(self, node: str) -> Iterator[str]:
        topology = self._topology
        for port in topology.nodes[node].ports:
            ident = self._id("link", node, port.name)
            yield f"{ident}[{label(port.name, *map(str, (*port.addresses, *port.addresses6)))}]"
        for container in topology.containers_on(node):
            yield f"{self._id('container', container.name)}[[{label(*_words(container))}]]"
        for namespace in topology.namespaces.values():
            if namespace.node == node:
                ident = self._id("namespace", node, namespace.name)
                yield f"{ident}([{label(namespace.name, 'namespace')}])"
        for bridge in topology.bridges.values():
            if bridge.node == node:
                yield f"{self._id('bridge', node, bridge.name)}[/{label(bridge.name, 'bridge')}/]"

    def _shared(self) -> Iterator[str]:
        """Yield an edge for each container in the network of another one."""
        for container in self._topology.containers.values():
            mode, _, other = container.network.partition(":")
            if mode == "container":
                ends = (self._id("container", name) for name in (container.name, other))
                yield "  {} -. network of .-> {}".format(*ends)

    def _pairs(self) -> Iterator[str]:
        for veth in self._topology.veths:
            one, other = (self._end(veth.node, end) for end in veth.ends)
            text = label(*(" ".join([end.name, *_given(end.address)]) for end in veth.ends))
            yield f"  {one} ---|{text}| {other}"

    def _links(self, foreign: Foreign) -> Iterator[str]:
        """Yield the links of another tool's file, and what they lead to besides nodes."""
        for link in foreign.links:
            idents, words = [], []
            for end in link.ends:
                kind = "node" if end.at in self._topology.nodes else "place"
                if (kind, end.at) not in self._ids:
                    yield f"  {self._id(kind, end.at)}([{label(end.at)}])"
                idents.append(self._id(kind, end.at))
                words.append(" ".join([end.interface, *end.addresses]).strip())
            text = f"|{label(*filter(None, words))}|" if any(words) else ""
            yield f"  {idents[0]} ---{text} {idents[1]}"

    def _end(self, node: str, end: VethEnd) -> str:
        if end.bridge is not None:
            return self._id("bridge", node, end.bridge)
        return self._id("namespace", node, end.namespace or "")


def _given(value: object) -> list[str]:
    return [str(value)] if value else []


def _words(container: Container) -> Iterator[str]:
    yield container.name
    yield container.image
    if container.network in {"host", "none"}:
        yield f"network: {container.network}"
    for one in container.networks.values():
        yield ", ".join([one.name, *map(str, one.addresses)])
    yield from map(str, container.publish)
