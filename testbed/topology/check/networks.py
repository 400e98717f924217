"""Networks and the nodes on them: subnets, addresses, gateways."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

from testbed import registry
from testbed.errors import MachineError
from testbed.registry import fabric_kind
from testbed.topology import keys, tree
from testbed.topology.check.look import Look, Subnet
from testbed.topology.declare import role_of
from testbed.topology.read import host_in
from testbed.topology.tree import Path, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.model import Network
    from testbed.topology.ports import Given, Port
    from testbed.topology.tree import Tree

__all__ = ["Networks"]

IPV6 = 6
UPLINK_MAX = 30  # longest prefix of a subnet with addresses for an uplink and a node
Prefixed = (IPv4Interface, IPv6Interface)


class Networks(Look):
    """Rules for networks and the nodes on them."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.networks_are_apart,
            self.networks_are_known,
            self.links_have_two_nodes,
            self.addresses_are_in_their_networks,
            self.macs_are_unique,
            self.uplinks_have_addresses,
            self.mtus_are_of_ipv6,
            self.port_names_are_unique,
            self.one_gateway_per_network,
            self.roles_have_a_network,
            self.providers_share_a_fabric,
            self.networks_have_ports,
            self.nodes_have_slots,
            self.providers_have_the_mtu,
            self.providers_shape,
            self.providers_have_uplinks,
            self.vlans_are_apart,
            self.providers_have_vlans,
        )

    def networks_are_apart(self) -> None:
        """Require different subnets.

        Of two networks with equal ones a node on both could reach only one. Other networks may have
        the same subnet, also if gateways join them, as those behind two NATs.
        """
        for names in self._together():
            subnets: list[Subnet] = [
                (n.subnet, n.name, self.subnet(n))
                for n in self.t.networks.values()
                if n.name in names and n.subnet
            ]
            self.apart(subnets, "networks", self._how_apart)
            subnets6: list[Subnet] = [
                (n.subnet6, n.name, self.subnet(n, "subnet6"))
                for n in self.t.networks.values()
                if n.name in names and n.subnet6
            ]
            self.apart(subnets6, "networks", self._how_apart)

    def _how_apart(self, one: str, other: str) -> str:
        hint = "change one of them"
        links = [name for name in (one, other) if self.t.networks[name].link >= 0]
        if not links and any({one, other} <= {*node.networks} for node in self.t.nodes.values()):
            hint += (
                ": each network is a segment of its own. Several ports on one segment are a list: "
                "NETWORK: [ADDRESS, ADDRESS]"
            )
        return hint

    def _together(self) -> list[set[str]]:
        """Return the sets of networks of one node.  Networks without nodes come first."""
        nodes = self.t.nodes.values()
        groups = dict.fromkeys(frozenset(node.networks) for node in nodes if node.networks)
        return [self.t.networks.keys() - {n for group in groups for n in group}, *map(set, groups)]

    def networks_are_known(self) -> None:
        declared = tree.keys_at(self.root, "networks")
        for node in self.t.nodes.values():
            for name in tree.keys_at(self.root, "nodes", node.name, "networks"):
                if name not in declared:
                    at = self.key("nodes", node.name, "networks", name)
                    self.add(at, "the name of a network", quote(name), nearest(name, declared))

    def links_have_two_nodes(self) -> None:
        for index, link in enumerate(self.t.links):
            nested = "ends" in tree.keys_at(self.root, "links", index)
            path: Path = ("links", index, "ends") if nested else ("links", index)
            for number, (node, _) in enumerate(link.ends):
                if node not in self.nodes:
                    at = self.value(*path, number)
                    self.add(at, "the name of a node", quote(node), nearest(node, self.nodes))
            if len({node for node, _ in link.ends}) == 1:
                hint = "name two different nodes"
                self.add(self.value(*path), "two nodes", f"{link.ends[0][0]} twice", hint)
            if link.addresses and len(link.addresses) != len(link.ends):
                at = self.value("links", index, "addresses")
                seen = str(len(link.addresses))
                self.add(at, "one address for each end", seen, "write two addresses")
            if link.addresses and (link.subnet or link.subnet6):
                at = self.key("links", index, "addresses")
                hint = "remove one of them; a subnet gives the ends its first two addresses"
                self.add(at, "either subnet or addresses", "both", hint)

    def addresses_are_in_their_networks(self) -> None:
        holders: dict[tuple[str, object], Port] = {}
        for port in self.ports():
            network = self.t.networks.get(port.network)
            if network is None:
                continue
            for number, given in enumerate(port.given):
                at = self._address(port, number)
                if self._fits(at, given, network):
                    address = given.ip if isinstance(given, Prefixed) else given
                    self._once(at, port, address, holders)
        # Addresses that follow from others come last: the file's own have been seen.
        for port in self.ports():
            if port.follows:
                self._once(self._address(port, 0), port, port.addresses6[0], holders)

    def _once(
        self, at: Tree, port: Port, address: object, holders: dict[tuple[str, object], Port]
    ) -> None:
        """Refuse an address that a port of the network has already."""
        if holder := holders.get((port.network, address)):
            seen = f"{address} again, the address of {self._whose(holder, port)}"
            hint = "take another"
            if port.follows and not isinstance(address, IPv4Address):
                hint = f"give {port.node} an IPv6 address of its own, besides {port.address}"
            self.add(at, f"each address of {port.network} once", seen, hint)
        holders.setdefault((port.network, address), port)

    def uplinks_have_addresses(self) -> None:
        """Require a subnet of a network with an uplink, which has an address on it."""
        for network in self.t.uplinks:
            if self.bad("networks", network.name, "subnet"):
                continue
            at = self.key("networks", network.name, "uplink")
            wanted = f"a network with an uplink and an IPv4 subnet of at most /{UPLINK_MAX}"
            hint = "give it one: {subnet: 10.99.0.0/24, uplink: true}"
            if network.subnet is None:
                self.add(at, wanted, "no subnet", hint)
            elif network.subnet.prefixlen > UPLINK_MAX:
                self.add(at, wanted, str(network.subnet), hint)
        subnets: list[Subnet] = [
            (n.subnet, n.name, self.subnet(n)) for n in self.t.uplinks if n.subnet
        ]
        self.apart(subnets, "networks", lambda *_: "one machine is the gateway of both; change one")
        ways_out = {network.name: network.way_out for network in self.t.uplinks}
        for port in self.ports():
            way_out = ways_out.get(port.network)
            if way_out and way_out in port.addresses:
                given = [one.ip if isinstance(one, Prefixed) else one for one in port.given]
                number = given.index(way_out)
                wanted = f"an address other than that of the uplink of {port.network}"
                hint = f"take another; {way_out} is the gateway of the nodes there"
                self.add(self._address(port, number), wanted, str(way_out), hint)

    def macs_are_unique(self) -> None:
        """Refuse a MAC address of two ports on one segment."""
        holders: dict[tuple[str, str], Port] = {}
        for port in self.ports():
            if not port.mac:
                continue
            if holder := holders.get((port.network, port.mac)):
                wanted = f"each MAC address of {port.network} once"
                seen = f"{port.mac} again, that of {self._whose(holder, port)}"
                at = self.value(*self.port(port), "mac")
                self.add(at, wanted, seen, "change one of them")
            holders.setdefault((port.network, port.mac), port)

    @staticmethod
    def _whose(holder: Port, port: Port) -> str:
        """Return the node of another port, or the other port of this node."""
        return holder.node if holder.node != port.node else holder.name

    def mtus_are_of_ipv6(self) -> None:
        """Refuse an MTU with which the kernel has no IPv6 on a link (RFC 8200, section 5)."""
        told: set[Path] = set()
        for port in self.ports():
            if port.mtu is None or port.mtu >= keys.MTU_MIN6 or not port.interfaces6:
                continue
            at = self._mtu(port)
            if at.path not in told:
                told.add(at.path)
                wanted = f"at least {keys.MTU_MIN6} bytes, as {port.name} of {port.node} has IPv6"
                self.add(at, wanted, str(port.mtu), "raise it, or remove the IPv6 addresses")

    def _mtu(self, port: Port) -> Tree:
        """Return the position of the MTU of a port: its own, or that of its network."""
        if port.own_mtu is not None:
            return self.value(*self.port(port), "mtu")
        link = self.t.networks[port.network].link
        return self.value(*(("networks", port.network) if link < 0 else ("links", link)), "mtu")

    def _fits(self, at: Tree, given: Given, network: Network) -> bool:
        """Tell whether an address can be on a network; if not, add a problem."""
        subnet: IPv4Network | IPv6Network | None = network.subnet
        if given.version == IPV6:
            subnet = network.subnet6
        if isinstance(given, Prefixed):
            if subnet and given.network.prefixlen == subnet.prefixlen and given.ip in subnet:
                wanted = f"an IPv{given.version} address without a prefix"
                hint = "remove the prefix; the network has it"
                self.add(at, wanted, quote(str(given)), hint)
                return False
            return True
        if subnet is None:
            if not self.bad("networks", network.name):
                wanted = f"an address with its prefix, as {network.name} has no subnet"
                hint = "add the prefix, like /24, or give the network a subnet"
                self.add(at, wanted, quote(str(given)), hint)
            return False
        return host_in(self.problems, at, given, subnet, f"{network.name} ({subnet})")

    def _address(self, port: Port, number: int) -> Tree:
        """Return the position of an address of a port."""
        if port.peer:
            link = self.t.networks[port.network].link
            known = tree.keys_at(self.root, "links", link)
            if "addresses" in known:
                return self.value("links", link, "addresses", port.item, number)
            first = number == 0 and "subnet" in known
            return self.value("links", link, "subnet" if first else "subnet6")
        path = self.port(port)
        body = self.value(*path)
        if not isinstance(body, tree.Mapping):
            return body
        if "addresses" in body.entries:
            return self.value(*path, "addresses", number)
        return self.value(*path, "address")

    def port_names_are_unique(self) -> None:
        """Require unique names of a node's ports, which are none of its roles' links."""
        for node in self.t.nodes.values():
            taken = {link.name: link.about for link in self.own_links(node.name)}
            for port in node.ports:
                if port.name in taken:
                    path = self.port(port)
                    at = self.value(*path, "name")
                    if port.peer or "name" not in tree.keys_at(self.root, *path):
                        at = self.value(*path)
                    seen = f"{port.name!r}, {taken[port.name]}"
                    hint = "rename it: {address: ADDRESS, name: NAME}"
                    if port.peer:
                        hint = f"give this end another name: {node.name}:NAME"
                    self.add(at, f"each interface name once on {node.name}", seen, hint)
                else:
                    taken[port.name] = "used before"

    def one_gateway_per_network(self) -> None:
        gateways: dict[str, str] = {}
        for node in self.t.nodes.values():
            if not node.gateway:
                continue
            at = self.value("nodes", node.name, "gateway")
            if not (node.addresses or node.addresses6) and not self.unsure(node.name, "networks"):
                hint = "add it to the network whose gateway it is"
                self.add(
                    at, "a gateway with an address on a network", f"{node.name} with none", hint
                )
            # The gateway of a network with an uplink is none of its nodes.
            uplinks = [network.name for network in self.t.uplinks]
            reached = (
                port.network
                for port in node.ports
                if port.subnetted and port.network not in uplinks
            )
            for network in dict.fromkeys(reached):
                first = gateways.setdefault(network, node.name)
                if first != node.name:
                    wanted = f"at most one gateway on {network}"
                    self.add(at, wanted, f"{node.name} besides {first}", "keep one of them")

    def roles_have_a_network(self) -> None:
        for node in self.t.nodes.values():
            roles = [r for r in node.roles if (role := role_of(r)) is None or role.networked]
            if roles and not node.addresses and not self.unsure(node.name, "networks"):
                wanted = f"a network for a node with the role {roles[0]}"
                seen, hint = "none", "add networks: {NAME: ADDRESS}"
                if node.ports:
                    wanted = f"an IPv4 address of a node with the role {roles[0]}"
                    seen = ", ".join(map(str, node.addresses6)) or "ports without an address"
                    hint = "give one of its networks or links a subnet, and the node an address"
                self.add(self.key("nodes", node.name), wanted, seen, hint)

    def providers_share_a_fabric(self) -> None:
        makers = {n: self.t.provider_of(n) for n in self.t.nodes if not self.unsure(n, "provider")}
        if self.bad("provider") or len(set(makers.values())) < 2:
            return
        first = next(iter(makers.values()))
        if self.t.provider in makers.values():
            first = self.t.provider
        there = registry.PROVIDERS.usable()
        if not there.keys() >= set(makers.values()):  # told when the lab is to be created
            return
        kind = fabric_kind(there[first])
        others = [name for name, one in there.items() if fabric_kind(one) == kind]
        for node, maker in makers.items():
            if maker not in others:
                at = self.value("nodes", node, "provider")
                wanted = f"a provider that can share a lab with {first}: {', '.join(others)}"
                hint = "its nodes cannot be connected to theirs; use a lab of its own"
                self.add(at, wanted, quote(maker), hint)

    def networks_have_ports(self) -> None:
        """Limit the number of nodes on a network.

        It is a Linux bridge with a limited number of ports.
        """
        plugged: dict[str, int] = {}
        for node in self.t.nodes.values():
            for port in node.ports:
                network = port.network
                plugged[network] = plugged.get(network, 0) + 1
                if plugged[network] == keys.PORTS_MAX + 1:
                    wanted = f"at most {keys.PORTS_MAX} nodes on {network}, the ports of a bridge"
                    at = self.key("nodes", node.name, "networks", network)
                    self.add(at, wanted, f"{node.name} after these", "use a second network")

    def nodes_have_slots(self) -> None:
        for node in self.t.nodes.values():
            maker, count = self.t.provider_of(node.name), len(node.ports)
            try:  # it alone is imported
                most = registry.PROVIDERS[maker].networks_max
            except MachineError:  # told when the lab is to be created
                continue
            if most is None or count <= most:
                continue
            if not self.bad("provider") and not self.unsure(node.name, "provider"):
                wanted = f"at most {most} networks for a node by {maker}"
                at = self.value("nodes", node.name, "networks")
                self.add(at, wanted, str(count), "remove some, or choose another provider")

    def providers_have_the_mtu(self) -> None:
        for port in self.ports():
            if port.mtu is None:
                continue
            try:
                most = registry.PROVIDERS[self.t.provider_of(port.node)].mtu_max
            except MachineError:  # told when the lab is to be created
                continue
            if most is None or port.mtu <= most:
                continue
            at, maker = self._mtu(port), self.t.provider_of(port.node)
            wanted = f"at most {most} bytes, as {port.node} is a node by {maker}"
            hint = "lower it, or choose another provider"
            self.add(at, wanted, str(port.mtu), hint)

    def providers_shape(self) -> None:
        for port in self.ports():
            try:
                able = not port.shaping or registry.PROVIDERS[self.t.provider_of(port.node)].shapes
            except MachineError:  # told when the lab is to be created
                continue
            if able:
                continue
            network = self.t.networks[port.network]
            path: Path = ("networks", port.network) if network.link < 0 else ("links", network.link)
            maker, kind = self.t.provider_of(port.node), port.shaping[0].kind
            wanted = f"no {kind} on a network of {port.node}, a node by {maker}"
            hint = "choose another provider"
            if registry.link_faults(maker):
                hint = f"`testbed fault {kind}` works there; or {hint}"
            self.add(self.key(*path, kind), wanted, "one", hint)

    def providers_have_uplinks(self) -> None:
        for port in self.ports():
            network = self.t.networks.get(port.network)
            try:
                able = (
                    network is None
                    or not network.uplink
                    or registry.PROVIDERS[self.t.provider_of(port.node)].uplinks
                )
            except MachineError:  # told when the lab is to be created
                continue
            if not able:
                wanted = f"no uplink of {port.network}, a network of {port.node}"
                seen = f"one, and {port.node} is a node by {self.t.provider_of(port.node)}"
                at = self.key("networks", port.network, "uplink")
                self.add(at, wanted, seen, "remove the uplink, or choose another provider")

    def vlans_are_apart(self) -> None:
        """Refuse a VLAN of a port with a tag and without one."""
        for port in self.ports():
            if port.vlan and port.vlan in port.trunk:
                at = self.value(*self.port(port), "trunk")
                wanted = f"VLAN {port.vlan} once: with a tag (trunk), or without one (vlan)"
                self.add(at, wanted, "both", "remove one of them")

    def providers_have_vlans(self) -> None:
        for port in self.ports():
            if not port.vlan and not port.trunk:
                continue
            maker = self.t.provider_of(port.node)
            try:
                able = registry.PROVIDERS[maker].vlans
            except MachineError:  # told when the lab is to be created
                continue
            if not able:
                at = self.key(*self.port(port), "vlan" if port.vlan else "trunk")
                wanted = f"no VLANs on a port of {port.node}, a node by {maker}"
                self.add(at, wanted, "some", "choose another provider")
