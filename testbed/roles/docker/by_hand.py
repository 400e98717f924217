"""Containers and networks of an engine that are not in the topology file, in its words."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from testbed.roles.docker import glance
from testbed.roles.docker.engine import IFNAME, LAB
from testbed.roles.docker.networks import DRIVERS, networks_of

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

#: Labels of containers and networks that another file of the node describes.
OF_OTHERS = ("com.docker.compose.project", "com.docker.swarm.service.id", LAB)
OWN_MODES = ("default", "bridge")
Change = tuple[tuple[str, ...], Any, str]


def changes(topology: Topology, node: Node) -> Iterator[Change]:
    """Yield what was created or removed by hand: path in a file, value, and words.

    Raises LabError if the daemon does not answer.
    """
    listed = _get(node, "/containers/json?all=1")
    names = {entry["Names"][0].lstrip("/") for entry in listed if entry.get("Names")}
    for container in topology.containers_on(node.name):
        if container.name not in names:
            words = f"container {container.name} of {node.name} was removed"
            yield ("containers", container.name), None, words
    yield from _networks(topology, node)
    by_id = {entry["Id"]: entry["Names"][0].lstrip("/") for entry in listed if entry.get("Names")}
    for entry in sorted(listed, key=lambda one: one.get("Names") or []):
        labels = entry.get("Labels") or {}
        if entry.get("State") != "running" or any(label in labels for label in OF_OTHERS):
            continue
        name = by_id[entry["Id"]]
        if name in topology.containers and topology.containers[name].node == node.name:
            continue
        path = ("containers", name.lower().replace("_", "-"))  # Docker's own names have "_"
        data = _get(node, f"/containers/{entry['Id']}/json")
        image = _get(node, f"/images/{quote(data['Image'], safe=':')}/json")
        words = f"docker run --name {name} {data['Config']['Image']} on {node.name}"
        yield path, _container(node.name, data, image["Config"] or {}, by_id), words
        if data["HostConfig"].get("Mounts"):
            yield (), None, f"mounts of {words}"


def _get(node: Node, path: str) -> Any:
    status, body = glance.request(node, "GET", path)
    if status != http.client.OK:
        raise glance.refused(node, status, body)
    return json.loads(body)


def _networks(topology: Topology, node: Node) -> Iterator[Change]:
    known = networks_of(topology)
    for data in sorted(_get(node, "/networks"), key=lambda one: str(one["Name"])):
        name = data["Name"]
        labels = data.get("Labels") or {}
        own = name in ("bridge", "host", "none", "docker_gwbridge", "ingress")
        if own or name in known or any(label in labels for label in OF_OTHERS):
            continue
        words = f"docker network create --driver {data['Driver']} {name} on {node.name}"
        if data["Driver"] not in DRIVERS:
            yield (), None, words
            continue
        pools = (data.get("IPAM") or {}).get("Config") or []
        value: dict[str, Any] = {
            "driver": data["Driver"],
            "subnet": [one["Subnet"] for one in pools if one.get("Subnet")],
            "gateway": [one["Gateway"] for one in pools if one.get("Gateway")],
            "ip_range": [one["IPRange"] for one in pools if one.get("IPRange")],
            "aux_addresses": {
                name: address
                for one in pools
                for name, address in (one.get("AuxiliaryAddresses") or {}).items()
            },
            "internal": data.get("Internal"),
            "enable_ipv6": data.get("EnableIPv6"),
            "driver_opts": data.get("Options"),
            "nodes": [node.name],
        }
        yield ("docker", "networks", name), {k: v for k, v in value.items() if v}, words


def _container(
    node: str, data: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the keys of a container whose values are not the image's or Docker's own."""
    config, host = data["Config"], data["HostConfig"]
    value: dict[str, Any] = {
        "node": node,
        "image": config["Image"],
        "command": _other(config, image, "Cmd"),
        "entrypoint": _other(config, image, "Entrypoint"),
        "env": dict(
            pair.partition("=")[::2]
            for pair in config.get("Env") or ()
            if pair not in (image.get("Env") or ())
        ),
        "hostname": config.get("Hostname") if not data["Id"].startswith(
            config.get("Hostname") or "-") else "",
        "user": _other(config, image, "User"),
        "working_dir": _other(config, image, "WorkingDir"),
        "labels": {
            k: v
            for k, v in (config.get("Labels") or {}).items()
            if (image.get("Labels") or {}).get(k) != v
        },
        "privileged": host.get("Privileged"),
        "cap_add": [one.removeprefix("CAP_") for one in host.get("CapAdd") or ()],
        "cap_drop": [one.removeprefix("CAP_") for one in host.get("CapDrop") or ()],
        "sysctls": host.get("Sysctls"),
        "cpus": (host.get("NanoCpus") or 0) / 1e9,
        "mem_limit": host.get("Memory"),
        "pids_limit": max(host.get("PidsLimit") or 0, 0),
        "volumes": host.get("Binds"),
        "tmpfs": [f"{k}:{v}" if v else k for k, v in (host.get("Tmpfs") or {}).items()],
        "dns": host.get("Dns"),
        "extra_hosts": host.get("ExtraHosts"),
        "publish": [*_published(host.get("PortBindings") or {})],
        "restart": _restart(host.get("RestartPolicy") or {}),
        "init": host.get("Init"),
    }  # fmt: skip
    value |= _network(host["NetworkMode"], data["NetworkSettings"].get("Networks") or {}, names)
    if value.get("network", "").partition(":")[0] in ("host", "container"):
        value["hostname"] = ""
    return {k: v for k, v in value.items() if v}


def _other(config: Mapping[str, Any], image: Mapping[str, Any], key: str) -> Any:
    return config.get(key) if config.get(key) != image.get(key) else None


def _network(mode: str, networks: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    kind, _, other = mode.partition(":")
    if kind == "container":
        return {"network": f"container:{names.get(other, other)}"}
    if mode in ("host", "none"):
        return {"network": mode}
    if mode in OWN_MODES and len(networks) < 2:
        return {}
    return {"networks": {name: _attachment(one) for name, one in networks.items()}}


def _attachment(network: Mapping[str, Any]) -> dict[str, Any]:
    given = network.get("IPAMConfig") or {}
    value = {
        "ipv4_address": given.get("IPv4Address"),
        "ipv6_address": given.get("IPv6Address"),
        "interface_name": (network.get("DriverOpts") or {}).get(IFNAME),
    }
    return {k: v for k, v in value.items() if v}


def _published(bindings: Mapping[str, Any]) -> Iterator[str]:
    for inner, outers in bindings.items():
        for one in outers or ():
            address = one.get("HostIp") or ""
            address = f"[{address}]" if ":" in address else address
            outer = one.get("HostPort") or ""
            yield (
                f"{address}:{outer}:{inner}"
                if address not in ("", "0.0.0.0")
                else f"{outer}:{inner}"
            )


def _restart(policy: Mapping[str, Any]) -> str:
    name, count = policy.get("Name") or "no", policy.get("MaximumRetryCount") or 0
    if name == "no":
        return ""
    return f"{name}:{count}" if count else str(name)
