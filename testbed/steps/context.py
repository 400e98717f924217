"""The context of a step: the lab, its nodes and the artifact store."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoSuchNode
from testbed.nodes.base import has_ended, is_stopped_by_hand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.artifacts import Store
    from testbed.nodes.base import Node, NodeSpec, Provider
    from testbed.nodes.wiring import Difference
    from testbed.roles.docker.engine import ContainerState
    from testbed.topology.model import Topology


class LeftAlone(LabError):
    """A step would start what was stopped by hand, and stays stopped in this run."""


@dataclass(slots=True)
class Batch:
    """Nodes that a provider creates in one call.

    The first of their steps that runs makes the call.
    """

    lab: str
    provider: Provider
    specs: list[NodeSpec] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: dict[str, Node] = field(default_factory=dict)
    _error: Exception | None = None

    def node(self, spec: NodeSpec) -> Node:
        """Return a node after all have been created.

        Raises the error of the creation.
        """
        with self._lock:
            if self._error is None and not self._made:
                try:
                    self._made = self.provider.create(self.lab, self.specs)
                except Exception as error:  # noqa: BLE001  each waiting step raises it
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._made[spec.name]


@dataclass(slots=True)
class Context:
    """A lab that is being created, or that runs.

    ``nodes`` are the running nodes, ``containers`` the running containers; steps add those that
    they create. ``done_ahead`` are the steps that were already done when a node was created, with
    their descriptions. ``waits`` has the reason for each step's wait. ``given_up`` is set when all
    waits must end.
    """

    topology: Topology
    provider: Provider
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)
    containers: dict[str, ContainerState] = field(default_factory=dict)
    #: Nodes that this run has begun to create on machines that exist already.
    begun: set[str] = field(default_factory=set)
    done_ahead: dict[str, str] = field(default_factory=dict)
    #: Containers that this run started, with their start times (time.monotonic).
    started: dict[str, float] = field(default_factory=dict)
    #: Parts of the networks that were missing when the plan began (:meth:`Provider.differences`).
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    #: The batch of each node that is created together with others.
    batches: Mapping[str, Batch] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    given_up: threading.Event = field(default_factory=threading.Event)
    #: What was stopped by hand and stays so: NODE, NODE/SERVICE or NODE/CONTAINER.
    left: frozenset[str] = frozenset()
    step: str = ""  #: the step that uses this context

    def give_env(self) -> None:
        """Give the nodes the environment that the file gives their commands.

        It is for those of users and tests. The steps and what looks at a lab do without: it may
        have any PATH.
        """
        for name, node in self.nodes.items():
            if name in self.topology.nodes:
                node.env = self.topology.nodes[name].env

    def of_step(self, name: str) -> Context:
        """Return a context of the same lab for one step of the plan."""
        return replace(self, step=name)

    def waiting(self, words: str) -> None:
        """Report what the step waits for, as a phrase after "waiting for"."""
        if self.step:
            self.waits[self.step] = words

    def leave(self, part: str) -> None:
        """Raise LeftAlone for a part that stays stopped in this run.

        A step calls it before it starts NODE, NODE/SERVICE or NODE/CONTAINER.
        """
        if part in self.left:
            raise LeftAlone(f"{part} was stopped by hand")

    @property
    def lab(self) -> str:
        return self.topology.name

    def node(self, name: str) -> Node:
        """Return a running node.  Raises NoSuchNode."""
        try:
            return self.nodes[name]
        except KeyError:
            if name in self.left:
                raise is_stopped_by_hand(name, self.lab) from None
            words = self.provider.ended(self.lab).get(name)
            if words is not None or name in self.topology.nodes:
                attached = bool(self.topology.attached)
                raise has_ended(name, self.lab, words or "", attached=attached) from None
            known = ", ".join(sorted(self.nodes)) or "none"
            raise NoSuchNode(
                f"lab {self.lab} has no node {name!r}",
                name=name,
                known=sorted(self.nodes),
                hint=f"running nodes: {known}",
            ) from None
