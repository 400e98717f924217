"""Routes, rules and sysctls of a node, read with one command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Prints routes and rules of both families, and the value of each sysctl, by paths below /proc/sys.
LOOK = """\
for family in -4 -6; do
  ip $family -j route show table all 2> /dev/null; printf '\\0'
  ip $family -j rule 2> /dev/null; printf '\\0'
done
for path; do cat "/proc/sys/$path" 2> /dev/null; printf '\\0'; done
"""
FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class Seen:
    """The settings that a node has: entries of ``ip -j``, by family, and values of sysctls."""

    routes: Mapping[int, Sequence[Mapping[str, Any]]]
    rules: Mapping[int, Sequence[Mapping[str, Any]]]
    sysctls: Mapping[str, str]


def look(node: Node, names: Iterable[str] = ()) -> Seen:
    """Read routes, rules and some sysctls of a node.  Raises CommandError, NoSuchNode."""
    names = list(names)
    printed = node.network.run(["sh", "-c", LOOK, "sh", *map(path_of, names)]).out.split(b"\0")
    parts = [json.loads(part) if part.strip() else [] for part in printed[:4]]
    values = [" ".join(part.decode(errors="replace").split()) for part in printed[4:]]
    return Seen(
        {4: parts[0], 6: parts[2]},
        {4: parts[1], 6: parts[3]},
        dict(zip(names, values, strict=False)),
    )


def path_of(sysctl: str) -> str:
    """Return a sysctl's path below /proc/sys: slashes stand for dots, and dots for slashes.

    >>> path_of("net.ipv4.conf.eth0/7.rp_filter")
    'net/ipv4/conf/eth0.7/rp_filter'
    """
    return sysctl.translate(str.maketrans("./", "/."))
