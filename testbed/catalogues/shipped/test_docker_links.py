"""veth pairs of containers, and their packets (documents 000, 001 and 002).

For every lab with Docker.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.observe.capture import captures
from testbed.suites import helpers
from testbed.suites.helpers import (
    BRIDGE,
    SOON,
    Exchange,
    addresses,
    answers,
    between,
    bridge_containers,
    comes,
    docker_node,
    extra_container,
    fetch,
    kind,
    link,
    link_down,
    links,
    ping,
    place_of,
    port_of,
    ports,
    same,
    show_path,
    wait_closed,
)

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node
    from testbed.nodes.place import Place
    from testbed.observe.capture import Packet

pytestmark = pytest.mark.testbed_needs("docker")


def veths(observe: Observation, container: LiveContainer) -> list[dict[str, Any]]:
    """Return all links of a container but its loopback."""
    return [one for one in links(observe, container) if "LOOPBACK" not in one["flags"]]


# -- the pairs ------------------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("veth-pair-per-container")
def test_each_container_brings_one_veth_pair(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    def names() -> set[str]:
        return {one["ifname"] for one in ports(observe, node) if kind(one) == "veth"}

    before = names()
    with extra_container(lab, node, mode="bridge") as first:
        one = names()
        observe.holds(len(one - before) == 1, "one container more is one veth port more")
        with extra_container(lab, node, mode="bridge"):
            observe.holds(len(names() - one) == 1, "and the next is one more again")
        inner = veths(observe, lab.container(first, node=node.name))
        observe.holds(len(inner) == 1 and kind(inner[0]) == "veth", "the container holds one end")


@pytest.mark.testbed_claim("veth-one-end-on-bridge")
def test_one_end_is_a_port_of_docker0(lab: LiveLab, node: Node, observe: Observation) -> None:
    for container in bridge_containers(lab, node):
        port = port_of(observe, container)
        observe.holds(
            port.get("master") == BRIDGE and port["linkinfo"].get("info_slave_kind") == "bridge",
            f"{port['ifname']}, the peer of {container.name}'s eth0, is a port of docker0",
        )


@pytest.mark.testbed_claim("veth-other-end-is-eth0")
def test_the_other_end_is_the_containers_eth0(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    indexes = {port["ifindex"]: port["ifname"] for port in ports(observe, node)}
    for container in bridge_containers(lab, node):
        eth0 = link(observe, container, "eth0")
        observe.holds(
            kind(eth0) == "veth" and eth0.get("link_index") in indexes,
            f"eth0 of {container.name} is the peer of {indexes.get(eth0.get('link_index', 0))}",
        )


@pytest.mark.testbed_claim("veth-eth0-holds-address")
def test_eth0_holds_the_address(lab: LiveLab, node: Node, observe: Observation) -> None:
    for container in bridge_containers(lab, node):
        settings = lab.engine(node.name).inspect_raw(container.name)["NetworkSettings"]
        network = settings["Networks"]["bridge"]
        given = f"{network['IPAddress']}/{network['IPPrefixLen']}"
        found = [str(address) for address in addresses(observe, container, "eth0")]
        observe.holds(
            found == [given], f"eth0 of {container.name} has {found}, the engine says {given}"
        )


@pytest.mark.testbed_claim("veth-bridge-ports-are-veth-ends")
def test_each_port_of_docker0_is_an_end_of_a_containers_pair(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    owners: dict[int, list[str]] = {}
    for container in bridge_containers(lab, node):
        for inner in veths(observe, container):
            owners.setdefault(inner["link_index"], []).append(container.name)
    found = ports(observe, node)
    observe.holds(found, "docker0 has ports")
    for port in found:
        observe.holds(
            kind(port) == "veth" and "link_netnsid" in port,
            f"{port['ifname']} is a veth device whose peer is in another namespace",
        )
        owner = owners.get(port["ifindex"], [])
        observe.holds(len(owner) == 1, f"that is the namespace of {', '.join(owner) or 'nobody'}")


@pytest.mark.testbed_claim("veth-host-ends-in-default-netns")
def test_the_ends_on_the_bridge_are_links_of_the_host(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    host, self = (
        observe.run(node, ["readlink", f"/proc/{process}/ns/net"]).stdout
        for process in ("1", "self")
    )
    assert host == self, "what is looked at is not the namespace of process 1"
    indexes = {one["ifindex"] for one in links(observe, node, "type", "veth")}
    wanted = {veths(observe, c)[0]["link_index"] for c in bridge_containers(lab, node)}
    observe.holds(
        wanted and wanted <= indexes, "the peer of every container's eth0 is a link of the host"
    )


@pytest.mark.testbed_claim("veth-container-has-peer-end")
def test_the_container_has_the_far_end_of_a_pair(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    container = bridge_containers(lab, node)[0]
    inner = veths(observe, container)
    observe.holds([kind(one) for one in inner] == ["veth"], "it has one link, a veth device")
    indexes = {port["ifindex"] for port in ports(observe, node)}
    observe.holds(inner[0].get("link_index") in indexes, "the other end is a port of docker0")
    found = [str(address.ip) for address in addresses(observe, container, inner[0]["ifname"])]
    observe.holds(found == [container.address], f"it has the container's address {found}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("veth-links-container-and-host-netns")
def test_the_pair_carries_all_between_container_and_host(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    container = bridge_containers(lab, node)[0]
    name = port_of(observe, container)["ifname"]
    observe.holds(ping(observe, node, container.address), "packets pass")
    with link_down(observe, node, name):
        stopped = not ping(observe, node, container.address, seconds=SOON)
    observe.holds(stopped, f"while {name} is down nothing passes")
    observe.holds(answers(observe, node, container.address), "once it is up packets pass")

    def balanced() -> bool:
        (outer,) = observe.json(node, ["ip", "-j", "-s", "link", "show", "dev", name])
        (inner,) = observe.json(container, ["ip", "-j", "-s", "link", "show", "dev", "eth0"])
        ends = [one["stats64"] for one in (outer, inner)]
        return all(ends[i]["rx"]["packets"] == ends[1 - i]["tx"]["packets"] for i in range(2))

    # Counters of two links can't be read at the same moment: a stray packet may come between.
    same_counts = comes(balanced, helpers.LATE)
    observe.holds(same_counts, "each end has received as many packets as the other has sent")


# -- their names and numbers --------------------------------------------------------


@pytest.mark.testbed_claim("veth-docker-name-pattern")
def test_the_hosts_ends_are_named_veth_and_seven_hex_digits(
    node: Node, observe: Observation
) -> None:
    names = [port["ifname"] for port in ports(observe, node)]
    observe.holds(names, "docker0 has ports")
    for name in names:
        observe.holds(re.fullmatch(r"veth[0-9a-f]{7}", name), name)


@pytest.mark.testbed_claim("veth-host-end-has-link-id")
def test_the_hosts_end_shows_a_link_id(node: Node, observe: Observation) -> None:
    found = ports(observe, node)
    observe.holds(found, "docker0 has ports")
    for port in found:
        number = port.get("link_index", 0)
        observe.holds(number > 0, f"{port['ifname']} has the link id {number}")


@pytest.mark.testbed_claim("veth-eth0-has-link-id")
def test_eth0_shows_a_link_id(lab: LiveLab, node: Node, observe: Observation) -> None:
    for container in bridge_containers(lab, node):
        number = link(observe, container, "eth0").get("link_index", 0)
        argv = container.argv(["cat", "/sys/class/net/eth0/iflink"], mounts=True)
        file = observe.run(node, argv).stdout.strip()
        observe.holds(
            number > 0 and file == str(number),
            f"eth0 of {container.name} has the link id {number}, its /sys says {file}",
        )


@pytest.mark.testbed_claim("veth-link-ids-match")
def test_link_ids_tell_which_veth_belongs_to_which_container(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    numbers = {(port["ifindex"], port.get("link_index")): port for port in ports(observe, node)}
    partners = {}
    for container in bridge_containers(lab, node):
        eth0 = link(observe, container, "eth0")
        port = numbers.get((eth0["link_index"], eth0["ifindex"]))
        observe.holds(port is not None, f"a port of docker0 has the ids of {container.name}'s eth0")
        if port:
            partners[container.name] = port["ifname"]
    observe.note("partners by link id", partners)
    observe.holds(len(set(partners.values())) == len(partners) == len(numbers), "one to one")
    # Verify the ids: a packet to each container passes the veth device named.
    for container in [c for c in bridge_containers(lab, node) if c.name in partners][:2]:
        device = partners[container.name]
        with captures((node, device, "icmp")) as (seen,):
            ping(observe, node, container.address)
        asked = {p.dst for p in seen.packets if p.is_echo_request}
        observe.holds(asked == {container.address}, f"{device} has what is for {container.address}")


# -- their packets --------------------------------------------------------------------


@pytest.fixture(scope="module")
def exchange(lab: LiveLab) -> Exchange:
    """Fetch a neighbour's page from a container, captured at every point of the way."""
    observe = Observation()
    node = docker_node(lab)
    server, client, *_ = bridge_containers(lab, node, 2)
    packets = f"tcp port 80 and host {client.address} and host {server.address}"
    points: dict[str, tuple[Place, str, str]] = {
        "eth0 of the client": (client, "eth0", packets),
        "veth of the client": (node, port_of(observe, client)["ifname"], packets),
        "docker0": (node, BRIDGE, packets),
        "veth of the server": (node, port_of(observe, server)["ifname"], packets),
        "eth0 of the server": (server, "eth0", packets),
        "eth0 of the host": (node, lab.topology.interface(node.name), packets),
    }
    with captures(*points.values()) as seen:
        page = fetch(observe, client, f"http://{server.address}:80/")
        if page:
            *passed, _ = seen
            wait_closed(*passed)
    return Exchange(page, dict(zip(points, seen, strict=True)))


