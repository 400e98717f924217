"""Mappings of roles and providers: some node must have the role, or the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed import registry
from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.declare import section_of

if TYPE_CHECKING:
    from collections import abc

__all__ = ["Sections"]


class Sections(Look):
    """Rules for mappings of roles and providers, at the top of the file and in nodes."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (self.sections_have_nodes, self.nodes_have_the_role)

    def sections_have_nodes(self) -> None:
        named = {*self.t.roles, *self.t.providers}
        unsure = self.bad("nodes") or any(self.unsure(n, "roles") for n in self.nodes)
        for name in tree.keys_at(self.root):
            # The role's own rules may have reported it; an empty mapping says nothing.
            if unsure or self.problems.touched(name) or not tree.keys_at(self.root, name):
                continue
            if section_of(name, "section") is not None and name not in named:
                what = "role" if name in registry.ROLES else "provider"
                hint = f"give nodes the {what}, or remove the section"
                self.add(self.key(name), f"a node with the {what} {name}", "none", hint)

    def nodes_have_the_role(self) -> None:
        for node in self.t.nodes.values():
            for name in node.sections:
                if name != self.t.provider_of(node.name) and not self.has_role(node.name, name):
                    at = self.key("nodes", node.name, name)
                    what = "role" if name in registry.ROLES else "provider"
                    hint = f"add the {what}, or remove this"
                    self.add(at, f"the {what} {name} on {node.name}", "none", hint)
