"""The networks of a lab between Pods: a VXLAN device for each, from Pod to Pod.

A VXLAN packet goes to the Pods' own addresses (RFC 7348), and to each Pod of the network what is
meant for all or unknown: the forwarding database has an entry for each peer, so no multicast is
needed.

In a privileged Pod the machine has a network namespace of its own.  Its devices are created in the
Pod's, where their packets leave, and moved.  In another Pod there is only one; there the Pod's own
interface is moved aside, since a lab has its own ``eth0`` and its own default route.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError, UsageError

if TYPE_CHECKING:
    from testbed.topology.model import Topology
    from testbed.topology.ports import Port

PORT = 14789  #: UDP; not 4789, which many hosts and clouds filter or use themselves
OVERHEAD = 50  #: bytes of the outer headers of IPv4, UDP, VXLAN and Ethernet (RFC 7348, section 5)
OUTSIDE = "pod0"  #: name that the Pod's own interface gets
TABLE = PORT  #: of the Pod's own routes
PREFERENCE = 100  # of the rule for packets from the Pod's own address: before all of a lab
EVERYONE = "00:00:00:00:00:00"  # entry for what has no other one (bridge(8), vxlan)

#: Prints the links with their addresses, then the routes.
LOOK = ("sh", "-c", "ip -j address; printf '\\0'; ip -4 -j route show table main")
#: Prints the forwarding database, then the VXLAN devices.
LOOK_PEERS = ("sh", "-c", "bridge -j fdb show; printf '\\0'; ip -j link show type vxlan")
#: Argument: the Pod's address.  Answers each datagram.
LISTEN = f"""\
import socket, sys
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind((sys.argv[1], {PORT}))
print("ready", flush=True)
while True:
    data, sender = door.recvfrom(65536)
    door.sendto(data, sender)
"""
#: Arguments: the Pod's address, another's, the largest datagram in bytes, seconds.  Prints the
#: sizes in bytes that came back whole.
ASK = f"""\
import socket, sys, time
own, other, most, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind((own, 0))
door.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: never fragment
door.settimeout(0.2)
left, end = {{16, most}}, time.monotonic() + seconds
while left and time.monotonic() < end:
    for size in left:
        try:
            door.sendto(bytes(size), (other, {PORT}))
        except OSError:
            pass
    try:
        while left:
            left.discard(len(door.recv(65536)))
    except OSError:
        pass
print(*sorted({{16, most}} - left))
"""


@dataclass(frozen=True, slots=True)
class Underlay:
    """A Pod's own interface: its name, address and MTU in bytes."""

    name: str
    address: str
    mtu: int

    @property
    def inner(self) -> int:
        """The MTU that is left for the lab's networks."""
        return self.mtu - OVERHEAD


def underlay(address: str, links: Iterable[Mapping[str, Any]]) -> Underlay:
    """Return the interface with the Pod's address.  ``links`` are of ``ip -j address``.

    Raises LabError for an IPv6 address, and for one of no interface.
    """
    if ":" in address:
        raise LabError(
            f"the cluster gives its Pods IPv6 addresses alone, such as {address}",
            hint="use a cluster with IPv4 addresses for Pods",
        )
    for link in links:
        if any(one.get("local") == address for one in link.get("addr_info", ())):
            return Underlay(link["ifname"], address, int(link["mtu"]))
    raise LabError(
        f"no interface of the Pod has its address {address}",
        hint="the network plugin of the cluster must give Pods an interface of their own",
    )


