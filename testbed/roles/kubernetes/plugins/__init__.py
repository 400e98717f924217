"""Who joins the Pods of a cluster: each network plugin is one file, and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins.base import Plugin
from testbed.roles.kubernetes.plugins.bgp import Bgp
from testbed.roles.kubernetes.plugins.flannel import Flannel

if TYPE_CHECKING:
    from testbed.topology.model import Plugin as Name
    from testbed.topology.model import Topology

PLUGINS: Mapping[Name, Plugin] = {one.name: one for one in (Flannel(), Bgp())}


def plugin_of(topology: Topology) -> Plugin:
    """The network plugin of a topology's cluster."""
    return PLUGINS[config.cluster_of(topology).cni]


__all__ = ["PLUGINS", "Plugin", "plugin_of"]
