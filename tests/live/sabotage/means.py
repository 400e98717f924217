"""The means of sabotage: lying tools, other containers, packets changed on their way."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from testbed.claims.observation import Observation
from testbed.nodes.base import Service
from testbed.suites.helpers import docker_node, port_of

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node
    from testbed.nodes.place import Runs

LIES = "/run/lies"
FIRST_ON_PATH = "/usr/local/sbin"  # of ENVIRONMENT in testbed.nodes.request
REAL = "/usr/sbin"


def sh(where: Runs, *commands: str) -> None:
    """Run commands, each of which must succeed."""
    for command in commands:
        where.run(shlex.split(command))


@contextlib.contextmanager
def changed(where: Runs, do: str, undo: str) -> Iterator[None]:
    """Commands, one a line, for the time of the block; others after it."""
    try:
        sh(where, *filter(None, map(str.strip, do.splitlines())))
        yield
    finally:
        sh(where, *filter(None, map(str.strip, undo.splitlines())))


@contextlib.contextmanager
def lying(node: Node, **tools: str) -> Iterator[None]:
    """Shell scripts that stand before the real tools of their names on a node.

    ``$real`` is the folder of the real ones.  Nobody else sees them: they are
    mounted in the node's own mount namespace.
    """
    for name, script in tools.items():
        text = f"#!/bin/sh\nreal={REAL}\n{script}\n"
        node.put(text.encode(), f"{LIES}/{name}", mode=0o755)
    with changed(node, f"mount --bind {LIES} {FIRST_ON_PATH}", f"umount {FIRST_ON_PATH}"):
        try:
            yield
        finally:
            node.run(["rm", *(f"{LIES}/{name}" for name in tools)])


@contextlib.contextmanager
def in_place_of(node: Node, path: str, script: str) -> Iterator[None]:
    """A shell script in the place of a program that is run by its path; ``$real`` is that one."""
    real, lie = "/tmp/lies.real", "/tmp/lies.lie"  # a scratch machine has a /run of its own
    node.put(b"", real)
    node.put(f"#!/bin/sh\nreal={real}\n{script}\n".encode(), lie, mode=0o755)
    # Lazily: who was called a moment before may still be running.
    with (
        # Private: else what is mounted on the path is mounted here as well (mount_namespaces(7)).
        changed(
            node,
            f"mount --bind {path} {real}\nmount --make-private {real}",
            f"umount --lazy {real}",
        ),
        changed(node, f"mount --bind {lie} {path}", f"umount --lazy {path}"),
    ):
        yield


@contextlib.contextmanager
def engine_makes(
    lab: LiveLab, node: Node, alter: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Whoever asks the engine for a container gets another: ``alter`` changes what is asked."""
    api = lab.engine(node.name).api
    real = api.create_container

    def create(*args: Any, **kwargs: Any) -> Any:
        alter(kwargs)
        return real(*args, **kwargs)

    api.create_container = create
    try:
        yield
    finally:
        del api.create_container  # the class's own shows again


@contextlib.contextmanager
def runs_as(lab: LiveLab, name: str, **settings: Any) -> Iterator[None]:
    """Recreate a container with other settings; restore it after the block."""
    spec = lab.topology.containers[name]
    engine = lab.engine(spec.node)
    digest = engine.inspect(name).digest or ""

    def replace(wanted: Any) -> None:
        engine.remove(name)
        engine.start(lab.name, wanted, digest)

    try:
        replace(dataclasses.replace(spec, **settings))
        yield
    finally:
        replace(spec)


def restart(node: Node, service: str, *, without: str = "") -> None:
    """Start a service of a node anew, as it was, without the options that begin so."""
    pid = node.services()[service].pid
    argv, environ = (
        node.get(f"/proc/{pid}/{file}").decode().strip("\0").split("\0")
        for file in ("cmdline", "environ")
    )
    digest = node.services()[service].digest
    env = dict(line.split("=", 1) for line in environ if not line.startswith("NOTIFY_SOCKET="))
    kept = tuple(word for word in argv if not (without and word.startswith(without)))
    node.stop(service)
    node.start(Service(service, kept, env=env, notify=True, digest=digest))


def forget(lab: LiveLab) -> None:
    """Let all nodes and containers forget their neighbours, which may be elsewhere now."""
    places: list[Runs] = [*lab.nodes.values()]
    bridged = [c.name for c in lab.topology.containers.values() if c.network == "bridge"]
    places += [lab.container(name) for name in bridged]
    for place in places:
        place.run(["ip", "neigh", "flush", "all"])


def first(lab: LiveLab, index: int = 0) -> LiveContainer:
    """A container of the first Docker host that is in bridge mode."""
    node = docker_node(lab)
    bridged = [c for c in lab.topology.containers_on(node.name) if c.network == "bridge"]
    return lab.container(bridged[index].name)


def veth(container: LiveContainer) -> str:
    """The host's end of a container's veth pair."""
    return str(port_of(Observation(), container)["ifname"])


def nft(rules: str, family: str = "ip") -> tuple[str, str]:
    """The commands that add and delete a table of ours with a chain ``way``, and rules in it."""
    hook, *lines = [line.strip() for line in rules.strip().splitlines()]
    add = [
        f"nft add table {family} sabotage",
        f"nft 'add chain {family} sabotage way {{ type {hook} ; }}'",
        *(f"nft 'add rule {family} sabotage way {line}'" for line in lines),
    ]
    return "\n".join(add), f"nft delete table {family} sabotage"
