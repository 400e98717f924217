"""Words for the places of a lab: nodes, containers, Pods, namespaces, and the ways into them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.observe.inventory import Inventory, Machine, Space


def places(inventory: Inventory) -> Iterator[tuple[str, Machine, Space]]:
    """Yield every place with the words for it."""
    for machine in inventory.nodes:
        for space in machine.spaces:
            yield (f"{machine.name}/{space.name}" if space.name else machine.name), machine, space


def find(inventory: Inventory, word: str) -> tuple[Machine, Space] | None:
    """Return the place that a word means.

    It is NODE, NODE/NAME, or NAME where only one node has it. A Pod's name may be without its
    namespace. Raises UsageError if several places have the name.
    """
    known = list(places(inventory))
    found = [(m, s) for name, m, s in known if name == word]
    found = found or [(m, s) for _, m, s in known if s.name and s.name == word]
    # A Pod's name without its namespace.
    found = found or [(m, s) for _, m, s in known if "/" in s.name
                      and s.name.rpartition("/")[2] == word.rpartition("/")[2]
                      and word in {s.name.rpartition("/")[2],
                                   f"{m.name}/{s.name.rpartition('/')[2]}"}]  # fmt: skip
    if len(found) > 1:
        names = ", ".join(f"{m.name}/{s.name}" for m, s in found)
        raise UsageError(f"several places have the name {word}", hint=f"name one: {names}")
    return found[0] if found else None


def holder(machine: Machine, space: Space) -> Space:
    """Return the space whose network namespace a container has."""
    if space.path:
        return space
    shared = machine.space(space.shares) if space.shares else None
    return holder(machine, shared) if shared is not None and shared is not space else machine.own


def way_in(lab: LiveLab, machine: Machine, space: Space) -> str:
    """Return the path on this machine that enters a network namespace; "" if there is none."""
    node = lab.fabric if machine.fabric else lab.node(machine.name)
    if node is None or not node.shares_kernel:
        return ""
    return node.socket(space.path.replace("/proc/self/", "/proc/1/"))
