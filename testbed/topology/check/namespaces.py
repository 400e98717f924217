"""Namespaces, bridges and veth pairs: their nodes and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology.check.look import Look
from testbed.topology.tree import Path, Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc
    from ipaddress import IPv4Address

    from testbed.topology.model import Veth, VethEnd

__all__ = ["Namespaces"]


class Namespaces(Look):
    """Rules for namespaces, bridges and veth pairs."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.namespaces_and_bridges,
            self.veths,
            self.interfaces_are_unique,
            self.veth_addresses_are_unique,
        )

    def namespaces_and_bridges(self) -> None:
        for section, things in (("namespaces", self.t.namespaces), ("bridges", self.t.bridges)):
            for thing in things.values():
                self.on_maker(thing.node, (section, thing.name, "node"), section, "add the role")

    def veths(self) -> None:
        for i, veth in enumerate(self.t.veths):
            path: Path = ("veths", i)
            if not self.on_maker(veth.node, (*path, "node"), "veths", "add the role"):
                continue
            for j, end in enumerate(veth.ends):
                if end.name and not self.bad(*path, "ends", j):
                    self._veth_end(veth, end, (*path, "ends", j))
            first, second = veth.ends
            if first.bridge and first.bridge == second.bridge:
                at = self.value(*path, "ends", 1, "bridge")
                hint = "it would be a loop; use another bridge, or a namespace"
                self.add(at, "one end in a bridge", f"both in {first.bridge}", hint)

    def _veth_end(self, veth: Veth, end: VethEnd, path: Path) -> None:
        if (end.namespace is None) == (end.bridge is None):
            seen, hint = "both", "remove one of them"
            if end.bridge is None:
                seen, hint = "neither", "put it into a namespace, or make it a port of a bridge"
            self.add(self.value(*path), "either a namespace or a bridge", seen, hint)
            return
        if end.bridge and end.address:
            at = self.key(*path, "address")
            hint = "remove it: a port of a bridge has no address"
            self.add(at, "an address in a namespace only", f"{end.address} on a bridge", hint)
        if end.namespace is not None:
            known = {n.name: n.node for n in self.t.namespaces.values()}
            self._is_on_node(veth.node, "namespace", end.namespace, known, path)
        elif end.bridge is not None:
            known = {b.name: b.node for b in self.t.bridges.values()}
            self._is_on_node(veth.node, "bridge", end.bridge, known, path)

    def _is_on_node(
        self, node: str, what: str, name: str, known: abc.Mapping[str, str], path: Path
    ) -> None:
        at = self.value(*path, what)
        if name not in known:
            here = [one for one, place in known.items() if place == node]
            self.add(at, f"the name of a {what}", quote(name), nearest(name, here))
        elif known[name] in self.nodes and known[name] != node:
            wanted = f"a {what} on the same node, {node}"
            self.add(at, wanted, f"{name} on {known[name]}", "move one of them")

    def interfaces_are_unique(self) -> None:
        """Require unique names of interfaces per namespace.

        The name "" stands for the node's own namespace.
        """
        taken: dict[tuple[str, str], dict[str, str]] = {}
        for bridge in self.t.bridges.values():
            self._take(taken, bridge.node, "", bridge.name, self.key("bridges", bridge.name))
        for i, veth in enumerate(self.t.veths):
            for j, end in enumerate(veth.ends):
                at = self.value("veths", i, "ends", j, "name")
                self._take(taken, veth.node, end.namespace or "", end.name, at)

    def _take(
        self,
        taken: dict[tuple[str, str], dict[str, str]],
        node: str,
        namespace: str,
        name: str,
        at: Tree,
    ) -> None:
        if node not in self.nodes or not name:
            return
        where = namespace or node
        if (node, namespace) not in taken:
            taken[node, namespace] = {} if namespace else self._own_interfaces(node)
        names = taken[node, namespace]
        if name in names:
            wanted = f"each interface name once in {where}"
            self.add(at, wanted, f"{name!r}, {names[name]}", "rename it")
        else:
            names[name] = "used before"

    def _own_interfaces(self, node: str) -> dict[str, str]:
        """Return a node's interfaces that are not in the file."""
        me = self.t.nodes[node]
        out = {port.name: "the node's own" for port in me.ports}
        out |= {link.name: link.about for link in self.own_links(node)}
        return out

    def veth_addresses_are_unique(self) -> None:
        """Require unique addresses per segment.

        A segment is a pair, or all pairs on one bridge.
        """
        taken: dict[tuple[str, str | int, IPv4Address], str] = {}
        for i, veth in enumerate(self.t.veths):
            bridges = [e.bridge for e in veth.ends if e.bridge]
            for j, end in enumerate(veth.ends):
                if end.address is None:
                    continue
                place = (veth.node, bridges[0] if bridges else i, end.address.ip)
                if place in taken:
                    at = self.value("veths", i, "ends", j, "address")
                    seen = f"{end.address.ip} again, the address of {taken[place]}"
                    self.add(at, "each address of a segment once", seen, "take another")
                taken.setdefault(place, end.name)
