"""Document 003, flannel's vxlan back end: the kernel encapsulates frames.

Labs: vxlan-10-1-16 has the addresses that the document prints, and is
compared with them; other labs with this back end with their own addresses.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.observe.capture import VXLAN_PORT, Capture, capture, captures
from testbed.roles.flannel.daemon import subnet_key
from testbed.suites.helpers import (
    SOON,
    addresses,
    answers,
    client_of,
    fetch,
    kind,
    link,
    links,
    node_address,
    note,
    observe_until,
    outside_node,
    ping,
    place_of,
    route_to,
    routes,
    show_path,
    undone,
    wait_until,
)
from testbed.suites.overlay import (
    End,
    Walk,
    ends,
    etcd,
    keys,
    need,
    overlay,
    own_vxlan,
    quoted,
    requests,
    stopped,
    third_host,
    third_subnet,
    wait_no_route,
    wait_route,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

VTEP = "flannel.1"
OVERHEAD = 50  # octets: IP, UDP and VXLAN headers, and the inner frame's (RFC 7348, section 5)
WIRE = f"udp dst port {VXLAN_PORT}"
PRINTED_MAC = "5e:f8:4f:00:e3:37"  # of Node2's VTEP; the document writes it with dots
SPARE_MAC = "02:00:5e:00:53:01"  # RFC 7042 has 00-00-5e-00-53 for documents; locally administered
EXPERIMENTAL = 0x88B5  # IEEE 802: an EtherType for local experiments, without any receiver
OWN_FRAMES = f"ether proto {EXPERIMENTAL:#x}"

#: Argument 1 is the interface, 2 the frame in hex.
SEND_FRAME = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as door:
    door.bind((sys.argv[1], 0))
    door.send(bytes.fromhex(sys.argv[2]))
"""
#: Arguments are address, port, and the payload in hex.
SEND_DATAGRAM = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
    door.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def way(lab: LiveLab) -> Walk:
    """Record the way of an echo request between containers, over every interface."""
    need(lab, "flannel-vxlan", "docker")
    return walk(lab)


def mac_of(observe: Observation, node: Node) -> str:
    """Return the MAC of a host's VTEP."""
    return str(link(observe, node, VTEP)["address"])


def fdb(observe: Observation, node: Node) -> list[dict[str, Any]]:
    """Return the forwarding database of a host's VTEP."""
    return list(observe.json(node, ["bridge", "-j", "fdb", "show", "dev", VTEP]))


def neighbours(observe: Observation, node: Node) -> dict[str, dict[str, Any]]:
    """Return the neighbour entries on a host's VTEP, by address."""
    found = observe.json(node, ["ip", "-j", "neigh", "show", "dev", VTEP]) or []
    return {entry["dst"]: entry for entry in found}


def frame(to: str, sender: str, text: bytes) -> bytes:
    """Return a frame with our own EtherType."""
    header = bytes.fromhex((to + sender).replace(":", "")) + EXPERIMENTAL.to_bytes(2, "big")
    return header + text.ljust(46, b".")


def send_frame(node: Node, interface: str, data: bytes) -> None:
    """Send a raw frame on an interface."""
    node.run(["python3", "-c", SEND_FRAME, interface, data.hex()])


# -- packets on the wire -------------------------------------------------


@pytest.mark.testbed_claim("flannel-vxlan-frame-in-udp")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_datagram_holds_a_whole_frame(lab: LiveLab, observe: Observation, way: Walk) -> None:
    one, other = way.ends
    outer, inner = way.at(f"{one.name} {one.interface}"), way.inner(f"{one.name} {one.interface}")
    observe.note("UDP payload on eth0", outer.payload.hex(" "))
    observe.note("after 8 octets", str(inner))
    observe.holds(outer.dport == VXLAN_PORT, f"UDP to port {VXLAN_PORT}")
    macs = mac_of(observe, one.node), mac_of(observe, other.node)
    observe.holds((inner.src_mac, inner.dst_mac) == macs, "a frame from VTEP to VTEP")
    pair = one.container.address, other.container.address
    observe.holds((inner.src, inner.dst) == pair, "in it the container's packet")


