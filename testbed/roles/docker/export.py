"""Docker Compose: the nodes and containers of a lab as services of one engine.

A node is a service with the node's addresses.  The networks of the lab are networks without an
uplink, and each node's docker0 is a network of the node's containers (compose-spec,
05-services.md and 06-networks.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.exports.base import Export, Exported, LeftOut, Subject, comment, dump, unsaid
from testbed.nodes import wiring
from testbed.roles.docker.networks import OVERLAY, PARENT, DockerNetwork, networks_of, on_nodes
from testbed.roles.docker.section import DEFAULT_BIP, DockerSection
from testbed.topology.attach import BRIDGE
from testbed.topology.settings import Sysctls

if TYPE_CHECKING:
    from testbed.topology.containers import Container, Publish
    from testbed.topology.model import Network, Topology

FILE = "compose.yaml"
#: Image of a node: it has sh, ip and sleep, and nothing else is run on a node.
NODE_IMAGE = "busybox"
#: docs.docker.com, "Bridge network driver", gateway modes.
WITHOUT_GATEWAY = {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}
GIVEN = "the engine gives each network a subnet"
FOREVER = ("sleep", "infinity")
#: Compose makes one dollar sign of two.
ROUTED = 'ip route replace default via "$$1" && exec sleep infinity'
HEAD = """\
# Lab {name}, by `testbed export --to compose`.{about}
# docker compose up -d && docker compose exec {node} ping -c 1 {peer}
"""


#: Keys of a container that have the same name and form in Compose.
AS_THEY_ARE = (
    "entrypoint", "user", "working_dir", "labels", "privileged", "cap_add", "cap_drop", "devices",
    "sysctls", "ulimits", "cpus", "mem_limit", "pids_limit", "volumes", "tmpfs", "dns",
    "extra_hosts", "restart", "init", "stop_signal", "stop_grace_period",
)  # fmt: skip


class Compose(Export):
    """A Compose file."""

    name = "compose"
    about = f"Docker Compose: {FILE}"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.gateway",
        "nodes.*.cpus",
        "nodes.*.memory", "nodes.*.forward", "nodes.*.sysctls", "nodes.*.env", "containers.*.node",
        "containers.*.image", "containers.*.network", "containers.*.publish",
        "containers.*.command", "containers.*.env",
        "containers.*.healthcheck", "docker.bip", "docker.networks", "containers.*.networks",
        "containers.*.hostname", "containers.*.mac_address",
        *(f"containers.*.{name}" for name in AS_THEY_ARE),
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {
        "nodes.*.routes": "the links of a service have no fixed names",
        "nodes.*.rules": "the links of a service have no fixed names",
        "nodes.*.roles": "nodes run no daemons; your own engine runs the containers",
        "docker": "the engine is your own",
        "nodes.*.compose": "run that Compose file with your own engine",
        "nodes.*.docker": "the engine is your own",
        "containers.*.expect": "Compose does not check an exit status",
        "containers.*.ready": "write a health check to make Compose wait",
        "faults": "Compose has no faults",
        "*": "Compose has no such thing",
    }

    def export(self, subject: Subject) -> Exported:
        writer = _Writer(subject.topology)
        head = HEAD.format(**_example(subject.topology))
        text = head + dump(writer.file())
        writer.left_out += unsaid(
            subject.topology, networks=["mtu"], ports=["mac"], several=False, why=self.reasons["*"]
        )
        return Exported({FILE: text}, tuple(writer.left_out))


def _example(topology: Topology) -> dict[str, str]:
    node = next(iter(topology.nodes.values()))
    peers = [one for one in topology.nodes.values() if one.addresses and one is not node]
    peer = topology.address(peers[0].name) if peers and node.addresses else "127.0.0.1"
    about = comment(topology.description)
    about = f"\n# {about}" if about else ""
    return {"name": topology.name, "about": about, "node": node.name, "peer": str(peer)}


@dataclass
class _Writer:
    topology: Topology

    def __post_init__(self) -> None:
        self.left_out: list[LeftOut] = []
        self._taken: set[tuple[int, str]] = set()
        self._volumes: dict[str, None] = {}

    def file(self) -> dict[str, Any]:
        topology = self.topology
        services = {name: self._node(name) for name in topology.nodes}
        for container in topology.containers.values():
            services[self._service(container.name)] = self._container(container)
        networks = dict(self._networks())
        return {
            "name": topology.name,
            "services": services,
            **({"networks": networks} if networks else {}),
            **({"volumes": {name: {} for name in self._volumes}} if self._volumes else {}),
        }

    def _service(self, container: str) -> str:
        """Return the service of a container; a node of the same name keeps its name."""
        if container not in self.topology.nodes:
            return container
        taken = {*self.topology.nodes, *self.topology.containers}
        name = f"{container}-container"
        while name in taken:
            name += "-1"
        return name

    # -- networks -----------------------------------------------------------

    def _networks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        topology = self.topology
        for network in topology.networks.values():
            used = {
                address
                for node in topology.nodes.values()
                for port in node.on(network.name)
                for address in port.addresses
            }
            used |= self._near(network.name)
            options = _pool(network.subnet, used) if network.subnet else {}
            if not network.subnet:
                self.left_out.append(LeftOut((_key(network),), GIVEN))
            if network.mtu:
                size = {"com.docker.network.driver.mtu": str(network.mtu)}
                options["driver_opts"] = {**options.get("driver_opts", {}), **size}
            yield _named(network.name), {"internal": True, **options}
        section = DockerSection.find(topology)
        for node in topology.nodes:
            if not self._has_bridge(node):
                continue
            bip = section.bip.get(node) if section else None
            if bip == IPv4Interface(DEFAULT_BIP):
                reason = "the range of your own engine's docker0"
                self.left_out.append(LeftOut((f"docker.bip.{node}",), reason))
                bip = None
            pool = {"config": [{"subnet": str(bip.network), "gateway": str(bip.ip)}]} if bip else {}
            yield self._bridge(node), {"ipam": pool} if pool else {}

        for own in networks_of(topology).values():
            if own.driver == OVERLAY:
                reason = "your one engine is no swarm: a bridge network"
                self.left_out.append(LeftOut((f"docker.networks.{own.name}.driver",), reason))
            for node in on_nodes(topology, own):
                if self._lan(node, own) is None:
                    yield self._docker_network(node, own.name), self._settings(own)

    def _settings(self, network: DockerNetwork) -> dict[str, Any]:
        """Return a Docker network; a link of a node is none of this machine."""
        options = dict(network.driver_opts)
        if parent := options.pop(PARENT, ""):
            reason = f"your machine has no link {parent} of a node"
            key = f"docker.networks.{network.name}.driver_opts.{PARENT}"
            self.left_out.append(LeftOut((key,), reason))
        pools = [
            {
                "subnet": str(subnet),
                **({"gateway": str(gateway)} if gateway else {}),
                **({"ip_range": str(part)} if part else {}),
                **({"aux_addresses": aux} if (aux := network.aux_in(subnet)) else {}),
            }
            for subnet, gateway, part in network.pools()
        ]
        return {
            "driver": "bridge" if network.driver == OVERLAY else network.driver,
            **({"driver_opts": options} if options else {}),
            **({"internal": True} if network.internal else {}),
            **({"attachable": True} if network.attachable else {}),
            **({"enable_ipv6": True} if network.ipv6 else {}),
            **({"ipam": {"config": pools}} if pools else {}),
        }

    def _docker_network(self, node: str, network: str) -> str:
        """Return the name of a node's own Docker network, or of one of the swarm."""
        found = networks_of(self.topology).get(network)
        name = f"{'swarm' if found and found.driver == OVERLAY else node}-{network}"
        while name in {*self.topology.networks, self._bridge(node)}:
            name += "-1"
        return name

    def _lan(self, node: str, network: DockerNetwork | None) -> str | None:
        """Return the lab's network that a Docker network is a part of, by a link of the node."""
        parent = network.driver_opts.get(PARENT) if network else None
        ports = self.topology.nodes[node].ports
        return next((port.network for port in ports if port.name == parent), None)

    def _near(self, lan: str) -> set[IPv4Address]:
        """Return the addresses of containers that are on a network of the lab."""
        known = networks_of(self.topology)
        return {
            one.ipv4_address
            for container in self.topology.containers.values()
            for one in container.networks.values()
            if one.ipv4_address and self._lan(container.node, known.get(one.name)) == lan
        }

    def _bridge(self, node: str) -> str:
        name = f"{node}-docker0"
        while name in self.topology.networks:
            name += "-1"
        return name

    def _has_bridge(self, node: str) -> bool:
        return any(
            one.network == BRIDGE or BRIDGE in one.networks
            for one in self.topology.containers_on(node)
        )

    # -- services -----------------------------------------------------------

    def _node(self, name: str) -> dict[str, Any]:
        node, gateway = self.topology.nodes[name], self.topology.gateway_of(name)
        networks: dict[str, Any] = {
            _named(port.network): {
                **({"ipv4_address": str(port.address)} if port.address else {}),
                **({"mac_address": port.mac} if port.mac else {}),
            }
            for port in map(node.first_on, node.networks)
        }
        if self._has_bridge(name):
            networks[self._bridge(name)] = {}
        command = ["sh", "-c", ROUTED, "sh", str(gateway)] if gateway else list(FOREVER)
        links = {port.name for port in node.ports}  # other names than those of Compose's networks
        named = [one for one in node.sysctls if links.intersection(one.split("."))]
        if named:
            keys = tuple(f"nodes.{name}.sysctls.{one}" for one in named)
            self.left_out.append(LeftOut(keys, "Compose does not know the links of a node"))
        sysctls = {**wiring.settings(self.topology, name), **node.sysctls}
        sysctls = {key: value for key, value in sysctls.items() if key not in named}
        return {
            "image": NODE_IMAGE,
            "hostname": name,
            "command": command,
            "stop_signal": "SIGKILL",  # sleep as pid 1 ignores SIGTERM
            **({"cap_add": ["NET_ADMIN"]} if gateway else {}),
            **({"sysctls": Sysctls().plain(sysctls)} if sysctls else {}),
            **({"environment": _escaped(node.env)} if node.env else {}),
            **({"cpus": node.cpus} if node.cpus else {}),
            **({"mem_limit": node.memory} if node.memory else {}),
            **({"networks": networks} if networks else {"network_mode": "none"}),
        }

    def _container(self, container: Container) -> dict[str, Any]:
        given = container.to_dict()
        ports = [self._port(container, one) for one in container.publish]
        health = given.get("healthcheck")
        return {
            "image": container.image,
            **({"command": _escaped(container.command)} if container.command is not None else {}),
            **({"environment": _escaped(container.env)} if container.env else {}),
            **({"healthcheck": _escaped(health)} if health else {}),
            **({"ports": ports} if ports else {}),
            **{name: _escaped(given[name]) for name in AS_THEY_ARE if name in given},
            **self._mounted(container),
            **self._network(container),
        }

    def _mounted(self, container: Container) -> dict[str, Any]:
        """Return the volumes of a container, which each node has for itself."""
        found = []
        for volume in container.volumes:
            source, _, rest = volume.partition(":")
            if source.startswith("/"):
                reason = f"{volume}: a path of the node"
                self.left_out.append(LeftOut((f"containers.{container.name}.volumes",), reason))
                continue
            name = f"{container.node}-{source}"
            self._volumes[name] = None
            found.append(escaped(f"{name}:{rest}"))
        return {"volumes": found} if container.volumes else {}

    def _network(self, container: Container) -> dict[str, Any]:
        mode, _, other = container.network.partition(":")
        if mode == "container":
            return {"network_mode": f"service:{self._service(other)}"}
        if mode == "host":
            return {"network_mode": f"service:{container.node}"}
        if mode == "none":
            return {"network_mode": "none"}
        name = {"hostname": container.hostname or container.name}
        bridge = self._bridge(container.node)
        if container.mac_address:
            return {**name, "networks": {bridge: {"mac_address": container.mac_address}}}
        if not container.networks:
            return {**name, "networks": [bridge]}
        known, networks = networks_of(self.topology), {}
        for one in container.networks.values():
            own = self._docker_network(container.node, one.name)
            lan = self._lan(container.node, known.get(one.name))
            networks[bridge if one.name == BRIDGE else lan or own] = one.to_dict()
        return {**name, "networks": networks}

    def _port(self, container: Container, publish: Publish) -> str:
        """Return published ports of this machine, which can publish a port only once."""
        outer, _, inner = str(replace(publish, address=None)).partition(":")
        key, each = f"containers.{container.name}", publish.each
        if any((one.host_port, one.protocol) in self._taken for one in each):
            reason = f"{publish}: the port is taken by another node; Docker chooses one"
            self.left_out.append(LeftOut((f"{key}.publish",), reason))
            return inner
        self._taken |= {(one.host_port, one.protocol) for one in each}
        if publish.address is not None:
            reason = f"{publish}: the port is published on all addresses of your machine"
            self.left_out.append(LeftOut((f"{key}.publish",), reason))
        return f"{outer}:{inner}"


def _key(network: Network) -> str:
    return f"networks.{network.name}" if network.link < 0 else f"links.{network.link}"


def _named(network: str) -> str:
    """Return Compose's name of a network; that of a link has colons."""
    return network.replace(":", "-")


def _pool(subnet: IPv4Network, used: set[IPv4Address]) -> dict[str, Any]:
    """Return the address pool of a network; its gateway is the highest free address.

    The engine gives the gateway's address to the bridge, by default the first of the subnet. If
    no address is free, the bridge has none (Engine 27.1 and later).
    """
    highest = int(subnet.broadcast_address) - 1
    free = (IPv4Address(number) for number in range(highest, int(subnet.network_address), -1))
    for gateway in free:
        if gateway not in used:
            return {"ipam": {"config": [{"subnet": str(subnet), "gateway": str(gateway)}]}}
    return {"driver_opts": WITHOUT_GATEWAY, "ipam": {"config": [{"subnet": str(subnet)}]}}


def escaped(text: str) -> str:
    """Return a text that Compose does not interpolate."""
    return text.replace("$", "$$")


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {name: _escaped(one) for name, one in value.items()}
    return [_escaped(one) for one in value] if isinstance(value, list | tuple) else value
