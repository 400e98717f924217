"""Kernel settings, routes and rules of nodes: next hops, links, tables."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from testbed import registry
from testbed.errors import MachineError
from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.declare import role_of
from testbed.topology.iproute import LOCAL6, TABLES
from testbed.topology.settings import NETWORK, unreadable
from testbed.topology.tree import nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.iproute import Route
    from testbed.topology.model import Node
    from testbed.topology.tree import Path, Tree

__all__ = ["Settings"]

#: Names of one setting (ip-sysctl.rst).
FORWARDING = ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding")
NAMES_OF_TABLES = "/etc/iproute2/"  # where ip(8) finds names of tables


class Settings(Look):
    """Rules for the settings of nodes."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.sysctls,
            self.forwarding,
            self.routes,
            self.ip_rules,
            self.tables,
            self.files,
            self.services,
            self.binds,
            self.images,
            self.hosts,
        )

    def sysctls(self) -> None:
        for node in self.t.nodes.values():
            of_kernel = [name for name in node.sysctls if not name.startswith(NETWORK)]
            if of_kernel and self._shares_kernel(node.name):
                for name in of_kernel:
                    wanted = f"a sysctl of the network ({NETWORK}*) on {node.name}"
                    hint = "remove it, or give the node a provider of virtual machines: nodes of "
                    hint += f"{self.t.provider_of(node.name)} share this machine's kernel"
                    self.add(self.key("nodes", node.name, "sysctls", name), wanted, name, hint)

    def forwarding(self) -> None:
        """Refuse two values for one setting: each `up` would set one after the other."""
        for node in self.t.nodes.values():
            for name in FORWARDING if node.forward or node.gateway else ():
                if node.sysctls.get(name, "1") == "0":
                    at = self.value("nodes", node.name, "sysctls", name)
                    word = "forward" if node.forward else "gateway"
                    seen = f"{word}: true, and {name}: 0"
                    self.add(at, "one value for forwarding", seen, "remove one of them")

    def _shares_kernel(self, node: str) -> bool:
        if self.unsure(node, "provider") or self.bad("provider"):
            return False
        try:
            return registry.PROVIDERS[self.t.provider_of(node)].shares_kernel
        except (KeyError, MachineError):  # told when the lab is to be created
            return False

    def routes(self) -> None:
        for node in self.t.nodes.values():
            if not node.routes or self.unsure(node.name, "networks") or self.bad("networks"):
                continue
            kept: dict[object, str] = {}
            for index, route in enumerate(node.routes):
                path = ("nodes", node.name, "routes", self._index("routes", node, index))
                key = (route.destination, route.family, route.table, route.kernel_metric)
                if key in kept:
                    wanted = "each destination once in a table, or with another metric"
                    self.add(self.value(*path), wanted, f"{route.destination} again", "remove one")
                kept.setdefault(key, route.text)
                self._links(node, route, path)
                self._next_hops(node, route, path)

    def ip_rules(self) -> None:
        """Refuse a rule in two forms: with a priority, `ip rule add` refuses the second one."""
        for node in self.t.nodes.values():
            kept: list[object] = []
            for index, rule in enumerate(node.ip_rules):
                key = (rule.family, rule.values, rule.flags)
                if key in kept:
                    at = self.value("nodes", node.name, "rules", self._index("rules", node, index))
                    self.add(at, "each rule once", f"{quote(rule.text)} again", "remove one")
                kept.append(key)

    def _index(self, key: str, node: Node, index: int) -> int:
        """Return the position in the file of an entry, where invalid ones count, too."""
        at = self.value("nodes", node.name, key)
        items = at.items if isinstance(at, tree.Sequence) else ()
        valid = [i for i, _ in enumerate(items) if not self.bad("nodes", node.name, key, i)]
        return valid[index] if index < len(valid) else index

    def _links(self, node: Node, route: Route, path: Path) -> None:
        if self._more_links(node):
            return
        known = ["lo", *self._own(node)]
        for name in route.devices:
            if name not in known:
                self.add(
                    self.value(*path), f"a link of {node.name}", quote(name), nearest(name, known)
                )

    def _next_hops(self, node: Node, route: Route, path: Path) -> None:
        known = self._own(node)
        subnets = self.t.connected(node.name)
        for hop in route.hops:
            if hop.via is None or route.onlink or (hop.dev and hop.dev not in known):
                continue
            if hop.via in LOCAL6:
                if not hop.dev:
                    wanted, hint = "the link of a link-local next hop", "add 'dev LINK'"
                    self.add(self.value(*path), wanted, f"{hop.via} alone", hint)
                continue
            if any(hop.via in subnet for subnet in subnets):
                if hop.via in self._addresses(node):
                    wanted, hint = "another node's address as next hop", "change it"
                    self.add(self.value(*path), wanted, f"{hop.via}, {node.name}'s own", hint)
                continue
            if not hop.dev and self._more_links(node):
                continue
            there = ", ".join(map(str, subnets)) or "none"
            wanted = f"a next hop on a subnet of {node.name}"
            hint = "use an address on one of these, or add 'onlink' and 'dev LINK'"
            self.add(self.value(*path), wanted, f"{hop.via}; subnets: {there}", hint)

    def _own(self, node: Node) -> list[str]:
        return [port.name for port in node.ports]

    def _addresses(self, node: Node) -> list[object]:
        return [*node.addresses, *node.addresses6]

    def _more_links(self, node: Node) -> bool:
        """Tell whether a node may get links and addresses that are not its networks'."""
        return bool(node.roles or node.run or node.services)

    def files(self) -> None:
        """Require the files beside a topology file.  A record need not have them."""
        for node in self.t.nodes.values():
            for target, file in node.files.items():
                if file.source is not None:
                    at = self.value("nodes", node.name, "files", target)
                    self._is_there(at, file.source)
                above = (str(one) for one in pathlib.PurePosixPath(target).parents)
                parent = next((path for path in above if path in node.files), "")
                if parent and node.files[parent].content is not None:
                    wanted = "a path that is not below a file"
                    hint = f"{parent} is a file, too; choose another path for one of them"
                    self.add(self.key("nodes", node.name, "files", target), wanted, target, hint)

    def _is_there(self, at: Tree, source: str) -> None:
        if not self.root.line:
            return
        given = pathlib.Path(self.problems.source)
        real = pathlib.Path(os.path.realpath(given))
        folder = real.parent if given.is_file() else pathlib.Path.cwd()
        path = folder / pathlib.Path(source).expanduser()
        if why := unreadable(path):
            hint = f"create {path}, or correct the path"
            self.add(at, f"a file beside {given.name}", f"{quote(source)}: {why}", hint)

    def binds(self) -> None:
        for node in self.t.nodes.values():
            taken: set[str] = set()
            for index, bind in enumerate(node.binds):
                at = self.value("nodes", node.name, "binds", self._index("binds", node, index))
                if bind.target in taken or bind.target in node.files:
                    wanted, hint = "each path of a node once", "choose another"
                    self.add(at, wanted, f"{bind.target} again", hint)
                taken.add(bind.target)
                self._is_there(at, bind.source)
            if node.binds and not self.unsure(node.name, "provider") and not self.bad("provider"):
                self._can_bind(node)

    def _can_bind(self, node: Node) -> None:
        maker = self.t.provider_of(node.name)
        there = registry.PROVIDERS.usable()
        if maker in there and not there[maker].binds:
            able = [name for name, one in there.items() if one.binds]
            hint = f"copy them with `files`; nodes of {', '.join(able)} have binds"
            at = self.key("nodes", node.name, "binds")
            wanted = "a provider whose nodes can have files of this machine"
            self.add(at, wanted, f"{node.name} by {maker}", hint)

    def images(self) -> None:
        """Refuse what needs this machine's files on a node with an image."""
        for node in self.t.nodes.values():
            if not node.image or self.unsure(node.name, "provider") or self.bad("provider"):
                continue
            at = self.key("nodes", node.name, "image")
            maker = self.t.provider_of(node.name)
            there = registry.PROVIDERS.usable()
            if maker in there and not there[maker].images:
                able = ", ".join(name for name, one in there.items() if one.images)
                wanted = "a provider whose nodes can have an image as their file system"
                own = there[maker].files
                seen = f"{node.name} by {maker}" + (
                    f", which has the files of {own}" if own else ""
                )
                self.add(at, wanted, seen, f"nodes by {able} can have one")
            for key, names in (("roles", node.roles), ("packages", node.packages)):
                if names:
                    wanted = f"no {key} on a node with an image"
                    hint = f"remove {key}; use programs of the image in `run` and `services`"
                    at = self.key("nodes", node.name, key)
                    self.add(at, wanted, ", ".join(names), hint)

    def hosts(self) -> None:
        """Refuse a choice of the machine that runs a node if its provider has only this one."""
        for node in self.t.nodes.values():
            if not node.host or self.unsure(node.name, "provider") or self.bad("provider"):
                continue
            maker = self.t.provider_of(node.name)
            there = registry.PROVIDERS.usable()
            if maker in there and not there[maker].hosts:
                able = ", ".join(name for name, one in there.items() if one.hosts)
                wanted = "a provider with several machines"
                hint = f"remove it; nodes by {able} can have it"
                at = self.key("nodes", node.name, "on")
                self.add(at, wanted, f"{node.name} by {maker}", hint)

    def tables(self) -> None:
        for node in self.t.nodes.values():
            tables = {
                "routes": [one.table for one in node.routes],
                "rules": [one.table for one in node.ip_rules],
            }
            for key, names in tables.items():
                for index, name in enumerate(names):
                    if not name or name.isdecimal() or name in TABLES.values():
                        continue
                    if any(path.startswith(NAMES_OF_TABLES) for path in node.files):
                        continue
                    path = ("nodes", node.name, key, self._index(key, node, index))
                    known = [*TABLES.values()]
                    hint = f"write a number from 1 to 252, or {', '.join(known)}"
                    self.add(self.value(*path), "a table of routes", quote(name), hint)

    def services(self) -> None:
        for node in self.t.nodes.values():
            if not node.services:
                continue
            taken = {
                name: role.name
                for role in filter(None, map(role_of, node.roles))
                for name in role.services
            }
            for name in node.services:
                if name in taken:
                    at = self.key("nodes", node.name, "services", name)
                    wanted = f"a name that no service of {node.name} has"
                    self.add(at, wanted, f"{name!r}, of the role {taken[name]}", "rename it")
