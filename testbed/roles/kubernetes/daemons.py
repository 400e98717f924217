"""A daemon of a cluster as a step: its files, its command line, and its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from testbed.nodes.base import Service
from testbed.roles.base import start
from testbed.roles.kubernetes import certificates, config, runtime
from testbed.roles.kubernetes.client import SECONDS
from testbed.roles.way import Way
from testbed.steps.marks import REWIRED, marked
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

SERVER = "kube-apiserver"


def daemon(
    name: str,
    node: str,
    needs: tuple[str, ...],
    words: Callable[[Topology], list[str]],
    *,
    program: str = "",
    about: str = "",
    notify: bool = False,
    env: Mapping[str, str] | None = None,
    files: Callable[[Topology], Mapping[str, str]] = lambda _: {},
) -> Step:
    """The step ``NAME NODE``, after which the daemon runs as it should.

    ``program`` is what it is called among the artifacts, its own name by default; ``files`` are
    written before, each readable by root alone.
    """

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node)
        for path, text in files(context.topology).items():
            machine.put(text.encode(), path, mode=0o600)
        path = machine.provide(context.store.binary(program or name))
        service = Service(
            name,
            (path, *words(context.topology)),
            env=runtime.path(context, machine) | dict(env or {}),
            notify=notify,
            digest=digest(context, node),
        )
        seen = way(context, node)
        return about or name, start(machine, service, timeout=SECONDS, context=context, seen=seen)

    return Step(f"{name} {node}", about or name, needs, heavy=True, act=act)


def way(context: Context, node: str) -> Callable[[], str]:
    """A look at the way from a node to the API: its fault, empty on the API's own node."""
    topology = context.topology
    control = config.cluster_of(topology).control_plane
    if node == control:
        return lambda: ""
    address = str(topology.address(control))
    return Way(context, node, control, SERVER, address, config.API_PORT).seen


def digest(context: Context, node: str) -> str:
    """The node's settings, and the life of the cluster: of a new authority nobody has heard.

    And that of its links: devices and routes have gone with one that had to be put back.
    """
    machine = context.node(node)
    life = f"{marked(machine, certificates.MARK)} {marked(machine, REWIRED) or ''}".strip()
    return f"{context.topology.node_digest(node)} {life}"
