"""Variants of a topology: other settings, name or number of nodes.

A variant is the plain form of a topology, edited and read again like a file. So a variant cannot
contain anything that a file cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from testbed import registry
from testbed.errors import UsageError
from testbed.topology import keys
from testbed.topology.build import build
from testbed.topology.model import (
    BACKENDS,
    ENGINES,
    FIREWALLS,
    PLUGINS,
    PROXIES,
    Node,
    Topology,
)
from testbed.topology.source import from_data
from testbed.topology.tree import Problems, nearest, quote

if TYPE_CHECKING:
    from collections import abc

__all__ = ["MAX_NODES", "Overrides", "vary"]

MAX_NODES = 250


@dataclass(frozen=True, slots=True)
class Overrides:
    """The changes of a topology by options; None leaves a setting unchanged."""

    backend: str | None = None  #: flannel's: udp, vxlan or host-gw
    provider: str | None = None  #: for nodes that don't set their own
    nodes: int | None = None  #: number of flannel nodes, 1 to 250
    name: str | None = None  #: the lab's
    docker: str | None = None  #: the engine: 20.10 or 29
    firewall: str | None = None  #: iptables, iptables-legacy, iptables-nft or nftables
    cni: str | None = None  #: a cluster's network plugin
    proxy: str | None = None  #: kube-proxy's mode: nftables or iptables


def vary(topology: Topology, overrides: Overrides) -> Topology:
    """Return the topology with changed settings.

    Raises UsageError for an override that does not apply to this topology, TopologyError if the
    result is invalid.
    """
    if overrides == Overrides():
        return topology
    data = topology.to_dict()
    if overrides.nodes is not None:
        _set_nodes(data, topology, overrides.nodes)
    if overrides.docker is not None or overrides.firewall is not None:
        _set_docker(data, topology, overrides.docker, overrides.firewall)
    if overrides.cni is not None:
        _known("network plugin", overrides.cni, PLUGINS)
        _set_cluster(data, topology, "cni", overrides.cni)
        if overrides.cni != "flannel":
            data["kubernetes"].pop("backend", None)
    if overrides.backend is not None:
        _set_backend(data, topology, overrides.backend)
    if overrides.proxy is not None:
        _known("proxy mode", overrides.proxy, PROXIES)
        _set_cluster(data, topology, "proxy", overrides.proxy)
    if overrides.provider is not None:
        _set_provider(data, topology, overrides.provider)
    if overrides.name is not None:
        data["name"] = overrides.name
    problems = Problems(topology.source)
    return replace(build(from_data(data, problems), problems), file=topology.file)


def _known(what: str, word: str, known: abc.Sequence[str]) -> None:
    if word not in known:
        hint = nearest(word, known)
        if hint.startswith("did"):
            hint += f" known: {', '.join(known)}"
        raise UsageError(f"no {what} {quote(word)}", hint=hint)


def _set_provider(data: dict[str, Any], topology: Topology, provider: str) -> None:
    _known("provider", provider, [*registry.PROVIDERS])
    if all(node.provider for node in topology.nodes.values()):
        raise UsageError(
            f"each node of {topology.name} says its own provider, none would be made by {provider}",
            hint="change the nodes in a copy of the file",
        )
    data["provider"] = provider


def _set_backend(data: dict[str, Any], topology: Topology, backend: str) -> None:
    _known("backend", backend, BACKENDS)
    if topology.flannel is None and topology.kubernetes is None:
        raise UsageError(
            f"{topology.name} has no flannel network whose backend could be {backend}",
            hint="choose a topology with a flannel section, like two-node",
        )
    if topology.flannel is not None and backend != topology.flannel.backend:
        # A port or VNI is valid only for its original backend.
        data["flannel"].pop("port", None)
        data["flannel"].pop("vni", None)
    for section in ("flannel", "kubernetes"):
        if section in data:
            data[section]["backend"] = backend


def _set_cluster(data: dict[str, Any], topology: Topology, key: str, word: str) -> None:
    if topology.kubernetes is None:
        raise UsageError(
            f"{topology.name} has no Kubernetes whose {key} could be {word}",
            hint="choose a topology with a kubernetes section, like k8s-two-node",
        )
    data["kubernetes"][key] = word


def _set_docker(
    data: dict[str, Any], topology: Topology, engine: str | None, firewall: str | None
) -> None:
    if not topology.with_role("docker"):
        asked = f"engine {engine}" if engine else f"firewall {firewall}"
        raise UsageError(
            f"{topology.name} has no node with Docker that could have {asked}",
            hint="choose a topology with the role docker, like docker-single",
        )
    section = data.setdefault("docker", {})
    if engine is not None:
        section["engine"] = keys.ENGINE_ALIASES.get(engine, engine)
        _known("engine", section["engine"], ENGINES)
    if firewall is not None:
        _known("packet filter", firewall, FIREWALLS)
        section["firewall"] = firewall


def _set_nodes(data: dict[str, Any], topology: Topology, count: int) -> None:
    """Replace the flannel nodes by ``count`` nodes like the first two.

    Other nodes keep their containers. Those of the replaced nodes are dropped; instead each new
    node with Docker gets one container.
    """
    old = [n for n in topology.with_role("flannel") if not n.gateway]
    _check_count(topology, old, count)
    kept = [n for n in topology.nodes.values() if n not in old]
    new = _new_nodes(topology, old, kept, count)
    if not isinstance(data["flannel"].get("interface", ""), str):
        data["flannel"].pop("interface")  # it names replaced nodes
    data["nodes"] = new | {n.name: data["nodes"][n.name] for n in kept}
    subnets = data["flannel"]["subnets"]
    reserved = {name: subnets[was.name] for name, was in zip(new, old, strict=False)}
    data["flannel"]["subnets"] = reserved | {
        n.name: subnets[n.name] for n in kept if n.name in subnets
    }
    if docker := data.get("docker"):
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
        raise UsageError(f"{count} nodes", hint=f"from 1 to {MAX_NODES} are possible")
    if topology.flannel is None or not old:
        raise UsageError(
            f"{topology.name} has no flannel nodes whose number could be {count}",
            hint="choose a topology with a flannel section, like two-node",
        )


def _new_nodes(
    topology: Topology, old: abc.Sequence[Node], kept: abc.Sequence[Node], count: int
) -> dict[str, Any]:
    """Return ``count`` nodes in the form of a file.

    etcd is on the first one, unless another node runs it.
    """
    first, other = old[0], old[1] if len(old) > 1 else old[0]
    roles = [r for r in other.roles if r != "etcd"]
    first_roles = [r for r in first.roles if r != "etcd"]
    if not any("etcd" in n.roles for n in kept):
        first_roles.insert(0, "etcd")
    taken = {n.name for n in kept}
    numbers = (f"node{i}" for i in range(1, count + len(kept) + 1))
    free = [name for name in numbers if name not in taken][:count]
    addresses = {net: _addresses(topology, net, first, kept, count) for net in first.networks}
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
    taken = {n.networks[network] for n in kept if network in n.networks}
    start = int(first.networks[network])
    last = int(subnet.broadcast_address) - 1
    candidates = (IPv4Address(i) for i in range(start, min(last, start + count + len(taken)) + 1))
    found = [a for a in candidates if a not in taken][:count]
    if len(found) < count:
        raise UsageError(
            f"{network} ({subnet}) has room for {len(found)} nodes from {first.networks[network]} "
            f"on, not for {count}",
            hint="ask for fewer, or give the network a larger subnet",
        )
    return found


def _new_containers(
    topology: Topology, old: abc.Sequence[Node], new: abc.Iterable[str], kept: abc.Container[str]
) -> dict[str, Any]:
    """Return one container per node, like the first replaced one.

    Their names are container-1 and so on.
    """
    if "docker" not in old[0].roles:
        return {}
    names = {n.name for n in old}
    pattern: dict[str, Any] = {"image": keys.DEFAULT_IMAGE}
    for container in topology.containers.values():
        if container.node in names and container.network == "bridge":
            body = topology.to_dict()["containers"][container.name]
            pattern = {k: v for k, v in body.items() if k not in ("node", "network", "publish")}
            break
    out = {f"container-{i}": {"node": node, **pattern} for i, node in enumerate(new, 1)}
    return {name: body for name, body in out.items() if name not in kept}
