"""Files of a node that the topology replaces: their states, and the ones that were there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.nodes.base import Node

KEPT = "/run/testbed/kept"  # folder on a node: files that were there before
STAT = ("stat", "-c", "%a %U:%G %u:%g %n", "--")
#: Arguments of both: a folder, then paths.
NAME = 'kept="$folder/$(printf %s "$path" | sed "s:/:%:g")"'
KEEP = f"""\
folder=$1; shift; mkdir -p "$folder"
for path; do {NAME}; if [ -e "$path" ] && [ ! -e "$kept" ]; then cp -a "$path" "$kept"; fi; done
"""
REMOVE = f"""\
folder=$1; shift
for path; do
  {NAME}
  if [ -e "$kept" ]; then cp -a "$kept" "$path"; rm -f "$kept"; else rm -f "$path"; fi
done
"""


def keep(node: Node, paths: Iterable[str]) -> None:
    """Keep what is at some paths of a node, before it is replaced.  Raises CommandError."""
    node.run(["sh", "-c", KEEP, "sh", KEPT, *paths])


def put_back(node: Node, paths: Iterable[str]) -> None:
    """Put back what was at some paths of a node, or remove what is there.  Raises CommandError."""
    node.run(["sh", "-c", REMOVE, "sh", KEPT, *paths])


def states(node: Node, paths: Iterable[str]) -> dict[str, tuple[int, tuple[str, str]]]:
    """Return the modes of files, and their owners (USER:GROUP) by name and by number."""
    paths = list(paths)
    if not paths:
        return {}
    found = {}
    for line in node.run([*STAT, *paths], check=False).stdout.splitlines():
        mode, by_name, by_number, path = line.split(" ", 3)
        if path in paths:
            found[path] = (int(mode, 8), (by_name, by_number))
    return found
