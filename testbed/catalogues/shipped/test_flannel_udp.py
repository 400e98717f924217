"""Document 003, flannel's udp back end: flanneld itself encapsulates packets.

Labs: three-node-udp has the addresses that the document prints, and is
compared with them; other labs with this back end with their own addresses.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from testbed.observe.capture import LINK_RAW, Packet, captures, decode
from testbed.roles.flannel.role import SERVICE
from testbed.suites.helpers import (
    LATE,
    SOON,
    START,
    addresses,
    await_strace,
    bridge_containers,
    client_of,
    comes,
    extra_container,
    fetch,
    link,
    node_address,
    note,
    opened,
    outside_node,
    ping,
    place_of,
    route_to,
    routes,
    show_path,
    undone,
)
from testbed.suites.overlay import (
    Walk,
    ends,
    leased,
    need,
    overlay,
    quoted,
    requests,
    stopped,
    third_host,
    third_subnet,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node, Running
    from testbed.suites.overlay import End

PORT = 8285
OVERHEAD = 28  # octets: an IP and a UDP header
TUN = "/dev/net/tun"


@pytest.fixture(scope="module")
def way(lab: LiveLab) -> Walk:
    """Record the way of an echo request between containers, over every interface."""
    need(lab, "flannel-udp", "docker")
    return walk(lab)


# -- the environment and node1's routes ----------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-node1-addresses")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_node1_and_container_1_have_the_printed_addresses(
    lab: LiveLab, observe: Observation
) -> None:
    one, _ = ends(lab)
    _docker0_is(observe, one.node, quoted(lab, "100.96.1.1/24", interface(one.subnet)))
    wanted = quoted(lab, "100.96.1.2", one.subnet[2])
    address = one.container.address
    observe.holds(address == wanted, f"{one.container.name} is {address}, wanted {wanted}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-node2-addresses")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_node2_and_container_2_have_the_printed_addresses(
    lab: LiveLab, observe: Observation
) -> None:
    one, other = ends(lab)
    _docker0_is(observe, other.node, quoted(lab, "100.96.2.1/24", interface(other.subnet)))
    # The printed address belongs to a host's second container.
    wanted = quoted(lab, "100.96.2.3", other.subnet[3])
    with contextlib.ExitStack() as stack:
        second = other.container
        if len(bridge_containers(lab, other.node)) < 2:
            name = stack.enter_context(extra_container(lab, other.node))
            second = lab.container(name, node=other.name)
        observe.holds(
            second.address == wanted, f"{second.name} is {second.address}, wanted {wanted}"
        )
        assert ping(observe, one.container, second.address)


def interface(subnet: IPv4Network) -> str:
    """Return the first address of a subnet with its prefix length: docker0's."""
    return f"{subnet[1]}/{subnet.prefixlen}"


def _docker0_is(observe: Observation, node: Node, wanted: str) -> None:
    found = [str(address) for address in addresses(observe, node, "docker0")]
    observe.holds(found == [wanted], f"docker0 of {node.name} is {found}, wanted {wanted}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-docker0-in-host-subnet")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_docker0_lies_in_the_subnet_that_flannel_leased(lab: LiveLab, observe: Observation) -> None:
    for end in ends(lab):
        _docker0_is(observe, end.node, leased(observe, end.node)["FLANNEL_SUBNET"])


def _route(observe: Observation, node: Node, to: str) -> dict[str, str]:
    """Return the fields of a host's route to a destination; empty if there is none."""
    listed = observe.json(node, ["ip", "-j", "-d", "route", "show", "exact", to])
    wanted = ("dst", "gateway", "dev", "protocol", "scope", "prefsrc")
    return {k: v for route in listed[:1] for k, v in route.items() if k in wanted}


