"""Marks on a node: a record of the finished parts of its set-up.

Marks are files in the node's own /run, so they are deleted with the node. An interrupted step
leaves no mark.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.nodes.base import Node

#: A text that changes whenever a link of the node had to be restored: programs that set routes or
#: devices on links must then restart.
REWIRED = "rewired"
FOLDER = "/run/testbed/done"


def mark(node: Node, name: str, text: str = "") -> None:
    """Record that a part is finished, with an optional text."""
    node.put(text.encode(), f"{FOLDER}/{name}")


def marked(node: Node, name: str) -> str | None:
    """Return the text of a mark, or None if it does not exist."""
    try:
        return node.get(f"{FOLDER}/{name}").decode()
    except FileNotFoundError:
        return None


def note(node: Node, name: str, texts: Mapping[str, str]) -> None:
    """Record that a part is finished, with some texts by name."""
    mark(node, name, json.dumps(texts))


def noted(node: Node, name: str) -> dict[str, str]:
    """Return the texts of :func:`note`; none if the mark does not exist."""
    return dict(json.loads(marked(node, name) or "{}"))


def is_marked(node: Node, name: str) -> bool:
    return marked(node, name) is not None
