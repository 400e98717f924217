"""Clients of a lab's cluster: kubectl on its node, the API from here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from testbed.errors import LabError, ServiceError, UsageError
from testbed.roles.base import LOOK_SECONDS, dead, still_alive
from testbed.roles.kubernetes import certificates, config
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.kubernetes.api import Api
    from testbed.steps.context import Context

SECONDS = 180.0  # a time limit that no wait here needs, even on a slow machine
POLL = 0.05  # seconds


def control_plane(context: Context) -> Node:
    """Return the node with the API.

    Raises UsageError if the lab has no cluster, NoSuchNode if the node does not run.
    """
    cluster = KubernetesSection.find(context.topology)
    if cluster is None:
        raise UsageError(
            f"lab {context.lab} has no Kubernetes",
            hint="`testbed up k8s-two-node` creates one with Kubernetes",
        )
    return context.node(cluster.control_plane)


def kubectl(context: Context, *words: str) -> list[str]:
    """Return the argv of kubectl with all rights, for the control plane."""
    program = control_plane(context).provide(context.store.binary("kubectl"))
    return [program, f"--kubeconfig={certificates.ADMIN}", *words]


def api(context: Context) -> Api:
    """Return a client of the cluster's API with all rights."""
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
    """Wait until ``so`` returns True; return False if it was True at once.

    ``what`` describes the wait. ``service`` is the daemon of the node that is responsible.
    ``why`` returns the cluster's own reason for the delay, ``seen`` another obstacle if the
    cluster gives no reason. Raises ServiceError, with the last lines of the log, at the time
    limit and as soon as a daemon of the node dies; LabError when the run gives up.
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
            said = f"; reason given by the cluster: {reason}" if (reason := why()) else ""
            raise ServiceError(
                service,
                node,
                f"was not ready within {SECONDS:g} s: {what}{said}",
                machine.logs(service),
                hint=f"`testbed logs -l {context.lab} {node} {service}` shows the log",
            )
        if time.monotonic() - told > LOOK_SECONDS:
            told = time.monotonic()
            last = machine.logs(service).strip().rpartition("\n")[2]
            context.waiting(f"{service} on {node}: {what}: {why() or seen() or last}")
        if context.given_up.wait(POLL):
            raise LabError(f"stopped waiting for {service} on {node}: {what}")
    return waited