def _words(route: Mapping[str, str]) -> str:
    """Format a route's fields as ``ip route`` does."""
    names = {"gateway": "via", "dev": "dev", "protocol": "proto", "scope": "scope"}
    names["prefsrc"] = "src"
    words = [f"{word} {route[name]}" for name, word in names.items() if name in route]
    return " ".join([route.get("dst", "no route"), *words])


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-route-default")
@pytest.mark.testbed_needs("flannel-udp", "docker", "gateway")
def test_default_route_is_via_the_gateway_on_eth0(lab: LiveLab, observe: Observation) -> None:
    one, _ = ends(lab)
    route = _route(observe, one.node, "default")
    gateway = node_address(lab, outside_node(lab))
    wanted = quoted(lab, "default via 10.168.0.1 dev eth0", f"default via {gateway} dev eth0")
    found = _words({name: route[name] for name in ("dst", "gateway", "dev") if name in route})
    observe.holds(found == wanted, wanted)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-route-overlay")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_overlay_is_routed_to_flannel0(lab: LiveLab, observe: Observation) -> None:
    network = str(overlay(lab).network)
    route = _route(observe, ends(lab)[0].node, network)
    wanted = quoted(lab, "100.96.0.0/16 dev flannel0", f"{network} dev flannel0")
    found = f"{route.get('dst')} dev {route.get('dev')}"
    observe.holds(found == wanted and "gateway" not in route, wanted)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-route-overlay-attributes")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_overlay_route_is_the_kernels_own_with_a_source(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    zero = str(one.subnet.network_address)
    route = _route(observe, one.node, str(overlay(lab).network))
    observe.holds(route.get("protocol") == "kernel", "proto kernel")
    observe.holds(route.get("scope") == "link", "scope link")
    source = quoted(lab, "100.96.1.0", zero)
    observe.holds(route.get("prefsrc") == source, f"src {source}")
    # The kernel would create such a route for an address 100.96.1.0/16: today it is a /32.
    own = addresses(observe, one.node, "flannel0")
    assert [str(address) for address in own] == [f"{zero}/32"]
    # The kernel still chooses the printed source: it is the only address.
    assert route_to(observe, one.node, other.container.address)["prefsrc"] == zero


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-flannel0-address")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_flannel0_has_the_zero_address_of_the_hosts_subnet(
    lab: LiveLab, observe: Observation
) -> None:
    one, _ = ends(lab)
    found = [str(address.ip) for address in addresses(observe, one.node, "flannel0")]
    wanted = quoted(lab, "100.96.1.0", one.subnet.network_address)
    observe.holds(found == [wanted], f"flannel0 of {one.name} is {found}, wanted {wanted}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-route-local-subnet")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_own_subnet_is_routed_to_docker0(lab: LiveLab, observe: Observation) -> None:
    one, _ = ends(lab)
    wanted = quoted(
        lab,
        "100.96.1.0/24 dev docker0 proto kernel scope link src 100.96.1.1",
        f"{one.subnet} dev docker0 proto kernel scope link src {one.subnet[1]}",
    )
    found = _words(_route(observe, one.node, str(one.subnet)))
    observe.holds(found == wanted, wanted)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-route-host-network")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_hosts_network_is_routed_to_eth0(lab: LiveLab, observe: Observation) -> None:
    one, _ = ends(lab)
    (own,) = addresses(observe, one.node, one.interface)
    wanted = quoted(
        lab,
        "10.168.0.0/24 dev eth0 proto kernel scope link src 10.168.0.2",
        f"{own.network} dev {one.interface} proto kernel scope link src {one.address}",
    )
    found = _words(_route(observe, one.node, str(own.network)))
    observe.holds(found == wanted, wanted)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-longest-prefix")
@pytest.mark.testbed_needs("flannel-udp", "docker")
def test_longest_prefix_decides_between_flannel0_and_docker0(
    lab: LiveLab, observe: Observation
) -> None:
    one, other = ends(lab)
    far = quoted(lab, "100.96.2.3", other.container.address)
    near = quoted(lab, "100.96.1.2", one.container.address)
    for to, device in ((far, "flannel0"), (near, "docker0")):
        observe.holds(route_to(observe, one.node, to)["dev"] == device, f"{to} goes to {device}")
    # Both routes match the near address: the longer prefix decides.
    matching = {route["dst"] for route in routes(observe, one.node, "match", near)}
    assert {str(overlay(lab).network), str(one.subnet)} <= matching


