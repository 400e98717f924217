"""Mappings of roles: some node must have the role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.declare import section_of

if TYPE_CHECKING:
    from collections import abc

__all__ = ["Sections"]


class Sections(Look):
    """Rules for the mappings of roles, at the top of the file and in nodes."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (self.sections_have_nodes, self.nodes_have_the_role)

    def sections_have_nodes(self) -> None:
        unsure = self.bad("nodes") or any(self.unsure(n, "roles") for n in self.nodes)
        for name in tree.keys_at(self.root):
            # The role's own rules may have reported it; an empty mapping says nothing.
            if unsure or self.problems.touched(name) or not tree.keys_at(self.root, name):
                continue
            if section_of(name, "section") is not None and not self.t.with_role(name):
                hint = "give nodes the role, or remove the section"
                self.add(self.key(name), f"a node with the role {name}", "none", hint)

    def nodes_have_the_role(self) -> None:
        for node in self.t.nodes.values():
            for name in node.sections:
                if not self.has_role(node.name, name):
                    at = self.key("nodes", node.name, name)
                    hint = "add the role, or remove this"
                    self.add(at, f"the role {name} on {node.name}", "none", hint)
