"""Rules for Docker networks of a topology file, and for the containers on them."""

from __future__ import annotations

import itertools
import re
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from testbed.nodes.engine import number_of, words_of
from testbed.roles.docker.networks import (
    ON_LINKS,
    OVERLAY,
    PARENT,
    networks_of,
    on_node,
    on_nodes,
)
from testbed.roles.docker.section import ROLE, DockerSection, engine_of
from testbed.topology import tree
from testbed.topology.attach import BRIDGE
from testbed.topology.check.look import Look
from testbed.topology.tree import Path, nearest, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from testbed.roles.docker.networks import DockerNetwork
    from testbed.topology.attach import Attachment
    from testbed.topology.containers import Container
    from testbed.topology.families import Address, Network

__all__ = ["NetworkChecks"]

#: Names of a node's links, each perhaps with a VLAN: eth0, eth0.10.
LINK = re.compile(r"(eth[0-9]+)(\.[0-9]+)?")
#: The beginning of names of interfaces in a container, the option of a network for another one
#: (moby, daemon/libnetwork/netlabel), and such a name with its number.
PREFIX, PREFIX_OPTION = "eth", "com.docker.network.container_iface_prefix"
NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]*)")
#: The first engine that can set a MAC address on each network (docs.docker.com, "Engine API version
#: history", 1.44).
ENDPOINT_MAC = 25