@pytest.mark.testbed_claim("flannel-vxlan-packet-structure")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_headers_are_ethernet_ip_udp_vxlan_and_the_frame(
    lab: LiveLab, observe: Observation, way: Walk
) -> None:
    one, other = way.ends
    outer, inner = way.at(f"{one.name} {one.interface}"), way.inner(f"{one.name} {one.interface}")
    entered = way.at(f"{one.name} {VTEP}")
    observe.note(f"the frame on {VTEP}", entered.frame.hex(" "))
    observe.note("the frame on eth0", outer.frame.hex(" "))
    macs = [link(observe, end.node, end.interface)["address"] for end in (one, other)]
    observe.holds([outer.src_mac, outer.dst_mac] == macs, "outer Ethernet: host to host")
    header = outer.payload[:8]
    vni = int.from_bytes(header[4:7], "big")
    observe.holds(header[0] == 0x08 and vni == 1, "then, after IP and UDP, VXLAN: flag I, VNI 1")
    observe.holds(
        entered.frame == outer.payload[8:], f"then the frame as {VTEP} had it, to the end"
    )
    observe.holds(inner.ethertype == 0x0800 and inner.is_echo_request, "with an IP packet")
    assert outer.ip_length - inner.ip_length == OVERHEAD
    wire = overlay(lab).outer_mtu or link(observe, one.node, one.interface)["mtu"]
    assert link(observe, one.node, VTEP)["mtu"] == wire - OVERHEAD
    show_path(lab, observe, place_of(one.container), place_of(other.container))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-over-l3")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "gateway", "flannel-defaults")
