"""The mark of a connected node: its names of other nodes, and what `up` has set of its own.

One mark holds all of it, so a later `up` reads it once. Nodes that an earlier version created have
a mark for each kind of settings instead: these are read until a setting changes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from testbed.nodes.marks import is_marked, mark, marked

if TYPE_CHECKING:
    from testbed.nodes.base import Node

CONNECTED = "connected"  # mark: connected to its networks
SEPARATOR = "\0"  # between /etc/hosts and the rest, as JSON
SETTINGS, FILES, SERVICES = KINDS = ("settings", "files", "services")


class OwnMark:
    """The mark of one node.

    ``names`` is the text of /etc/hosts, ``fresh`` tells that the node has just been created.
    """

    def __init__(
        self, node: Node, names: str, values: dict[str, dict[str, Any]], *, fresh: bool
    ) -> None:
        self.names = names
        self.fresh = fresh
        self._node = node
        self._values = values

    @classmethod
    def of_new(cls, node: Node, names: str) -> Self:
        """Mark a node as connected; nothing of its own is set yet."""
        made = cls(node, names, {}, fresh=True)
        made._write()
        return made

    @classmethod
    def read(cls, node: Node) -> Self | None:
        """Return the mark of a node, or None if it is not connected."""
        text = marked(node, CONNECTED)
        if text is None:
            return None
        names, separator, rest = text.partition(SEPARATOR)
        if separator:
            values = json.loads(rest)
        else:
            values = {kind: json.loads(marked(node, kind) or "{}") for kind in KINDS}
        return cls(node, names, values, fresh=False)

    def introduce(self, names: str) -> None:
        """Note other names of nodes."""
        self.names = names
        self._write()

    def get(self, kind: str) -> dict[str, Any]:
        """Return what was set of a kind."""
        return dict(self._values.get(kind, {}))

    def keep(self, kind: str, values: dict[str, Any]) -> None:
        """Note what is set of a kind."""
        if values != self.get(kind):
            self._values[kind] = values
            self._write()

    def _write(self) -> None:
        there = {kind: values for kind, values in self._values.items() if values}
        mark(self._node, CONNECTED, f"{self.names}{SEPARATOR}{json.dumps(there)}")


def of(node: Node) -> OwnMark:
    """Return the mark of a node; an empty one if it is not connected."""
    return OwnMark.read(node) or OwnMark(node, "", {}, fresh=True)


def is_connected(node: Node) -> bool:
    """Tell whether a node is connected to its networks."""
    return is_marked(node, CONNECTED)
