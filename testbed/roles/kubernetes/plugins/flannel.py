"""flannel: a range of Pods per node, connected by routes or a tunnel.

The API is its store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.roles.flannel.daemon import resync
from testbed.roles.flannel.role import BACKEND_KERNEL, NAT6
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.daemons import daemon
from testbed.roles.kubernetes.plugins.base import Object, Plugin
from testbed.roles.kubernetes.rights import rights
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from testbed.steps.step import Step
    from testbed.topology.model import Topology

USER = "flannel"
FILE = f"{config.FOLDER}/flannel.json"
SUBNET_FILE = "/run/flannel/subnet.env"


class FlannelPlugin(Plugin):
    name = "flannel"
    title = "flannel"
    artifacts = ("flanneld", "host-local")
    offers = ("flanneld",)
    services = ("flanneld",)
    clients: ClassVar[dict[str, str]] = {"flannel": USER}

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:
        return (*BACKEND_KERNEL.get(cluster.backend, ()), *((NAT6,) if cluster.ipv6 else ()))

    def features(self, cluster: KubernetesSection) -> set[str]:
        over = {"pods-over-vxlan"} if cluster.backend == "vxlan" else set()
        return super().features(cluster) | over

    def summary(self, cluster: KubernetesSection) -> str:
        return f"{self.name} {cluster.backend}" + (" with IPv6" if cluster.ipv6 else "")

    def objects(self, topology: Topology) -> Iterable[Object]:  # noqa: ARG002  the same for all
        """Return flanneld's rights (flannel, Documentation/kube-flannel.yml)."""
        return rights(
            USER,
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        )

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        cluster = KubernetesSection.of(topology)
        yield daemon(
            "flanneld", node, after, lambda _: [
                "-kube-subnet-mgr", f"-kubeconfig-file={config.FOLDER}/flannel.conf",
                f"-net-config-path={FILE}", f"-iface={topology.interface(node)}",
                f"-subnet-file={SUBNET_FILE}",
                *([f"-public-ipv6={topology.address6(node)}"] if cluster.ipv6 else []),
                resync(len(cluster.ranges), slow=True),
            ],
            about=f"{cluster.backend} with {' and '.join(cluster.ranges_of(node))}", notify=True,
            env={"NODE_NAME": node},
            files=lambda _: {FILE: json.dumps(settings(cluster))},
        )  # fmt: skip


def settings(cluster: KubernetesSection) -> dict[str, Any]:
    """Return the contents of net-conf.json.

    See flannel, Documentation/configuration.md.
    """
    six = {"IPv6Network": str(cluster.ipv6.pods), "EnableIPv6": True} if cluster.ipv6 else {}
    return {
        "Network": str(cluster.pods),
        "EnableIPv4": True,
        **six,
        "Backend": {"Type": cluster.backend},
    }
