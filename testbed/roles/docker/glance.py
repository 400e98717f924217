"""The state of a node's containers, read quickly for ``status``.

To load the SDK (see :mod:`testbed.roles.docker.engine`) takes longer than all of ``status`` may
take for a lab of thirty nodes. This module sends a single GET to the same API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from testbed.errors import LabError
from testbed.limits import exhausted
from testbed.nodes.engine import SOCKET
from testbed.nodes.unix_http import UnixConnection
from testbed.roles.docker.engine import NetworkState, as_list, network_state, no_answer, no_sense

if TYPE_CHECKING:
    from testbed.nodes.base import Node

T = TypeVar("T")

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
    #: Address, and IPv6 address, on each network by name; empty without one.
    networks: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Its addresses on its first network, in words."""
        return ", ".join(filter(None, next(iter(self.networks.values()), (self.address,))))


@dataclass(frozen=True, slots=True)
class Membership:
    """A node's part in a swarm; ``state`` is Docker's own term."""

    state: str
    is_manager: bool
    error: str


def swarm(node: Node) -> Membership:
    """Return a node's part in a swarm.  Raises the errors of :func:`containers`."""
    status, body = request(node, "GET", "/info")
    if status != http.client.OK:
        raise refused(node, status, body)
    try:
        said = json.loads(body)["Swarm"]
        why = str(said.get("Error") or "")
        return Membership(str(said["LocalNodeState"]), said["ControlAvailable"] is True, why)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise no_sense(node.name, "tell its part in a swarm", error) from error


def containers(node: Node) -> dict[str, Glance]:
    """Return all containers of a node by name.

    Raises LabError if its daemon does not answer, MachineError if this process can open no more
    files.
    """
    body = _get(node, "/containers/json?all=1")
    return {one.name: one for one in read(body, node.name, "list containers", _listed)}


def networks(node: Node) -> dict[str, NetworkState]:
    """Return all Docker networks of a node by name.  Raises the same errors."""
    body = _get(node, "/networks")
    return {one.name: one for one in read(body, node.name, "list networks", _networks)}


def _get(node: Node, path: str) -> bytes:
    status, body = request(node, "GET", path)
    if status != http.client.OK:
        raise refused(node, status, body)
    return body


def request(node: Node, method: str, path: str, timeout: float | None = None) -> tuple[int, bytes]:
    """Send a request without a body to a node's daemon; return the status and the answer.

    ``timeout`` is in seconds, by default 5. Raises the errors of :func:`containers`.
    """
    connection = UnixConnection(node.socket(SOCKET), TIMEOUT if timeout is None else timeout)
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


def read(body: bytes, node: str, what: str, decode: Callable[[bytes], list[T]]) -> list[T]:
    """Return what ``decode`` makes of an answer; ``what`` was asked, as "cannot ..." has it.

    Raises LabError if it cannot.
    """
    try:
        return decode(body)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise no_sense(node, what, error) from error


def _listed(body: bytes) -> list[Glance]:
    # A container that is being removed no longer has a name.
    return [_glance(entry) for entry in as_list(json.loads(body)) if entry["Names"]]


def _networks(body: bytes) -> list[NetworkState]:
    return [network_state(entry) for entry in as_list(json.loads(body))]


def _glance(entry: dict[str, Any]) -> Glance:
    networks = (entry.get("NetworkSettings") or {}).get("Networks") or {}
    addresses = {
        name: (one.get("IPAddress") or "", one.get("GlobalIPv6Address") or "")
        for name, one in networks.items()
    }
    address = next((four for four, _ in addresses.values()), "")
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
        addresses,
    )