# -- the TUN device ------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-tun-is-l3")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_flannel0_is_a_tun_device_without_link_layer(observe: Observation, way: Walk) -> None:
    one = way.ends[0]
    device = link(observe, one.node, "flannel0")
    info = device["linkinfo"]
    observe.holds(info["info_kind"] == "tun" and info["info_data"]["type"] == "tun", "a tun device")
    observe.holds(
        device["link_type"] == "none" and "address" not in device, "no link layer, no MAC"
    )
    observe.holds({"NOARP", "POINTOPOINT"} <= set(device["flags"]), "NOARP, POINTOPOINT")
    request = way.at(f"{one.name} flannel0")
    observe.note("captured on flannel0", request.frame.hex(" "))
    observe.holds(request.frame[0] == 0x45, "what passes begins with an IP header")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-tun-kernel-user")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_packets_for_flannel0_wait_for_flanneld(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    pid = one.node.services()[SERVICE].pid
    observe.holds(TUN in opened(observe, one.node, pid), f"flanneld holds {TUN}")
    points = (one.node, "flannel0", "icmp"), (one.node, one.interface, f"udp port {PORT}")
    pair = one.container.address, other.container.address
    with captures(*points) as (tun, wire):
        with stopped(one.node):
            answered = ping(observe, one.container, other.container.address, seconds=SOON)
            handed = tun.wait_for(lambda _: requests(tun, *pair))
            kept = not requests(wire, *pair)
        sent = wire.wait_for(lambda _: requests(wire, *pair))
    note(observe, tun, wire)
    observe.holds(handed and kept and not answered, "flanneld stopped: into flannel0, not out")
    observe.holds(sent, "flanneld goes on: the same packet leaves")
    assert ping(observe, one.container, other.container.address)


