"""Marks on a node: which parts of its set-up have been finished.

They live in the node's own /run, so they end with it, and a set-up that was
cut off leaves none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: A text that changes each time a link of the node had to be put back: what has set routes or
#: devices on it must start again.
REWIRED = "rewired"
FOLDER = "/run/testbed/done"


def mark(node: Node, name: str, text: str = "") -> None:
    """Note that a part is finished; ``text`` can say more about it."""
    node.put(text.encode(), f"{FOLDER}/{name}")


def marked(node: Node, name: str) -> str | None:
    """The text of a mark, or None where there is none."""
    try:
        return node.get(f"{FOLDER}/{name}").decode()
    except FileNotFoundError:
        return None


def is_marked(node: Node, name: str) -> bool:
    return marked(node, name) is not None
