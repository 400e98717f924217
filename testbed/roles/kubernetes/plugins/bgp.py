"""Plain BGP: each node announces its range of Pods to all others.

Kube-router connects Pods this way, and so does Calico without a tunnel, but this plugin is neither
of them. BIRD is each node's BGP speaker (RFC 4271) and sets the kernel's routes; the reference
plugin ``bridge`` assigns the Pods' addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.daemons import daemon
from testbed.roles.kubernetes.plugins.base import Plugin
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from testbed.steps.step import Step
    from testbed.topology.model import Topology

FILE = f"{config.FOLDER}/bird.conf"
SOCKET = "/run/bird.ctl"
SERVICE = "bird"
NUMBER = 64512  # the first one for private use (RFC 6996)


class Bgp(Plugin):
    name = "bgp"
    title = "BGP by BIRD"
    artifacts = ("bird", "birdc", "host-local")
    offers = ("bird", "birdc")
    services = (SERVICE,)

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:  # noqa: ARG002  it does not use the API
        peers = len(topology.with_role("kubernetes")) - 1
        yield daemon(
            SERVICE, node, (f"containerd {node}",),
            lambda _: ["-f", "-c", FILE, "-s", SOCKET, "-P", "/run/bird.pid"],
            about=f"announces {KubernetesSection.of(topology).ranges[node]} to {peers}",
            files=lambda topology: {FILE: settings(topology, node)},
        )  # fmt: skip


def settings(topology: Topology, node: str) -> str:
    """Return bird.conf: a full mesh, in which each node announces its range.

    A speaker does not pass on routes that it learned from its own system (RFC 4271, section
    9.2), so each node has a session with every other one. BIRD resolves a next hop by its own
    routes, so it must know the node's interface (``protocol direct``). See bird.network.cz,
    user's guide.
    """
    cluster = KubernetesSection.of(topology)
    network = topology.network(node)
    mine, address = cluster.ranges[node], topology.address(node)
    peers = [peer.name for peer in topology.with_role("kubernetes") if peer.name != node]
    sessions = "".join(
        f'protocol bgp peer{number} from mesh {{ description "{peer}"; '
        f"neighbor {topology.address(peer)} as {NUMBER}; }}\n"
        for number, peer in enumerate(peers, 1)
    )
    ranges = f"{cluster.pods}{{{mine.prefixlen},{mine.prefixlen}}}"
    return f"""\
# {node} on {network}
log stderr all;
router id {address};
protocol device {{ scan time 2; }}
protocol direct {{ ipv4; interface "{topology.interface(node)}"; }}
protocol static own {{ ipv4; route {mine} unreachable; }}
protocol kernel {{
  ipv4 {{ import none; export filter {{ if source = RTS_BGP then accept; reject; }}; }};
}}
template bgp mesh {{
  local {address} as {NUMBER};
  connect delay time 1;
  connect retry time 1;
  ipv4 {{
    import filter {{ if net ~ [ {ranges} ] then accept; reject; }};
    export filter {{ if proto = "own" then accept; reject; }};
    next hop self;
  }};
}}
{sessions}"""
