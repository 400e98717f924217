"""The state of a node's containers, read quickly for ``status``.

To load the SDK (see :mod:`testbed.roles.docker.engine`) takes longer than all of ``status`` may
take for a lab of thirty nodes. This module sends a single GET to the same API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.limits import exhausted
from testbed.nodes.engine import SOCKET
from testbed.nodes.unix_http import UnixConnection
from testbed.roles.docker.engine import as_list, no_answer, no_sense

if TYPE_CHECKING:
    from testbed.nodes.base import Node

TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Glance:
    """The state of one container.

    ``state`` is Docker's own term; ``address`` is empty if the container has none. ``exit`` is
    the exit status of a container that has ended. ``health`` is healthy, unhealthy or starting,
    or empty without a health check.
    """

    name: str
    state: str
    address: str
    exit: int | None = None
    health: str = ""


def containers(node: Node) -> dict[str, Glance]:
    """Return all containers of a node by name.

    Raises LabError if its daemon does not answer, MachineError if this process can open no more
    files.
    """
    status, body = request(node, "GET", "/containers/json?all=1")
    if status != http.client.OK:
        raise refused(node, status, body)
    return {one.name: one for one in _listed(body, node.name)}


def request(node: Node, method: str, path: str, timeout: float = TIMEOUT) -> tuple[int, bytes]:
    """Send a request without a body to a node's daemon; return the status and the answer.

    ``timeout`` is in seconds. Raises the errors of :func:`containers`.
    """
    connection = UnixConnection(node.socket(SOCKET), timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and (full := exhausted(error)) is not None:
            raise full from error
        raise no_answer(node.name, error) from error
    finally:
        connection.close()


def refused(node: Node, status: int, body: bytes) -> LabError:
    """Return the error for an answer of a daemon that is no success."""
    said = body.decode(errors="replace").strip()
    with contextlib.suppress(ValueError, LookupError, TypeError):
        said = json.loads(body)["message"]
    return LabError(f"dockerd on {node.name} answers {status}: {said}")


def _listed(body: bytes, node: str) -> list[Glance]:
    try:
        # A container that is being removed no longer has a name.
        return [_glance(entry) for entry in as_list(json.loads(body)) if entry["Names"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise no_sense(node, "list containers", error) from error


def _glance(entry: dict[str, Any]) -> Glance:
    networks = (entry.get("NetworkSettings") or {}).get("Networks") or {}
    address = next((n.get("IPAddress") or "" for n in networks.values()), "")
    # The daemon's text: "Exited (3) 5 seconds ago", "Up 2 minutes (unhealthy)" or, before the
    # first health check has finished, "Up 1 second (health: starting)".
    words = entry.get("Status") or ""
    ended = re.match(r"Exited \((\d+)\)", words)
    health = re.search(r"^Up .*\((?:health: )?(healthy|unhealthy|starting)\)$", words)
    return Glance(
        entry["Names"][0].lstrip("/"),
        entry["State"],
        address,
        int(ended[1]) if ended else None,
        health[1] if health else "",
    )
