"""Network plugins: each one is a file in this folder and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.roles.kubernetes.plugins.base import Plugin
from testbed.roles.kubernetes.plugins.bgp import Bgp
from testbed.roles.kubernetes.plugins.calico import Calico
from testbed.roles.kubernetes.plugins.cilium import Cilium
from testbed.roles.kubernetes.plugins.flannel import FlannelPlugin
from testbed.roles.kubernetes.plugins.kube_router import KubeRouter
from testbed.roles.kubernetes.plugins.weave import Weave
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from testbed.roles.kubernetes.section import Plugin as Name
    from testbed.topology.model import Topology

PLUGINS: Mapping[Name, Plugin] = {
    one.name: one for one in (FlannelPlugin(), Bgp(), Cilium(), Calico(), KubeRouter(), Weave())
}


def plugin_of(topology: Topology) -> Plugin:
    """Return the network plugin of a topology's cluster."""
    return PLUGINS[KubernetesSection.of(topology).cni]


__all__ = ["PLUGINS", "Plugin", "plugin_of"]
