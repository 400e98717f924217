"""Logs of containers, from the files that the daemon writes, without asking it.

They can be read while the daemon is dead, and of containers that have ended.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.container import LogLine
from testbed.roles.docker.processes import recorded

if TYPE_CHECKING:
    from testbed.nodes.base import Node

READ_SECONDS = 60.0


def names(node: Node) -> list[str]:
    """Return the names of all containers of a node, running or not."""
    return sorted(_files(node))


def _files(node: Node) -> dict[str, str]:
    """Return the log file of each container; empty for a driver that writes none to read."""
    found = {}
    for data in recorded(node):
        name = str(data.get("Name") or "").lstrip("/")
        if name:
            found[name] = str(data.get("LogPath") or "")
    return found


def read(node: Node, name: str, begin: int) -> tuple[list[LogLine], int]:
    """Return the lines of a container from a place in its log file on, and the next place.

    A line that is not complete is left for the next call. Raises LabError for a container whose
    logging driver writes no such file.
    """
    path = _files(node).get(name, "")
    if not path:
        raise LabError(
            f"the log of container {name} on {node.name} is in no file",
            hint=f"its logging driver may have it: testbed exec {node.name} docker logs {name}",
        )
    argv = ["tail", "-c", f"+{begin + 1}", path]
    data = node.run(argv, timeout=READ_SECONDS, check=False).out
    whole = data[: data.rfind(b"\n") + 1]
    return _lines(whole), begin + len(whole)


def _lines(data: bytes) -> list[LogLine]:
    """Parse lines of the driver json-file; long lines of a container are in several of them."""
    found: list[LogLine] = []
    rest = ""
    for line in data.splitlines():
        try:
            entry = json.loads(line)
            rest += str(entry["log"])
            at = _time(str(entry["time"]))
        except (ValueError, LookupError, TypeError):
            continue
        if rest.endswith("\n"):
            found.append(LogLine(rest.removesuffix("\n"), at))
            rest = ""
    return [*found, LogLine(rest, None)] if rest else found


def _time(text: str) -> float | None:
    """Return the Unix time of a point in time with nanoseconds."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
