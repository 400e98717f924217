"""The step that starts a daemon of a cluster.

It writes the files and starts the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from testbed.nodes.base import Service
from testbed.nodes.marks import REWIRED, marked
from testbed.roles.base import digest_of, start
from testbed.roles.kubernetes import certificates, config, runtime
from testbed.roles.kubernetes.client import SECONDS
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.roles.way import Way
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
    """Return the step ``NAME NODE``, after which the daemon runs and is ready.

    ``program`` is the artifact, by default with the daemon's name. ``files`` are written first,
    readable only by root.
    """

    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node)
        for path, text in files(context.topology).items():
            machine.put(text.encode(), path, mode=0o600)
        path = machine.provide(context.store.binary(program or name))
        cluster = KubernetesSection.of(context.topology)
        given, fields = cluster.arguments.of(name), cluster.configuration.of(name)
        own = f" {digest_of(given, fields)}" if given or fields else ""
        service = Service(
            name,
            (path, *with_flags(words(context.topology), given)),
            env=runtime.path(context, machine) | dict(env or {}),
            notify=notify,
            digest=digest(context, node) + own,
        )
        seen = way(context, node)
        return about or name, start(machine, service, timeout=SECONDS, context=context, seen=seen)

    return Step(f"{name} {node}", about or name, needs, heavy=True, act=act)


def with_flags(words: Iterable[str], given: Mapping[str, str]) -> list[str]:
    """Return a program's arguments with the file's flags.

    A flag of the file replaces one of the lab: with some types of flags the values of both would
    count.

    >>> with_flags(["--profiling=false", "--v"], {"profiling": "true", "max-pods": "5"})
    ['--v', '--profiling=true', '--max-pods=5']
    """
    own = [word for word in words if word.partition("=")[0].removeprefix("--") not in given]
    return [*own, *(f"--{name}={value}" for name, value in given.items())]


def way(context: Context, node: str) -> Callable[[], str]:
    """Return a function that tests the path from a node to the API.

    It returns the fault on the path; always an empty string on the API's own node.
    """
    topology = context.topology
    control = KubernetesSection.of(topology).control_plane
    if node == control:
        return lambda: ""
    address = str(topology.address(control))
    return Way(context, node, control, SERVER, address, config.API_PORT).seen


def digest(context: Context, node: str) -> str:
    """Return a digest that changes when the node's daemons must restart.

    It covers the node's settings; the authority, because nothing trusts a new one; and the
    node's links, because a link that was created again has lost its devices and routes.
    """
    machine = context.node(node)
    life = f"{marked(machine, certificates.MARK)} {marked(machine, REWIRED) or ''}".strip()
    return f"{context.topology.node_digest(node)} {life}"