# -- the way of a packet -------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-path-docker0-to-flannel0")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_packet_comes_through_docker0_and_is_routed_into_flannel0(
    observe: Observation, way: Walk
) -> None:
    observe.note("one echo request", way.lines())
    one = way.ends[0]
    sent, bridged = way.at(f"{one.container.name} eth0"), way.at(f"{one.name} docker0")
    routed = way.at(f"{one.name} flannel0")
    observe.holds(sent.ip_id == bridged.ip_id == routed.ip_id, "one IP id: one packet")
    observe.holds(sent.ttl == bridged.ttl, "docker0 leaves its ttl alone")
    observe.holds(routed.ttl == bridged.ttl - 1, "the host routes it: ttl is one less on flannel0")
    observe.holds(sent.time <= bridged.time <= routed.time, "in this order")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-flanneld-receives")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_flanneld_reads_the_packet_from_flannel0(observe: Observation, calls: Calls) -> None:
    observe.note("system calls of flanneld", "\n".join(map(str, calls.flanneld)))
    reads = [c for c in calls.flanneld if c.name == "read" and c.packet.src == calls.source]
    observe.holds(
        [c.path for c in reads] == [TUN] * SENT and {c.sequence for c in reads} == ALL,
        f"each of {SENT} packets of the container is given by one read() of {TUN}",
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-forwards-by-destination")
@pytest.mark.testbed_needs("flannel-udp", "docker", "gateway", "flannel-defaults")
def test_flanneld_sends_to_the_host_that_has_the_destinations_subnet(
    lab: LiveLab, observe: Observation
) -> None:
    one, other = ends(lab)
    with third_host(lab) as third, third.joined() as subnet:
        target = quoted(lab, "100.96.2.3", other.container.address)
        hosts = {target: other.address, str(subnet[1]): third.address}
        third.wait_known(observe, subnet, one)
        with captures((one.node, one.interface, f"udp dst port {PORT} and src {one.address}")) as (
            seen,
        ):
            for target in hosts:  # flanneld sends before an answer can come
                ping(observe, one.container, target)
    note(observe, seen)
    for target, host in hosts.items():
        outer = {packet.dst for packet in requests(seen, one.container.address, target)}
        observe.holds(outer == {host}, f"for {target} to {host} and nowhere else: {outer}")
    assert third_subnet(lab) == subnet


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-ip-in-udp")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_payload_is_the_bare_ip_packet(observe: Observation, way: Walk) -> None:
    one = way.ends[0]
    outer, inner = way.at(f"{one.name} {one.interface}"), way.inner(f"{one.name} {one.interface}")
    entered = way.at(f"{one.name} flannel0")
    observe.note("UDP payload on eth0", outer.payload.hex(" "))
    observe.holds(outer.payload[0] == 0x45, "the payload begins with an IPv4 header")
    observe.holds(
        (inner.ip_id, inner.src, inner.dst, inner.payload)
        == (entered.ip_id, entered.src, entered.dst, entered.payload),
        "it is the packet that entered flannel0",
    )
    observe.holds(outer.ip_length - inner.ip_length == OVERHEAD, f"{OVERHEAD} octets are added")
    mtu = {name: link(observe, one.node, name)["mtu"] for name in ("flannel0", one.interface)}
    assert mtu["flannel0"] == mtu[one.interface] - OVERHEAD
    assert inner.ttl == entered.ttl - 1, "flanneld, a hop of its own, takes one off the ttl"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-outer-node-addresses")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_outer_packet_goes_from_host_to_host(lab: LiveLab, observe: Observation, way: Walk) -> None:
    one, other = way.ends
    wanted = quoted(lab, "10.168.0.2", one.address), quoted(lab, "10.168.0.3", other.address)
    for end in way.ends:
        outer = way.at(f"{end.name} {end.interface}")
        observe.note(f"{end.name} {end.interface}", str(outer))
        observe.holds((outer.src, outer.dst) == wanted, f"{end.name}: from {' to '.join(wanted)}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-inner-addresses-kept")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_inner_packet_keeps_the_containers_addresses(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    source = quoted(lab, "100.96.1.2", one.container.address)
    target = quoted(lab, "100.96.2.3", other.container.address)
    kept = _seen_by_server(one, target, observe)
    observe.holds_when(
        f"Docker masquerades nothing (ip-masq false): {source} to {target}",
        kept == (source, source),
    )
    rule = ["POSTROUTING", "-s", str(one.subnet), "!", "-o", "docker0", "-j", "MASQUERADE"]
    add, delete = (["iptables", "-w", "-t", "nat", option, *rule] for option in ("-I", "-D"))
    with undone(observe, one.node, add, delete):
        changed = _seen_by_server(one, target, observe)
    zero = str(one.subnet.network_address)
    observe.fails_when("Docker's own masquerade rule is there", changed == (zero, zero))


def _seen_by_server(client: End, server: str, observe: Observation) -> tuple[str, str]:
    """Return the source of a request's inner packet, and the client the server saw."""
    with captures((client.node, client.interface, f"udp dst port {PORT}")) as (wire,):
        answer = fetch(observe, client.container, f"http://{server}/")
    inner = [inner for packet in wire.packets if (inner := packet.inner_ip()) and inner.is_syn]
    observe.note(f"tcpdump on {wire}, unpacked", "\n".join(map(str, inner)))
    assert answer is not None, "the page does not come"
    return inner[0].src, client_of(answer)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-port-8285-listen")
@pytest.mark.testbed_needs("flannel-udp", "flannel-defaults")
def test_every_flanneld_listens_on_udp_port_8285(lab: LiveLab, observe: Observation) -> None:
    for role in lab.topology.with_role("flannel"):
        node = lab.node(role.name)
        pid = node.services()[SERVICE].pid
        table = observe.run(node, ["cat", "/proc/net/udp"]).stdout.splitlines()[1:]
        # proc_net_udp: sl, local address:port in hex, ..., inode as the tenth field.
        rows = [line.split() for line in table]
        sockets = {f"socket:[{r[9]}]" for r in rows if int(r[1].rpartition(":")[2], 16) == PORT}
        own = opened(observe, node, pid)
        observe.holds(sockets and sockets <= own, f"{node.name}: flanneld's is the one on {PORT}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-port-8285-destination")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_datagrams_go_to_port_8285_of_the_other_host(observe: Observation, way: Walk) -> None:
    other = way.ends[1]
    outer = way.at(f"{other.name} {other.interface}")
    observe.note(f"{other.name} {other.interface}", str(outer))
    observe.holds((outer.dst, outer.dport) == (other.address, PORT), f"{other.address}:{PORT}")
    assert outer.sport == PORT, "and come from it"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-remote-delivery")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_other_host_unpacks_and_delivers_over_docker0(
    lab: LiveLab, observe: Observation, way: Walk
) -> None:
    one, other = way.ends
    points = [f"{other.name} {device}" for device in (other.interface, "flannel0", "docker0")]
    points.append(f"{other.container.name} eth0")
    observe.note("one echo request", way.lines())
    steps = [way.inner(point) for point in points]
    observe.holds(len({p.ip_id for p in steps}) == 1, f"one packet passes {', '.join(points)}")
    observe.holds(sorted(p.time for p in steps) == [p.time for p in steps], "in this order")
    observe.holds(
        [steps[0].ttl - p.ttl for p in steps] == [0, 1, 2, 2], "flanneld and the host route it"
    )
    observe.holds(way.answered, "the container answers")
    show_path(lab, observe, place_of(one.container), place_of(other.container))


# -- system calls --------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A system call that carried a packet."""

    name: str
    path: str  # of the file, or socket:[inode]
    packet: Packet

    @property
    def sequence(self) -> int:
        """The sequence number of the echo request or reply."""
        return self.packet.icmp.seq if self.packet.icmp else 0

    def __str__(self) -> str:
        return f"{self.name}({self.path}) {self.packet}"


@dataclass(frozen=True)
class Calls:
    """System calls of flanneld and the sender while :data:`SENT` requests were sent."""

    source: str
    target: str
    flanneld: list[Call]
    sender: list[int]  # sequence numbers of the requests that its calls sent


#: A complete call of strace -xx -y: name, hex of the file's name, hex of the data, result.
CALL = re.compile(
    rb'(\w+)\(\d+<([\\xa-f0-9]+)>, "([\\xa-f0-9]+)"(?:\.\.\.)?,.* = \d+$', re.MULTILINE
)
#: A line's process, and whether strace interrupts or resumes the call there.
PART = re.compile(
    rb"(?:\[pid +(?P<pid>\d+)\] )?(?:<\.\.\. \w+ resumed>)?"
    rb"(?P<text>.*?)(?P<cut> <unfinished \.\.\.>)?"
)
STRACE = ["strace", "-f", "-y", "-xx", "-s", "2048"]
MARK = "5445535442454421"  # the sender's payload repeats it
MARKED = bytes.fromhex(MARK)
SENT = 10  # echo requests
ALL = set(range(1, SENT + 1))
PING = ["ping", "-n", "-q", f"-c{SENT}", "-i0.01", f"-W{LATE:g}"]


def _unhex(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(rb"\x", b"").decode())


@pytest.fixture(scope="module")
def calls(lab: LiveLab) -> Calls:
    """Trace the system calls that send echo requests from the first host (strace)."""
    need(lab, "flannel-udp", "docker")
    one, other = ends(lab)
    if not one.node.run(["which", "strace"], check=False).ok:
        pytest.skip("the node has no strace")
    target = other.container.address
    pid = one.node.services()[SERVICE].pid
    trace = [*STRACE, "-e", "trace=read,write,sendto,recvfrom", "-p", str(pid)]
    with one.node.spawn(trace) as running:
        await_strace(running, SERVICE)
        sender = [*STRACE, "-e", "trace=sendto,sendmsg,write"]
        sent = one.container.run([*sender, *PING, "-p", MARK, target], check=False)
        # flanneld waits for strace in each call: when ping ends, only its last calls are missing.
        comes(lambda: len(_packets(running)) >= 4 * SENT, SOON)
        one.node.run(["kill", "-INT", str(running.pid)])
        running.wait(START)
        found = _packets(running)
    handed = [_unhex(call[2]) for call in CALL.findall(sent.err)]
    # An echo request begins with type 8; its sequence number is at octets 6 and 7 (RFC 792).
    own = [int.from_bytes(d[6:8], "big") for d in handed if d[:1] == b"\x08" and MARKED in d]
    return Calls(one.container.address, target, found, own)


def _whole(text: bytes) -> bytes:
    """Return strace's output with interrupted calls joined again."""
    begun: dict[bytes | None, bytes] = {}
    lines = []
    for line in text.splitlines():
        part = PART.fullmatch(line)
        if part is None:
            continue
        words = begun.pop(part["pid"], b"") + part["text"].lstrip()
        if part["cut"]:
            begun[part["pid"]] = words.rstrip() + b" "
        else:
            lines.append(words)
    return b"\n".join(lines)


def _packets(running: Running) -> list[Call]:
    found = []
    for name, path, data in CALL.findall(_whole(running.err)):
        packet = decode(_unhex(data), LINK_RAW[0])
        if packet.icmp and MARKED in packet.payload:
            found.append(Call(name.decode(), _unhex(path).decode(), packet))
    return found


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-three-crossings")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_sending_a_packet_crosses_between_user_and_kernel_three_times(
    lab: LiveLab, observe: Observation, calls: Calls
) -> None:
    outward = [c for c in calls.flanneld if c.packet.dst == calls.target]
    observe.note("calls of the sender, by sequence number", str(calls.sender))
    observe.note("calls of flanneld", "\n".join(map(str, outward)))
    reads = [c.sequence for c in outward if c.name == "read"]
    sends = [c.sequence for c in outward if c.name == "sendto"]
    each = sorted(ALL)
    observe.holds(sorted(calls.sender) == each, f"each of {SENT} packets: the sender's own call")
    observe.holds(sorted(reads) == each, "flanneld reads it from the TUN device, once")
    observe.holds(sorted(sends) == each, "flanneld sends it in a datagram, once")
    total = len(calls.sender) + len(outward)
    observe.holds(total == 3 * SENT, f"{total} crossings for {SENT} packets: three for each")
    _all_pass_flanneld(lab, observe)


