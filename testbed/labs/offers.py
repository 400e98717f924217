"""Programs for users of a node, in the versions of the lab.

Each role declares its programs (:attr:`testbed.roles.base.Role.offers`). This machine's programs
of the same names are hidden on all nodes, with or without the role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.nodes.marks import mark, marked
from testbed.roles.base import files
from testbed.spelling import counted
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.roles.base import Offer
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

OFFERED = "programs"  # mark: the programs of a node, each with its file


def hidden(topology: Topology, node: Node) -> tuple[str, ...]:
    """Return this machine's programs and folders to hide on a node.

    Programs are names, folders are paths. They are those of every role, and those that only this
    node replaces.
    """
    from testbed.registry import ROLES

    roles = ROLES.usable().values()
    names = {offer.name for role in roles for offer in role.offers}
    names |= {offer.name for offer, _ in offers_on(topology, node).values()}
    return tuple(sorted(names.union(*(role.hides for role in roles))))


def offers_on(topology: Topology, node: Node) -> dict[str, tuple[Offer, tuple[str, ...]]]:
    """Return a node's programs by path, each with its possible artifacts."""
    from testbed.registry import ROLES

    return {
        offer.target: (offer, role.parts(topology, node.name))
        for role in (ROLES[name] for name in node.roles)
        for offer in role.offers_on(topology, node.name)
    }


def fetch(store: Store, topology: Topology) -> None:
    """Fetch the programs of all nodes, except those with a stand-in."""
    for node in topology.nodes.values():
        for offer, parts in offers_on(topology, node).values():
            if not offer.stand_in:
                store.binary(offer.name, *parts)


def programs(store: Store, topology: Topology, node: Node) -> dict[str, Path | str]:
    """Return each program's file or stand-in by its path on the node."""
    found: dict[str, Path | str] = {}
    for place, (offer, parts) in offers_on(topology, node).items():
        path = store.made(offer.name, *parts) if offer.stand_in else None
        if offer.stand_in and path is None:
            found[place] = offer.stand_in.format(lab=topology.name)
        else:
            found[place] = path or store.binary(offer.name, *parts)
    return found


def facts(store: Store, topology: Topology, node: Node) -> list[str]:
    """Return the facts that determine the programs of a node."""
    found = programs(store, topology, node)
    paths = [path for path in found.values() if not isinstance(path, str)]
    return [*(f"{place} {program}" for place, program in found.items()), *files(paths)]


def steps(topology: Topology, node: Node) -> list[Step]:
    """Return the step that installs a node's programs.

    Return no step for a node without programs.
    """
    offered = offers_on(topology, node)
    if not offered:
        return []

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node.name)
        found = programs(context.store, topology, node)
        wanted = "\n".join(f"{place} {program}" for place, program in found.items())
        words = f"{counted(len(found), 'program')} on PATH"
        if marked(machine, OFFERED) == wanted:
            return words, False
        machine.offer({name: path for name, path in found.items() if not isinstance(path, str)})
        for place, text in found.items():
            if isinstance(text, str):
                machine.put(text.encode(), place, mode=0o755)
        mark(machine, OFFERED, wanted)
        return words, True

    about = f"{counted(len(offered), 'program')} for its users"
    return [Step(f"programs {node.name}", about, (node_step(node.name),), ahead=True, act=act)]
