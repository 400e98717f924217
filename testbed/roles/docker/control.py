"""Stop and start containers by hand, with single requests to the Engine API.

To load the SDK would take longer than the work (see :mod:`testbed.roles.docker.glance`).
"""

from __future__ import annotations

import http.client
import math
from typing import TYPE_CHECKING
from urllib.parse import quote

from testbed.roles.container import Control
from testbed.roles.docker import glance
from testbed.roles.docker.settle import ending

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Seconds for a daemon to stop or start a container, besides its grace.
PATIENCE = 60.0
#: A container that is in the state already is answered with 304 (Engine API, ContainerStart).
DONE = (http.client.NO_CONTENT, http.client.NOT_MODIFIED)


class DockerControl(Control):
    """The containers of one daemon."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def states(self) -> dict[str, str]:
        return {name: one.state for name, one in glance.containers(self._node).items()}

    def start(self, name: str) -> None:
        self._post(name, "start", PATIENCE)

    def stop(self, name: str, grace: float) -> str:
        self._post(name, f"stop?t={math.ceil(grace)}", grace + PATIENCE)
        seen = glance.containers(self._node).get(name)
        return "" if seen is None or seen.exit is None else ending(seen.exit)

    def _post(self, name: str, verb: str, timeout: float) -> None:
        path = f"/containers/{quote(name, safe='')}/{verb}"
        status, body = glance.request(self._node, "POST", path, timeout)
        if status not in DONE:
            raise glance.refused(self._node, status, body)
