"""A node's containers by their processes, with or without a daemon that answers.

The engine writes down a container each time that it starts or ends; a container's processes
live on when the engine dies. So the way into one asks files and the kernel, and nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Below dockerd's data root (moby, daemon/container: configFileName).
FOLDER = "/var/lib/docker/containers"
LIST = ("find", FOLDER, "-mindepth", "2", "-maxdepth", "2", "-name", "config.v2.json",
        "-exec", "cat", "{}", ";", "-printf", r"\0")  # fmt: skip
SHORT = 6  # characters of an id that stand for a container


@dataclass(frozen=True, slots=True)
class ContainerProcess:
    """A container that runs.

    ``pid`` is that of its first process in the node's pid namespace; ``address`` is that on its
    first network, empty where it has none of its own; ``env`` has the variables that its
    commands get, as NAME=VALUE.
    """

    name: str
    id: str
    pid: int
    address: str
    env: tuple[str, ...] = ()


def containers(node: Node) -> dict[str, ContainerProcess]:
    """The containers of a node that run now, by name; none on a node without an engine.

    Raises NoSuchLab, TimeoutExpired when the node itself does not answer.
    """
    texts = node.run(LIST, check=False).out.split(b"\0")
    found = (one for text in texts for one in _read(text))
    return {one.name: one for one in sorted(found, key=lambda one: one.name) if _runs(node, one)}


def find(node: Node, name: str) -> ContainerProcess | None:
    """The container of a name, or of an id or the beginning of one; None when it does not run."""
    there = containers(node)
    if name in there:
        return there[name]
    meant = [one for one in there.values() if len(name) >= SHORT and one.id.startswith(name)]
    return meant[0] if len(meant) == 1 else None


def _read(text: bytes) -> Iterator[ContainerProcess]:
    """The container that a file describes; nothing where it makes no sense."""
    try:
        data: Mapping[str, Any] = json.loads(text)
        networks = (data.get("NetworkSettings") or {}).get("Networks") or {}
        address = next((one.get("IPAddress") or "" for one in networks.values()), "")
        pid = int(data["State"]["Pid"])
        config = data.get("Config") or {}
        env = (f"HOSTNAME={config.get('Hostname', '')}", *map(str, config.get("Env") or ()))
        name = str(data["Name"]).lstrip("/")
        if pid > 0:
            yield ContainerProcess(name, str(data["ID"]), pid, address, env)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return


def _runs(node: Node, container: ContainerProcess) -> bool:
    """Tell whether the process still is the container's: its cgroup bears the id."""
    try:
        groups = node.get(f"/proc/{container.pid}/cgroup")
    except OSError:
        return False
    return bool(container.id) and container.id.encode() in groups
