"""Documents 003 and 004, docker0 on one host, and all back ends of flannel.

Labs: two-node and its variants; checks that need only Docker: any lab with Docker.
"""

from __future__ import annotations

import contextlib
import itertools
from ipaddress import IPv4Interface, IPv4Network, ip_address
from typing import TYPE_CHECKING, Any

import pytest

from testbed.observe.capture import Capture, Packet, capture, captures
from testbed.suites.helpers import (
    SOON,
    Ended,
    addresses,
    bridge_address,
    bridge_containers,
    client_of,
    docker_node,
    extra_container,
    fetch,
    link,
    links,
    node_address,
    note,
    outside_node,
    patient,
    ping,
    port_of,
    sysctl_set,
    undone,
    wait_until,
)
from testbed.suites.overlay import (
    DEVICES,
    HOST_SIDE,
    End,
    ends,
    leased,
    mtu_of,
    other_network,
    overlay,
    requests,
    third_host,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveContainer, LiveLab

BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
IGNORE = "net.ipv4.icmp_echo_ignore_broadcasts"
TTL_FALLS = {"udp": 4, "vxlan": 2, "host-gw": 2}  # flanneld itself is a hop at each end
PLAIN_TABLE = "100"  # a routing table of ours


# -- one host ------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbours(lab: LiveLab) -> Iterator[list[LiveContainer]]:
    """Three containers on docker0 of one host, extra ones where the lab has fewer."""
    node = docker_node(lab)
    found = bridge_containers(lab, node, 0)[:3]
    with contextlib.ExitStack() as stack:
        while len(found) < 3:
            name = stack.enter_context(extra_container(lab, node))
            found.append(lab.container(name, node=node.name))
        yield found


def mac(observe: Observation, container: LiveContainer) -> str:
    """Return the MAC of a container's eth0."""
    return str(link(observe, container, "eth0")["address"])


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("ip-broadcast-reaches-all")
@pytest.mark.testbed_needs("docker")
def test_broadcast_address_reaches_all_neighbours(
    lab: LiveLab, observe: Observation, neighbours: list[LiveContainer]
) -> None:
    sender, *others = neighbours
    network = bridge_address(observe, docker_node(lab)).network
    target = str(network.broadcast_address)
    wanted = {container.address for container in others}

    def replies(own: Capture) -> set[str]:
        return {packet.src for packet in own.packets if packet.is_echo_reply} & wanted

    def answers(setting: str) -> set[str]:
        """Return the neighbours that answer with a setting; all must have got the request."""
        points = [(place, "eth0", "icmp") for place in neighbours]
        with contextlib.ExitStack() as stack:
            for container in others:
                stack.enter_context(sysctl_set(observe, container, IGNORE, setting))
            with captures(*points) as (own, *seen):
                observe.run(sender, ["ping", "-n", "-b", "-c1", "-W0.1", target], check=False)
                if setting == "0":
                    own.wait_for(lambda _: replies(own) == wanted)
        note(observe, own, *seen)
        for one in seen:
            arrived = requests(one, sender.address, target)
            assert [packet.dst_mac for packet in arrived] == [BROADCAST_MAC]
        return replies(own)

    observe.holds_when(f"{IGNORE} is 0: all receive it, and answer", answers("0") == wanted)
    observe.fails_when(
        f"{IGNORE} is 1, the default: all receive it, none answers", not answers("1")
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("arp-resolves-ip-to-mac")
@pytest.mark.testbed_needs("docker")
def test_arp_finds_the_mac_of_an_address(
    observe: Observation, neighbours: list[LiveContainer]
) -> None:
    sender, receiver, _ = neighbours
    observe.run(sender, ["ip", "neigh", "flush", "dev", "eth0"])
    with capture(sender, "eth0", "arp") as seen:
        assert ping(observe, sender, receiver.address)
    note(observe, seen)
    packets = [packet.arp for packet in seen.packets if packet.arp]
    asked = [arp for arp in packets if arp.op == 1 and arp.target == receiver.address]
    told = [arp.sender_mac for arp in packets if arp.op == 2 and arp.sender == receiver.address]
    real = mac(observe, receiver)
    observe.holds(asked, f"who-has {receiver.address}")
    # On a busy machine it may be asked twice.
    observe.holds(set(told) == {real}, f"{receiver.address} is-at {real}, the MAC of its eth0")
    table = observe.json(sender, ["ip", "-j", "neigh", "show", "dev", "eth0"])
    known = {entry["dst"]: entry.get("lladdr") for entry in table}
    observe.holds(known.get(receiver.address) == real, "the neighbour table has it")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("l2-docker0-is-switch")
@pytest.mark.testbed_needs("docker")
def test_docker0_forwards_frames_unchanged(
    observe: Observation, neighbours: list[LiveContainer]
) -> None:
    sender, receiver, _ = neighbours
    with captures((sender, "eth0", "icmp"), (receiver, "eth0", "icmp")) as (sent, got):
        assert ping(observe, sender, receiver.address)
    note(observe, sent, got)
    before, after = (requests(c, sender.address, receiver.address) for c in (sent, got))
    assert len(before) == len(after) == 1
    observe.holds(before[0].frame == after[0].frame, "the frame arrives bit for bit as it was sent")
    observe.holds(before[0].ttl == after[0].ttl == 64, "nothing has taken one off its ttl")
    macs = mac(observe, sender), mac(observe, receiver)
    observe.holds((after[0].src_mac, after[0].dst_mac) == macs, "from container to container")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("l2-docker0-cam-lookup")
@pytest.mark.testbed_needs("docker")
def test_docker0_sends_to_the_port_of_the_destinations_mac(
    lab: LiveLab, observe: Observation, neighbours: list[LiveContainer]
) -> None:
    sender, receiver, bystander = neighbours
    node = docker_node(lab)
    assert ping(observe, sender, receiver.address)  # docker0 must know both MACs
    port, aside = (str(port_of(observe, c)["ifname"]) for c in (receiver, bystander))
    table = observe.json(node, ["bridge", "-j", "fdb", "show", "br", "docker0"])
    real = mac(observe, receiver)
    ports = {entry["ifname"] for entry in table if entry["mac"] == real}
    observe.holds(ports == {port}, f"{real}, {receiver.name}'s, is at {port}")
    with captures((node, port, "icmp"), (node, aside, "icmp")) as (there, elsewhere):
        ping(observe, sender, receiver.address)
    note(observe, there, elsewhere)
    pair = sender.address, receiver.address
    observe.holds(requests(there, *pair), f"the frame leaves by {port}")
    observe.holds(not requests(elsewhere, *pair), f"and not by {aside}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_needs("docker")
def test_neighbours_fetch_each_others_page(
    observe: Observation, neighbours: list[LiveContainer]
) -> None:
    client, server, _ = neighbours
    url = f"http://{server.address}/"
    page = wait_until(lambda: fetch(observe, client, url), "the page")
    assert page is not None
    assert page["server"] == f"{server.address}:80"
    assert client_of(page) == client.address


# -- between hosts -------------------------------------------------------


@pytest.mark.testbed_claim("flannel-overlay-connects-all")
@pytest.mark.testbed_needs("flannel", "docker", "two-docker-nodes", "flannel-defaults")
def test_overlay_connects_all_containers_of_all_hosts(lab: LiveLab, observe: Observation) -> None:
    containers = [
        container
        for node in lab.topology.with_role("flannel")
        for container in bridge_containers(lab, lab.node(node.name), 0)
    ]
    assert len({container.node.name for container in containers}) >= 2
    for client, server in itertools.permutations(containers, 2):
        page = fetch(observe, client, f"http://{server.address}/")
        observe.holds(page and page["name"] == server.name, f"{client.name} to {server.name}")
        if page:
            assert client_of(page) == client.address, "the server sees another address"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-overlay-software-on-host-network")
@pytest.mark.testbed_needs("flannel", "docker", "gateway", "flannel-defaults")
def test_hosts_need_an_overlay_to_join_their_containers(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    url = f"http://{other.container.address}/"
    assert fetch(observe, one.container, url)
    with plain_routing(lab, observe, one, other):
        page = fetch(observe, one.container, url, seconds=SOON)
        observe.holds_when("the hosts have no routes to each other's subnets", page is None)
        with routes_by_the_hosts(observe, one, other), capture(one.node, one.interface) as wire:
            page = fetch(observe, one.container, url)
        note(observe, wire)
    assert page is None or client_of(page) == one.container.address
    observe.fails_when(
        "they have plain routes by each other's own addresses, with no overlay at all",
        page and syn(wire.packets, one, other) and not any(p.protocol == 17 for p in wire.packets),
    )
    assert fetch(observe, one.container, url)


@contextlib.contextmanager
def plain_routing(lab: LiveLab, observe: Observation, *hosts: End) -> Iterator[None]:
    """Route packets from docker0 by the default route only, as on hosts without flannel."""
    with contextlib.ExitStack() as stack:
        for end in hosts:
            rule = ["from", "all", "iif", "docker0", "to", str(overlay(lab).network)]
            rule += ["lookup", PLAIN_TABLE]
            default = ["default", "via", node_address(lab, outside_node(lab)), "table", PLAIN_TABLE]
            for kind, words in (("route", default), ("rule", rule)):
                add, delete = (["ip", kind, verb, *words] for verb in ("add", "del"))
                stack.enter_context(undone(observe, end.node, add, delete))
        yield


@contextlib.contextmanager
def routes_by_the_hosts(observe: Observation, one: End, other: End) -> Iterator[None]:
    """Add routes between the hosts' subnets to that table, through the hosts."""
    with contextlib.ExitStack() as stack:
        for here, there in ((one, other), (other, one)):
            words = [str(there.subnet), "via", there.address, "table", PLAIN_TABLE]
            add, delete = (["ip", "route", verb, *words] for verb in ("add", "del"))
            stack.enter_context(undone(observe, here.node, add, delete))
        yield


def syn(packets: list[Packet], one: End, other: End) -> list[Packet]:
    """Return first packets of connections between the containers, decapsulated."""
    pair = one.container.address, other.container.address
    return [packet for packet in packets if packet.is_syn and (packet.src, packet.dst) == pair]


@pytest.mark.testbed_needs("flannel", "docker", "flannel-defaults")
def test_ttl_falls_by_the_hops_of_the_back_end(lab: LiveLab) -> None:
    way = walk(lab)
    sent, got = (way.at(f"{end.container.name} eth0") for end in way.ends)
    assert way.answered
    assert sent.ip_id == got.ip_id
    assert sent.ttl - got.ttl == TTL_FALLS[overlay(lab).backend]


@pytest.mark.testbed_needs("flannel", "docker", "flannel-defaults")
def test_mtu_leaves_room_for_what_the_back_end_adds(lab: LiveLab, observe: Observation) -> None:
    one, other = ends(lab)
    mtu, *more = {mtu_of(lab, observe, end) for end in (one, other)}
    if more:
        pytest.skip("the links of the hosts have different MTUs")
    devices = ["docker0", *([device] if (device := overlay(lab).device) else [])]
    for end in (one, other):
        assert {link(observe, end.node, name)["mtu"] for name in devices} == {mtu}
        assert link(observe, end.container, "eth0")["mtu"] == mtu
        assert leased(observe, end.node)["FLANNEL_MTU"] == str(mtu)
    # 28 octets of IP and ICMP header; a full packet passes whole, one more octet is refused.
    argv = ["ping", "-n", "-c1", "-M", "do", other.container.address]
    wait = f"-W{patient(one.container, 0.2):g}"
    full, over = ([*argv, "-s", str(mtu - 28)], [*argv, "-s", str(mtu - 27), wait])
    assert observe.run(one.container, full, check=False).ok
    assert not observe.run(one.container, over, check=False).ok


# -- document 004 --------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-backends-vxlan-udp")
@pytest.mark.testbed_needs("etcd", "flannel", "gateway")
def test_flannel_is_vxlan_or_udp(lab: LiveLab, observe: Observation) -> None:
    with third_host(lab) as third:
        made = {}
        for backend in ("vxlan", "udp", "host-gw"):
            with other_network(lab, backend) as prefix, third.flanneld(prefix=prefix) as subnet:
                found = {one["ifname"]: one for one in links(observe, third)}
                observe.note(f"back end {backend}", f"leases {subnet}")
            made[backend] = {
                name: one["linkinfo"]["info_kind"]
                for name, one in found.items()
                if name in DEVICES.values()
            }
    observe.holds_when("the back end is vxlan", made["vxlan"] == {"flannel.1": "vxlan"})
    observe.holds_when("the back end is udp", made["udp"] == {"flannel0": "tun"})
    observe.fails_when("the back end is host-gw: no tunnel of any kind", made["host-gw"] == {})


@pytest.mark.testbed_claim("flannel-virtual-network-per-node")
@pytest.mark.testbed_needs("flannel")
def test_every_host_has_its_part_of_the_virtual_network(lab: LiveLab, observe: Observation) -> None:
    network = overlay(lab).network
    for role in lab.topology.with_role("flannel"):
        node = lab.node(role.name)
        own = leased(observe, node)
        observe.holds(own["FLANNEL_NETWORK"] == str(network), f"{role.name} is in {network}")
        subnet = IPv4Interface(own["FLANNEL_SUBNET"]).network
        observe.holds(subnet.subnet_of(network), f"with {subnet}")
        if device := overlay(lab).device:
            found = [a.ip for a in addresses(observe, node, device)]
            observe.holds(found == [subnet.network_address], f"at which is its {device}")


@pytest.mark.testbed_claim("flannel-unique-subnet-per-node")
@pytest.mark.testbed_needs("etcd", "flannel")
def test_every_host_has_a_range_of_its_own(lab: LiveLab, observe: Observation) -> None:
    subnets = {
        role.name: IPv4Interface(leased(observe, lab.node(role.name))["FLANNEL_SUBNET"]).network
        for role in lab.topology.with_role("flannel")
    }
    for (one, its), (other, others) in itertools.combinations(subnets.items(), 2):
        observe.holds(not its.overlaps(others), f"{one} {its}, {other} {others}: apart")
    network = overlay(lab).network
    observe.holds(all(s.subnet_of(network) for s in subnets.values()), f"all within {network}")


@pytest.mark.testbed_claim("flannel-container-ip-in-node-range")
@pytest.mark.testbed_needs("flannel", "docker")
def test_containers_have_addresses_of_their_hosts_range(lab: LiveLab, observe: Observation) -> None:
    for role in lab.topology.with_role("flannel"):
        node = lab.node(role.name)
        subnet = IPv4Interface(leased(observe, node)["FLANNEL_SUBNET"]).network
        for container in bridge_containers(lab, node, 0):
            own = [str(address.ip) for address in addresses(observe, container, "eth0")]
            observe.holds(
                own == [container.address] and ip_address(container.address) in subnet,
                f"{container.name} of {role.name} is {', '.join(own)}, within {subnet}",
            )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-example-ip-masq")
@pytest.mark.testbed_needs("etcd", "flannel", "gateway", "flannel-defaults")
def test_ip_masq_masquerades_what_leaves_the_overlay(lab: LiveLab, observe: Observation) -> None:
    target = node_address(lab, outside_node(lab))
    with third_host(lab) as third:

        def source(*options: str) -> set[str]:
            """Return the source address of an overlay packet at a host outside it."""
            with third.joined(*options) as subnet, capture(third, "eth0", "icmp") as seen:
                argv = ["ping", "-n", "-c1", f"-W{SOON}", "-I", str(subnet[1]), target]
                observe.run(third, argv, check=False)
                seen.wait_for(lambda packets: any(p.is_echo_request for p in packets))
            note(observe, seen)
            return {p.src for p in seen.packets if p.is_echo_request and p.dst == target}

        without, masqueraded = source(), source("--ip-masq")
    observe.holds(masqueraded == {HOST_SIDE}, "with --ip-masq it has the host's address")
    assert len(without) == 1
    assert ip_address(without.pop()) in IPv4Network(overlay(lab).network), "without, its own"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-example-iface")
@pytest.mark.testbed_needs("etcd", "flannel", "gateway")
def test_iface_eth0_chooses_the_interface_between_hosts(lab: LiveLab, observe: Observation) -> None:
    def below(interface: str) -> dict[str, Any] | None:
        """Return flannel.1's lower device with --iface=eth0, on a host with that interface."""
        with (
            third_host(lab, interface) as third,
            other_network(lab, "vxlan") as prefix,
            third.flanneld(prefix=prefix, iface="eth0"),
        ):
            info: dict[str, Any] = link(observe, third, "flannel.1")["linkinfo"]["info_data"]
            return {"link": info["link"], "local": info["local"]}

    observe.holds_when(
        "the host's interface is eth0", below("eth0") == {"link": "eth0", "local": HOST_SIDE}
    )
    try:
        found = below("lan0")
    except Ended as error:
        observe.note("flanneld --iface=eth0", str(error))
        found = None
    observe.fails_when("it is called lan0", found is None)
