"""Ends of walks on sabotaged labs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from testbed.walk.request import Request
from testbed.walk.run import walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sabotage.trials import Sabotage
    from testbed.labs.live import LiveLab
    from testbed.walk.model import Hop, Leg

ECHO, PORT = Request(seconds=0.3), Request("tcp", 80, seconds=0.3)
WEB = Request("tcp", 8080, seconds=0.3)


@dataclass(frozen=True)
class End:
    """The end of a walk under a sabotage: where it is, and words of the reason."""

    source: str
    target: str
    place: str
    words: str
    request: Request = field(default=ECHO)


#: Walks of each lab, between ends of all its kinds.
WALKS: dict[str, Sequence[tuple[str, str, Request]]] = {
    "docker-single": (("nginx-1", "nginx-2", ECHO), ("nginx-1", "outside", ECHO),
                      ("outside", "host", WEB), ("host", "nginx-1", PORT)),
    "vxlan-10-1-16": (("node1/container-1", "node2/container-3", ECHO),
                      ("node2/container-3", "node1/container-1", PORT),
                      ("node1/container-1", "outside", ECHO)),
    "three-node-udp": (("node1/container-1", "node2/container-2", ECHO),
                       ("node2/container-2", "node1/container-1", PORT),
                       ("node1/container-1", "outside", ECHO)),
    "ospf-triangle": (("pc1", "pc2", ECHO), ("pc1", "pc3", ECHO)),
}  # fmt: skip

#: Sabotages after which a packet is lost for one reason.
ENDS = {
    "docker0_is_a_veth_device": End("nginx-1", "outside", "host", "policy of filter FORWARD"),
    "docker0_has_the_ninth_address": End("nginx-1", "outside", "host/nginx-1",
                                         "no neighbour: 172.17.0.1 dev eth0"),
    "docker0_has_a_32": End("host", "nginx-1", "outside", "no route", PORT),
    "the_range_is_routed_to_eth0": End("host", "nginx-1", "host",
                                       "no neighbour: 172.17.0.2 dev eth0", PORT),
    "a_container_is_detached": End("nginx-1", "nginx-2", "host/nginx-1",
                                   "no neighbour: 172.17.0.3 dev eth0"),
    "docker0_has_no_ports": End("outside", "host", "host", "docker0 is down", WEB),
    "a_container_has_another_address": End("nginx-1", "outside", "host/nginx-1",
                                           "Network is unreachable"),
    "a_neighbour_is_the_gateway": End("nginx-1", "outside", "host/nginx-2", "does not forward"),
    "ports_are_isolated": End("nginx-1", "nginx-2", "host/nginx-1", "no neighbour: 172.17.0.3"),
    "a_container_answers_no_arp": End("nginx-1", "nginx-2", "host/nginx-1",
                                      "no neighbour: 172.17.0.3"),
    "outside_does_not_ask": End("outside", "host", "outside", "rule 1 of filter OUTPUT", WEB),
    "nothing_is_forwarded_to_docker0": End("outside", "host", "host", "rule 1 of filter FORWARD",
                                           WEB),
    "masquerade_is_missing": End("nginx-1", "outside", "outside", "Network is unreachable"),
    "the_peers_mac_is_another": End("node1/container-1", "node2/container-3", "node2",
                                    "the MAC is that of another machine (OTHERHOST)"),
    "the_tunnel_leads_elsewhere": End("node1/container-1", "node2/container-3", "outside",
                                      "nothing listens (NO_SOCKET)"),
    "frames_leave_with_vni_7": End("node1/container-1", "node2/container-3", "node2",
                                   "no device has the VNI (VXLAN_VNI_NOT_FOUND)"),
    "the_tunnel_has_no_exit": End("node1/container-1", "node2/container-3", "node1",
                                  "no device to send it by (NO_TX_TARGET)"),
    "the_other_host_refuses": End("node1/container-1", "node2/container-3", "node2",
                                  "rule 1 of filter FORWARD"),
    "the_third_router_forwards_nothing": End("pc1", "pc3", "router3", "does not forward"),
}  # fmt: skip


def walked(sabotage: Sabotage) -> bool:
    """Tell whether walks are taken under a sabotage: it is undone, and its lab is no cluster."""
    return sabotage.lab in WALKS and not (sabotage.ruins or sabotage.slows)


def lost(lab: LiveLab, source: str, target: str, request: Request) -> list[Leg]:
    """Return the legs of a walk whose packet did not arrive."""
    found = walk(lab, source, target, request, reply=True)
    return [leg for leg in found.legs if not leg.arrived]


def told(end: Hop) -> str:
    return "; ".join(fact.text for fact in end.facts)


def is_named(end: Hop) -> bool:
    """Tell whether the end of a walk has a reason that was seen or asked.

    Or it names what cannot be seen: what a program does with a packet of its tun device.
    """
    known = any(fact.origin != "inferred" or "not watched" in fact.text for fact in end.facts)
    return bool(end.rules) or known