def aside(own: Underlay, routes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ``ip -batch`` lines that move the Pod's own interface aside.

    ``routes`` are of ``ip -j route``.  Packets from the Pod's address keep the Pod's routes, and
    nothing else sees them.  None is left to do if the interface has the name already.
    """
    if own.name == OUTSIDE:
        return []
    mine = [route for route in routes if route.get("dev") == own.name]
    mine.sort(key=lambda route: "gateway" in route)
    lines = [
        f"link set dev {own.name} down",
        f"link set dev {own.name} name {OUTSIDE}",
        f"link set dev {OUTSIDE} up",
    ]
    for route in mine:
        words = ["route", "replace", str(route["dst"])]
        if "gateway" in route:
            words += ["via", str(route["gateway"])]
        words += ["dev", OUTSIDE]
        words += ["onlink"] if "gateway" in route else []
        if "prefsrc" in route:
            words += ["src", str(route["prefsrc"])]
        lines.append(" ".join([*words, "table", str(TABLE)]))
    return [
        *lines,
        f"rule add pref {PREFERENCE} from {own.address} lookup {TABLE}",
        f"route flush table main dev {OUTSIDE}",  # the kernel has added the address's prefix
    ]


def number(network: str) -> int:
    """Return the VXLAN network identifier of a network of a lab.

    It follows from the name, so a network keeps it when the file is edited.  Only Pods of the same
    lab exchange packets, so other labs need not have others.
    """
    return 1 + int(hashlib.sha256(network.encode()).hexdigest()[:12], 16) % (2**24 - 2)


def refuse(topology: Topology) -> None:
    """Raise UsageError for networks that are unsupported between Pods."""
    used: dict[int, str] = {}
    for name in topology.networks:
        other = used.setdefault(number(name), name)
        if other != name:
            raise UsageError(
                f"the networks {other} and {name} have the same VXLAN identifier",
                hint="give one of them another name",
            )
    for node in topology.nodes.values():
        if len(node.networks) != len(node.ports):
            twice = next(name for name in node.networks if len(node.on(name)) > 1)
            raise UsageError(
                f"{node.name} has two ports on the network {twice}: a Pod has one VXLAN device for "
                "each network",
                hint="use the provider netns for this lab, or one port with two addresses",
            )


def link(port: Port, own: Underlay, place: str = "") -> str:
    """Return the ``ip -batch`` line that creates a port's VXLAN device.

    It runs in the Pod's network; ``place`` is ``netns 1`` and a space if the machine has another.
    A network with an MTU of its own has that; larger packets are fragmented on the way.
    """
    mtu = own.inner if port.mtu is None else port.mtu
    device = f"name {port.name} {place}address {port.hardware} mtu {mtu}"
    vni = number(port.network)
    return f"link add {device} type vxlan id {vni} local {own.address} dstport {PORT}"


def peers(topology: Topology, node: str, addresses: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the Pods' addresses of a node's peers, by its interface.

    ``addresses`` are those of the Pods by node; a node without a Pod is left out.
    """
    return {
        port.name: {
            addresses[other.name]
            for other in topology.nodes.values()
            if other.name != node and other.on(port.network) and other.name in addresses
        }
        for port in topology.nodes[node].ports
    }


def entries(printed: bytes) -> dict[str, set[str]]:
    """Return the peers that a node has, by interface, from the output of :data:`LOOK_PEERS`."""
    database, devices = (json.loads(part.strip() or b"[]") for part in printed.split(b"\0"))
    found: dict[str, set[str]] = {link["ifname"]: set() for link in devices if link}
    for entry in database:
        if entry.get("mac") == EVERYONE and entry.get("dst") and entry.get("ifname") in found:
            found[entry["ifname"]].add(entry["dst"])
    return found


def corrections(wanted: Mapping[str, set[str]], there: Mapping[str, set[str]]) -> list[str]:
    """Return the ``bridge -batch`` lines that give interfaces the wanted peers, and no others.

    ``there`` has the peers of each interface that exists.
    """
    lines = []
    for name, has in there.items():
        addresses = wanted.get(name, has)
        lines += [f"fdb append {EVERYONE} dev {name} dst {one}" for one in sorted(addresses - has)]
        lines += [f"fdb del {EVERYONE} dev {name} dst {one}" for one in sorted(has - addresses)]
    return lines
