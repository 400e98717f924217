"""Flannel and etcd: their nodes, network and subnets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check.look import Look, Subnet
from testbed.topology.tree import Path, quote

if TYPE_CHECKING:
    from collections import abc
    from ipaddress import IPv4Network

__all__ = ["Flannel"]


class Flannel(Look):
    """Rules for flannel and etcd."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.one_etcd,
            self.flannel_and_its_nodes,
            self.flannel_settings,
            self.flannel_network_is_apart,
            self.flannel_subnets,
            self.host_gw_is_one_segment,
            self.nodes_reach_each_other,
        )

    def one_etcd(self) -> None:
        members = self.t.with_role("etcd")
        for node in members[1:]:
            wanted = "one node with the role etcd, a cluster of a single member"
            seen = f"{node.name} besides {members[0].name}"
            self.add(self.role(node, "etcd"), wanted, seen, "keep one of them")

    def flannel_and_its_nodes(self) -> None:
        members = self.t.with_role("flannel")
        written = isinstance(self.root, tree.Mapping) and "flannel" in self.root.entries
        unsure = any(self.unsure(n, "roles") for n in self.nodes)
        if members and not written:
            hint = "add 'flannel: {backend: vxlan}', or remove the role"
            self.add(self.role(members[0], "flannel"), "a flannel section", "none", hint)
        if unsure or (self.bad("nodes") and not self.nodes):
            return
        if written and not members:
            hint = "give nodes the role, or remove the section"
            self.add(self.key("flannel"), "a node with the role flannel", "none", hint)
        if members and not self.t.etcd:
            hint = "add the role to one node, flannel keeps its leases there"
            wanted = "a node with the role etcd"
            self.add(self.role(members[0], "flannel"), wanted, "none", hint)

    def flannel_settings(self) -> None:
        flannel = self.t.flannel
        if flannel is None or self.bad("flannel", "backend"):
            return
        written = tree.keys_at(self.root, "flannel")
        if "port" in written and flannel.backend == "host-gw":
            hint = "remove it: host-gw sends packets as they are"
            self.add(self.key("flannel", "port"), "no port with host-gw", "one", hint)
        if "vni" in written and flannel.backend != "vxlan":
            wanted = f"no vni with {flannel.backend}"
            hint = "remove it: only vxlan has one"
            self.add(self.key("flannel", "vni"), wanted, "one", hint)

    def flannel_network_is_apart(self) -> None:
        flannel = self.t.flannel
        if flannel is None or self.bad("flannel", "network"):
            return
        for network in self.t.networks.values():
            if network.subnet.overlaps(flannel.network):
                at = self.value("networks", network.name, "subnet")
                seen = f"{network.subnet}, which overlaps with {flannel.network}"
                hint = "change it, or the network of flannel"
                self.add(at, "a subnet apart from flannel's network", seen, hint)

    def flannel_subnets(self) -> None:
        flannel = self.t.flannel
        if flannel is None:
            return
        good: list[Subnet] = []
        for name in tree.keys_at(self.root, "flannel", "subnets"):
            path = ("flannel", "subnets", name)
            if name not in self.nodes:
                hint = self.nearest_node(name, "flannel")
                self.add(self.key(*path), "the name of a node", quote(name), hint)
            elif not self.has_role(name, "flannel"):
                wanted = "a node with the role flannel"
                self.add(self.key(*path), wanted, quote(name), "add the role, or remove this")
            elif name in flannel.subnets and self._subnet_fits(flannel.subnets[name], path):
                good.append((flannel.subnets[name], name, self.value(*path)))
        self.apart(good, "flannel subnets")
        for subnet, _, at in good:
            length = good[0][0].prefixlen
            if subnet.prefixlen != length:
                # Flannel's configuration has a single SubnetLen.
                wanted = f"subnets of one size, /{length} as for {good[0][1]}"
                self.add(at, wanted, str(subnet), "give all of them the same prefix")

    def _subnet_fits(self, subnet: IPv4Network, path: Path) -> bool:
        flannel = self.t.flannel
        if flannel is None or self.bad("flannel", "network"):
            return False
        network, at = flannel.network, self.value(*path)
        if not subnet.subnet_of(network):
            hint = "change it, or the network of flannel"
            self.add(at, f"a subnet inside flannel's network {network}", str(subnet), hint)
        elif subnet.prefixlen < network.prefixlen + 2:
            wanted = f"a subnet of /{network.prefixlen + 2} or smaller"
            hint = f"take a longer prefix: flannel wants room for four subnets in {network}"
            self.add(at, wanted, str(subnet), hint)
        elif subnet.network_address == network.network_address:
            hint = "flannel leaves the first one out, take the next"
            self.add(at, f"another subnet than the first of {network}", str(subnet), hint)
        else:
            return True
        return False

    def nodes_reach_each_other(self) -> None:
        """Require paths from flanneld to etcd's node and to the other nodes."""
        flannel = self.t.flannel
        if flannel is None:
            return
        interface, members = next(iter(self.t.meshes()))
        # The node with etcd comes first, because the others need a path to it.
        first = [node for node in members if "etcd" in node.roles]
        self.underlay("flannel", interface, [*first, *(n for n in members if n not in first)])

    def host_gw_is_one_segment(self) -> None:
        if self.t.flannel is not None and self.t.flannel.backend == "host-gw":
            self.one_segment("flannel", "all flannel nodes", "host-gw", "backend")