class NetworkChecks(Look):
    """Rules for Docker networks."""

    def rules(self) -> tuple[Callable[[], None], ...]:
        return (
            self.subnets,
            self.gateways_and_ranges,
            self.nodes_are_there,
            self.overlays,
            self.links_are_there,
            self.subnets_are_apart,
            self.engine_is_new_enough,
            self.networks_of_containers,
            self.addresses,
            self.published_ports_have_a_bridge,
        )

    @property
    def _networks(self) -> Mapping[str, DockerNetwork]:
        return networks_of(self.t)

    @staticmethod
    def _path(network: str, *more: str | int) -> Path:
        return (ROLE, "networks", network, *more)

    def _old(self, node: str, since: int = 28) -> bool:
        """Tell whether a node's engine is older than ``since``."""
        paths = ((ROLE, "engine"), ("nodes", node, ROLE, "engine"))
        known = node in self.t.nodes and DockerSection.find(self.t) is not None
        return (
            known
            and not any(self.bad(*p) for p in paths)
            and number_of(engine_of(self.t, node)) < (since, 0, 0)
        )

    # -- networks -------------------------------------------------------------

    def subnets(self) -> None:
        for network in self._networks.values():
            for version in (4, 6):
                mine = [one for one in network.subnet if one.version == version]
                if len(mine) > 1:
                    at = self.value(*self._path(network.name, "subnet"))
                    seen = ", ".join(map(str, mine))
                    hint = "remove one; another network can have it"
                    self.add(at, f"one subnet of IPv{version}", seen, hint)
            written = tree.keys_at(self.root, *self._path(network.name))
            if "enable_ipv6" in written and not network.enable_ipv6 and network.ipv6:
                at = self.value(*self._path(network.name, "enable_ipv6"))
                if not self.bad(*self._path(network.name, "enable_ipv6")):
                    hint = "remove it, or the IPv6 subnet"
                    self.add(at, "true with an IPv6 subnet", "false", hint)

    def gateways_and_ranges(self) -> None:
        for network in self._networks.values():
            if self.bad(*self._path(network.name, "subnet")):
                continue
            known = ", ".join(map(str, network.subnet)) or "none"
            for i, gateway in enumerate(network.gateway):
                at = self._item(network.name, "gateway", i, len(network.gateway))
                if not any(gateway in one for one in network.subnet):
                    hint = f"the subnets are: {known}"
                    self.add(at, f"an address in a subnet of {network.name}", str(gateway), hint)
                elif why := _no_host(gateway, network.subnet):
                    self.add(at, "a host's address", f"{gateway}, {why}", "use another")
            for i, part in enumerate(network.ip_range):
                at = self._item(network.name, "ip_range", i, len(network.ip_range))
                if not any(_inside(part, one) for one in network.subnet):
                    hint = f"the subnets are: {known}"
                    self.add(at, f"a part of a subnet of {network.name}", str(part), hint)
            self._reserved(network, known)

    def _reserved(self, network: DockerNetwork, known: str) -> None:
        """Report reserved addresses that Docker refuses; ``known`` are the subnets in words."""
        gateways = [_gateway(network, *pool) for pool in network.pools()]
        kept: list[Address] = []
        for name, address in network.aux_addresses.items():
            at = self.value(*self._path(network.name, "aux_addresses", name))
            if not any(address in one for one in network.subnet):
                hint = f"the subnets are: {known}"
                self.add(at, f"an address in a subnet of {network.name}", str(address), hint)
            elif why := _no_host(address, network.subnet):
                self.add(at, "a host's address", f"{address}, {why}", "use another")
            elif address in gateways:
                self.add(at, "another address than the gateway", str(address), "use another")
            elif address in kept:
                self.add(at, "each reserved address once", f"{address} again", "remove one")
            kept.append(address)

    def _item(self, network: str, name: str, index: int, count: int) -> tree.Tree:
        path = self._path(network, name)
        return self.value(*path, index) if count > 1 else self.value(*path)

    def nodes_are_there(self) -> None:
        for network in self._networks.values():
            for i, node in enumerate(network.nodes):
                path = self._path(network.name, "nodes", i)
                if self.on_known_node(node, path, ROLE) and not self.has_role(node, ROLE):
                    wanted = "a node with the role docker"
                    self.add(self.value(*path), wanted, quote(node), "add the role, or remove it")

    def overlays(self) -> None:
        docker = DockerSection.find(self.t)
        for network in self._networks.values():
            if network.driver != OVERLAY:
                continue
            if docker and not docker.swarm and not self.bad(ROLE, "swarm"):
                hint = "write docker: {swarm: [NODE]} with its managers, or use another driver"
                at = self.value(*self._path(network.name, "driver"))
                self.add(at, "a swarm for an overlay network", "none", hint)
            if network.nodes:
                at = self.key(*self._path(network.name, "nodes"))
                hint = "remove it"
                self.add(at, "no nodes of an overlay, which all of the swarm have", "some", hint)

    def links_are_there(self) -> None:
        for network in self._networks.values():
            parent = network.driver_opts.get(PARENT, "")
            at = self.value(*self._path(network.name, "driver_opts", PARENT))
            if network.driver not in ON_LINKS:
                if parent:
                    wanted = "no parent of a bridge network"
                    hint = f"write driver: macvlan for containers on {parent}, or remove it"
                    self.add(at, wanted, quote(parent), hint)
                continue
            found = LINK.fullmatch(parent)
            for node in on_nodes(self.t, network) if found else ():
                if node not in self.t.nodes or self.unsure(node, "networks"):
                    continue
                links = self._links(node)
                if found and found[1] not in links:
                    hint = f"{node} has {', '.join(links) or 'none'}"
                    self.add(at, f"a link of {node}", quote(parent), hint)

    def _links(self, node: str) -> dict[str, str]:
        """Return the network of each link of a node."""
        return {port.name: port.network for port in self.t.nodes[node].ports}

    def subnets_are_apart(self) -> None:
        told: set[tuple[str, str]] = set()
        for node in self.t.with_role(ROLE):
            before: list[tuple[str, Network]] = []
            docker = DockerSection.find(self.t)
            bip = docker.bip.get(node.name) if docker else None
            if bip is not None and not self.bad(ROLE, "bip"):
                before.append(("docker0", bip.network))
            for network in on_node(self.t, node.name):
                others = list(before)
                if network.driver not in ON_LINKS:  # the node would lose its way to its peers
                    lans = self.t.networks
                    given = ((n, lans[n].subnet) for n in node.networks if n in lans)
                    others += [(name, subnet) for name, subnet in given if subnet]
                for subnet in network.subnet:
                    for name, other in others:
                        if not _overlap(subnet, other) or (network.name, name) in told:
                            continue
                        told.add((network.name, name))
                        at = self.value(*self._path(network.name, "subnet"))
                        wanted = f"a subnet apart from other networks of {node.name}"
                        seen = f"{subnet}, which overlaps with {other} of {name}"
                        self.add(at, wanted, seen, "change one of them")
                before += [(network.name, subnet) for subnet in network.subnet]

    def engine_is_new_enough(self) -> None:
        for network in self._networks.values():
            if not network.enable_ipv6 or any(one.version == 6 for one in network.subnet):
                continue
            if old := [node for node in on_nodes(self.t, network) if self._old(node)]:
                at = self.value(*self._path(network.name, "enable_ipv6"))
                engine = words_of(engine_of(self.t, old[0]))
                wanted = f"an IPv6 subnet with engine {engine} (on {old[0]})"
                hint = "add one to subnet, like fd00:1::/64, or set engine: 29"
                self.add(at, wanted, "none", hint)

    # -- containers -------------------------------------------------------------

    def _attached(self) -> list[tuple[Container, Attachment, DockerNetwork | None]]:
        """Return each container on a network of the file, or on Docker's bridge (None)."""
        return [
            (container, one, self._networks.get(one.name))
            for container in self.t.containers.values()
            for one in container.networks.values()
            if one.name == BRIDGE or one.name in self._networks
        ]

    def _at(self, container: Container, network: str, *more: str | int) -> tree.Tree:
        """Return the position of a network of a container, in a list or in a mapping."""
        path = ("containers", container.name, "networks")
        at = self.value(*path)
        if isinstance(at, tree.Sequence):
            return self.value(*path, list(container.networks).index(network))
        return self.value(*path, network, *more) if more else self.key(*path, network)

    def networks_of_containers(self) -> None:
        known = tree.keys_at(self.root, ROLE, "networks")
        for container in self.t.containers.values():
            if self.bad("containers", container.name, "networks"):
                continue
            for name in container.networks:
                if name == BRIDGE or name in known:
                    continue
                hint = nearest(name, [*known, BRIDGE]) if known else ""
                hint = hint or f"declare it: docker: {{networks: {{{name}: {{}}}}}}"
                if name in ("host", "none", "default"):
                    hint = "write 'network: " + ("bridge" if name == "default" else name) + "'"
                elif name in self.t.networks:
                    hint = (
                        f"{name} joins nodes; a Docker network of the driver macvlan with "
                        "driver_opts: {parent: eth0} puts containers on it"
                    )
                self.add(self._at(container, name), "a Docker network", quote(name), hint)
            self._settings(container)
        for container, one, network in self._attached():
            if network and network.nodes and container.node not in network.nodes:
                seen = f"{network.name}, on {', '.join(network.nodes)}"
                hint = f"add {container.node} to its nodes, or move the container"
                wanted = f"a network that {container.node} has"
                self.add(self._at(container, one.name), wanted, seen, hint)
            if network and network.driver == OVERLAY and not network.attachable:
                hint = f"write docker: {{networks: {{{one.name}: {{attachable: true}}}}}}"
                wanted = "an attachable overlay network for a container"
                self.add(self._at(container, one.name), wanted, f"{one.name}, which is not", hint)

    def _settings(self, container: Container) -> None:
        old = self._old(container.node)
        engine = words_of(engine_of(self.t, container.node)) if old else ""
        for i, one in enumerate(container.networks.values()):
            if one.gw_priority is not None and old:
                wanted = f"engine 28 or later for gw_priority (on {container.node})"
                hint = "set engine: 29, or remove it: the first name in the alphabet counts then"
                self.add(self._at(container, one.name, "gw_priority"), wanted, engine, hint)
            if one.interface_name is not None:
                at = self._at(container, one.name, "interface_name")
                if old:
                    wanted = f"engine 28 or later for interface_name (on {container.node})"
                    self.add(at, wanted, engine, "set engine: 29, or remove it")
                others = [*container.networks.values()][:i]
                if one.interface_name in [other.interface_name for other in others]:
                    wanted = "each name of an interface once in a container"
                    self.add(at, wanted, quote(one.interface_name), "choose another")
                elif (free := self._numbered(container, one)) is not None:
                    wanted = "a name that no other interface of the container gets by default"
                    hint = f"choose another, such as {free}, or name the interfaces of all networks"
                    self.add(at, wanted, quote(one.interface_name), hint)
            if one.mac_address and i and self._old(container.node, ENDPOINT_MAC):
                where = f"a second network (on {container.node})"
                wanted = f"engine {ENDPOINT_MAC} or later for a MAC address on {where}"
                hint = "set engine: 29, or write this network first"
                self.add(self._at(container, one.name, "mac_address"), wanted, engine, hint)
            if one.name == BRIDGE and (one.addresses or one.aliases):
                key = "aliases" if one.aliases else "ipv4_address"
                key = key if one.aliases or one.ipv4_address else "ipv6_address"
                wanted = f"no {key} on Docker's bridge"
                hint = "declare a network in docker: {networks: {NAME: {subnet: ..}}}"
                self.add(self._at(container, one.name, key), wanted, "one", hint)

    def _numbered(self, container: Container, one: Attachment) -> str | None:
        """Return a free name if Docker could give an interface's name to another one.

        Docker connects the networks of a container in no order. An interface without a name gets
        the lowest number that is free then (moby, daemon/libnetwork/osl/interface_linux.go).
        """
        found = NUMBERED.fullmatch(one.interface_name or "")
        if found is None:
            return None
        prefix, number = found[1], int(found[2])
        others = [other for other in container.networks.values() if other is not one]
        named = [
            int(match[2])
            for other in others
            if (match := NUMBERED.fullmatch(other.interface_name or "")) and match[1] == prefix
        ]
        unnamed = [o for o in others if not o.interface_name and self._prefix(o) == prefix]
        networks = [self._networks.get(other.name) for other in others]
        # The first overlay network brings a further interface, for the way out.
        ways_out = any(n and n.driver == OVERLAY and not n.internal for n in networks)
        count = len(unnamed) + (ways_out and prefix == PREFIX)
        free = next(other for other in itertools.count(count) if other not in named)
        return f"{prefix}{free}" if number < count else None

    def _prefix(self, one: Attachment) -> str:
        """Return the beginning of the name of an interface on a network."""
        network = self._networks.get(one.name)
        return network.driver_opts.get(PREFIX_OPTION, PREFIX) if network else PREFIX

    def addresses(self) -> None:
        taken: dict[tuple[str, str], dict[object, str]] = {}
        for container, one, network in self._attached():
            if network is None or container.node not in self.t.nodes:
                continue
            if self.bad(*self._path(network.name)) or self.bad("containers", container.name):
                continue
            users = taken.setdefault(*self._segment(container.node, network))
            for name in ("ipv4_address", "ipv6_address"):
                if (address := getattr(one, name)) is not None:
                    self._address(container, network, name, address, users)
            if one.mac_address is not None:
                at = self._at(container, one.name, "mac_address")
                self._free(at, one.mac_address, container.name, users)

    def _segment(
        self, node: str, network: DockerNetwork
    ) -> tuple[tuple[str, str], dict[object, str]]:
        """Return a name of the segment of a network, and the addresses of nodes there."""
        if network.driver == OVERLAY:
            return ("", f"{OVERLAY} {network.name}"), {}
        parent = network.driver_opts.get(PARENT, "")
        lan = self._links(node).get(parent) if network.driver in ON_LINKS else None
        if lan is None:
            return (node, network.name), {}
        nodes = self.t.nodes.values()
        peers: dict[object, str] = {}
        for one in nodes:
            for port in one.on(lan):
                peers |= dict.fromkeys(port.addresses, one.name)
        return ("", lan), peers

    def _address(
        self,
        container: Container,
        network: DockerNetwork,
        name: str,
        address: Address,
        users: dict[object, str],
    ) -> None:
        at = self._at(container, network.name, name)
        if not network.subnet:
            wanted = f"a subnet of {network.name} for a fixed address"
            hint = f"write docker: {{networks: {{{network.name}: {{subnet: ..}}}}}}"
            self.add(at, wanted, "none", hint)
            return
        if address in network.aux_addresses.values():
            wanted = "an address that aux_addresses does not reserve"
            self.add(at, wanted, str(address), "use another, or remove it there")
            return
        pools = [pool for pool in network.pools() if address in pool[0]]
        if not pools:
            known = ", ".join(map(str, network.subnet))
            hint = f"the subnets are: {known}"
            self.add(at, f"an address in a subnet of {network.name}", str(address), hint)
            return
        subnet, gateway = pools[0][0], _gateway(network, *pools[0])
        if why := _no_host(address, (subnet,)):
            self.add(at, "a host's address", f"{address}, {why}", "use another")
        elif address == gateway:
            seen = f"{address}, the gateway of {network.name}"
            hint = "use another, or set the network's gateway"
            self.add(at, "an address of a container", seen, hint)
        else:
            self._free(at, address, container.name, users)

    def _free(
        self, at: tree.Tree, address: object, container: str, users: dict[object, str]
    ) -> None:
        user = users.setdefault(address, container)
        if user != container:
            self.add(
                at, "each address once on a network", f"{address} again, of {user}", "change it"
            )

    def published_ports_have_a_bridge(self) -> None:
        """Report ports that Docker would not publish, without a word."""
        for container in self.t.containers.values():
            networks = [self._networks.get(name) for name in container.networks]
            if not container.publish or not networks or BRIDGE in container.networks:
                continue
            if any(one is None or not (one.internal or one.driver in ON_LINKS) for one in networks):
                continue
            names = ", ".join(container.networks)
            wanted = "published ports on a bridge network that is not internal"
            hint = "add such a network, or remove the ports"
            self.add(self.key("containers", container.name, "publish"), wanted, names, hint)


def _has_gateway(network: DockerNetwork) -> bool:
    """Tell whether every engine gives an address of the subnet to the node itself.

    It depends on the engine for networks on a link, and for isolated ones (moby #50985).
    """
    usual = network.driver in ("bridge", OVERLAY)
    return usual and not any("gateway_mode" in o for o in network.driver_opts)


def _inside(part: Network, subnet: Network) -> bool:
    return part.version == subnet.version and part.subnet_of(subnet)  # type: ignore[arg-type]  # of one version


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _gateway(
    network: DockerNetwork, subnet: Network, given: Address | None, part: Network | None
) -> Address | None:
    """Return the gateway of a subnet: the file's, or Docker's choice if it is known."""
    if given or part or not _has_gateway(network) or subnet.num_addresses == 1:
        return given
    return subnet[1]  # libnetwork, ipam


def _no_host(address: Address, subnets: tuple[Network, ...]) -> str:
    """Return why a host cannot have an address; empty if it can."""
    for subnet in subnets:
        if address == subnet.network_address:
            return f"the address of {subnet} itself"
        if isinstance(subnet, IPv4Network) and address == subnet.broadcast_address:
            return f"the broadcast address of {subnet}"
    return ""
