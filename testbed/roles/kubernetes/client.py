"""Ways to ask a lab's cluster: upstream's kubectl on its node, and the API from this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from testbed.errors import LabError, ServiceError, UsageError
from testbed.roles.base import LOOK_SECONDS, dead, still_alive
from testbed.roles.kubernetes import certificates, config

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.kubernetes.api import Api
    from testbed.steps.context import Context

SECONDS = 180.0  # none of what is waited for takes so long, however slow the machine
POLL = 0.05  # seconds


def control_plane(context: Context) -> Node:
    """The node that has the API.  Raises UsageError where the lab is no cluster, NoSuchLab."""
    cluster = context.topology.kubernetes
    if cluster is None:
        raise UsageError(
            f"lab {context.lab} has no Kubernetes", hint="one that has: testbed up k8s-two-node"
        )
    return context.node(cluster.control_plane)


def kubectl(context: Context, *words: str) -> list[str]:
    """The argv of kubectl with all rights, to be run on the control plane's node."""
    program = control_plane(context).provide(context.store.binary("kubectl"))
    return [program, f"--kubeconfig={certificates.ADMIN}", *words]


def api(context: Context) -> Api:
    """The cluster's API, with all rights."""
    from testbed.roles.kubernetes.api import Api

    node = control_plane(context)
    return Api(node.socket(config.API_SOCKET), *certificates.client(node))


def until(
    context: Context,
    node: str,
    so: Callable[[], bool],
    what: str,
    *,
    service: str,
    why: Callable[[], str] = lambda: "",
    seen: Callable[[], str] = lambda: "",
) -> bool:
    """Wait until something is so; False where it was so already.

    ``service`` is the daemon of the node that should see to it, ``why`` is asked in the end
    for what the cluster itself says, and ``seen`` now and then for what is in the way of it.
    Raises ServiceError as soon as a daemon of the node dies meanwhile, and in the end, with the
    last lines of the log; LabError when the run gives up.
    """
    machine = context.node(node)
    deadline = time.monotonic() + SECONDS
    told = time.monotonic()
    waited = False
    others = dead(machine) - {service}
    while not so():
        waited = True
        still_alive(machine, others=others)
        if time.monotonic() > deadline:
            said = f"; the cluster says: {reason}" if (reason := why()) else ""
            raise ServiceError(
                service,
                node,
                f"has not come to it within {SECONDS:g} s: {what}{said}",
                machine.logs(service),
                hint=f"all that it says: testbed logs -l {context.lab} {node} {service}",
            )
        if time.monotonic() - told > LOOK_SECONDS:
            told = time.monotonic()
            last = machine.logs(service).strip().rpartition("\n")[2]
            context.waiting(f"{service} on {node}: {what}: {why() or seen() or last}")
        if context.given_up.wait(POLL):
            raise LabError(f"stopped waiting for {service} on {node}: {what}")
    return waited
