"""Test the network path from a node to a service during a wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.errors import PathError, ServiceError

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context

NO_ROUTE = "no route"
UNREACHABLE = "host unreachable"
REFUSED = "connection refused"
SILENT = "no answer"
#: Seconds after which a wait ends because of this fault on the path: it does not disappear by
#: itself.  A missing route or a closed port stays; an answer may be late on a busy machine.
PATIENCE: Mapping[str, float] = {NO_ROUTE: 4.0, REFUSED: 15.0, UNREACHABLE: 15.0, SILENT: 45.0}
CONNECT_SECONDS = 3
#: Exit status 0: connected, 2: no route; otherwise the shell prints the reason.
TEST = """\
ip route get "$1" >/dev/null 2>&1 || exit 2
LC_ALL=C exec timeout "$3" bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "$1" "$2"
"""


def test(node: Node, address: str, port: int) -> str:
    """Return why a TCP connection from a node fails.

    Return an empty string if it succeeds.
    """
    argv = ["sh", "-c", TEST, "sh", address, str(port), str(CONNECT_SECONDS)]
    result = node.run(argv, timeout=CONNECT_SECONDS + 30, check=False)
    if result.ok:
        return ""
    words = result.stderr.lower()
    if result.status == 2 or "network is unreachable" in words:
        return NO_ROUTE
    if "no route to host" in words:  # no answer to ARP, or a router's reply (EHOSTUNREACH)
        return UNREACHABLE
    return REFUSED if "refused" in words else SILENT


@dataclass(slots=True)
class Way:
    """The path from ``node`` to a service of ``peer``.

    The service is given by its address and port.
    """

    context: Context
    node: str
    peer: str
    service: str
    address: str
    port: int
    _since: dict[str, float] = field(default_factory=dict)

    def seen(self) -> str:
        """Return the current fault on the path; empty if there is none.

        Raises ServiceError if the service has died, PathError if the path has been blocked for
        longer than its time limit.
        """
        machine = self.context.node(self.peer)
        state = machine.services().get(self.service)
        if state is not None and state.state == "dead":
            raise ServiceError(self.service, self.peer, "has died", machine.logs(self.service))
        reason = test(self.context.node(self.node), self.address, self.port)
        now = time.monotonic()
        since = self._since.get(reason, now)
        self._since = {reason: since} if reason else {}
        what = f"{self.service} on {self.peer}"
        if reason and now - since >= PATIENCE[reason]:
            raise PathError(self.node, what, self.address, self.port, reason)
        if not reason:
            return ""
        return f"{self.node} can't reach {what} at {self.address}:{self.port}: {reason}"
