"""BGP alone: each node announces its range of Pods to all others, and routes come of it.

This is how Kube-router joins Pods, and Calico where it makes no tunnel; it is neither of them.
BIRD speaks for a node (RFC 4271) and keeps the kernel's table; the reference plugin ``bridge``
gives Pods their addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.daemons import daemon
from testbed.roles.kubernetes.plugins.base import Plugin

if TYPE_CHECKING:
    from testbed.steps.step import Step
    from testbed.topology.model import Topology

FILE = f"{config.FOLDER}/bird.conf"
SOCKET = "/run/bird.ctl"
SERVICE = "bird"
NUMBER = 64512  # the first of those for private use (RFC 6996)


class Bgp(Plugin):
    name = "bgp"
    title = "BGP by BIRD"
    artifacts = ("bird", "birdc", "host-local")
    offers = ("bird", "birdc")
    services = (SERVICE,)

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:  # noqa: ARG002  it asks no API
        peers = len(topology.with_role("kubernetes")) - 1
        yield daemon(
            SERVICE, node, (f"containerd {node}",),
            lambda _: ["-f", "-c", FILE, "-s", SOCKET, "-P", "/run/bird.pid"],
            about=f"announces {config.cluster_of(topology).ranges[node]} to {peers}",
            files=lambda topology: {FILE: settings(topology, node)},
        )  # fmt: skip


def settings(topology: Topology, node: str) -> str:
    """bird.conf (bird.network.cz, user's guide): a full mesh, in which each announces its own.

    Routes are learnt from those of one's own system alone and not passed on (RFC 4271, section
    9.2), so each node has a session with each other.  A next hop is found by a route of BIRD's
    own, which is why the node's interface is known to it (``protocol direct``).
    """
    cluster = config.cluster_of(topology)
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
