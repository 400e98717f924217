"""The contract of a network plugin, which connects the Pods of a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.roles.kubernetes import config

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.roles.kubernetes.section import KubernetesSection
    from testbed.roles.kubernetes.section import Plugin as Name
    from testbed.steps.step import Step
    from testbed.topology.model import Topology

#: An object and the API path to create it at.
Object = tuple[str, dict[str, Any]]


class Plugin(ABC):
    """A network plugin, selected by ``kubernetes.cni`` in a topology.

    No method changes a node; :meth:`steps` only describes the work.
    """

    name: ClassVar[Name]
    title: ClassVar[str]  #: the name as its project writes it
    #: True if it enforces NetworkPolicy objects.
    enforces: ClassVar[bool] = False
    #: True if it supports port ranges in them (``endPort``, which is optional for plugins).
    port_ranges: ClassVar[bool] = True
    #: True if a Pod can reach itself through a Service (hairpin mode of its link).
    hairpin: ClassVar[bool] = True
    #: The time to build its programs, for plugins that are built only on request.
    takes: ClassVar[str] = ""
    #: Names of the artifacts that a plan with the plugin requires.
    artifacts: ClassVar[tuple[str, ...]] = ()
    #: Programs that the plugin runs on a node: program name to Debian package.
    programs: ClassVar[Mapping[str, str]] = {}
    #: Daemons on every node. ``status`` reports those that do not run; a Ready node has them all.
    services: ClassVar[tuple[str, ...]] = ()
    #: API users of its daemons: the kubeconfig's name below /etc/kubernetes to the user.
    clients: ClassVar[Mapping[str, str]] = {}
    #: Programs among its artifacts for users of a node.
    offers: ClassVar[tuple[str, ...]] = ()
    #: Programs among its artifacts that are CNI plugins for containerd.
    binaries: ClassVar[tuple[str, ...]] = ()
    #: The node's folder where its Pods install CNI plugins; empty if they install none.
    folder: ClassVar[str] = ""
    #: Images of its Pods that are known without the user's own files.
    images: ClassVar[tuple[str, ...]] = ()
    #: Memory on a node, in bytes, in addition to a cluster with flannel; measured.
    memory: ClassVar[int] = 0

    @property
    def versioned(self) -> tuple[str, ...]:
        """Return the programs whose versions the record and the report list."""
        return self.artifacts

    def lacking(self, store: Store) -> str:
        """Return why this machine cannot run a cluster with it; empty if it can."""
        if self.takes and (unmade := store.unmade(self.name)):
            make = f"testbed doctor --role {self.name} --fix"
            return f"{self.title} is not built yet ({', '.join(unmade)}): {make} ({self.takes})"
        return ""

    def how(self, store: Store) -> str:  # noqa: ARG002  for plugins that the user provides
        """Return the instructions to provide what :meth:`lacking` reports."""
        return ""

    def images_of(self, store: Store) -> Sequence[str]:  # noqa: ARG002  for plugins that the user provides
        """Return the images of its Pods, by their names in the artifact store."""
        return self.images

    def fetch(self, store: Store) -> None:
        """Download or build the required artifacts.

        Raises ArtifactError, UsageError.
        """
        for name in self.artifacts:
            store.binary(name)

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:  # noqa: ARG002  for those whose settings decide
        """Return the required kernel features.

        Their names are those of :mod:`testbed.kernel`.
        """
        return ()

    def features(self, cluster: KubernetesSection) -> set[str]:  # noqa: ARG002  for those whose settings decide
        """Return the features that it adds to a cluster, as words of ``needs``."""
        some = {"network-policy": self.enforces, "hairpin": self.hairpin}
        return {f"pods-by-{self.name}", *(name for name, has in some.items() if has)}

    def summary(self, cluster: KubernetesSection) -> str:  # noqa: ARG002  for those whose settings decide
        """Return a short description of the plugin and its settings."""
        return self.name

    def objects(self, topology: Topology) -> Iterable[Object]:  # noqa: ARG002  for those that have any
        """Return the API objects to create first.

        They are RBAC rights and custom resource definitions.
        """
        return ()

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:  # noqa: ARG002  for those that differ from node to node
        """Return the daemons that it starts on a node."""
        return self.services

    def ready_after(self, node: str) -> tuple[str, ...]:
        """Return the names of its steps after which a node can become Ready."""
        return tuple(f"{name} {node}" for name in self.services)

    def network(self, topology: Topology, node: str) -> Mapping[str, Any] | None:
        """Return the CNI network of Pods.

        Return None if the plugin writes the file itself. See the CNI specification, network
        configuration lists.
        """
        return config.bridged(topology, node)

    def masquerade(self, topology: Topology) -> str:
        """Return nftables rules for packets that leave the Pods and the nodes."""
        return config.masquerade(topology)

    @abstractmethod
    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        """Return the steps that start it on one node, after the steps ``after``."""
