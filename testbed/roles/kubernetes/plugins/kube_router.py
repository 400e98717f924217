"""Kube-router: routes that BGP spreads, and policies by iptables and ipset.

Its program, its makers' manifest and what their image has beside it are of their Go module; the
image's other programs are Debian's.  kube-proxy stays: its own proxy wants IP_VS of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins.manifest import NAMESPACE, ByManifest
from testbed.steps.step import Step

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.steps.context import Context
    from testbed.topology.model import Kubernetes, Topology

PART = "kube-router"
#: Where its manifest has the file by which it asks the API (docs/kubeadm.md of its makers).
KUBECONFIG = "/var/lib/kube-router/kubeconfig"


class KubeRouter(ByManifest):
    name = "kube-router"
    title = "Kube-router"
    takes = "once"
    daemon_set = "kube-router"
    hairpin = False  # its makers' bridge lets none, unless their own proxy sees to it
    images = ("cloudnativelabs/kube-router",)
    #: Rights are given to its account by the manifest: the nodes' certificate is for the same.
    clients: ClassVar[dict[str, str]] = {
        "kube-router": f"system:serviceaccount:{NAMESPACE}:kube-router"
    }

    @property
    def versioned(self) -> tuple[str, ...]:
        return (PART,)

    def file(self, store: Store) -> Path:
        return store.file(PART, "manifest.yaml")

    def kernel(self, cluster: Kubernetes) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        return ("ipset",)

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        if node == config.cluster_of(topology).control_plane:
            every = tuple(member.name for member in topology.with_role("kubernetes"))
            yield Step("kube-router files", KUBECONFIG, after, act=_files(every))
            after = (*after, "kube-router files")
        yield from super().steps(topology, node, after)


def _files(nodes: tuple[str, ...]) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        own = f"{config.FOLDER}/kube-router.conf"
        for node in nodes:
            context.node(node).run(["install", "-D", "-m", "600", own, KUBECONFIG])
        return KUBECONFIG, False

    return act
