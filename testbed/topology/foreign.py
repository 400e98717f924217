"""The part of a topology that was read from another tool's file.

Such a lab is created by that tool, from its own file. A topology has what commands need of it: the
nodes with their images, and the links between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from testbed import registry
from testbed.topology.declare import Block, Listed, Named, key
from testbed.topology.shapes import Choice, Command, Name, Text

#: Other tools have other rules for names. These characters have a meaning in commands of testbed
#: (NODE/CONTAINER, NODE:NODE), or separate words.
NODE_NAME = Name("a node", r"[^/:\s]+", 200)


@dataclass(frozen=True, slots=True)
class End(Block):
    """An end of a link: the name of a node, or of something that is none, and an interface.

    ``addresses`` have a prefix length; they are IPv4 or IPv6.
    """

    at: str = key(Text(), "Node, or bridge of the tool's host.", required=True, default="")
    interface: str = key(Text(), "Name of the interface.", default="")
    addresses: tuple[str, ...] = key(Command(), "Addresses with prefix length.", default=())

    def __str__(self) -> str:
        return f"{self.at}:{self.interface}" if self.interface else self.at


@dataclass(frozen=True, slots=True)
class Link(Block):
    """A link with two ends."""

    ends: tuple[End, End] = key(
        Listed(End, "a list of two ends", End(), 2, "two ends", "name both ends"),
        "Both ends.",
        required=True,
        default=(End(), End()),
        shown=None,
    )


@dataclass(frozen=True, slots=True)
class ForeignNode(Block):
    """A node, as the other tool creates it.

    ``digest`` identifies its settings in the file; a node with another digest is created again.
    ``networks`` are the tool's names of networks that the node is on together with others, such as
    bridges. Links between two nodes are not among them.
    """

    name: str
    kind: str = key(Text(), "The tool's word for this kind of node.", default="")
    image: str = key(Text(), "Image of its container.", default="")
    digest: str = key(Text(), "Digest of its settings.", default="")
    networks: tuple[str, ...] = key(
        Command(), "Networks of the tool that the node is on, beside its links.", default=()
    )


@dataclass(frozen=True, slots=True)
class Foreign(Block):
    """A file of another tool.

    ``text`` is its content with all variables filled in; relative paths in it are relative to the
    folder of ``file``. ``lab`` is the name of the lab in the file.

    A lab that exists already has ``attached``: where the tool runs it. testbed has not created such
    a lab and does not change it. Its ``file`` is the one that the tool names; ``text`` is empty.
    """

    format: str = key(
        Choice("a format", lambda: [*registry.FORMATS]),
        "Format of the file.",
        default="",
    )
    attached: str = key(Text(), "Place of a lab that exists already.", default="")
    lab: str = key(Text(), "Name of the lab in the file.", default="")
    file: str = key(Text(), "Absolute path of the file.", default="")
    text: str = key(Text(), "Content of the file.", default="")
    nodes: Mapping[str, ForeignNode] = key(
        Named(NODE_NAME, ForeignNode), "Nodes, by name.", default={}
    )
    links: tuple[Link, ...] = key(Listed(Link, "a list of links", Link()), "Links.", default=())

    @property
    def images(self) -> set[str]:
        return {node.image for node in self.nodes.values() if node.image}

    def segments_of(self, node: str) -> frozenset[str]:
        """Return names of everything that joins a node to others: networks, links to nodes."""
        links = (
            f"link {number}"
            for number, link in enumerate(self.links)
            if node in (ends := {end.at for end in link.ends}) and ends <= self.nodes.keys()
        )
        return frozenset([*self.nodes[node].networks, *links])

    def ends_of(self, node: str) -> Iterator[tuple[End, End]]:
        """Yield each end of a link at a node, with its peer."""
        for link in self.links:
            for end, peer in (link.ends, link.ends[::-1]):
                if end.at == node:
                    yield end, peer
