"""Topology texts for the tests, and a mark that says where a problem is expected."""

from __future__ import annotations

import re
from dataclasses import dataclass

from testbed.errors import Problem, TopologyError
from testbed.topology import load_text

MARK = "§"


def problems(text: str) -> tuple[Problem, ...]:
    """Return the problems of a topology's text; none if it is accepted."""
    try:
        load_text(text, "t.yaml")
    except TopologyError as error:
        return error.problems
    return ()


@dataclass(frozen=True)
class Bad:
    """A wrong text with ``§`` before each expected place; words that each report must hold."""

    text: str
    words: tuple[tuple[str, ...], ...]

    @property
    def plain(self) -> str:
        return self.text.replace(MARK, "")

    @property
    def places(self) -> list[tuple[int, int]]:
        found = []
        for number, line in enumerate(self.text.split("\n"), 1):
            for i, mark in enumerate(re.finditer(MARK, line)):
                found.append((number, mark.start() - i + 1))
        return found


def bad(text: str, *words: str) -> Bad:
    """One word group for all places, or one for each: words are split at ``|``."""
    groups = tuple(tuple(w.split("|")) for w in words)
    count = text.count(MARK)
    return Bad(text, groups if len(groups) == count else groups * count)


LAN = "name: t\nnetworks: {lan: {subnet: 10.168.0.0/24}}\n"

#: One Docker node; a test appends sections.
DOCKER = LAN + "nodes:\n  n1: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"

#: Two flannel nodes and the gateway; a test appends sections.
NODES = (
    LAN + "nodes:\n"
    "  n1: {networks: {lan: 10.168.0.2}, roles: [etcd, docker, flannel]}\n"
    "  n2: {networks: {lan: 10.168.0.3}, roles: [docker, flannel]}\n"
    "  out: {networks: {lan: 10.168.0.1}, gateway: true}\n"
)
FLANNEL = NODES + "flannel: {}\n"
#: The same with IPv6, besides IPv4.
NODES6 = NODES.replace("/24}", '/24, subnet6: "fd00:1::/64"}')

#: A cluster of two nodes, and a machine that is none of it; a test appends the section.
CLUSTER = (
    LAN + "nodes:\n"
    "  n1: {networks: {lan: 10.168.0.2}, roles: [kubernetes]}\n"
    "  n2: {networks: {lan: 10.168.0.3}, roles: [kubernetes]}\n"
    "  out: {networks: {lan: 10.168.0.1}, gateway: true}\n"
)

CLUSTER6 = CLUSTER.replace("/24}", '/24, subnet6: "fd00:1::/64"}')

#: One node for namespaces; a test appends sections.
NETNS = (
    "name: t\nnodes:\n  h: {roles: [namespaces]}\n  i: {roles: [namespaces]}\n"
    "namespaces:\n  ns1: {node: h}\n  ns2: {node: h}\n  ns3: {node: i}\n"
    "bridges:\n  br0: {node: h}\n  br1: {node: i}\n"
)


def veth(first: str, second: str, node: str = "h") -> str:
    return NETNS + f"veths:\n  - node: {node}\n    ends:\n      - {first}\n      - {second}\n"