def _is_whole(packets: list[Packet], client: str, server: str) -> bool:
    """Tell whether a capture has the connection's start, the request, and answer 200."""
    way = between(packets, client, server)
    start = [p for p in way if p.is_syn and p.src == client and p.dport == 80]
    request = [p for p in way if p.src == client and p.payload.startswith(b"GET / HTTP/1.1\r\n")]
    answer = [p for p in way if p.src == server and p.payload.startswith(b"HTTP/1.1 200 ")]
    return bool(start and request and answer)


@pytest.mark.testbed_claim("l2-http-seen-on-eth0")
def test_the_http_exchange_is_seen_on_eth0(
    lab: LiveLab, node: Node, exchange: Exchange, observe: Observation
) -> None:
    server, client, *_ = bridge_containers(lab, node, 2)
    exchange.note(observe, "eth0 of the client")
    observe.holds(
        _is_whole(exchange.at("eth0 of the client"), client.address, server.address),
        "tcpdump on the client's eth0 has SYN, GET and 200, between the containers' addresses",
    )


@pytest.mark.testbed_claim("l2-same-flow-on-docker0")
def test_docker0_shows_the_same_packets(exchange: Exchange, observe: Observation) -> None:
    exchange.note(observe, "eth0 of the client", "docker0")
    inner, bridge = (exchange.at(point) for point in ("eth0 of the client", "docker0"))
    observe.holds(
        inner and sorted(map(repr, map(same, inner))) == sorted(map(repr, map(same, bridge))),
        f"docker0 shows the {len(inner)} packets of eth0, no other and none changed",
    )