def test_datagrams_pass_a_router(lab: LiveLab, observe: Observation) -> None:
    one, _ = ends(lab)
    with third_host(lab) as third, third.joined() as subnet:
        networks = {a.network for a in addresses(observe, one.node, one.interface)}
        networks |= {a.network for a in addresses(observe, third, "eth0")}
        far = str(subnet[1])
        third.wait_known(observe, subnet, one)
        there = answers(observe, one.container, far)
        with captures((one.node, one.interface, WIRE), (third, "eth0", WIRE)) as (sent, arrived):
            ping(observe, one.container, far, seconds=None if there else SOON)
        note(observe, sent, arrived)
    observe.holds(len(networks) == 2, f"the hosts are in {' and '.join(map(str, networks))}")
    observe.holds(there, f"{one.container.name} reaches {far} behind the router")
    pair = one.container.address, far
    before, behind = ([p.ttl for p in requests(c, *pair)] for c in (sent, arrived))
    observe.holds(
        len(before) == 1 and behind == [before[0] - 1], "the outer ttl is one less behind it"
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("l2-vxlan-one-broadcast-domain")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_frames_move_as_in_one_broadcast_domain(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    with own_vxlan(observe, one, other) as device:
        got, _ = _broadcast(observe, one, other, device, "ff:ff:ff:ff:ff:ff")
    observe.holds_when("the VXLAN floods (an all-zero FDB entry)", got)
    zero = [e for e in fdb(observe, one.node) if e["mac"] == "00:00:00:00:00:00"]
    got, left = _broadcast(observe, one, other, VTEP, "ff:ff:ff:ff:ff:ff")
    observe.fails_when("the VXLAN is flannel's", not zero and not got and not left)
    got, left = _broadcast(observe, one, other, VTEP, mac_of(observe, other.node))
    assert got, "a frame for the peer's VTEP does arrive"
    assert left


def _broadcast(
    observe: Observation, one: End, other: End, device: str, to: str
) -> tuple[bool, bool]:
    """Send a frame into a device; return whether it arrived, and whether it left the host."""
    data = frame(to, link(observe, one.node, device)["address"], b"testbed broadcast")
    wire = "udp dst port 4789 or udp dst port 8472"
    with captures((other.node, device, OWN_FRAMES), (one.node, one.interface, wire)) as (got, left):
        send_frame(one.node, device, data)
        got.wait_for(lambda packets: packets, SOON)
    note(observe, got)
    arrived = any(p.frame.startswith(data) for p in got.packets)
    return arrived, any(data in p.payload for p in left.packets)


# -- the device ----------------------------------------------------------


@pytest.mark.testbed_claim("flannel-vxlan-kernel-l2-over-l3")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-defaults")
def test_flannel_1_is_the_kernels_layer_2_over_the_hosts_layer_3(
    lab: LiveLab, observe: Observation
) -> None:
    for role in lab.topology.with_role("flannel"):
        device = link(observe, lab.node(role.name), VTEP)
        info = device.get("linkinfo", {}).get("info_data", {})
        observe.holds(kind(device) == "vxlan", f"{role.name}: a vxlan device of the kernel's")
        observe.holds(device.get("link_type") == "ether" and "address" in device, "with a MAC")
        below = str(lab.topology.address(role.name))
        over = info.get("local"), info.get("link")
        interface = lab.topology.interface(role.name)
        observe.holds(over == (below, interface), f"over {interface}, {below}")


@pytest.mark.testbed_claim("flannel-vxlan-device-name")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-defaults")
def test_vxlan_device_is_called_as_printed(lab: LiveLab, observe: Observation) -> None:
    for role in lab.topology.with_role("flannel"):
        found = links(observe, lab.node(role.name), "type", "vxlan")
        devices = {device["ifname"]: device["linkinfo"]["info_data"] for device in found}
        # The link to the other nodes can be a VXLAN device, too, but uses another port.
        own = {name: one["id"] for name, one in devices.items() if one["port"] == VXLAN_PORT}
        observe.holds_when("flannel.1, as in line 52", own == {"flannel.1": 1})
        observe.fails_when("flannel1.1, as in lines 57-58", "flannel1.1" not in devices)


@pytest.mark.testbed_claim("flannel-vxlan-acts-as-bridge")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-defaults")
def test_vtep_acts_as_a_bridge(lab: LiveLab, observe: Observation) -> None:
    for end in ends(lab):
        device = link(observe, end.node, VTEP)
        forwards = [entry for entry in fdb(observe, end.node) if "dst" in entry]
        observe.holds_when("a bridge is what forwards by a table of MACs", forwards)
        ports = [one["ifname"] for one in links(observe, end.node) if one.get("master") == VTEP]
        learns = device["linkinfo"]["info_data"]["learning"]
        observe.fails_when(
            "a bridge is a device with ports, which learns",
            kind(device) == "vxlan" and not ports and not learns,
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-no-userspace-datapath")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_traffic_goes_on_without_flanneld(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    with stopped(one.node, other.node), capture(one.node, one.interface, WIRE) as wire:
        answered = ping(observe, one.container, other.container.address)
        answer = fetch(observe, one.container, f"http://{other.container.address}/")
    note(observe, wire)
    sent = requests(wire, one.container.address, other.container.address)
    observe.holds(answered and answer, "flanneld stopped on both hosts: the container answers")
    observe.holds(len(sent) == 1 and sent[0].vxlan(), "in VXLAN datagrams as before")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-vni-selects-frames")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "gateway", "flannel-defaults")
def test_vtep_takes_frames_of_its_own_vni_only(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    outside = outside_node(lab)
    from_outside = f"{WIRE} and src {node_address(lab, outside)}"
    data = frame(mac_of(observe, one.node), mac_of(observe, other.node), b"testbed vni")
    for vni, wanted in ((2, False), (1, True)):
        payload = b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0" + data
        argv = ["python3", "-c", SEND_DATAGRAM, one.address, str(VXLAN_PORT), payload.hex()]
        points = (one.node, one.interface, from_outside), (one.node, VTEP, OWN_FRAMES)
        with captures(*points) as (wire, vtep):
            outside.run(argv)
            came = wire.wait_for(lambda packets: packets)
            vtep.wait_for(lambda packets: packets, SOON)
        note(observe, wire, vtep)
        assert came
        assert wire.packets[0].payload == payload, f"the datagram with VNI {vni} reaches eth0"
        taken = any(p.frame == data for p in vtep.packets)
        words = "comes out of" if wanted else "does not come out of"
        observe.holds(taken == wanted, f"a frame with VNI {vni} {words} {VTEP}")


# -- reachability --------------------------------------------------------


@pytest.mark.testbed_claim("flannel-vxlan-container1-to-container4")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_containers_of_two_hosts_reach_each_other(lab: LiveLab, observe: Observation) -> None:
    for here, there in (ends(lab), ends(lab)[::-1]):
        source, target = here.container, there.container
        observe.holds(ping(observe, source, target.address), f"{source.name} pings {target.name}")
        answer = fetch(observe, source, f"http://{target.address}/")
        observe.holds(answer and answer["name"] == target.name, "and fetches its page")
        if answer:
            assert client_of(answer) == source.address, "the server sees another address"


# -- the route -----------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-route-added-on-join")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "gateway", "flannel-defaults")
def test_others_get_a_route_when_a_host_joins(lab: LiveLab, observe: Observation) -> None:
    subnet = third_subnet(lab)
    nodes = [end.node for end in ends(lab)]

    def devices() -> list[str]:
        """Return the device of each host's route to the subnet, "" if it has none."""
        found = [_route(Observation(), node, subnet) for node in nodes]
        return [str(route.get("dev", "")) for route in found]

    for node in nodes:  # flanneld may not yet have removed routes of an earlier third host
        wait_no_route(observe, node, subnet)
    with third_host(lab) as third:
        observe.holds(devices() == ["", ""], f"before: no route to {subnet}")
        with third.joined():
            for node in nodes:
                wait_route(observe, node, subnet)
            joined = devices()
    observe.holds(joined == [VTEP, VTEP], f"a third host joins: {subnet} by {VTEP} on both others")
    for node in nodes:
        wait_no_route(observe, node, subnet)


@pytest.mark.testbed_claim("flannel-vxlan-route-entry")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_route_has_the_subnets_zero_address_as_gateway(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    zero, mask = other.subnet.network_address, other.subnet.netmask
    wanted = quoted(
        lab,
        "10.1.16.0 10.1.16.0 255.255.255.0 UG 0 0 0 flannel.1",
        f"{zero} {zero} {mask} UG 0 0 0 {VTEP}",
    )
    table = observe.run(one.node, ["cat", "/proc/net/route"]).stdout
    listed = [as_route_prints(line) for line in table.splitlines()[1:]]
    observe.note("as `route -n` prints it", "\n".join(listed))
    observe.holds(wanted in listed, f"{one.name}: {wanted}")
    for here, there in ((one, other), (other, one)):
        route = _route(observe, here.node, there.subnet)
        zero = there.subnet.network_address
        observe.holds(
            (route.get("gateway"), route.get("dev")) == (str(zero), VTEP),
            f"{here.name}: {there.subnet} via {zero} dev {VTEP}",
        )
        assert route["flags"] == ["onlink"]


def as_route_prints(line: str) -> str:
    """Convert a line of /proc/net/route to the format of net-tools' ``route -n``.

    >>> as_route_prints("flannel.1 0010010A 0010010A 0003 0 0 0 00FFFFFF 0 0 0")
    '10.1.16.0 10.1.16.0 255.255.255.0 UG 0 0 0 flannel.1'
    """
    device, to, gateway, flags, references, use, metric, mask, *_ = line.split()
    # The kernel writes addresses in native byte order; flags are those of <linux/route.h>.
    dotted = [socket.inet_ntoa(struct.pack("=I", int(word, 16))) for word in (to, gateway, mask)]
    letters = "".join(
        letter for bit, letter in ((1, "U"), (2, "G"), (4, "H")) if int(flags, 16) & bit
    )
    return " ".join([*dotted, letters, metric, references, use, device])


def _route(observe: Observation, node: Node, subnet: IPv4Network) -> dict[str, Any]:
    found = routes(observe, node, "exact", str(subnet))
    return found[0] if found else {}


@pytest.mark.testbed_claim("flannel-vxlan-route-used")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_packets_take_that_route(lab: LiveLab, observe: Observation, way: Walk) -> None:
    one, other = way.ends
    subnet = IPv4Network(quoted(lab, "10.1.16.0/24", other.subnet))
    zero = quoted(lab, "10.1.16.0", other.subnet.network_address)
    for target in (subnet[1], subnet[-2], other.container.address):
        chosen = route_to(observe, one.node, target)
        observe.holds(
            (chosen.get("gateway"), chosen["dev"]) == (zero, VTEP),
            f"{target} via {zero} dev {VTEP}",
        )
    observe.note("one echo request", way.lines())
    inner = way.inner(f"{one.name} {one.interface}")
    observe.holds(inner.dst_mac == mac_of(observe, other.node), "in a frame for the peer's VTEP")


@pytest.mark.testbed_claim("flannel-vxlan-vtep-address")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_vtep_has_the_zero_address_of_its_hosts_subnet(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    zero = quoted(lab, "10.1.16.0", other.subnet.network_address)
    for end, wanted in ((one, one.subnet.network_address), (other, zero)):
        found = [str(address) for address in addresses(observe, end.node, VTEP)]
        observe.holds(found == [f"{wanted}/32"], f"{VTEP} of {end.name} is {found}")


# -- the ARP table -------------------------------------------------------


@contextlib.contextmanager
def printed_vtep(lab: LiveLab, observe: Observation) -> Iterator[End]:
    """Give the second host's VTEP the MAC that the document prints; yield that host.

    flanneld draws a random MAC and publishes it through etcd: both places are changed, and
    the other hosts learn it through their own flanneld.
    """
    other = ends(lab)[1]
    name = subnet_key(other.subnet)
    kept = keys(lab)[name]
    printed = {**kept.value, "BackendData": {**kept.value["BackendData"], "VtepMAC": PRINTED_MAC}}
    hosts = [lab.node(role.name) for role in lab.topology.with_role("flannel")]
    peers = [host for host in hosts if host.name != other.name]
    before = mac_of(observe, other.node)
    known = list(neighbours(observe, other.node).values())

    def give(mac: str, value: dict[str, Any]) -> None:
        # A device that gets another MAC forgets its neighbours.
        words = [arp_entry("replace", entry)[1:] for entry in known]
        lines = [f"link set dev {VTEP} address {mac}", *map(" ".join, words)]
        other.node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
        etcd(lab, "put", name, json.dumps(value), f"--lease={kept.lease:x}")

    def wait_told(mac: str) -> None:
        """Wait until flanneld on the other hosts has added a MAC, to both tables.

        It reads the kernel's own list, because the claims are about the tools.
        """
        zero = str(other.subnet.network_address)
        for peer in peers:

            def told(peer: Node = peer) -> bool:
                rows = map(str.split, peer.run(["cat", "/proc/net/arp"]).stdout.splitlines())
                known = any(row[0] == zero and mac in row for row in rows)
                return known and mac in {entry["mac"] for entry in fdb(Observation(), peer)}

            wait_until(told, f"flanneld's entry {mac} for {other.name}'s {VTEP} on {peer.name}")

    try:
        give(PRINTED_MAC, printed)
        wait_told(PRINTED_MAC)
        yield other
    finally:
        give(before, kept.value)
        try:
            wait_told(before)
        finally:
            for peer in peers:  # flanneld adds the new entry and leaves the old one
                peer.run(["bridge", "fdb", "del", PRINTED_MAC, "dev", VTEP], check=False)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-arp-entry")
@pytest.mark.testbed_needs("etcd", "flannel-vxlan", "docker", "flannel-defaults")
def test_peers_vtep_has_a_permanent_arp_entry(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    for here, there in ((one, other), (other, one)):
        vtep = str(there.subnet.network_address)
        entry = neighbours(observe, here.node).get(vtep, {})
        observe.holds(
            entry.get("lladdr") == mac_of(observe, there.node),
            f"{here.name}: {vtep} is at the MAC of {there.name}'s {VTEP}",
        )
        observe.holds(entry.get("state") == ["PERMANENT"], "permanent")
    vtep = quoted(lab, "10.1.16.0", other.subnet.network_address)
    with printed_vtep(lab, observe):
        entry = neighbours(observe, one.node).get(vtep, {})
    wanted = {"dst": vtep, "lladdr": PRINTED_MAC, "state": ["PERMANENT"]}
    observe.holds(entry == wanted, f"{other.name} with the printed MAC: {vtep} at {PRINTED_MAC}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-arp-notation")
@pytest.mark.testbed_needs("etcd", "flannel-vxlan", "docker", "flannel-defaults")
def test_arp_entry_can_be_written_as_printed(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    vtep = quoted(lab, "10.1.16.0", other.subnet.network_address)
    dotted = PRINTED_MAC.replace(":", ".")
    with printed_vtep(lab, observe):
        entry = neighbours(observe, one.node)[vtep]
        printed = entry.get("lladrr") == dotted
        observe.holds(printed, f"{vtep} lladrr {dotted}")
        argv = ["ip", "neigh", "replace", vtep, "lladrr", dotted, "dev", VTEP, "nud", "permanent"]
        observe.holds(observe.run(one.node, argv, check=False).ok, "iproute2 takes it so")
        argv[4] = "lladdr"
        assert not observe.run(one.node, argv, check=False).ok, "a MAC has no dots"
        argv[5] = PRINTED_MAC
        assert observe.run(one.node, argv, check=False).ok
    assert printed or entry == {"dst": vtep, "lladdr": PRINTED_MAC, "state": ["PERMANENT"]}


def arp_entry(verb: str, entry: dict[str, Any]) -> list[str]:
    """Return the ip command that sets or deletes an entry of :func:`neighbours`."""
    state = ["nud", entry["state"][0].lower()]
    return ["ip", "neigh", verb, entry["dst"], "lladdr", entry["lladdr"], "dev", VTEP, *state]


@contextlib.contextmanager
def another_mac(observe: Observation, here: End, there: End) -> Iterator[None]:
    """Give the peer's VTEP another MAC, in a host's ARP table and FDB."""
    found = neighbours(observe, here.node)[str(there.subnet.network_address)]
    change, restore = (arp_entry("replace", e) for e in ({**found, "lladdr": SPARE_MAC}, found))
    exit_ = {"mac": SPARE_MAC, "dst": there.address, "flags": ["self"], "state": "permanent"}
    add, delete = (fdb_entry(verb, exit_) for verb in ("append", "del"))
    with undone(observe, here.node, add, delete), undone(observe, here.node, change, restore):
        yield


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-mac-from-arp-table")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_inner_mac_is_that_of_the_arp_table(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)

    def inner_macs() -> list[str]:
        with capture(one.node, one.interface, WIRE) as wire:
            ping(observe, one.container, other.container.address, seconds=SOON)
        note(observe, wire)
        sent = requests(wire, one.container.address, other.container.address)
        return [inner[1].dst_mac for p in sent if (inner := p.vxlan())]

    vtep = str(other.subnet.network_address)
    listed = neighbours(observe, one.node)[vtep]["lladdr"]
    observe.holds(inner_macs() == [listed], f"frames go to {listed}, as the table says")
    with another_mac(observe, one, other):
        observe.holds(inner_macs() == [SPARE_MAC], f"the table changed, to {SPARE_MAC}")
    assert inner_macs() == [listed]


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-arp-no-requests")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_no_arp_request_is_sent_for_it(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)

    def asked(seconds: float | None) -> tuple[bool, set[str]]:
        """Return whether the container answered, and the targets of ARP requests."""
        with captures((one.node, VTEP, "arp"), (other.node, VTEP, "arp")) as seen:
            answered = ping(observe, one.container, other.container.address, seconds=seconds)
        note(observe, *seen)
        return answered, {p.arp.target for c in seen for p in c.packets if p.arp}

    answered, targets = asked(None)
    observe.holds(answered and not targets, "the container answers, and there is no ARP")
    vtep = str(other.subnet.network_address)
    entry = neighbours(observe, one.node)[vtep]
    with undone(observe, one.node, arp_entry("del", entry), arp_entry("replace", entry)):
        _, targets = asked(SOON)
    assert targets == {vtep}, "without the entry the kernel does ask"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-arp-distributed")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "gateway", "flannel-defaults")
def test_hosts_record_is_on_all_others_once_it_has_joined(
    lab: LiveLab, observe: Observation
) -> None:
    hosts = ends(lab)
    with third_host(lab) as third, third.joined() as subnet:
        vtep, mac = str(subnet.network_address), link(observe, third, VTEP)["address"]
        wanted = {"dst": vtep, "lladdr": mac, "state": ["PERMANENT"]}
        for end in hosts:

            def entered(notes: Observation, end: End = end) -> dict[str, Any] | None:
                return neighbours(notes, end.node).get(vtep)

            entry = observe_until(observe, entered, f"a record of {vtep} on {end.name}")
            observe.holds(entry == wanted, f"{end.name}: {vtep} at {mac}, permanent")
        others = len(keys(lab)) - 1  # hosts in etcd, without this one

        def learnt(notes: Observation) -> list[dict[str, Any]] | None:
            found = notes.json(third, ["ip", "-j", "neigh", "show", "dev", VTEP]) or []
            return list(found) if len(found) >= others else None

        own = observe_until(observe, learnt, f"records of all {others} others on the third host")
    known = {entry["dst"]: entry["lladdr"] for entry in own if entry["state"] == ["PERMANENT"]}
    peers = {str(e.subnet.network_address): mac_of(observe, e.node) for e in hosts}
    observe.holds(known.items() >= peers.items(), "the third host has the others' records")


# -- the FDB -------------------------------------------------------------


def fdb_entry(verb: str, entry: dict[str, Any]) -> list[str]:
    """Return the bridge command that sets or deletes an entry of :func:`fdb`."""
    words = [entry["mac"], "dev", VTEP, "dst", entry["dst"], *entry["flags"], entry["state"]]
    return ["bridge", "fdb", verb, *filter(None, words)]


@contextlib.contextmanager
def no_exit(observe: Observation, here: End, there: End) -> Iterator[None]:
    """Delete the peer's FDB entry on a host for the time of the block."""
    mac = mac_of(observe, there.node)
    with contextlib.ExitStack() as stack:
        for entry in fdb(observe, here.node):
            if entry["mac"] == mac:
                delete, restore = fdb_entry("del", entry), fdb_entry("append", entry)
                stack.enter_context(undone(observe, here.node, delete, restore))
        yield


def _sent(
    observe: Observation, one: End, other: End, *, seconds: float | None = SOON
) -> tuple[bool, Capture, Capture]:
    """Send an echo request; return whether it was answered, and both captures."""
    with captures((one.node, VTEP, "icmp"), (one.node, one.interface, WIRE)) as (vtep, wire):
        answered = ping(observe, one.container, other.container.address, seconds=seconds)
    note(observe, vtep, wire)
    return answered, vtep, wire


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-needs-tunnel-exit")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_without_the_tunnels_exit_nothing_is_sent(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    pair = one.container.address, other.container.address
    with no_exit(observe, one, other):
        answered, vtep, wire = _sent(observe, one, other)
    entered, left = requests(vtep, *pair), requests(wire, *pair)
    observe.holds(entered and not left and not answered, "no FDB entry: into flannel.1, not out")
    answered, _, wire = _sent(observe, one, other, seconds=None)
    observe.holds(answered and requests(wire, *pair), "the entry back: it leaves, and is answered")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-device-knows-mac-only")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_vtep_knows_the_peers_mac_and_not_its_host(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    pair = one.container.address, other.container.address
    mac = mac_of(observe, other.node)
    with no_exit(observe, one, other):
        table = neighbours(observe, one.node)
        _, vtep, wire = _sent(observe, one, other)
    assert table[str(other.subnet.network_address)]["lladdr"] == mac
    observe.holds(
        [p.dst_mac for p in requests(vtep, *pair)] == [mac], f"the frame is addressed to {mac}"
    )
    observe.holds(not requests(wire, *pair), "and goes to no host")


@pytest.mark.testbed_claim("flannel-vxlan-fdb-maps-mac-to-host")
@pytest.mark.testbed_needs("flannel-vxlan", "flannel-defaults")
def test_fdb_has_the_host_of_every_peers_mac(lab: LiveLab, observe: Observation) -> None:
    roles = lab.topology.with_role("flannel")
    macs = {role.name: mac_of(observe, lab.node(role.name)) for role in roles}
    for role in roles:
        table = {entry["mac"]: entry.get("dst") for entry in fdb(observe, lab.node(role.name))}
        wanted = {m: str(lab.topology.address(n)) for n, m in macs.items() if n != role.name}
        observe.holds(table == wanted, f"{role.name}: {wanted}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-fdb-entry")
@pytest.mark.testbed_needs("etcd", "flannel-vxlan", "docker", "flannel-defaults")
def test_fdb_entry_of_node2_is_self_and_permanent(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    host = quoted(lab, "10.168.0.3", other.address)

    def entries(mac: str) -> list[dict[str, Any]]:
        return [entry for entry in fdb(observe, one.node) if entry["mac"] == mac]

    own = mac_of(observe, other.node)
    found = {own: entries(own)}  # before flanneld rewrites it
    with printed_vtep(lab, observe):
        found[PRINTED_MAC] = entries(PRINTED_MAC)
    for mac, listed in found.items():
        wanted = {"mac": mac, "dst": host, "flags": ["self"], "state": "permanent"}
        observe.holds(listed == [wanted], f"{mac} dev {VTEP} dst {host} self permanent")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-fdb-notation")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "flannel-defaults")
def test_fdb_entry_can_be_written_as_printed(lab: LiveLab, observe: Observation) -> None:
    node = ends(lab)[0].node
    printed = "5e.f8.4f.00.e3.37 dev flannel1.1 dts 10.168.0.3 self permanent"
    misprints = {PRINTED_MAC: "5e.f8.4f.00.e3.37", "flannel.1": "flannel1.1", "dst": "dts"}
    right = f"{PRINTED_MAC} dev flannel.1 dst 10.168.0.3 self permanent"

    def taken(entry: str) -> bool:
        """Tell whether bridge accepts an entry; an accepted one is deleted again."""
        done = observe.run(node, ["bridge", "fdb", "append", *entry.split()], check=False).ok
        if done:
            node.run(["bridge", "fdb", "del", *right.split()])
        return done

    observe.holds(taken(printed), f"bridge takes {printed}")
    for word, misprint in misprints.items():
        assert not taken(right.replace(word, misprint)), f"taken with {misprint}"
    assert taken(right), f"not taken: {right}"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-vxlan-outer-destination")
@pytest.mark.testbed_needs("flannel-vxlan", "docker", "gateway", "flannel-defaults")
def test_frames_for_that_mac_go_to_the_fdbs_host(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    pair = one.container.address, other.container.address

    def hosts() -> list[str]:
        return [packet.dst for packet in requests(_sent(observe, one, other)[2], *pair)]

    host = quoted(lab, "10.168.0.3", other.address)
    observe.holds(hosts() == [host], f"to {host}, the entry's host")
    gateway = outside_node(lab)
    if lab.topology.network(one.name) not in lab.topology.nodes[gateway.name].networks:
        pytest.skip(f"{gateway.name}, the lab's gateway, is not on the overlay's network")
    elsewhere = node_address(lab, gateway)
    mac = mac_of(observe, other.node)
    (found,) = (entry for entry in fdb(observe, one.node) if entry["mac"] == mac)
    change, restore = (fdb_entry("replace", e) for e in ({**found, "dst": elsewhere}, found))
    with undone(observe, one.node, change, restore):
        observe.holds(hosts() == [elsewhere], f"the entry changed: to {elsewhere}")
    assert hosts() == [found["dst"]]
