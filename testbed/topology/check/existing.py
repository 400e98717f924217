"""Machines that exist already: nothing that would change them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed import registry
from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.declare import role_of
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from collections import abc

__all__ = ["Existing"]

#: Keys of a node that say what `up` sets, starts or limits on it.
CHANGES = ("sysctls", "routes", "rules", "files", "run", "services", "cpus", "memory", "compose")


class Existing(Look):
    """Rules for labs of a provider whose machines exist already."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        if not registry.existing([self.t.provider]):
            return (self.providers_are_the_labs,)
        return (
            self.providers_are_the_labs,
            self.nothing_is_changed,
            self.roles_can_be_looked_at,
            self.meshes_are_installed_as_a_whole,
        )

    def providers_are_the_labs(self) -> None:
        for name, node in self.t.nodes.items():
            own = node.provider or self.t.provider
            if own == self.t.provider or self.problems.touched("nodes", name, "provider"):
                continue
            if registry.existing([own, self.t.provider]):
                at = self.value("nodes", name, "provider")
                hint = f"write `provider: {own}` at the top; all nodes of such a lab are alike"
                self.add(at, f"the provider of the lab, {self.t.provider}", quote(own), hint)

    def nothing_is_changed(self) -> None:
        for name in self.t.nodes:
            for key in tree.keys_at(self.root, "nodes", name):
                if key in CHANGES and not self.bad("nodes", name, key):
                    at = self.key("nodes", name, key)
                    hint = "remove it: `up` only looks at machines that exist already"
                    self.add(at, "a key that changes nothing on the machine", quote(key), hint)

    def roles_can_be_looked_at(self) -> None:
        for node in self.t.nodes.values():
            for name in node.roles:
                role = role_of(name)
                if role is not None and not role.seen:
                    able = sorted(n for n, one in registry.ROLES.usable().items() if one.seen)
                    wanted = "a role that can be looked at on a machine that exists already"
                    hint = f"such roles: {', '.join(able)}; leave this one out"
                    self.add(self.role(node, name), wanted, quote(name), hint)

    def meshes_are_installed_as_a_whole(self) -> None:
        """Report nodes that communicate of which only some have their roles installed."""
        installs = self.t.installs
        for role, section in self.t.sections.items():
            for _, members in section.meshes(self.t):
                mine = [node.name for node in members if node.name in installs]
                other = next((node for node in members if node.name not in installs), None)
                if mine and other is not None:
                    wanted = f"`install` for all nodes of {role}, or for none"
                    seen = f"it for {', '.join(mine)}, and not for {other.name}"
                    hint = "their daemons belong together: those that are there are not changed"
                    self.add(self.key("nodes", other.name), wanted, seen, hint)
