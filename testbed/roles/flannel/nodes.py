"""Another number of flannel nodes than in the topology file."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from testbed.errors import UsageError
from testbed.roles.docker.section import ROLE as DOCKER
from testbed.roles.etcd import ROLE as ETCD
from testbed.roles.flannel.section import ROLE
from testbed.topology.keys import DEFAULT_IMAGE

if TYPE_CHECKING:
    from collections import abc

    from testbed.topology.model import Node, Topology

MAX_NODES = 250


def set_nodes(data: dict[str, Any], topology: Topology, count: int) -> None:
    """Replace the flannel nodes by ``count`` nodes like the first two.

    Other nodes keep their containers. Those of the replaced nodes are dropped; instead each new
    node with Docker gets one container.
    """
    old = [n for n in topology.with_role(ROLE) if not n.gateway]
    _check_count(topology, old, count)
    kept = [n for n in topology.nodes.values() if n not in old]
    new = _new_nodes(topology, old, kept, count)
    if not isinstance(data[ROLE].get("interface", ""), str):
        data[ROLE].pop("interface")  # it names replaced nodes
    for network in data[ROLE].get("networks", {}).values():
        for part in (network, network.get("ipv6", {})):
            part.pop("subnets", None)
    data["nodes"] = new | {n.name: data["nodes"][n.name] for n in kept}
    for part in filter(None, (data[ROLE], data[ROLE].get("ipv6"))):
        if addresses := part.pop("public-ip", {}):
            part["public-ip"] = {n.name: addresses[n.name] for n in kept if n.name in addresses}
        subnets = part["subnets"]
        reserved = {name: subnets[was.name] for name, was in zip(new, old, strict=False)}
        part["subnets"] = reserved | {n.name: subnets[n.name] for n in kept if n.name in subnets}
    if docker := data.get(DOCKER):
        stay = {n.name for n in kept}
        docker["bip"] = {k: v for k, v in docker["bip"].items() if k in stay}
    stays = {n.name for n in kept}
    for section in ("namespaces", "bridges"):
        data[section] = {k: v for k, v in data.get(section, {}).items() if v["node"] in stays}
    data["veths"] = [v for v in data.get("veths", []) if v["node"] in stays]
    data["faults"] = {
        name: fault.words
        for name, fault in topology.faults.items()
        if {fault.node, fault.peer or fault.node} <= {*new, *stays}
    }
    containers = {k: v for k, v in data.get("containers", {}).items() if v["node"] in stays}
    data["containers"] = _new_containers(topology, old, new, containers) | containers


def _check_count(topology: Topology, old: abc.Sequence[Node], count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_NODES:
        raise UsageError(
            f"{count} nodes are not supported", hint=f"use a number from 1 to {MAX_NODES}"
        )
    if not old:
        raise UsageError(
            f"{topology.name} has no flannel nodes, so the number {count} would have no effect",
            hint="choose a topology with a flannel node that is no gateway, like two-node",
        )


def _new_nodes(
    topology: Topology, old: abc.Sequence[Node], kept: abc.Sequence[Node], count: int
) -> dict[str, Any]:
    """Return ``count`` nodes in the form of a file.

    etcd is on the first one, unless another node runs it.
    """
    first, other = old[0], old[1] if len(old) > 1 else old[0]
    roles = [r for r in other.roles if r != ETCD]
    first_roles = [r for r in first.roles if r != ETCD]
    if not any(ETCD in n.roles for n in kept):
        first_roles.insert(0, ETCD)
    taken = {n.name for n in kept}
    numbers = (f"node{i}" for i in range(1, count + len(kept) + 1))
    free = [name for name in numbers if name not in taken][:count]
    addresses = {
        net: _addresses(topology, net, first, kept, count)
        for net in first.networks
        if first.address_on(net)
    }
    out: dict[str, Any] = {}
    for i, name in enumerate(free):
        pattern = other if i else first
        out[name] = {
            "networks": {net: str(found[i]) for net, found in addresses.items()},
            "roles": roles if i else first_roles,
        }
        if pattern.cpus is not None:
            out[name]["cpus"] = pattern.cpus
        if pattern.memory is not None:
            out[name]["memory"] = pattern.memory
        if pattern.provider is not None:
            out[name]["provider"] = pattern.provider
    return out


def _addresses(
    topology: Topology, network: str, first: Node, kept: abc.Sequence[Node], count: int
) -> list[IPv4Address]:
    """Return consecutive addresses, without those of kept nodes.

    The first one is that of the first node.
    """
    subnet = topology.networks[network].subnet
    taken = {address for n in kept for port in n.on(network) for address in port.addresses}
    given = first.address_on(network)
    assert subnet is not None
    assert given is not None
    start = int(given)
    last = int(subnet.broadcast_address) - 1
    candidates = (IPv4Address(i) for i in range(start, min(last, start + count + len(taken)) + 1))
    found = [a for a in candidates if a not in taken][:count]
    if len(found) < count:
        raise UsageError(
            f"{network} ({subnet}) has room for {len(found)} nodes from {given} "
            f"on, but {count} are requested",
            hint="use fewer nodes, or a larger subnet",
        )
    return found


def _new_containers(
    topology: Topology, old: abc.Sequence[Node], new: abc.Iterable[str], kept: abc.Container[str]
) -> dict[str, Any]:
    """Return one container per node, like the first replaced one.

    Their names are container-1 and so on.
    """
    if DOCKER not in old[0].roles:
        return {}
    names = {n.name for n in old}
    pattern: dict[str, Any] = {"image": DEFAULT_IMAGE}
    for container in topology.containers.values():
        if container.node in names and container.network == "bridge":
            body = topology.to_dict()["containers"][container.name]
            pattern = {k: v for k, v in body.items() if k not in ("node", "network", "publish")}
            break
    out = {f"container-{i}": {"node": node, **pattern} for i, node in enumerate(new, 1)}
    return {name: body for name, body in out.items() if name not in kept}
