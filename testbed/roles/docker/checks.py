"""Rules for Docker's section of a topology file."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from testbed.nodes.engine import CONFIG, number_of, words_of
from testbed.roles.docker.section import ROLE, DockerSection, daemon_of, engine_of, firewall_of
from testbed.roles.flannel.section import ROLE as FLANNEL
from testbed.roles.flannel.section import FlannelSection
from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.tree import Path, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from ipaddress import IPv4Interface

__all__ = ["DockerChecks"]

#: Keys of daemon.json that testbed sets on flannel nodes, each with what to do instead.
OF_OVERLAY = {
    "allow-direct-routing": "write flannel: {allow-direct-routing: false}, or remove it",
    "bridge": "containers of a flannel node are on docker0; use a node without flannel",
    "bridge-accept-fwmark": "the mark lets the overlay pass; use a node without flannel",
    "ip-masq": "flanneld masquerades; remove it",
    "mtu": "write flannel: {mtu: NUMBER}, or remove it",
}
#: Those that it sets with an overlay of IPv6.
OF_IPV6 = {
    "fixed-cidr-v6": "write flannel: {ipv6: {subnets: {NODE: SUBNET}}}",
    "ipv6": "remove it, or ipv6 of flannel",
}
NFTABLES_SINCE = (29, 0, 0)  # the first engine with a back end of its own


class DockerChecks(Look):
    """Rules for Docker."""

    def rules(self) -> tuple[Callable[[], None], ...]:
        return (self.engine, self.bips, self.bips_are_apart, self.overlay, self.swarm, self.files)

    @property
    def _bip(self) -> Mapping[str, IPv4Interface]:
        docker = DockerSection.find(self.t)
        return docker.bip if docker else {}

    def engine(self) -> None:
        written = set(tree.keys_at(self.root, ROLE)) & {"engine", "firewall", "networks"}
        unsure = self.bad("nodes") or any(self.unsure(n, "roles") for n in self.nodes)
        if not self.t.with_role(ROLE) and not unsure:
            for name in sorted(written):
                hint = "give a node the role, or remove this"
                self.add(self.key(ROLE, name), "a node with the role docker", "none", hint)
        for node in self.t.with_role(ROLE):
            old = number_of(engine_of(self.t, node.name)) < NFTABLES_SINCE
            if old and firewall_of(self.t, node.name) == "nftables":
                self._refuse_nftables(node.name)

    def _refuse_nftables(self, node: str) -> None:
        """Report nftables with an engine that has no such back end."""
        mine = tree.keys_at(self.root, "nodes", node, ROLE)
        engine = ("nodes", node, ROLE, "engine") if "engine" in mine else (ROLE, "engine")
        if self.bad(*engine):
            return  # it is another engine
        at = self.value(ROLE, "firewall")
        if "firewall" in mine:
            at = self.value("nodes", node, ROLE, "firewall")
        elif "engine" in mine:
            at = self.value(*engine)
        name = words_of(engine_of(self.t, node))
        wanted = f"iptables, iptables-legacy or iptables-nft with engine {name}"
        hint = "set engine: 29 (--docker 29), which works without iptables"
        self.add(at, wanted, "'nftables'", hint)

    def overlay(self) -> None:
        """Report keys of daemon.json that testbed sets on flannel nodes."""
        flannel = FlannelSection.find(self.t)
        owned = OF_OVERLAY | (OF_IPV6 if flannel and flannel.ipv6 else {})
        for node in self.t.with_role(ROLE):
            if FLANNEL not in node.roles:
                continue
            for name in sorted(owned.keys() & daemon_of(self.t, node.name).keys()):
                path: Path = (ROLE, "daemon", name)
                if name in tree.keys_at(self.root, "nodes", node.name, ROLE, "daemon"):
                    path = ("nodes", node.name, *path)
                wanted = "a key of daemon.json that testbed does not set on flannel nodes"
                seen = f"{quote(name)} for {node.name}"
                self.add(self.key(*path), wanted, seen, owned[name])

    def files(self) -> None:
        """Report a daemon.json among the files of a Docker node, which has one already."""
        for node in self.t.with_role(ROLE):
            if CONFIG in node.files:
                at = self.key("nodes", node.name, "files", CONFIG)
                hint = f"write its keys as docker: {{daemon: {{...}}}} of {node.name}"
                self.add(at, "a file that testbed does not write itself", quote(CONFIG), hint)

    def swarm(self) -> None:
        """Report managers that are no Docker nodes, and what a swarm does not allow."""
        docker = DockerSection.find(self.t)
        if docker is None or not docker.swarm:
            return
        for index, name in enumerate(docker.swarm):
            at = (ROLE, "swarm", index)
            if self.on_known_node(name, at, ROLE) and not self.has_role(name, ROLE):
                wanted, hint = "a node with the role docker", self.nearest_node(name, ROLE)
                self.add(self.value(*at), wanted, quote(name), hint)
        members = self.t.with_role(ROLE)
        for node in members:
            if daemon_of(self.t, node.name).get("live-restore"):
                path: Path = (ROLE, "daemon", "live-restore")
                if "live-restore" in tree.keys_at(self.root, "nodes", node.name, ROLE, "daemon"):
                    path = ("nodes", node.name, *path)
                wanted = "no live-restore on nodes of a swarm, since dockerd refuses it"
                hint = "remove one of them"
                self.add(self.key(*path), wanted, f"it on {node.name}", hint)
        self.underlay(ROLE, "", members)

    def bips(self) -> None:
        for name in tree.keys_at(self.root, ROLE, "bip"):
            path = (ROLE, "bip", name)
            if name not in self.nodes:
                hint = self.nearest_node(name, ROLE)
                self.add(self.key(*path), "the name of a node", quote(name), hint)
            elif not self.has_role(name, ROLE):
                wanted = "a node with the role docker"
                self.add(self.key(*path), wanted, quote(name), "add the role, or remove this")
            elif name in self._bip:
                self._bip_in_subnet(name, path)

    def _bip_in_subnet(self, node: str, path: Path) -> None:
        flannel = FlannelSection.find(self.t)
        subnet = flannel.subnets.get(node) if flannel else None
        bip = self._bip[node]
        if subnet is None or self.bad(FLANNEL) or FLANNEL not in self.t.nodes[node].roles:
            return
        if not bip.network.subnet_of(subnet):
            wanted = f"an address inside the flannel subnet of {node} ({subnet})"
            hint = "change it, or remove it to use the first address of the subnet"
            self.add(self.value(*path), wanted, str(bip), hint)

    def bips_are_apart(self) -> None:
        told: set[tuple[str, IPv4Network]] = set()
        flannel = FlannelSection.find(self.t)
        for name, bip in self._bip.items():
            node = self.t.nodes.get(name)
            if node is None or FLANNEL in node.roles or self.bad(ROLE, "bip", name):
                continue
            others = [(n.name, n.subnet) for n in self.t.networks.values() if n.subnet]
            if flannel and not self.bad(FLANNEL, "network"):
                others.append((FLANNEL, flannel.network))
            for other, subnet in others:
                if (other, bip.network) in told or not subnet.overlaps(bip.network):
                    continue
                told.add((other, bip.network))
                self._bip_overlaps(name, bip.network, other, subnet)

    def _bip_overlaps(self, node: str, bip: IPv4Network, other: str, subnet: IPv4Network) -> None:
        section = ("networks", other, "subnet") if other in self.t.networks else (FLANNEL,)
        written = tree.keys_at(self.root, ROLE)
        at = self.value(ROLE, "bip", node) if "bip" in written else self.value(*section)
        seen = f"{bip} of docker0 on {node}, which overlaps with {subnet} of {other}"
        hint = "change one of them; docker: {bip: ADDRESS/PREFIX} sets docker0's"
        self.add(at, "a network of docker0 apart from the others", seen, hint)
