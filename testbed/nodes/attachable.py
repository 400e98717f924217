"""The contract of labs that exist already, for ``testbed attach``.

A provider that can enter the nodes of its own tool's labs returns a subclass of
:class:`Attachable` from :meth:`testbed.nodes.base.Provider.attachable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from testbed.errors import UsageError
from testbed.nodes.base import Node, NodeSpec, Provider

if TYPE_CHECKING:
    from testbed.nodes.base import Setup
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology


@dataclass(frozen=True, slots=True)
class Listed:
    """Machines that a file of another tool lists (:meth:`Provider.listed`).

    ``what`` says what they are there, ``machines`` are the provider's keys of each by the tool's
    name of it, ``shared`` its keys for all of them. ``left`` has what was left out, with reasons.
    ``words`` has what the list says of machines, by the tool's name. ``name`` is the list's own, if
    it has a better one than its file.
    """

    what: str
    machines: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: str = ""


class Attachable(ABC):
    """The labs that a provider's own tool has created on this machine.

    A subclass only reads: it changes neither a lab nor the machine.  ``setup`` is as in
    :class:`testbed.nodes.base.Provider`.
    """

    #: Help of the option of ``testbed attach``, whose name is the provider's.
    about: ClassVar[str]

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def labs(self) -> list[str]:
        """Return the names of the labs.  Raises MachineError if the tool cannot be asked."""

    @abstractmethod
    def read(self, lab: str) -> dict[str, Any]:
        """Return the topology of a lab in plain form (:meth:`Topology.to_dict`).

        It has ``foreign``, whose ``attached`` is the place of the lab in words or as an address,
        and whose ``lab`` is the tool's name of it.  Raises NoSuchLab, MachineError.
        """

    @abstractmethod
    def provider(self, topology: Topology) -> AttachedProvider:
        """Return the provider of the nodes of an attached lab.  Nothing is asked or started."""


class AttachedProvider(Provider):
    """The nodes of one attached lab.

    A subclass has :meth:`nodes`, and :meth:`ended` for the others.  It creates and removes nothing.
    """

    def probe(self) -> list[Requirement]:
        return []

    def create_fabric(self, lab: str, topology: Topology) -> None:
        del topology
        refuse(lab, "changed")

    def create(self, lab: str, specs: Sequence[NodeSpec]) -> dict[str, Node]:
        del specs
        refuse(lab, "changed")

    def connect(self, lab: str, topology: Topology, node: Node) -> None:
        del topology, node
        refuse(lab, "changed")

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        del nodes
        refuse(lab, "removed")

    def pause(self, lab: str, node: str) -> None:
        refuse(lab, "changed", f": {node} is not stopped")

    def labs(self) -> list[str]:
        return []  # it has a record, and nothing else is ours

    def fabric(self, lab: str) -> Node | None:
        del lab
        return None


def refuse(lab: str, what: str, more: str = "") -> NoReturn:
    """Raise the error for a change of an attached lab.  ``what`` is a participle."""
    raise UsageError(
        f"testbed is only attached to lab {lab}, so the lab is not {what}{more}",
        hint="use the tool that created the lab",
    )
