"""Docker's containers for the graph of a lab."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from testbed.roles.docker import glance

if TYPE_CHECKING:
    from testbed.nodes.base import Node


def containers(node: Node) -> list[dict[str, Any]]:
    """Return a node's running containers; a shared network namespace names its owner.

    Raises LabError if the daemon does not answer.
    """
    seen = []
    for name in sorted(glance.containers(node)):
        status, body = glance.request(node, "GET", f"/containers/{name}/json")
        if status == http.client.NOT_FOUND:  # removed meanwhile
            continue
        if status != http.client.OK:
            raise glance.refused(node, status, body)
        seen.append(body)
    return glance.read(b"\0".join(seen), node.name, "inspect containers", _described)


def _described(bodies: bytes) -> list[dict[str, Any]]:
    seen = [json.loads(body) for body in bodies.split(b"\0") if body]
    names = {one["Id"]: one["Name"].lstrip("/") for one in seen}
    found = []
    for one in seen:
        if not one["State"]["Running"]:
            continue
        mode, _, whose = one["HostConfig"]["NetworkMode"].partition(":")
        container: dict[str, Any] = {
            "name": names[one["Id"]],
            "pid": one["State"]["Pid"],
            "mode": mode,
            "published": _published(one["NetworkSettings"].get("Ports") or {}),
        }
        if mode == "container":
            container["shares"] = names.get(whose, whose)
        found.append(container)
    return found


def bridges(node: Node) -> dict[str, str]:
    """Return the name of each Docker network by its bridge on the node.  Raises LabError."""
    own = ("bridge", "host", "none")  # docker0 is its own name
    return {
        one.link: one.name
        for one in glance.networks(node).values()
        if one.link and one.name not in own
    }


def _published(ports: Mapping[str, Any]) -> list[str]:
    """Return published ports as ``8080:80/tcp``, once each: IPv6 repeats IPv4."""
    found = {
        f"{binding['HostPort']}:{port}": None
        for port, bindings in ports.items()
        for binding in bindings or ()
    }
    return list(found)