@pytest.mark.testbed_claim("l2-same-host-path")
def test_packets_go_eth0_veth_docker0_veth_eth0(
    lab: LiveLab, node: Node, exchange: Exchange, observe: Observation
) -> None:
    way = list(exchange.seen)[:5]
    exchange.note(observe, *way, "eth0 of the host")
    times: dict[str, float] = {}
    for point in way:
        request = [p for p in exchange.at(point) if p.payload.startswith(b"GET ")]
        observe.holds(len(request) == 1, f"the request is seen once on {point}")
        times[point] = request[0].time if request else 0.0
    # A capture on a bridge itself sees a copy, made after the frame was forwarded.
    copied = times.pop("docker0")
    observe.holds(list(times.values()) == sorted(times.values()), f"in the order {', '.join(way)}")
    observe.holds(copied >= times["veth of the client"], "docker0's copy is no earlier")
    masters = {exchange.seen[point].interface for point in way if point.startswith("veth")}
    bridged = {port["ifname"] for port in ports(observe, node)}
    observe.holds(masters <= bridged, "both veth devices are ports of docker0")
    observe.holds(exchange.at("eth0 of the host") == [], "nothing of it leaves by the host's eth0")
    server, client, *_ = bridge_containers(lab, node, 2)
    show_path(lab, observe, place_of(client), place_of(server))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("arp-seen-with-http")
def test_arp_is_seen_only_when_the_neighbour_is_not_known(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    server, client, *_ = bridge_containers(lab, node, 2)
    pair = {client.address, server.address}

    def look() -> list[Packet]:
        with captures((client, "eth0", "arp or tcp port 80")) as (seen,):
            assert fetch(observe, client, f"http://{server.address}:80/")
        observe.note(f"tcpdump on {seen}", seen.lines())
        return [
            p for p in seen.packets if p.is_syn or (p.arp and {p.arp.sender, p.arp.target} == pair)
        ]

    for one, other in ((client, server), (server, client)):
        mac = link(observe, other, "eth0")["address"]
        entry = [other.address, "lladdr", mac, "dev", "eth0", "nud", "reachable"]
        observe.run(one, ["ip", "neigh", "replace", *entry])
    observe.fails_when(
        "the containers know each other's hardware addresses", not any(p.arp for p in look())
    )
    for one in (client, server):
        observe.run(one, ["ip", "neigh", "flush", "dev", "eth0"])
    seen = look()
    asked = [p for p in seen if p.arp and p.arp.op == 1 and p.arp.target == server.address]
    told = [p for p in seen if p.arp and p.arp.op == 2 and p.arp.sender == server.address]
    start = [p for p in seen if p.is_syn]
    observe.holds_when(
        "the client does not know the server's: who-has and is-at come before the SYN",
        asked and told and start and asked[0].time <= told[0].time <= start[0].time,
    )
