"""The way to the machines of one lab: a Pod on each, which is created when it is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import owner
from testbed.errors import LabError
from testbed.nodes.base import NodeSpec
from testbed.nodes.kubectl_debug.section import PROVIDER, DebugSection
from testbed.nodes.kubernetes import settings
from testbed.nodes.kubernetes.cluster import Refused

if TYPE_CHECKING:
    from testbed.nodes.base import Setup
    from testbed.nodes.kubernetes.entrance import Entrance
    from testbed.nodes.kubernetes.pods import Pod
    from testbed.nodes.kubernetes.remembered import Place
    from testbed.nodes.kubernetes.settings import Settings
    from testbed.nodes.kubernetes.site import Site
    from testbed.nodes.kubernetes.sites import Sites
    from testbed.topology.model import Topology

#: Names of processor architectures: Go's, in the status of a node, and those of uname(2).
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class Way:
    """The way to the nodes of a cluster that are the machines of a topology.

    ``sites`` has the places of labs.
    """

    def __init__(self, topology: Topology, sites: Sites, setup: Setup) -> None:
        self._lab = topology.name
        self._topology = topology
        self._sites = sites
        self._setup = setup
        self._site: Site | None = None
        self._there: dict[str, Pod] = {}  # running Pods that were seen, and not used yet
        self._making = threading.Lock()

    def site(self) -> Site:
        """Return the place of the lab's Pods, which is created if there is none.

        Raises MachineError for what the cluster does not allow, with what to do.
        """
        with self._making:
            if self._site is None:
                self._site = self._found() or self._made()
                self._sites.keep_used(self._site)
            return self._site

    def entrance(self, node: str) -> Entrance:
        """Return the way into a machine; create a Pod there if none runs.  Raises LabError."""
        site = self.site()
        # After a connection was lost, the Pod is looked at again.
        pod = self._there.pop(node, None) or self._started(site, node)
        return site.entrance(
            pod,
            agent=lambda: self._setup.store.binary("testbed-agent"),
            ended=lambda why: self._ended(node, why),
        )

    def _host(self, node: str) -> str:
        """Return the name of a machine in its cluster."""
        return self._topology.nodes[node].host or node

    def _ended(self, node: str, why: str) -> LabError:
        return LabError(
            f"the connection to {node} was lost: the Pod on {self._host(node)} has ended ({why})",
            hint="run the command again; the next one creates a new Pod",
        )

    # -- the place --------------------------------------------------------

    def _found(self) -> Site | None:
        """Return the place of a lab that has not expired, and is where the file says."""
        place = self._sites.remembered.place(self._lab)
        if place is None or not fits(place, self._topology):
            return None
        site = self._sites.site(self._lab, place)
        self._there = {name: pod for name, pod in site.used().items() if pod.running}
        return site if self._there or site.janitor() else None

    def _made(self) -> Site:
        with _alone(self._setup.state):
            if there := self._found():  # another process has created it meanwhile
                return there
            place = self._sites.remembered.place(self._lab)
            expired = self._sites.site(self._lab, place) if place else None
            return self._sites.make(
                self._lab, settings_of(self._topology), expired=expired, privileged=True
            )

    # -- Pods -------------------------------------------------------------

    def prepare(self) -> None:
        """Create the Pods of all machines, and wait for none.

        A machine on which none would run is left out; its :meth:`entrance` tells the reason.
        Raises MachineError as :meth:`site` does.
        """
        site = self.site()
        missing = {node: self._host(node) for node in self._topology.nodes}
        missing = {node: host for node, host in missing.items() if node not in self._there}
        if missing:
            self._create(site, missing, _unfit(site))

    def _create(
        self, site: Site, hosts: Mapping[str, str], unfit: Callable[[str], str] = lambda _: ""
    ) -> None:
        """Create Pods that are not there yet, on nodes of the cluster by those of the lab."""
        fit = {node: host for node, host in hosts.items() if not unfit(host)}
        with _alone(self._setup.state):
            there = {node: pod for node, pod in site.pods().items() if not pod.ended}
            new = [NodeSpec(node, "", host=host) for node, host in fit.items() if node not in there]
            if new:
                site.create(new, {spec.name for spec in new})

    def _started(self, site: Site, node: str) -> Pod:
        host = self._host(node)
        there = site.pod(node)
        if there is None or there.ended:
            self._refuse_unfit(site, host)
            self._create(site, {node: host})
        return site.started([node])[node]

    def _refuse_unfit(self, site: Site, host: str) -> None:
        """Raise LabError for a node of the cluster on which no Pod would run.

        A user who may not look at the cluster's nodes learns it from the Pod.
        """
        path = f"/api/v1/nodes/{host}"
        try:
            found = site.cluster.ask("find a node of the cluster", "GET", path, missing=True)
        except Refused as error:
            if error.status == HTTPStatus.FORBIDDEN:
                return
            raise
        if not found:
            raise LabError(
                f"the cluster has no node {host}",
                hint="`kubectl get nodes` lists them; the file has its name in `on`",
            )
        if why := why_unfit(found):
            raise LabError(f"{host} {why}", hint=f"kubectl describe node {host}")


def _unfit(site: Site) -> Callable[[str], str]:
    """Return a function that tells why no agent would run on a node of the cluster."""
    try:
        found = site.cluster.items("list its nodes", "/api/v1/nodes", {})
    except Refused as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return lambda _: ""
    reasons = {one["metadata"]["name"]: why_unfit(one) for one in found}
    return lambda host: reasons.get(host, "it is not in the cluster")


def why_unfit(node: Mapping[str, Any]) -> str:
    """Return why no agent runs on a node of a cluster, from its object; empty if one does."""
    status = node.get("status") or {}
    there = (status.get("nodeInfo") or {}).get("architecture", "")
    if there and ARCHITECTURES.get(there, there) != platform.machine():
        return (
            f"has the processor architecture {there}, and testbed's agent is built for "
            f"{platform.machine()}"
        )
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    ready = conditions.get("Ready") or {}
    if ready.get("status") != "True":
        return f"is not ready: {ready.get('message') or 'its kubelet has not reported'}"
    return ""


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time create objects: flock(2) on the state folder."""
    owner.make(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def fits(place: Place, topology: Topology) -> bool:
    """Tell whether a place is where the file says; what it leaves out may be different."""
    section = topology.sections.get(PROVIDER)
    if not isinstance(section, DebugSection):
        return True
    file = str(topology.folder / section.kubeconfig) if section.kubeconfig else ""
    given = (file, section.context, section.namespace)
    there = (place.kubeconfig, place.context, place.namespace)
    return all(one in {"", other} for one, other in zip(given, there, strict=True))


def settings_of(topology: Topology) -> Settings:
    """Return the cluster, the namespace and the image of a topology's machines.

    Keys of the file precede the user's environment.  Raises UsageError for a wrong variable.
    """
    section = topology.sections.get(PROVIDER)
    if not isinstance(section, DebugSection):
        return settings.of()
    given = settings.of({"image": section.image} if section.image else {})
    file = str(topology.folder / section.kubeconfig) if section.kubeconfig else ""
    return dataclasses.replace(
        given,
        kubeconfig=file or given.kubeconfig,
        context=section.context or given.context,
        namespace=section.namespace or given.namespace,
    )
