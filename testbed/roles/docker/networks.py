"""Docker networks of a topology file: their keys, in Compose's words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from testbed.topology import keys
from testbed.topology.attach import OPTIONS
from testbed.topology.declare import Block, key
from testbed.topology.families import (
    Address,
    AnyAddress,
    AnyNetwork,
    Network,
    OneOrMore,
    Values,
)
from testbed.topology.reserved import Reserved
from testbed.topology.shapes import NODE, Choice, Flag, Items, Name, Pattern

if TYPE_CHECKING:
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

Driver: TypeAlias = "Literal['bridge', 'macvlan', 'ipvlan', 'overlay']"
DRIVERS: tuple[Driver, ...] = ("bridge", "macvlan", "ipvlan", "overlay")
#: The driver of networks of a whole swarm.
OVERLAY = "overlay"
#: Drivers whose networks are parts of a link of the node.
ON_LINKS = ("macvlan", "ipvlan")
PARENT = "parent"  #: the option of these drivers that names the link
#: The option with the name of a bridge (docs.docker.com, "Bridge network driver").
BRIDGE_NAME = "com.docker.network.bridge.name"

NAME = Name(
    "a Docker network",
    keys.DOCKER_NAME,
    keys.LABEL_MAX,
    (
        Reserved("bridge|host|none|default", "one of Docker's own networks"),
        Reserved("ingress|docker_gwbridge", "a network of Docker's swarm"),
        Reserved("container|null", "a word of Docker's own for networks"),
    ),
)


@dataclass(frozen=True, slots=True)
class DockerNetwork(Block):
    """A Docker network, on each of its nodes.

    ``nodes`` () means the nodes of its containers, or all Docker nodes without any.
    ``gateway`` and ``ip_range`` belong to the subnets that contain them.
    """

    name: str
    driver: Driver = key(
        Choice("a driver", DRIVERS),
        "Driver: bridge; macvlan or ipvlan for containers on a link of the node, which the "
        "driver option `parent` names; overlay for all nodes of `docker.swarm`.",
        default="bridge",
    )
    subnet: tuple[Network, ...] = key(
        OneOrMore(AnyNetwork(), "a subnet, or a list of them"),
        "Subnet, or a list with one of IPv4 and one of IPv6. Default: one of Docker's own choice.",
        default=(),
    )
    gateway: tuple[Address, ...] = key(
        OneOrMore(AnyAddress(), "an address, or a list of them"),
        "Gateway of each subnet. Default: its first address.",
        default=(),
    )
    ip_range: tuple[Network, ...] = key(
        OneOrMore(AnyNetwork(), "a part of the subnet, or a list of them"),
        "Part of the subnet from which containers get addresses.",
        default=(),
    )
    aux_addresses: Mapping[str, Address] = key(
        Values(
            Pattern(keys.HOST_NAME, "a host name", "write a DNS name"),
            AnyAddress(),
            "a mapping of names to addresses",
        ),
        "Addresses of the subnets that Docker gives to no container, by names of your own.",
        default={},
    )
    internal: bool = key(Flag(), "No connection to anything outside of the network.", default=False)
    attachable: bool = key(
        Flag(),
        "Containers that are no part of a service can be on an overlay network.",
        default=False,
    )
    enable_ipv6: bool = key(
        Flag(),
        "IPv6 addresses, also without a subnet for them (engine 28 or later). An IPv6 subnet "
        "enables it.",
        default=False,
    )
    driver_opts: Mapping[str, str] = key(
        OPTIONS, "Options of the driver, by Docker's names.", default={}
    )
    nodes: tuple[str, ...] = key(
        Items(NODE, "a list of nodes", unique=True),
        "Nodes on which it is created. Default: those of its containers, or all Docker nodes.",
        default=(),
    )

    @property
    def ipv6(self) -> bool:
        """True for a network with IPv6 addresses."""
        return self.enable_ipv6 or any(one.version == 6 for one in self.subnet)

    def pools(self) -> Iterator[tuple[Network, Address | None, Network | None]]:
        """Yield each subnet with its gateway and its range, if the file has them."""
        for subnet in self.subnet:
            gateway = next((one for one in self.gateway if one in subnet), None)
            inside = (one for one in self.ip_range if one.version == subnet.version)
            part = next((one for one in inside if one.subnet_of(subnet)), None)  # type: ignore[arg-type]  # of one version
            yield subnet, gateway, part

    def aux_in(self, subnet: Network) -> dict[str, str]:
        """Return the addresses in a subnet that no container gets, by their names."""
        return {name: str(one) for name, one in self.aux_addresses.items() if one in subnet}

    @property
    def digest(self) -> str:
        """A digest of its settings, without the nodes."""
        settings = {name: value for name, value in self.to_dict().items() if name != "nodes"}
        data = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(data.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        words = [self.driver, *(f"on {one}" for one in [self.driver_opts.get(PARENT)] if one)]
        for subnet, gateway, part in self.pools():
            words.append(str(subnet))
            words += [f"gateway {gateway}"] if gateway else []
            words += [f"addresses from {part}"] if part else []
        if self.aux_addresses:
            words.append(f"reserved {', '.join(map(str, self.aux_addresses.values()))}")
        words += ["IPv6"] if self.enable_ipv6 and len(self.subnet) < 2 else []
        words += ["internal"] if self.internal else []
        options = {k: v for k, v in self.driver_opts.items() if k != PARENT}
        words += [f"{name}={value}" for name, value in options.items()]
        return f"{self.name} ({', '.join(words)})"


def networks_of(topology: Topology) -> Mapping[str, DockerNetwork]:
    """Return the Docker networks of a topology."""
    from testbed.roles.docker.section import DockerSection

    section = DockerSection.find(topology)
    return section.networks if section else {}


def on_nodes(topology: Topology, network: DockerNetwork) -> tuple[str, ...]:
    """Return the nodes on which a network is created; the first manager for an overlay."""
    if network.driver == OVERLAY:
        from testbed.roles.docker.section import DockerSection

        return DockerSection.of(topology).swarm[:1]
    if network.nodes:
        return network.nodes
    members = [c.node for c in topology.containers.values() if network.name in c.networks]
    docker = [node.name for node in topology.nodes.values() if "docker" in node.roles]
    return tuple(dict.fromkeys(members or docker))


def on_node(topology: Topology, node: str) -> tuple[DockerNetwork, ...]:
    """Return the Docker networks of a node in the order of the file."""
    found = networks_of(topology).values()
    return tuple(one for one in found if node in on_nodes(topology, one))


def drivers(topology: Topology, container: Container) -> set[Driver]:
    """Return the drivers of the networks of the file that a container is on."""
    known = networks_of(topology)
    return {known[one].driver for one in container.networks if one in known}
