"""Rules for Debian packages of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed import registry
from testbed.errors import MachineError
from testbed.topology.check.look import Look
from testbed.topology.declare import role_of

if TYPE_CHECKING:
    from collections import abc

__all__ = ["Packages"]


class Packages(Look):
    """Rules for the packages that a node names, and those of its roles."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (self.providers_lay_them_over,)

    def providers_lay_them_over(self) -> None:
        """Refuse packages on a node whose provider has files of its own."""
        for node in self.t.nodes.values():
            roles = [r for r in node.roles if (role := role_of(r)) is not None and role.packages]
            if not (node.packages or roles) or self.bad("provider"):
                continue
            maker = self.t.provider_of(node.name)
            if self.unsure(node.name, "provider") or self._has_packages(maker):
                continue
            there = [n for n, one in registry.PROVIDERS.usable().items() if one.packages]
            hint = f"they can be used with {', '.join(there)}; elsewhere put them into the image"
            seen = f"{node.name} by {maker}"
            if node.packages:
                at = self.value("nodes", node.name, "packages")
                self.add(at, "a provider whose nodes can have packages of their own", seen, hint)
            for name in roles:
                wanted = f"a provider whose nodes can have the packages of the role {name}"
                self.add(self.role(node, name), wanted, seen, hint)

    def _has_packages(self, maker: str) -> bool:
        try:
            return registry.PROVIDERS[maker].packages
        except (KeyError, MachineError):  # told when the lab is to be created
            return True
