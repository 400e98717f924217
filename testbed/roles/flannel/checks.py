"""Rules for flannel's section of a topology file: nodes, network and subnets."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, TypeAlias

from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.etcd import member
from testbed.roles.flannel.section import (
    ONLY_WITH,
    ROLE,
    VTEP6,
    FlannelSection,
    FurtherIPv6,
)
from testbed.topology import keys, tree
from testbed.topology.check.look import Look, Subnet
from testbed.topology.tree import Path, quote

if TYPE_CHECKING:
    from collections import abc
    from collections.abc import Iterator

__all__ = ["FlannelChecks"]

#: The keys of a network of flannel for one IP family.
Part: TypeAlias = "FlannelSection | FurtherIPv6"


class FlannelChecks(Look):
    """Rules for flannel."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.flannel_and_its_nodes,
            self.flannel_settings,
            self.flannel_network_is_apart,
            self.vnis_are_apart,
            self.flannel_subnet_length,
            self.flannel_subnets,
            self.flannel_mtu,
            self.public_addresses,
            self.nodes_have_ipv6,
            self.ipv6_has_room,
            self.host_gw_is_one_segment,
            self.nodes_reach_each_other,
        )

    def flannel_and_its_nodes(self) -> None:
        members = self.t.with_role(ROLE)
        written = isinstance(self.root, tree.Mapping) and ROLE in self.root.entries
        unsure = any(self.unsure(n, "roles") for n in self.nodes)
        if members and not written:
            hint = "add 'flannel: {backend: vxlan}', or remove the role"
            self.add(self.role(members[0], ROLE), "a flannel section", "none", hint)
        if unsure or (self.bad("nodes") and not self.nodes):
            return
        if written and not members:
            hint = "give nodes the role, or remove the section"
            self.add(self.key(ROLE), "a node with the role flannel", "none", hint)
        if members and not member(self.t):
            hint = "add the role to one node; flannel stores its leases there"
            wanted = "a node with the role etcd"
            self.add(self.role(members[0], ROLE), wanted, "none", hint)

    def _networks(self) -> Iterator[tuple[tuple[str, ...], FlannelSection]]:
        """Yield the path of each network of flannel, and its settings."""
        if (flannel := FlannelSection.find(self.t)) is not None:
            yield (ROLE,), flannel
            for name, other in flannel.further().items():
                yield (ROLE, "networks", name), other

    def _parts(self) -> Iterator[tuple[tuple[str, ...], Part]]:
        """Yield the path of each network of flannel with its keys, for each of its families."""
        for path, flannel in self._networks():
            yield path, flannel
            if flannel.ipv6:
                yield (*path, "ipv6"), flannel.ipv6

    def flannel_settings(self) -> None:
        for path, flannel in self._networks():
            if self.bad(*path, "backend"):
                continue
            found = tree.keys_at(self.root, *path)
            below = tree.keys_at(self.root, *path, "ipv6")
            for at, name in [*(((), one) for one in found), *((("ipv6",), one) for one in below)]:
                backends, why = ONLY_WITH.get(name, ((flannel.backend,), ""))
                if flannel.backend not in backends:
                    wanted = f"no {name} with {flannel.backend}"
                    self.add(self.key(*path, *at, name), wanted, "one", f"remove it: {why}")

    def flannel_network_is_apart(self) -> None:
        mine: dict[str, list[Subnet]] = {"subnet": [], "subnet6": []}
        for path, part in self._parts():
            if self.bad(*path, "network"):
                continue
            word = "subnet" if isinstance(part.network, IPv4Network) else "subnet6"
            for network in self.t.networks.values():
                other: Any = getattr(network, word)
                if other and other.overlaps(part.network):
                    at = self.subnet(network, word)
                    seen = f"{other}, which overlaps with {part.network}"
                    hint = "change it, or the network of flannel"
                    self.add(at, "a subnet apart from flannel's network", seen, hint)
            name = path[-1] if path[-1] != "ipv6" else path[-2]
            mine[word].append((part.network, name, self.value(*path, "network")))
        for found in mine.values():
            self.apart(found, "networks of flannel")

    def vnis_are_apart(self) -> None:
        taken: dict[int, str] = {}
        for path, flannel in self._networks():
            if flannel.backend != "vxlan" or self.bad(*path, "vni"):
                continue
            first = taken.setdefault(flannel.vni, path[-1])
            if first != path[-1]:
                seen = f"{flannel.vni}, that of {first}"
                hint = "change it, or remove it for the next one that is free"
                self.add(self.value(*path, "vni"), "a VNI of its own", seen, hint)

    def flannel_subnet_length(self) -> None:
        for path, flannel in self._parts():
            least = flannel.network.prefixlen + 2
            if flannel.subnet_len is None or self.bad(*path, "network"):
                continue
            if flannel.subnet_len < least:
                room = f"flannel needs room for four subnets in {flannel.network}"
                at = self.value(*path, "subnet-len")
                hint = f"use a longer prefix: {room}"
                self.add(at, f"{least} or more", str(flannel.subnet_len), hint)

    def flannel_mtu(self) -> None:
        for path, flannel in self._networks():
            if flannel.outer_mtu is None or self.problems.touched("networks"):
                continue
            for node in self.t.with_role(ROLE):
                if node.addresses and flannel.outer_mtu > (mtu := self.t.link_mtu(node.name)):
                    hint = "the kernel makes the device's MTU no larger than that of the link"
                    wanted = f"at most {mtu}, the MTU of {node.name} on {self.t.network(node.name)}"
                    self.add(self.value(*path, "mtu"), wanted, str(flannel.outer_mtu), hint)
                    break

    def public_addresses(self) -> None:
        flannel = FlannelSection.find(self.t)
        if flannel is None:
            return
        self._public_addresses((ROLE, "public-ip"), flannel.public_ip, self.t.address)
        if flannel.ipv6:
            path = (ROLE, "ipv6", "public-ip")
            self._public_addresses(path, flannel.ipv6.public_ip, self.t.address6)

    def _public_addresses(
        self, at: Path, given: abc.Mapping[str, Any], own: abc.Callable[[str], Any]
    ) -> None:
        if not (names := tree.keys_at(self.root, *at)):
            return
        taken = {
            own(node.name): node.name
            for node in self.t.with_role(ROLE)
            if node.addresses and node.name not in given
        }
        for name in names:
            path = (*at, name)
            if self.on_flannel_node(name, path) and name in given:
                address = given[name]
                if taken.setdefault(address, name) != name:
                    # A lease belongs to the node with its address (Documentation/reservations.md).
                    seen = f"{address}, that of {taken[address]}"
                    hint = "change one of them"
                    self.add(self.value(*path), "an address that no other node has", seen, hint)

    def on_flannel_node(self, name: str, path: Path) -> bool:
        """Tell whether a key names a node with flannel; if not, add a problem."""
        if name not in self.nodes:
            hint = self.nearest_node(name, ROLE)
            self.add(self.key(*path), "the name of a node", quote(name), hint)
        elif not self.has_role(name, ROLE):
            wanted = "a node with the role flannel"
            self.add(self.key(*path), wanted, quote(name), "add the role, or remove this")
        else:
            return True
        return False

    def nodes_have_ipv6(self) -> None:
        """Require an IPv6 address of each node for an overlay of IPv6.

        flanneld takes both addresses from one interface (pkg/ipmatch/match.go).
        """
        if any(flannel.ipv6 for _, flannel in self._networks()):
            self.dual_stack(ROLE, "flannel's ipv6")

    def ipv6_has_room(self) -> None:
        """Require devices whose MTU IPv6 accepts (RFC 8200, section 5)."""
        for path, flannel in self._networks():
            if flannel.ipv6 is None or self.problems.touched("networks"):
                continue
            for node in (node for node in self.t.with_role(ROLE) if node.addresses):
                link, tunnel = self.t.link_mtu(node.name), flannel.backend == "vxlan"
                room = min(flannel.mtu(self.t, node.name), link - (VTEP6 if tunnel else 0))
                if room < keys.MTU_MIN6:
                    more = keys.MTU_MIN6 - room
                    wanted = f"an MTU that leaves containers of {node.name} {keys.MTU_MIN6} bytes"
                    if flannel.outer_mtu is not None and flannel.outer_mtu < link:
                        at, hint = self.value(*path, "mtu"), f"raise it by {more}, or remove ipv6"
                    else:
                        at = self.key(*path, "ipv6")
                        network = self.t.network(node.name)
                        hint = f"raise mtu of {network} by {more} bytes, or remove ipv6"
                    self.add(at, wanted, f"{room} bytes", hint)
                    break

    def flannel_subnets(self) -> None:
        for path, flannel in self._parts():
            self._subnets(path, flannel)

    def _subnets(self, path: tuple[str, ...], flannel: Part) -> None:
        good: list[Subnet] = []
        for name in tree.keys_at(self.root, *path, "subnets"):
            at = (*path, "subnets", name)
            if not self.on_flannel_node(name, at):
                continue
            if name in flannel.subnets and self._subnet_fits(flannel, name, path):
                good.append((flannel.subnets[name], name, self.value(*at)))
        self.apart(good, "flannel subnets")
        for subnet, _, place in good:
            length = flannel.subnet_len or good[0][0].prefixlen
            if subnet.prefixlen != length:
                # Flannel's configuration has a single SubnetLen.
                first = "subnet-len says" if flannel.subnet_len else f"for {good[0][1]}"
                wanted = f"subnets of one size, /{length} as {first}"
                self.add(place, wanted, str(subnet), "give all of them the same prefix")

    def _subnet_fits(self, flannel: Part, node: str, path: tuple[str, ...]) -> bool:
        if self.bad(*path, "network"):
            return False
        subnet: Any = flannel.subnets[node]
        network: Any = flannel.network
        at = self.value(*path, "subnets", node)
        if not subnet.subnet_of(network):
            hint = "change it, or the network of flannel"
            self.add(at, f"a subnet inside flannel's network {network}", str(subnet), hint)
        elif subnet.prefixlen < network.prefixlen + 2:
            wanted = f"a subnet of /{network.prefixlen + 2} or smaller"
            hint = f"use a longer prefix: flannel needs room for four subnets in {network}"
            self.add(at, wanted, str(subnet), hint)
        elif subnet.network_address == network.network_address:
            hint = "flannel does not use the first one; use the next"
            self.add(at, f"another subnet than the first of {network}", str(subnet), hint)
        else:
            return True
        return False

    def nodes_reach_each_other(self) -> None:
        """Require paths from flanneld to etcd's node and to the other nodes."""
        flannel = FlannelSection.find(self.t)
        if flannel is None:
            return
        ((interface, members),) = flannel.meshes(self.t)
        # The node with etcd comes first, because the others need a path to it.
        first = [node for node in members if ETCD in node.roles]
        self.underlay(ROLE, interface, [*first, *(n for n in members if n not in first)])

    def host_gw_is_one_segment(self) -> None:
        if any(flannel.backend == "host-gw" for _, flannel in self._networks()):
            self.one_segment(ROLE, "all flannel nodes", "host-gw", "backend")
