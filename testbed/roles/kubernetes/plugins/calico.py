"""Calico: routes by BGP, and policies by its agent Felix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.roles.kubernetes.plugins.manifest import Brought

if TYPE_CHECKING:
    from testbed.roles.kubernetes.section import KubernetesSection


class Calico(Brought):
    name = "calico"
    title = "Calico"
    daemon_set = "calico-node"
    memory = 112 << 20  # a node took 302 MB with release 3.32
    published = "https://github.com/projectcalico/calico/releases (manifests/calico.yaml)"

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        """Return the required kernel features.

        See docs.tigera.io, "System requirements".
        """
        return ("ipset", "iptables conntrack")

    def environment(self, cluster: KubernetesSection) -> Mapping[str, str]:
        """Return its settings: no tunnel, because the nodes share one segment.

        Not every kernel has IPIP. See docs.tigera.io, "Configuring calico/node" and
        "Configuring Felix".
        """
        return {
            "CALICO_IPV4POOL_CIDR": str(cluster.pods),
            "CALICO_IPV4POOL_IPIP": "Never",
            "CALICO_IPV4POOL_VXLAN": "Never",
            "CALICO_IPV4POOL_NAT_OUTGOING": "false",  # the node's own rules do it
            "FELIX_IPV6SUPPORT": "false",
            "FELIX_XDPENABLED": "false",
            "FELIX_USAGEREPORTINGENABLED": "false",
        }
