"""A running lab for suites and commands: nodes, containers, engines."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from testbed.errors import LabError, NoAnswer, NoSuchContainer
from testbed.registry import ROLES
from testbed.roles.container import choose, enter, without
from testbed.roles.docker.engine import PATIENCE, Engine

if TYPE_CHECKING:
    import testinfra.host

    from testbed.nodes.base import Node, Result, Running
    from testbed.nodes.place import Place
    from testbed.roles.container import ContainerProcess
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

LIMIT = 60.0  # time limit, in seconds, for an engine that has answered before
AGAIN = 1.0  # time limit, in seconds, for an engine that has not


@dataclass(frozen=True, slots=True)
class LiveContainer:
    """A running container.  ``state`` is its state at the time of the lookup."""

    node: Node
    state: ContainerProcess

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def slowness(self) -> float:
        return self.node.slowness

    @property
    def address(self) -> str:
        return self.state.address

    @property
    def addresses(self) -> Mapping[str, str]:
        """Its IPv4 address on each of its networks by name."""
        return self.state.addresses

    @property
    def pid(self) -> int:
        """The PID of its first process in the node's PID namespace."""
        return self.state.pid

    @property
    def env(self) -> dict[str, str]:
        """The environment of its commands, as `docker exec` sets it."""
        return {name: value for name, _, value in (pair.partition("=") for pair in self.state.env)}

    def argv(self, argv: Sequence[str], *, mounts: bool) -> list[str]:
        """Return the node's command that runs ``argv`` in the container."""
        before = without(self.node.env) if mounts else []
        return [*before, *self._enter(mounts=mounts), *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        mounts: bool = False,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command in the container's network namespace.

        By default the program is the node's own. With ``mounts`` it is the image's, and has the
        container's files and processes.
        """
        argv = self.argv(argv, mounts=mounts)
        return self.node.run(argv, input=input, timeout=timeout, check=check)

    def spawn(self, argv: Sequence[str], *, mounts: bool = False) -> Running:
        """Start a command as :meth:`run` does, and return at once."""
        return self.node.spawn(self.argv(argv, mounts=mounts))

    def attach(self, argv: Sequence[str], *, tty: bool) -> int:
        """Run a program of the image on the caller's terminal or pipes.

        See :meth:`Node.attach`.
        """
        return self.node.attach([*self._enter(tty=tty), *argv], tty=tty, inside=self.pid)

    def _enter(self, *, mounts: bool = True, tty: bool = False) -> Sequence[str]:
        return enter(self.pid, mounts=mounts, tty=tty, user=self.state.user)

    @property
    def host(self) -> testinfra.host.Host:
        """The container as a testinfra host, with the image's own programs."""
        from testbed.nodes.testinfra_backend import host_of

        prefix = [*without(self.node.env.keys() - self.env.keys()), *self._enter()]
        return host_of(self.node, container=self.name, prefix=prefix, env=self.env)


class LiveLab:
    """A running lab.

    Connections to engines are opened once and closed by :meth:`close`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        context.give_env()
        self._engines: dict[str, Engine] = {}
        self._silent: set[str] = set()  # nodes whose engine has not answered
        #: Names of other daemons that did not answer during this run, so as not to ask them again.
        self.silent: dict[str, NoAnswer] = {}

    @property
    def name(self) -> str:
        return self.context.lab

    @property
    def topology(self) -> Topology:
        return self.context.topology

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self.context.nodes

    def node(self, name: str) -> Node:
        """Return a node by its name.  Raises NoSuchNode."""
        return self.context.node(name)

    def network(self, name: str) -> Place:
        """Return the place for programs such as tcpdump that look at the network of a node.

        The node's image need not have them if the provider runs its nodes from images of others.
        Raises NoSuchNode.
        """
        return self.context.provider.network_of(self.name, self.node(name))

    @functools.cached_property
    def fabric(self) -> Node | None:
        """The node with the networks' bridges.

        None if the provider does not show it.
        """
        return self.context.provider.fabric(self.name)

    @functools.cached_property
    def facts(self) -> dict[str, str]:
        """The facts for the catalogue's expectations.

        See :data:`testbed.claims.model.FACTS`. ``provider`` is the provider of the nodes
        (:attr:`Topology.maker`); the others are facts of the roles.
        """
        found = {"provider": self.topology.maker}
        for role in self.topology.roles:
            found |= ROLES[role].facts(self.context)
        return found

    def engine(self, node: str) -> Engine:
        """Return the Engine API of a node with the docker role.

        It is here for the checks of Docker's suites. Suites of another role open the API of their
        daemon themselves, by :meth:`Node.socket`.

        Raises LabError if it does not answer. Later calls fail at once, so that a run does not
        wait for a hanging daemon in each check.
        """
        if node not in self._engines:
            patience = AGAIN if node in self._silent else PATIENCE
            try:
                self._engines[node] = Engine(self.node(node), patience=patience, limit=LIMIT)
            except LabError:
                self._silent.add(node)
                raise
        return self._engines[node]

    def container(self, name: str, *, node: str | None = None) -> LiveContainer:
        """Return a running container by its name.

        Each call looks the container up by its process, without the engine. ``node`` is required
        only for a container that is not in the topology. Raises NoSuchContainer if it does not run.
        """
        if node is None:
            spec = self.topology.containers.get(name)
            if spec is None:
                known = ", ".join(self.topology.containers) or "none"
                raise NoSuchContainer(
                    f"lab {self.name} has no container {name!r}",
                    name=name,
                    known=self.topology.containers,
                    hint=f"containers of {self.name}: {known}",
                )
            node = spec.node
        machine = self.node(node)
        found = choose(self._running(machine), name)
        if found is None:
            raise self._no_container(name, machine)
        spec = self.topology.containers.get(name)
        first = next(iter(spec.networks), "") if spec is not None else ""
        if first in found.addresses:  # the engine's own order is that of the alphabet
            found = replace(found, address=found.addresses[first])
        return LiveContainer(machine, found)

    def copy(
        self, source: str, target: str, *, archive: bool = False, follow: bool = False
    ) -> None:
        """Copy a file or folder as ``testbed cp`` does.

        One of ``source`` and ``target`` is ``NODE:PATH`` or ``NODE/CONTAINER:PATH``, the other a
        path of this machine. ``archive`` keeps owners, ``follow`` copies the target of a link.
        Raises UsageError, LabError, MachineError.
        """
        from testbed.labs.copying import Options, copy, place_in

        copy(source, target, lambda where: place_in(self, where), Options(archive, follow))

    def _running(self, machine: Node) -> dict[str, ContainerProcess]:
        """Return a node's running containers of all roles by name."""
        spec = self.topology.nodes.get(machine.name)
        roles = () if spec is None else spec.roles
        return {k: v for role in roles for k, v in ROLES[role].containers(machine).items()}

    def _no_container(self, name: str, machine: Node) -> NoSuchContainer:
        """Return the error for a container that does not run on a node."""
        spec = self.topology.containers.get(name)
        there: Collection[str] = ()
        what = f"no container {name!r} runs on {machine.name}"
        if spec is not None and spec.node == machine.name:
            if spec.expect is not None:
                what = f"container {name} on {machine.name} has ended, as its `expect` says"
                hint = "use a container that keeps running"
            else:
                hint = f"`testbed up -l {self.name}` restarts it"
        elif spec is not None:
            hint = f"use its own node: {spec.node}/{name}"
        elif there := self._running(machine):
            hint = f"running containers of {machine.name}: {', '.join(there)}"
        else:
            hint = self._nodes_with_containers(machine)
        return NoSuchContainer(what, name=name, known=there, hint=hint)

    def _nodes_with_containers(self, machine: Node) -> str:
        """Return the hint for a node without any container."""
        with_any = [
            node.name
            for node in self.topology.nodes.values()
            if any("containers" in ROLES[role].creates for role in node.roles)
        ]
        if machine.name in with_any or machine.name not in self.topology.nodes:
            return f"{machine.name} runs no containers"
        for hint in (ROLES[role].inside(self.name) for role in self.topology.roles):
            if hint:
                return hint
        others = ", ".join(with_any) or "none"
        return f"no role of {machine.name} runs containers; nodes with such a role: {others}"

    @property
    def containers(self) -> dict[str, LiveContainer]:
        """Return the topology's long-running containers.

        Each call looks them up again.
        """
        return {
            name: self.container(name)
            for node in self.topology.nodes
            for name in (one.name for one in self.topology.running_on(node))
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._silent.clear()
        self.silent.clear()
