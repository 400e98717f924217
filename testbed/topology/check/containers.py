"""Docker and its containers: docker0, network modes, published ports."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.tree import Path, Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.model import Container, Publish

__all__ = ["Containers"]


class Containers(Look):
    """Rules for Docker and its containers."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.engine,
            self.bips,
            self.bips_are_apart,
            self.containers,
            self.published_ports,
            self.what_ends_is_not_waited_for,
        )

    def engine(self) -> None:
        written = set(tree.keys_at(self.root, "docker")) & {"engine", "firewall"}
        unsure = self.bad("nodes") or any(self.unsure(n, "roles") for n in self.nodes)
        if not self.t.with_role("docker") and not unsure:
            for name in sorted(written):
                hint = "give a node the role, or remove this"
                self.add(self.key("docker", name), "a node with the role docker", "none", hint)
        docker, sure = self.t.docker, not self.bad("docker", "engine")
        if docker.firewall == "nftables" and docker.engine == "20.10" and sure:
            wanted = "iptables, iptables-legacy or iptables-nft with engine 20.10"
            hint = "engine: 29 (--docker 29) is the one that can do without iptables"
            self.add(self.value("docker", "firewall"), wanted, "'nftables'", hint)

    def bips(self) -> None:
        for name in tree.keys_at(self.root, "docker", "bip"):
            path = ("docker", "bip", name)
            if name not in self.nodes:
                hint = self.nearest_node(name, "docker")
                self.add(self.key(*path), "the name of a node", quote(name), hint)
            elif not self.has_role(name, "docker"):
                wanted = "a node with the role docker"
                self.add(self.key(*path), wanted, quote(name), "add the role, or remove this")
            elif name in self.t.docker.bip:
                self._bip_in_subnet(name, path)

    def _bip_in_subnet(self, node: str, path: Path) -> None:
        flannel = self.t.flannel
        subnet = flannel.subnets.get(node) if flannel else None
        bip = self.t.docker.bip[node]
        if subnet is None or self.bad("flannel") or "flannel" not in self.t.nodes[node].roles:
            return
        if not bip.network.subnet_of(subnet):
            wanted = f"an address inside the flannel subnet of {node} ({subnet})"
            hint = "change it, or leave it out to get the subnet's first"
            self.add(self.value(*path), wanted, str(bip), hint)

    def bips_are_apart(self) -> None:
        told: set[tuple[str, IPv4Network]] = set()
        flannel = self.t.flannel
        for name, bip in self.t.docker.bip.items():
            node = self.t.nodes.get(name)
            if node is None or "flannel" in node.roles or self.bad("docker", "bip", name):
                continue
            others = [(n.name, n.subnet) for n in self.t.networks.values()]
            if flannel and not self.bad("flannel", "network"):
                others.append(("flannel", flannel.network))
            for other, subnet in others:
                if (other, bip.network) in told or not subnet.overlaps(bip.network):
                    continue
                told.add((other, bip.network))
                self._bip_overlaps(name, bip.network, other, subnet)

    def _bip_overlaps(self, node: str, bip: IPv4Network, other: str, subnet: IPv4Network) -> None:
        section = ("networks", other, "subnet") if other in self.t.networks else ("flannel",)
        written = tree.keys_at(self.root, "docker")
        at = self.value("docker", "bip", node) if "bip" in written else self.value(*section)
        seen = f"{bip} of docker0 on {node}, which overlaps with {subnet} of {other}"
        hint = "change one of them; docker: {bip: ADDRESS/PREFIX} sets docker0's"
        self.add(at, "a network of docker0 apart from the others", seen, hint)

    def containers(self) -> None:
        for container in self.t.containers.values():
            path = ("containers", container.name, "node")
            if not self.on_known_node(container.node, path, "docker"):
                continue
            if not self.has_role(container.node, "docker"):
                wanted = "a node with the role docker"
                hint = "add the role, or move the container"
                self.add(self.value(*path), wanted, quote(container.node), hint)
            if container.network.startswith("container:"):
                self._shared_network(container, container.network.partition(":")[2])

    def _shared_network(self, container: Container, name: str) -> None:
        at = self.value("containers", container.name, "network")
        other = self.t.containers.get(name)
        if name not in tree.keys_at(self.root, "containers"):
            beside = [
                one.name
                for one in self.t.containers_on(container.node)
                if one is not container
                and one.expect is None
                and not one.network.startswith("container:")
            ]
            self.add(at, "the name of a container", quote(name), nearest(name, beside))
        elif name == container.name:
            self.add(at, "another container", "itself", "name the one whose network it shares")
        elif other is None or self.bad("containers", name, "node"):
            return
        elif other.node != container.node:
            wanted = f"a container on the same node, {container.node}"
            self.add(at, wanted, f"{name} on {other.node}", "move one of them")
        elif other.expect is not None:
            wanted = "a container that keeps running"
            seen = f"{name}, which is expected to end"
            hint = "name one that keeps running: a network namespace ends with its container"
            self.add(at, wanted, seen, hint)
        elif other.network.startswith("container:"):
            wanted = "a container with a network of its own"
            seen = f"{name}, which shares that of {other.network.partition(':')[2]}"
            end = self._end_of_chain(container)
            hint = f"name {end}" if end else "give one of them a network of its own, like bridge"
            self.add(at, wanted, seen, hint)

    def _end_of_chain(self, container: Container) -> str:
        """Return the container at the end of a chain of ``container:NAME``.

        Return an empty string for a circle.
        """
        passed, one = {container.name}, container
        while one.network.startswith("container:"):
            partner = self.t.containers.get(one.network.partition(":")[2])
            if partner is None or partner.name in passed:
                return ""
            passed.add(partner.name)
            one = partner
        return one.name

    def published_ports(self) -> None:
        taken: dict[tuple[str, str, int], list[tuple[Publish, str]]] = {}
        for container in self.t.containers.values():
            path = ("containers", container.name, "publish")
            if self.bad(*path) or not container.publish or container.node not in self.nodes:
                continue
            if container.network != "bridge":
                wanted = "published ports with network bridge only"
                hint = "remove them, or use network bridge"
                seen = f"network {container.network}"
                self.add(self.key(*path), wanted, seen, hint)
                continue
            for i, port in enumerate(container.publish):
                at = self.value(*path, i)
                self._address_is_there(at, port, container.node)
                users = taken.setdefault((container.node, port.protocol, port.host_port), [])
                self._port_is_free(at, port, container, users)
                users.append((port, container.name))

    def what_ends_is_not_waited_for(self) -> None:
        for container in self.t.containers.values():
            if container.expect is None:
                continue
            for key in ("healthcheck", "ready"):
                if getattr(container, key) is not None:
                    at = self.key("containers", container.name, key)
                    wanted = f"no {key} of a container that is expected to end"
                    self.add(at, wanted, "one", f"remove it, or 'expect: exit {container.expect}'")

    def _address_is_there(self, at: Tree, port: Publish, node: str) -> None:
        address = port.address
        if address is None or address.is_loopback or address == IPv4Address(0):
            return
        bip = self.t.docker.bip.get(node)
        mine = [*self.t.nodes[node].networks.values(), *([bip.ip] if bip else [])]
        if address not in mine and not self.unsure(node, "networks"):
            seen = f"{address}; {node} has {', '.join(map(str, mine)) or 'none'}"
            hint = "publish on one of those, or leave the address out"
            self.add(at, f"an address of {node}", seen, hint)

    def _port_is_free(
        self, at: Tree, port: Publish, container: Container, users: list[tuple[Publish, str]]
    ) -> None:
        anywhere = (None, IPv4Address(0))
        for other, user in users:
            if (
                port.address in anywhere
                or other.address in anywhere
                or port.address == other.address
            ):
                wanted = f"each port of {container.node} published once"
                seen = f"{port.host_port}/{port.protocol} again, published for {user}"
                self.add(at, wanted, seen, "take another host port")
                return
