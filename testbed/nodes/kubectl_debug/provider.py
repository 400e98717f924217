"""The provider ``kubectl-debug``: machines that are the nodes of a Kubernetes cluster.

``up`` connects to them and looks, ``down`` forgets them.  They are reached by a Pod on each, as
``kubectl debug node`` does it.  A janitor owns the Pods as it owns those of the provider
``kubernetes``: they go with ``down``, or when nobody has used the lab for a while.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Self

from testbed.nodes.attachable import AttachedProvider, refuse
from testbed.nodes.base import ProviderOption
from testbed.nodes.kubectl_debug.section import PROVIDER, DebugSection
from testbed.nodes.kubernetes import CONTEXT, IMAGE
from testbed.nodes.kubernetes.remembered import Remembered

# Modules for clusters are imported where needed: other labs don't load them.

if TYPE_CHECKING:
    from testbed.leftover import Judge, Leftover
    from testbed.nodes.attachable import Listed
    from testbed.nodes.base import Node, Provider, Setup
    from testbed.nodes.kubectl_debug.sites import DebugSites
    from testbed.requirement import Requirement
    from testbed.topology.model import Topology

FOLDER = "kubectl-debug"  #: in the state folder
NAME_CONTEXT = ProviderOption(
    "context", CONTEXT, "NAME", "Context of a kubeconfig. Default: the current one."
)


class KubectlDebugProvider(AttachedProvider):
    """All labs of such machines; :meth:`of_machines` has those of one lab."""

    name = PROVIDER
    existing = "nodes of a Kubernetes cluster"
    hosts = True
    section = DebugSection
    list_options = (NAME_CONTEXT, IMAGE)

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._remembered = Remembered(setup.state, FOLDER)

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup)

    @functools.cached_property
    def _sites(self) -> DebugSites:
        from testbed.nodes.kubectl_debug.sites import DebugSites

        return DebugSites(self._remembered)

    def probe(self) -> list[Requirement]:
        from testbed.nodes.kubernetes import needs, settings

        return needs.probe(self._sites.cluster(settings.of()), self.name)

    @classmethod
    def listed(cls, path: str, text: str, chosen: Mapping[str, str]) -> Listed | None:
        from testbed.nodes.kubectl_debug import kubeconfig

        return kubeconfig.read(path, text, chosen)

    def of_machines(self, topology: Topology) -> Provider:
        from testbed.nodes.kubectl_debug.machines import ClusterMachines
        from testbed.nodes.kubectl_debug.way import Way

        way = Way(topology, self._sites, self._setup)
        return ClusterMachines(topology, way, self._remembered.folder(topology.name))

    def nodes(self, lab: str) -> dict[str, Node]:
        del lab
        return {}  # a lab has a record, and nothing but the Pods is ours

    def labs(self) -> list[str]:
        return self._remembered.labs()

    def disconnect(self, lab: str) -> None:
        place = self._remembered.place(lab)
        if place is not None:
            self._sites.remove(self._sites.site(lab, place))
        self._remembered.forget(lab)

    def destroy(self, lab: str, nodes: Iterable[str] | None = None) -> None:
        if nodes is not None:
            refuse(lab, "removed")
        self.disconnect(lab)  # an interrupted `up` or `attach` has left it

    @classmethod
    def leftovers(cls, judge: Judge) -> Iterable[Leftover]:
        return Remembered(judge.own, FOLDER).leftovers(judge)
