"""Kube-router: routes by BGP, and policies by iptables and ipset.

The program, upstream's manifest and the image's other files come from its Go module; the image's
other programs are Debian's. kube-proxy still runs: Kube-router's own proxy requires IP_VS in the
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins.manifest import NAMESPACE, ByManifest
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.step import Step

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

PART = "kube-router"
#: The path of its kubeconfig in upstream's manifest (Kube-router, docs/kubeadm.md).
KUBECONFIG = "/var/lib/kube-router/kubeconfig"


class KubeRouter(ByManifest):
    name = "kube-router"
    title = "Kube-router"
    takes = "once"
    daemon_set = "kube-router"
    hairpin = False  # upstream's bridge enables it only with upstream's own proxy
    images = ("cloudnativelabs/kube-router",)
    #: The manifest grants rights to its account; the certificate on nodes is for the same one.
    clients: ClassVar[dict[str, str]] = {
        "kube-router": f"system:serviceaccount:{NAMESPACE}:kube-router"
    }

    @property
    def versioned(self) -> tuple[str, ...]:
        return (PART,)

    def file(self, store: Store) -> Path:
        return store.file(PART, "manifest.yaml")

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        return ("ipset",)

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        if node == KubernetesSection.of(topology).control_plane:
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
