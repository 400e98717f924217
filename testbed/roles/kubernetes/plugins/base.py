"""What a cluster asks of a network plugin: who joins its Pods, in one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.roles.kubernetes import config

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.steps.step import Step
    from testbed.topology.model import Kubernetes, Topology
    from testbed.topology.model import Plugin as Name

#: An object and the folder of the API that it is made in.
Object = tuple[str, dict[str, Any]]


class Plugin(ABC):
    """One network plugin.  All but :meth:`steps` is pure, and that one makes steps alone."""

    name: ClassVar[Name]
    title: ClassVar[str]  #: as its makers write it
    #: Whether it enforces objects of the kind NetworkPolicy.
    enforces: ClassVar[bool] = False
    #: Whether it knows ranges of ports in them (``endPort``, which is left to plugins).
    port_ranges: ClassVar[bool] = True
    #: Whether a Pod's link gets back what came by it: so a Pod reaches itself by a Service.
    hairpin: ClassVar[bool] = True
    #: How long its programs take to build, where nobody is to wait for that unasked.
    takes: ClassVar[str] = ""
    #: Programs that must be at hand before a plan with it is carried out.
    artifacts: ClassVar[tuple[str, ...]] = ()
    #: Programs of the node that it calls, by Debian package.
    programs: ClassVar[Mapping[str, str]] = {}
    #: Daemons that it starts on every node: ``status`` expects them, a node is Ready after them.
    services: ClassVar[tuple[str, ...]] = ()
    #: Whom its daemons are to the API: the file of each below /etc/kubernetes, and its user.
    clients: ClassVar[Mapping[str, str]] = {}
    #: Programs among its artifacts for those who work on a node.
    offers: ClassVar[tuple[str, ...]] = ()
    #: Programs among its artifacts that containerd is to find as CNI plugins.
    binaries: ClassVar[tuple[str, ...]] = ()
    #: Where its Pods put such programs on a node; empty where none does.
    folder: ClassVar[str] = ""
    #: Images that its Pods are made of, as far as they are known before anything is brought.
    images: ClassVar[tuple[str, ...]] = ()
    #: Bytes that it takes on a node beside what a cluster with flannel does; measured.
    memory: ClassVar[int] = 0

    @property
    def versioned(self) -> tuple[str, ...]:
        """The programs whose versions a lab's record and report name."""
        return self.artifacts

    def lacking(self, store: Store) -> str:
        """Why no cluster with it can be brought up here; empty where one can."""
        if self.takes and (unmade := store.unmade(self.name)):
            make = f"testbed doctor --role {self.name} --fix"
            return f"{self.title} is not built yet ({', '.join(unmade)}): {make}, {self.takes}"
        return ""

    def how(self, store: Store) -> str:  # noqa: ARG002  for those whose programs must be brought
        """What is to be done where something is lacking."""
        return ""

    def images_of(self, store: Store) -> Sequence[str]:  # noqa: ARG002  for those that are brought
        """Images that its Pods are made of, by the names that the store knows them by."""
        return self.images

    def fetch(self, store: Store) -> None:
        """Make what must be at hand.  Raises ArtifactError, UsageError."""
        for name in self.artifacts:
            store.binary(name)

    def kernel(self, cluster: Kubernetes) -> tuple[str, ...]:  # noqa: ARG002  for those whose settings decide
        """Features of the kernel that it needs, as :mod:`testbed.kernel` names them."""
        return ()

    def features(self, cluster: Kubernetes) -> set[str]:  # noqa: ARG002  for those whose settings decide
        """What a cluster has by it, in the words that ``needs`` uses."""
        some = {"network-policy": self.enforces, "hairpin": self.hairpin}
        return {f"pods-by-{self.name}", *(name for name, has in some.items() if has)}

    def summary(self, cluster: Kubernetes) -> str:  # noqa: ARG002  for those whose settings decide
        """It and its settings in a word or two."""
        return self.name

    def objects(self, topology: Topology) -> Iterable[Object]:  # noqa: ARG002  for those that have any
        """What it wants to be in the API: rights, kinds of its own."""
        return ()

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:  # noqa: ARG002  for those that differ from node to node
        """The daemons that it starts on a node."""
        return self.services

    def ready_after(self, node: str) -> tuple[str, ...]:
        """The names of its steps after which a node can be Ready."""
        return tuple(f"{name} {node}" for name in self.services)

    def network(self, topology: Topology, node: str) -> Mapping[str, Any] | None:
        """The network that a Pod joins (CNI specification, network configuration lists).

        None where the plugin writes that down itself.
        """
        return config.bridged(config.cluster_of(topology), node)

    def masquerade(self, topology: Topology) -> str:
        """Rules of nftables for what leaves the Pods and the nodes."""
        return config.masquerade(topology)

    @abstractmethod
    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        """The steps that start it on one node, once the steps ``after`` have been taken."""
