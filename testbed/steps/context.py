"""What a step of a plan can use."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed.errors import NoSuchLab
from testbed.nodes.base import has_ended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.artifacts import Store
    from testbed.nodes.base import Node, NodeSpec, Provider
    from testbed.nodes.wiring import Lack
    from testbed.roles.engine import ContainerState
    from testbed.topology.model import Topology


@dataclass(slots=True)
class Batch:
    """Nodes that one call creates, made by whichever of their steps comes first."""

    lab: str
    provider: Provider
    specs: list[NodeSpec] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: dict[str, Node] = field(default_factory=dict)
    _error: Exception | None = None

    def node(self, spec: NodeSpec) -> Node:
        """One of its nodes, once all are there.  Raises what the creation of all has raised."""
        with self._lock:
            if self._error is None and not self._made:
                try:
                    self._made = self.provider.create(self.lab, self.specs)
                except Exception as error:  # noqa: BLE001  each step that waits tells it
                    self._error = error
        if self._error is not None:
            raise self._error
        return self._made[spec.name]


@dataclass(slots=True)
class Context:
    """One lab in the making, or one that is up.

    ``nodes`` are those that run, ``containers`` those seen to run; the steps that
    make them add to both.  ``done_ahead`` are steps that a node had behind it when
    it was made just now, with what they say.  ``waits`` tells what each running step
    waits for, ``given_up`` is set when no step may wait any longer.
    """

    topology: Topology
    provider: Provider
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)
    containers: dict[str, ContainerState] = field(default_factory=dict)
    done_ahead: dict[str, str] = field(default_factory=dict)
    #: Containers that were started just now, with the time (time.monotonic).
    started: dict[str, float] = field(default_factory=dict)
    #: Parts of the networks that had gone when the plan began (:meth:`Provider.lacks`).
    lacks: dict[str, list[Lack]] = field(default_factory=dict)
    #: The nodes that are created together, by name.
    batches: Mapping[str, Batch] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    given_up: threading.Event = field(default_factory=threading.Event)
    step: str = ""  #: the step that this is given to

    def of_step(self, name: str) -> Context:
        """The same lab, for one step of the plan."""
        return replace(self, step=name)

    def waiting(self, words: str) -> None:
        """Note what the step waits for, in words that follow "waiting for"."""
        if self.step:
            self.waits[self.step] = words

    @property
    def lab(self) -> str:
        return self.topology.name

    def node(self, name: str) -> Node:
        """A node that runs.  Raises NoSuchLab."""
        try:
            return self.nodes[name]
        except KeyError:
            words = self.provider.ended(self.lab).get(name)
            if words is not None or name in self.topology.nodes:
                raise has_ended(name, self.lab, words or "") from None
            known = ", ".join(sorted(self.nodes)) or "none"
            raise NoSuchLab(
                f"no node {name!r} runs in lab {self.lab}", hint=f"running nodes: {known}"
            ) from None
