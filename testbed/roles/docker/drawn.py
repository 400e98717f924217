"""Docker's containers for the graph of a lab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.roles.docker.engine import Engine


def containers(engine: Engine) -> list[dict[str, Any]]:
    """Return a node's running containers; a shared network namespace names its owner."""
    seen = [engine.inspect_raw(name) for name in sorted(engine.names())]
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


def bridges(engine: Engine) -> dict[str, str]:
    """Return the name of each Docker network by its bridge on the node."""
    own = ("bridge", "host", "none")  # docker0 is its own name
    return {
        one.link: one.name for one in engine.networks().values() if one.link and one.name not in own
    }


def _published(ports: Mapping[str, Any]) -> list[str]:
    """Return published ports as ``8080:80/tcp``, once each: IPv6 repeats IPv4."""
    found = {
        f"{binding['HostPort']}:{port}": None
        for port, bindings in ports.items()
        for binding in bindings or ()
    }
    return list(found)
