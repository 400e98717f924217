"""What every rule starts from: a topology, and the places of its parts in the file."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from testbed.topology import keys, tree
from testbed.topology.tree import Path, Problems, Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.model import Node, Topology

__all__ = ["Look", "Subnet"]

#: A subnet, its name, and its place in the file.
Subnet = tuple[IPv4Network, str, Tree]


class Look:
    """A look at one topology; its subclasses add rules and list them."""

    def __init__(self, topology: Topology, root: Tree, problems: Problems) -> None:
        self.t = topology
        self.root = root
        self.problems = problems
        self.nodes = tree.keys_at(root, "nodes")
        self._unread = problems.snapshot()

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        """The rules, in the order in which they are checked."""
        return ()

    def value(self, *path: str | int) -> Tree:
        return tree.value_at(self.root, *path)

    def key(self, *path: str | int) -> Tree:
        return tree.key_at(self.root, *path)

    def bad(self, *path: str | int) -> bool:
        """Was something at a path, or below it, refused before any rule was checked?"""
        return path in self._unread

    def add(self, at: Tree, wanted: str, seen: str, hint: str) -> None:
        self.problems.add(at, wanted, seen, hint)

    def on_known_node(self, node: str, path: Path) -> bool:
        """Is it the name of a node?  If not, say so at ``path``."""
        if node in self.nodes:
            return True
        if node and not self.bad(*path):
            hint = nearest(node, self.nodes)
            self.add(self.value(*path), "the name of a node", quote(node), hint)
        return False

    def has_role(self, node: str, role: str) -> bool:
        """Has a node the role, or may it have been meant to?"""
        return role in self.t.nodes[node].roles or self.unsure(node, "roles")

    def unsure(self, node: str, key: str) -> bool:
        """May a key of a node have been meant otherwise than it was read?"""
        body = self.value("nodes", node)
        unknown = set(tree.keys_at(self.root, "nodes", node)) - set(keys.NODE)
        return not isinstance(body, tree.Mapping) or bool(unknown) or self.bad("nodes", node, key)

    def role(self, node: Node, role: str) -> Tree:
        """The place where a node is given a role."""
        return self.value("nodes", node.name, "roles", node.roles.index(role))

    def one_segment(self, role: str, who: str) -> None:
        """Note each node with a role whose first network is not that of the first of them.

        For flannel's host-gw: a route's gateway must be on the link (Documentation/backends.md).
        """
        members = [node for node in self.t.with_role(role) if node.networks]
        segment = next((network for node in members for network in node.networks), "")
        for node in members:
            mine = next(iter(node.networks))
            if mine != segment:
                hint = "name the shared network first, or use another backend"
                at = self.key("nodes", node.name, "networks", mine)
                self.add(at, f"{who} on {segment}, since host-gw sends from link to link",
                         f"{node.name} on {mine}", hint)  # fmt: skip

    def apart(self, subnets: abc.Sequence[Subnet], what: str) -> None:
        """Note each subnet that overlaps with one before it in the order of addresses."""
        order = {name: i for i, (_, name, _) in enumerate(subnets)}
        last: Subnet | None = None
        for one in sorted(subnets, key=lambda s: (s[0], order[s[1]])):
            if last is not None and one[0].network_address <= last[0].broadcast_address:
                first, second = sorted((last, one), key=lambda s: order[s[1]])
                seen = f"{second[0]}, which overlaps with {first[0]} of {first[1]}"
                if first[0] == second[0]:
                    seen = f"{second[0]} again, the subnet of {first[1]}"
                self.add(second[2], f"{what} that do not overlap", seen, "change one of them")
            if last is None or one[0].broadcast_address > last[0].broadcast_address:
                last = one
