"""Find a node's containers by their processes, without asking the daemon.

The engine records a container in a file whenever it starts or ends, and a container's processes
survive the engine. So this module reads only these files and the kernel's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from testbed.roles.container import ContainerProcess

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Folders below dockerd's data root with the records of containers (moby, daemon/container:
#: configFileName). With userns-remap, the data root is UID.GID below the usual one.
DATA = "/var/lib/docker"
FOLDERS = rf"{DATA}/([0-9]+\.[0-9]+|([0-9]+\.[0-9]+/)?containers(/.*)?)"
#: Folder of a container of a daemon with userns-remap.
REMAPPED = re.compile(rf"{DATA}/[0-9]+\.[0-9]+/")
EVERY_ID = [b"0", b"0", b"4294967295"]  # the map of a process in no user namespace of its own
LIST = ("find", DATA, "-regextype", "posix-extended", "-mindepth", "1", "-maxdepth", "4",
        "(", "-regex", FOLDERS, "-o", "-prune", ")", "-name", "config.v2.json",
        "-exec", "cat", "{}", ";", "-printf", r"\0")  # fmt: skip


def containers(node: Node) -> dict[str, ContainerProcess]:
    """Return the running containers of a node by name.

    A node without an engine has none. Raises NoSuchNode, and TimeoutExpired if the node itself does
    not answer.
    """
    found = (one for data in recorded(node) for one in _read(data))
    running = (one for one in sorted(found, key=lambda one: one.name) if _runs(node, one))
    return {one.name: _with_user(node, one) for one in running}


def recorded(node: Node) -> Iterator[Mapping[str, Any]]:
    """Yield what the engine has recorded of each container, running or not.

    Raises the errors of :func:`containers`.
    """
    for text in node.run(LIST, check=False).out.split(b"\0"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            yield data


def _read(data: Mapping[str, Any]) -> Iterator[ContainerProcess]:
    """Yield the container that a record describes; nothing for an invalid one."""
    try:
        networks = (data.get("NetworkSettings") or {}).get("Networks") or {}
        addresses = {name: one.get("IPAddress") or "" for name, one in networks.items()}
        address = next(iter(addresses.values()), "")
        addresses = {name: one for name, one in addresses.items() if one}
        pid = int(data["State"]["Pid"])
        config = data.get("Config") or {}
        env = (f"HOSTNAME={config.get('Hostname', '')}", *map(str, config.get("Env") or ()))
        name = str(data["Name"]).lstrip("/")
        if pid > 0:
            remapped = REMAPPED.match(str(data.get("HostnamePath"))) is not None
            yield ContainerProcess(name, str(data["ID"]), pid, address, env, addresses, remapped)
    except (ValueError, LookupError, TypeError, AttributeError):
        return


def _with_user(node: Node, container: ContainerProcess) -> ContainerProcess:
    """Return the container without a user namespace if it has none (docker run --userns=host)."""
    if not container.user:
        return container
    try:
        mapped = node.get(f"/proc/{container.pid}/uid_map").split()
    except OSError:
        return container
    return replace(container, user=mapped != EVERY_ID)


def _runs(node: Node, container: ContainerProcess) -> bool:
    """Tell whether the process still belongs to the container.

    Its cgroup then has the container's ID.
    """
    try:
        groups = node.get(f"/proc/{container.pid}/cgroup")
    except OSError:
        return False
    return bool(container.id) and container.id.encode() in groups
