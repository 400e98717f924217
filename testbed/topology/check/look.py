"""The base of all rules: a topology and the positions of its parts."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from testbed import registry
from testbed.topology import tree
from testbed.topology.declare import keys_of, role_of
from testbed.topology.model import Node
from testbed.topology.tree import Path, Problems, Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.roles.base import OwnLink
    from testbed.topology.declare import Underlay
    from testbed.topology.model import Network, Topology
    from testbed.topology.ports import Port

__all__ = ["Look", "Subnet"]

#: A subnet, its name, and its position in the file.
Subnet = tuple["IPv4Network | IPv6Network", str, Tree]


class Look:
    """Access to a topology and its tree; subclasses add rules and list them."""

    def __init__(self, topology: Topology, root: Tree, problems: Problems) -> None:
        self.t = topology
        self.root = root
        self.problems = problems
        self.nodes = tree.keys_at(root, "nodes")
        self._unread = problems.snapshot()

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        """Return the rules in the order of the checks."""
        return ()

    def value(self, *path: str | int) -> Tree:
        return tree.value_at(self.root, *path)

    def key(self, *path: str | int) -> Tree:
        return tree.key_at(self.root, *path)

    def bad(self, *path: str | int) -> bool:
        """Tell whether a path was invalid before any rule was checked.

        Paths below it count, too.
        """
        return path in self._unread

    def add(self, at: Tree, wanted: str, seen: str, hint: str) -> None:
        self.problems.add(at, wanted, seen, hint)

    def on_known_node(self, node: str, path: Path, *roles: str) -> bool:
        """Tell whether a node exists; if not, add a problem at ``path``.

        The hint names nodes with one of the roles.
        """
        if node in self.nodes:
            return True
        if node and not self.bad(*path):
            hint = self.nearest_node(node, *roles)
            self.add(self.value(*path), "the name of a node", quote(node), hint)
        return False

    def on_maker(self, node: str, path: Path, section: str, hint: str) -> bool:
        """Tell whether the node of a part exists; if not, add a problem at ``path``.

        The node must also have a role that creates the parts of this ``section``.
        """
        if node in self.nodes and any(
            (role := role_of(name)) is None or section in role.creates
            for name in self.t.nodes[node].roles
        ):
            return True
        makers = [r.name for r in registry.ROLES.usable().values() if section in r.creates]
        if not self.on_known_node(node, path, *makers):
            return False
        if not self.unsure(node, "roles"):
            wanted = f"a node with the role {' or '.join(makers)}"
            self.add(self.value(*path), wanted, quote(node), hint)
        return True

    def own_links(self, node: str) -> abc.Iterator[OwnLink]:
        """Yield the links that the roles of a node create."""
        for name in self.t.nodes[node].roles:
            if (role := role_of(name)) is not None:
                yield from role.links(self.t, node)

    def ports(self) -> abc.Iterator[Port]:
        """Yield the ports of all nodes."""
        for node in self.t.nodes.values():
            yield from node.ports

    def port(self, port: Port) -> Path:
        """Return the path of a port in the file."""
        if port.peer:
            link = self.t.networks[port.network].link
            if isinstance(self.value("links", link), tree.Sequence):
                return ("links", link, port.item)
            return ("links", link, "ends", port.item)
        path: Path = ("nodes", port.node, "networks", port.network)
        return path if port.item < 0 else (*path, port.item)

    def subnet(self, network: Network, key: str = "subnet") -> Tree:
        """Return the position of a network's subnet, or of a link's."""
        if network.link < 0:
            return self.value("networks", network.name, key)
        return self.value("links", network.link, key)

    def nearest_node(self, name: str, *roles: str) -> str:
        """Return a hint: the closest name, or some nodes, with one of the roles."""
        having = [node for node in self.nodes if any(self.has_role(node, r) for r in roles)]
        return nearest(name, having) if having else f"give a node the role {' or '.join(roles)}"

    def has_role(self, node: str, role: str) -> bool:
        """Tell whether a node has a role, or may have been meant to have it."""
        return role in self.t.nodes[node].roles or self.unsure(node, "roles")

    def unsure(self, node: str, key: str) -> bool:
        """Tell whether a key of a node is invalid, so that its value is unknown."""
        body = self.value("nodes", node)
        known = keys_of(Node)
        unknown = [k for k in tree.keys_at(self.root, "nodes", node) if k not in known]
        return not isinstance(body, tree.Mapping) or bool(unknown) or self.bad("nodes", node, key)

    def role(self, node: Node, role: str) -> Tree:
        """Return the position where a node gets a role."""
        return self.value("nodes", node.name, "roles", node.roles.index(role))

    def one_segment(self, role: str, who: str, software: str, instead: str) -> None:
        """Report each node with a role that is not on the first one's network.

        This is for ``software`` that sets routes without a tunnel: the gateway of a route must be
        on the link (flannel, Documentation/backends.md). ``instead`` names alternatives.
        """
        members = [node for node in self.t.with_role(role) if node.addresses]
        segment = self.t.network(members[0].name) if members else ""
        for node in members:
            mine = self.t.network(node.name)
            if mine != segment:
                hint = f"put all of them on one network, or choose another {instead}"
                at = self.key("nodes", node.name, "networks", mine)
                wanted = f"{who} on {segment}, since {software} makes no tunnel between networks"
                self.add(at, wanted, f"{node.name} on {mine}", hint)

    def dual_stack(self, role: str, what: str) -> None:
        """Report each node with a role that has no IPv6 address beside the IPv4 one it uses.

        ``what`` needs them.
        """
        for node in self.t.with_role(role):
            unsure = self.unsure(node.name, "networks") or self.problems.touched("networks")
            if not node.addresses or unsure or self.t.address6(node.name):
                continue
            network = self.t.network(node.name)
            wanted = f"an IPv6 address of {node.name} on {network}, for {what}"
            seen = ", ".join(str(one.ip) for one in self.t.port(node.name).subnetted)
            hint = f"give {network} a subnet6, or the node an address with its prefix"
            self.add(self.key("nodes", node.name, "networks", network), wanted, seen, hint)

    def underlay(self, section: str, interface: Underlay, members: abc.Sequence[Node]) -> None:
        """Report an ``interface`` that a node lacks, and unreachable nodes."""
        for node in members:
            if isinstance(interface, str):
                name, at = interface, self.value(section, "interface")
            else:
                name = interface.get(node.name, "")
                at = self.value(section, "interface", node.name)
            links = [port.name for port in node.ports]
            unsure = self.unsure(node.name, "networks") or self.bad("networks")
            if name and name not in (*node.networks, *links) and not unsure:
                wanted = f"a network that {node.name} is on"
                hint = f"it is on {', '.join(node.networks) or 'none'}"
                self.add(at, wanted, quote(name), hint)
                if isinstance(interface, str):
                    break  # one report is enough
        if not isinstance(interface, str):
            known = [node.name for node in members]
            for name in interface:
                if name not in known:
                    wanted = f"a node of {section}"
                    self.add(
                        self.key(section, "interface", name),
                        wanted,
                        quote(name),
                        nearest(name, known),
                    )
        # Paths are known only for valid nodes and networks.
        if not any(map(self.problems.touched, ("nodes", "networks", section))):
            self._reach_each_other(section, [node for node in members if node.addresses])

    def _reach_each_other(self, section: str, members: abc.Sequence[Node]) -> None:
        """Report each node without a path to another one, or back."""
        if len({self.t.network(node.name) for node in members}) < 2:
            return
        first = members[0]
        for node in members[1:]:
            for one, other in ((node, first), (first, node)):
                if not self.t.reaches(one.name, other.name):
                    theirs = self.t.network(other.name)
                    at = self.key("nodes", one.name, "networks", self.t.network(one.name))
                    wanted = (
                        f"a route from {one.name} to {other.name} at {self.t.address(other.name)} "
                        f"on {theirs}"
                    )
                    hint = (
                        f"put both on one network and name it: {section}: {{interface: NETWORK}}, "
                        "or join their networks by a gateway"
                    )
                    self.add(at, wanted, "none, neither a network in common nor a gateway", hint)
                    break

    def apart(
        self,
        subnets: abc.Sequence[Subnet],
        what: str,
        hint: abc.Callable[[str, str], str] = lambda _, __: "change one of them",
    ) -> None:
        """Report each subnet that overlaps with a previous one.

        They are of one family. The order is that of the addresses. ``hint`` returns the hint for
        the two names.
        """
        order = {name: i for i, (_, name, _) in enumerate(subnets)}
        last: Subnet | None = None
        for one in sorted(
            subnets, key=lambda s: (int(s[0].network_address), s[0].prefixlen, order[s[1]])
        ):
            if last is not None and int(one[0].network_address) <= int(last[0].broadcast_address):
                first, second = sorted((last, one), key=lambda s: order[s[1]])
                seen = f"{second[0]}, which overlaps with {first[0]} of {first[1]}"
                if first[0] == second[0]:
                    seen = f"{second[0]} again, the subnet of {first[1]}"
                wanted = f"{what} that do not overlap"
                self.add(second[2], wanted, seen, hint(first[1], second[1]))
            if last is None or int(one[0].broadcast_address) > int(last[0].broadcast_address):
                last = one