def _all_pass_flanneld(lab: LiveLab, observe: Observation) -> None:
    """Count without strace: flanneld reads and sends every octet of the packets."""
    one, other = ends(lab)
    pid = one.node.services()[SERVICE].pid
    size = 1000

    def counters() -> dict[str, int]:
        """Return octets read by flanneld (proc(5), io), packets into flannel0, datagrams."""
        files = [f"/proc/{pid}/io", "/sys/class/net/flannel0/statistics/tx_packets"]
        io, tx, snmp = (one.node.get(f).decode() for f in [*files, f"/proc/{pid}/net/snmp"])
        names, values = (line.split() for line in snmp.splitlines() if line.startswith("Udp:"))
        return {
            "octets read": int(io.split()[1]),
            "into flannel0": int(tx),
            "datagrams": int(values[names.index("OutDatagrams")]),
        }

    before = counters()
    data = str(size - 28)  # without the headers of IP and ICMP
    one.container.run([*PING, "-s", data, other.container.address])
    wanted = {"octets read": SENT * size, "into flannel0": SENT, "datagrams": SENT}
    grown: dict[str, int] = {}

    def have_grown() -> bool:
        grown.update({name: value - before[name] for name, value in counters().items()})
        return all(grown[name] >= least for name, least in wanted.items())

    comes(have_grown, LATE)  # ping may give up on an answer before its packet has been counted
    observe.note(f"{SENT} packets of {size} octets, without strace: counters grow by", grown)
    for name, least in wanted.items():
        observe.holds(grown[name] >= least, f"{name}: {grown[name]}, at least {least}")
