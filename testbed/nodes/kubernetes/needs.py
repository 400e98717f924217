"""Requirements of labs in clusters, for ``testbed doctor --provider kubernetes``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError, MachineError
from testbed.nodes.kubernetes.cluster import INSTALL
from testbed.requirement import Requirement, requirement

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.cluster import Cluster


def probe(cluster: Cluster, provider: str) -> list[Requirement]:
    """Return the requirements: the client, a kubeconfig, an API server that answers."""
    return list(_probe(cluster, (provider,)))


def _probe(cluster: Cluster, users: tuple[str, ...]) -> Iterator[Requirement]:
    name = "Kubernetes client for Python"
    try:
        import kubernetes

        version = kubernetes.__version__
    except ImportError:
        yield requirement(name, "not installed", users, ok=False, fix=INSTALL)
        return
    yield requirement(name, version, users, ok=True)
    try:
        server = cluster.server
    except (LabError, MachineError) as error:
        fix = error.hint or ""
        yield requirement("kubeconfig", error.message, users, ok=False, fix=fix)
        return
    yield requirement("kubeconfig", f"{cluster.words}: {server}", users, ok=True)
    try:
        version = str(cluster.ask("tell its version", "GET", "/version").get("gitVersion"))
        user = cluster.user()
    except (LabError, MachineError) as error:
        fix = error.hint or ""
        yield requirement("Kubernetes API", error.message, users, ok=False, fix=fix)
        return
    yield requirement("Kubernetes API", f"{version}, you are {user}", users, ok=True)
