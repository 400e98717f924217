"""Services that ``testbed-init`` keeps (see ``init.c``), however its socket is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast

from testbed.errors import LabError, ServiceError, ServiceNotReady, TimeoutExpired
from testbed.nodes.base import Service, ServiceState, log_of, no_service
from testbed.nodes.request import environment

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Names of the program ``systemctl.c`` on a node; each asks ``testbed-init`` for its services.
COMMANDS = ("systemctl", "service", "journalctl")
LISTING = 10.0  # timeout in seconds for the list of services
KILLING = 10.0  # seconds for a service to end after SIGKILL


class Ask(Protocol):
    """Sends a request to a node's ``testbed-init`` and returns the text of its answer.

    ``timeout`` is in seconds.  Raises TimeoutError, and no LabError, if there is no answer in
    time.  Errors of the connection are LabErrors: NoSuchNode when the node has ended.
    """

    def __call__(self, fields: Sequence[str], timeout: float) -> str: ...


def start(ask: Ask, node: Node, service: Service, timeout: float) -> None:
    """Start a service as :meth:`testbed.nodes.base.Node.start` does."""
    fields = ["start", service.name, service.digest or "-", "1" if service.notify else "0"]
    fields += [*environment(service.env), *service.argv]
    answer = _await(ask, node, fields, timeout)
    if answer == "differs":
        node.stop(service.name)
        answer = _await(ask, node, fields, timeout)
    _require_ready(answer, service.name, node)


def _require_ready(answer: str, service: str, node: Node) -> None:
    if answer != "ready":
        failed = answer.startswith("error")
        how = "could not be started" if failed else "died before it was ready"
        raise ServiceError(service, node.name, f"{how} ({answer})", log_of(node, service))


def start_again(ask: Ask, node: Node, service: str, timeout: float) -> None:
    """Start a service as :meth:`testbed.nodes.base.Node.start_again` does."""
    answer = _await(ask, node, ["start", service], timeout)
    if answer == "unknown":
        raise no_service(service, node.name, node.services())
    _require_ready(answer, service, node)


def stop(ask: Ask, node: Node, service: str, grace: float) -> None:
    """Stop a service as :meth:`testbed.nodes.base.Node.stop` does."""
    _await(ask, node, ["stop", service, str(int(grace * 1000))], grace + KILLING)


def services(ask: Ask) -> dict[str, ServiceState]:
    """Return the state of every service by name."""
    states = {}
    try:
        listed = ask(["list"], LISTING)
    except LabError:
        raise
    except TimeoutError as error:
        raise TimeoutExpired(str(error)) from None
    for line in listed.splitlines()[1:]:
        name, state, pid, status, digest = line.split(" ", 4)
        states[name] = ServiceState(
            name=name,
            state=cast('Literal["starting", "ready", "dead"]', state),
            pid=int(pid),
            status=int(status) if state == "dead" else None,
            digest="" if digest == "-" else digest,
        )
    return states


def _await(ask: Ask, node: Node, fields: Sequence[str], timeout: float) -> str:
    """Return the answer to a request to start or stop a service, its first two fields."""
    try:
        return ask(fields, timeout).strip()
    except LabError:  # TimeoutExpired is a TimeoutError, too
        raise
    except TimeoutError:
        verb, service = fields[:2]
        what = f"was not {'ready' if verb == 'start' else 'dead'} within {timeout:g} s"
        raise ServiceNotReady(service, node.name, what, log_of(node, service)) from None
