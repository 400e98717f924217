"""Weave Net: a virtual switch on every node, connected to all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.roles.kubernetes.plugins.manifest import Brought

if TYPE_CHECKING:
    from testbed.roles.kubernetes.section import KubernetesSection


class Weave(Brought):
    name = "weave"
    title = "Weave Net"
    daemon_set = "weave-net"
    port_ranges = False
    # The project was archived in June 2024; a fork continues it.
    published = "https://github.com/rajch/weave/releases (weave-daemonset-k8s.yaml)"

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        """Add dummy links, for its MTU, and address sets, for its policies."""
        return ("dummy", "ipset", "iptables conntrack")

    def environment(self, cluster: KubernetesSection) -> Mapping[str, str]:
        """Return its settings (Weave Net, "Integrating Kubernetes via the Addon")."""
        return {"IPALLOC_RANGE": str(cluster.pods), "CHECKPOINT_DISABLE": "1"}
