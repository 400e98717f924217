"""Containers: their nodes, network modes and published ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.topology import tree
from testbed.topology.check.look import Look
from testbed.topology.tree import Tree, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.containers import Container, Publish

__all__ = ["Containers"]


class Containers(Look):
    """Rules for containers."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.containers,
            self.compose_files,
            self.published_ports,
            self.what_ends_is_not_waited_for,
            self.network_or_networks,
            self.shared_networks_are_left_alone,
            self.volumes_have_places_of_their_own,
            self.what_restarts,
        )

    def containers(self) -> None:
        for container in self.t.containers.values():
            path = ("containers", container.name, "node")
            hint = "add the role, or move the container"
            if not self.on_maker(container.node, path, "containers", hint):
                continue
            if container.shares:
                self._shared_network(container, container.shares)

    def compose_files(self) -> None:
        for node in self.t.nodes.values():
            if node.compose:
                path = ("nodes", node.name, "compose")
                self.on_maker(node.name, path, "compose", "add the role, or move the key")

    def _shared_network(self, container: Container, name: str) -> None:
        at = self.value("containers", container.name, "network")
        other = self.t.containers.get(name)
        if name not in tree.keys_at(self.root, "containers"):
            beside = [
                one.name
                for one in self.t.containers_on(container.node)
                if one is not container and one.expect is None and not one.shares
            ]
            self.add(at, "the name of a container", quote(name), nearest(name, beside))
        elif name == container.name:
            self.add(
                at, "another container", "itself", "name the container whose network it shares"
            )
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
        elif other.shares:
            wanted = "a container with a network of its own"
            seen = f"{name}, which shares that of {other.shares}"
            end = self._end_of_chain(container)
            hint = f"name {end}" if end else "give one of them a network of its own, like bridge"
            self.add(at, wanted, seen, hint)

    def _end_of_chain(self, container: Container) -> str:
        """Return the container at the end of a chain of ``container:NAME``.

        Return an empty string for a circle.
        """
        passed, one = {container.name}, container
        while one.shares:
            partner = self.t.containers.get(one.shares)
            if partner is None or partner.name in passed:
                return ""
            passed.add(partner.name)
            one = partner
        return one.name

    def published_ports(self) -> None:
        taken: dict[str, list[tuple[Publish, str]]] = {}
        for container in self.t.containers.values():
            path = ("containers", container.name, "publish")
            if self.bad(*path) or not container.publish or container.node not in self.nodes:
                continue
            if container.network not in ("bridge", ""):
                wanted = "published ports with network bridge only"
                hint = "remove them, or use network bridge"
                seen = f"network {container.network}"
                self.add(self.key(*path), wanted, seen, hint)
                continue
            for i, port in enumerate(container.publish):
                at = self.value(*path, i)
                self._address_is_there(at, port, container.node)
                users = taken.setdefault(container.node, [])
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

    def network_or_networks(self) -> None:
        for container in self.t.containers.values():
            at = self.value("containers", container.name)
            if isinstance(at, tree.Mapping) and {"network", "networks"} <= at.entries.keys():
                hint = "'network' is for bridge, host, none and container:NAME; remove one of them"
                at = self.key("containers", container.name, "network")
                self.add(at, "network or networks of a container", "both", hint)

    def shared_networks_are_left_alone(self) -> None:
        """Report settings that belong to the owner of a network, as Docker refuses them."""
        for container in self.t.containers.values():
            if container.shares:
                keys = ["hostname", "dns", "extra_hosts", "mac_address"]
                whose = f"a container in the network of {container.shares}"
            elif container.network == "host":
                keys, whose = ["mac_address"], "a container in the node's network"
            elif container.networks:
                self._mac_of_a_network(container)
                continue
            else:
                continue
            for name in [*keys, "sysctls"]:
                value = getattr(container, name)
                if name == "sysctls":
                    value = [one for one in value if one.startswith("net.")]
                if value:
                    at = self.key("containers", container.name, name)
                    hint = "set it for the owner of the network, or remove it"
                    self.add(at, f"no {name} of {whose}", "some", hint)

    def _mac_of_a_network(self, container: Container) -> None:
        if container.mac_address:
            at = self.key("containers", container.name, "mac_address")
            first = next(iter(container.networks))
            hint = f"write networks: {{{first}: {{mac_address: '{container.mac_address}'}}}}"
            self.add(at, "the MAC address in networks", "one of the container", hint)

    def volumes_have_places_of_their_own(self) -> None:
        for container in self.t.containers.values():
            seen: dict[str, str] = {}
            for key, inside in (("volumes", 1), ("tmpfs", 0)):
                for i, text in enumerate(getattr(container, key)):
                    place = text.split(":")[inside].rstrip("/")
                    at = self.value("containers", container.name, key, i)
                    if place in seen:
                        wanted = f"each path of {container.name} once"
                        self.add(at, wanted, f"{place} again, of {seen[place]}", "change one")
                    seen.setdefault(place, text)

    def what_restarts(self) -> None:
        for container in self.t.containers.values():
            if container.expect is not None and container.restart in ("always", "unless-stopped"):
                at = self.value("containers", container.name, "restart")
                hint = "use on-failure, or remove it"
                seen = f"'{container.restart}', with which it does not end"
                self.add(at, f"a container that ends with exit {container.expect}", seen, hint)

    def _address_is_there(self, at: Tree, port: Publish, node: str) -> None:
        address = port.address
        if address is None or address.is_loopback or address.is_unspecified:
            return
        own = (link.address for link in self.own_links(node) if link.address)
        mine = [*self.t.nodes[node].addresses, *own]
        if address not in mine and not self.unsure(node, "networks"):
            seen = f"{address}; {node} has {', '.join(map(str, mine)) or 'none'}"
            hint = "publish on one of those, or remove the address"
            self.add(at, f"an address of {node}", seen, hint)

    def _port_is_free(
        self, at: Tree, port: Publish, container: Container, users: list[tuple[Publish, str]]
    ) -> None:
        for other, user in users:
            if port.collides(other):
                first = max(port.host_port, other.host_port)
                wanted = f"each port of {container.node} published once"
                seen = f"{first}/{port.protocol} again, published for {user}"
                self.add(at, wanted, seen, "use another host port")
                return
