"""Debian packages of nodes: those that the file names, and those of roles.

They come as trees from the cache, which the provider lays over the files of a new node. A step does
what their maintainer scripts would do, as far as it is harmless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.nodes.base import note_packages
from testbed.nodes.marks import mark, marked
from testbed.steps.step import Step, node_step, packages_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

UNPACKED = "packages"  # mark: the trees of a node
TREE = "tree"  # folder of a cache entry
#: Folders of a tree that are copied to the node's own.
COPIED = "var/lib var/log"
COPY = f"""\
for tree; do
    for place in {COPIED}; do
        [ ! -d "$tree/$place" ] || cp -a "$tree/$place/." "/$place/"
    done
done
"""
#: Numbers of system accounts (Debian Policy, 9.2.2), from the highest on: packages of this machine
#: take the next ones at the other end.
SYSTEM_IDS = range(998, 99, -1)
NO_LOGIN = "/usr/sbin/nologin"


def sets(node: Node) -> list[tuple[str, ...]]:
    """Return the sets of packages of a node: those of each role, and its own."""
    from testbed.registry import ROLES

    found = [ROLES[role].packages for role in node.roles]
    found.append(tuple(sorted(node.packages)))
    return list(dict.fromkeys(filter(None, found)))


def entries(store: Store, node: Node) -> list[Path]:
    """Return the folders of the cache with the packages of a node; fetch those that are missing.

    Raises ArtifactError.
    """
    wanted = sets(node)
    if not wanted:
        return []
    from testbed.artifacts.package_tree import PackageTree

    trees = [PackageTree(packages) for packages in wanted]
    return [store.keep(tree.name, tree) for tree in trees]


def fetch(store: Store, topology: Topology) -> None:
    """Fetch the packages of all nodes."""
    for node in topology.nodes.values():
        entries(store, node)


def layers(store: Store, node: Node) -> tuple[Path, ...]:
    """Return the trees to lay over the files of a node."""
    return tuple(folder / TREE for folder in entries(store, node))


def stamp(folders: Iterable[Path]) -> str:
    """Return a text that identifies the trees of a node.

    A tree that is fetched again is another one, even if it is at the same place.
    """
    return "\n".join(f"{one} {one.stat().st_ino if one.exists() else 0}" for one in folders)


def outdated(store: Store, topology: Topology, nodes: Mapping[str, Machine]) -> set[str]:
    """Return the names of running nodes whose packages have been fetched again since."""
    return {
        name
        for name, node in topology.nodes.items()
        if name in nodes
        and sets(node)
        and marked(nodes[name], UNPACKED) not in (None, stamp(entries(store, node)))
    }


def steps(node: Node) -> Iterable[Step]:
    """Yield the step after which the packages of a node are complete, if it has any."""
    wanted = sets(node)
    if not wanted:
        return
    names = [name for packages in wanted for name in packages]

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node.name)
        folders = entries(context.store, node)
        text = stamp(folders)
        if marked(machine, UNPACKED) == text:
            return ", ".join(names), False
        from testbed.artifacts.package_tree import about

        there = [about(folder) for folder in folders]
        trees = [machine.provide(folder / TREE) for folder in folders]
        machine.run(["sh", "-c", COPY, "sh", *trees])
        add_accounts(machine, [line for one in there for line in one["accounts"]])
        add_folders(machine, [tuple(words) for one in there for words in one["folders"]])
        note_packages(machine, {n: v for one in there for n, v in one["versions"].items()})
        mark(machine, UNPACKED, text)
        return ", ".join(names), True

    about_it = f"Debian packages {', '.join(names)}"
    yield Step(packages_step(node.name), about_it, (node_step(node.name),), act=act)


def add_folders(machine: Machine, folders: Iterable[tuple[str, int, str, str]]) -> None:
    """Create folders on a node as tmpfiles.d(5) describes them: path, mode, user, group."""
    for path, mode, user, group in folders:
        argv = ["install", "-d", f"-m{mode:o}", f"-o{user}", f"-g{group}", path]
        machine.run(argv, check=False)  # the user may be of a package that is not there


def add_accounts(machine: Machine, lines: Iterable[str]) -> None:
    """Add users and groups to a node by lines of sysusers.d(5); those that exist stay.

    The numbers are the node's own: those that a line gives are not kept.
    """
    lines = list(lines)
    if not lines:
        return
    users, groups = (_read(machine, path) for path in ("/etc/passwd", "/etc/group"))
    before = len(users), len(groups)
    taken = {int(row[2]) for row in (*users.values(), *groups.values()) if row[2].isdigit()}
    free = iter([number for number in SYSTEM_IDS if number not in taken])

    def group(name: str) -> list[str]:
        if name not in groups:
            groups[name] = [name, "x", str(next(free)), ""]
        return groups[name]

    members = False
    for line in lines:
        kind, name, *rest = line.split('"')[0].split()
        if kind == "g":
            group(name)
        elif kind.startswith("u") and name not in users:
            home = rest[-1] if rest and rest[-1].startswith("/") else "/nonexistent"
            _, has_group, own = (rest[0] if rest else "-").partition(":")
            number = group(own if has_group else name)[2]
            taken_by = {row[2] for row in users.values()}
            uid = number if number not in taken_by else str(next(free))
            users[name] = [name, "x", uid, number, "", home, NO_LOGIN]
        elif kind == "m" and name in users and rest:
            row = group(rest[0])
            there = [one for one in row[3].split(",") if one]
            if name not in there:
                row[3], members = ",".join([*there, name]), True
    if (len(users), len(groups)) != before or members:
        _write(machine, "/etc/passwd", users)
        _write(machine, "/etc/group", groups)


def _read(machine: Machine, path: str) -> dict[str, list[str]]:
    """Return the rows of passwd(5) or group(5) by name."""
    try:
        lines = machine.get(path).decode().splitlines()
    except FileNotFoundError:
        return {}
    return {row[0]: row for row in (line.split(":") for line in lines) if len(row) > 3}


def _write(machine: Machine, path: str, rows: Mapping[str, list[str]]) -> None:
    machine.put("".join(":".join(row) + "\n" for row in rows.values()).encode(), path)
