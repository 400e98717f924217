"""Published ports and outbound traffic: address translation by the host (document 000).

For every lab with Docker and a machine outside; those on published ports for
docker-single.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from testbed.claims.observation import Observation
from testbed.observe.capture import captures
from testbed.suites.helpers import (
    BRIDGE,
    SOON,
    Exchange,
    bridge_address,
    bridge_containers,
    client_of,
    docker_node,
    docker_rules,
    extra_container,
    fetch,
    flows,
    node_address,
    note,
    outside_node,
    place_of,
    port_of,
    ports,
    published,
    route_to,
    serving,
    show_path,
    sysctl_set,
    wait_serving,
)

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.nodes.place import Place
    from testbed.observe.capture import Packet

pytestmark = pytest.mark.testbed_needs("docker", "gateway")

SERVER_PORT = 18000  # on the machine outside


def first(packets: list[Packet]) -> list[Packet]:
    """Return the first captured packet of the connection, if any, in a list."""
    return [p for p in packets if p.is_syn][:1]


# -- from outside to a container ---------------------------------------------------


@pytest.fixture(scope="module")
def inbound(lab: LiveLab) -> Exchange:
    """Exchange with a container, captured on eth0, docker0, veth and its eth0."""
    observe = Observation()
    node, outside = docker_node(lab), outside_node(lab)
    web, port = published(lab, node)
    packets = f"tcp port {port.host_port} or tcp port {port.container_port}"
    points: dict[str, tuple[Place, str, str]] = {
        "eth0 of the host": (node, lab.topology.interface(node.name), packets),
        "docker0": (node, BRIDGE, packets),
        "veth": (node, port_of(observe, web)["ifname"], packets),
        "eth0 of the container": (web, "eth0", packets),
    }
    with captures(*points.values()) as seen:
        page = fetch(observe, outside, f"http://{node_address(lab, node)}:{port.host_port}/")
    return Exchange(page, dict(zip(points, seen, strict=True)))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-publish-given-port")
def test_minus_p_opens_a_port_of_the_host(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    url = f"http://{node_address(lab, node)}:18080/"
    before = fetch(observe, outside, url, seconds=SOON)
    with extra_container(lab, node, port_bindings={80: 18080}, expose=[80]) as name:
        wait_serving(lab, node, name)
        page = fetch(observe, outside, url)
        observe.holds(page and page["name"] == name, "with -p 18080:80 outsiders reach it")
    after = fetch(observe, outside, url, seconds=SOON)
    assert before is None, "something answers without -p"
    assert after is None, "something answers once the container has gone"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-publish-all-exposed")
def test_capital_p_opens_ports_of_the_host(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    host = node_address(lab, node)
    with extra_container(lab, node, publish_all_ports=True) as name:
        mapped = lab.engine(node.name).inspect_raw(name)["NetworkSettings"]["Ports"]
        observe.note(f"{node.name}: ports of {name}", mapped)
        observe.holds(set(mapped) == {"80/tcp"}, "what the image exposes, port 80, is published")
        number = mapped["80/tcp"][0]["HostPort"]
        wait_serving(lab, node, name)
        page = fetch(observe, outside, f"http://{host}:{number}/")
        observe.holds(page and page["name"] == name, f"outsiders reach it at port {number}")
    with extra_container(lab, node) as name:
        mapped = lab.engine(node.name).inspect_raw(name)["NetworkSettings"]["Ports"]
        assert not any(mapped.values()), "ports are published without -P too"


@pytest.mark.testbed_claim("nat-access-hostip-containerport")
def test_a_published_service_is_not_at_the_containers_port(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    web, port = published(lab, node)
    if port.host_port == port.container_port:
        pytest.skip("the published port is the same on the host and in the container")
    host = node_address(lab, node)
    page = fetch(observe, outside, f"http://{host}:{port.container_port}/", seconds=SOON)
    observe.holds(
        page and page["name"] == web.name,
        f"{host}:{port.container_port}, the host's address and the container's port, "
        f"has the page of {web.name}",
    )
    page = fetch(observe, outside, f"http://{host}:{port.host_port}/")
    assert page
    assert page["name"] == web.name


@pytest.mark.testbed_claim("nat-publish-binds-host-port")
def test_nat_ties_a_port_of_the_host_to_the_container(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    web, port = published(lab, node)
    mapped = lab.engine(node.name).inspect_raw(web.name)["NetworkSettings"]["Ports"]
    observe.note(f"{node.name}: ports of {web.name}", mapped)
    numbers = {one["HostPort"] for one in mapped[f"{port.container_port}/tcp"]}
    observe.holds(numbers == {str(port.host_port)}, f"the engine says port {numbers}")
    found = [
        rule
        for rule in docker_rules(lab, observe, node, "nat")
        if rule.target == "DNAT" and rule.get("--dport") == str(port.host_port)
    ]
    observe.holds(
        [rule.get("--to-destination") for rule in found]
        == [f"{web.address}:{port.container_port}"],
        f"a DNAT rule turns port {port.host_port} into {web.address}:{port.container_port}",
    )


@pytest.mark.testbed_claim("nat-inbound-hostip-hostport")
def test_outsiders_reach_it_at_the_hosts_address_and_port(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    web, port = published(lab, node)
    url = f"http://{node_address(lab, node)}:{port.host_port}/"
    page = fetch(observe, outside, url)
    observe.holds(page and page["name"] == web.name, f"{url} is the page of {web.name}")


@pytest.mark.testbed_claim("nat-inbound-dnat-address")
def test_dnat_replaces_the_destination_address(
    lab: LiveLab, node: Node, inbound: Exchange, observe: Observation
) -> None:
    web, port = published(lab, node)
    host = node_address(lab, node)
    inbound.note(observe, "eth0 of the host", "docker0")
    before, after = (first(inbound.at(point)) for point in ("eth0 of the host", "docker0"))
    observe.holds([p.dst for p in before] == [host], f"on eth0 the request is for {host}")
    observe.holds([p.dst for p in after] == [web.address], f"on docker0 it is for {web.address}")
    # By port: entries of earlier connections stay for minutes after their end.
    mine = {(p.src, p.sport, p.dport) for p in before}
    every = flows(observe, node, "--orig-dst", host, "--orig-port-dst", str(port.host_port))
    found = [f for f in every if (f.original.src, f.original.sport, f.original.dport) in mine]
    observe.holds(
        found and all(flow.reply.src == web.address for flow in found),
        f"the connection is tracked as one to {host} that {web.address} answers",
    )
    show_path(lab, observe, outside_node(lab).name, host, tcp=port.host_port)


@pytest.mark.testbed_claim("nat-inbound-dnat-port")
def test_dnat_replaces_the_destination_port(
    lab: LiveLab, node: Node, inbound: Exchange, observe: Observation
) -> None:
    _, port = published(lab, node)
    if port.host_port == port.container_port:
        pytest.skip("the published port is the same on the host and in the container")
    inbound.note(observe, "eth0 of the host", "docker0")
    before, after = (first(inbound.at(point)) for point in ("eth0 of the host", "docker0"))
    observe.holds(
        [p.dport for p in before] == [port.host_port], f"on eth0 the port is {port.host_port}"
    )
    observe.holds(
        [p.dport for p in after] == [port.container_port],
        f"on docker0 it is {port.container_port}",
    )


@pytest.mark.testbed_claim("nat-inbound-host-delivers-to-veth")
def test_the_host_knows_the_way_to_the_veth(
    lab: LiveLab, node: Node, inbound: Exchange, observe: Observation
) -> None:
    web, _ = published(lab, node)
    chosen = route_to(observe, node, web.address)
    observe.holds(
        chosen["dev"] == BRIDGE and "gateway" not in chosen,
        f"the host has {web.address} on the link of {chosen['dev']}",
    )
    inbound.note(observe, "veth")
    observe.holds(
        [p.dst for p in first(inbound.at("veth"))] == [web.address],
        "the translated request is seen on the host's end of the veth pair",
    )


@pytest.mark.testbed_claim("nat-inbound-veth-to-eth0")
def test_the_veth_pair_carries_it_to_eth0(
    lab: LiveLab, node: Node, outside: Node, inbound: Exchange, observe: Observation
) -> None:
    web, _ = published(lab, node)
    inbound.note(observe, "eth0 of the container")
    seen = inbound.at("eth0 of the container")
    client = node_address(lab, outside)
    observe.holds(
        [(p.src, p.dst) for p in first(seen)] == [(client, web.address)],
        "the request comes out of the container's eth0",
    )
    answer = [p for p in seen if p.payload.startswith(b"HTTP/1.1 200")]
    observe.holds(
        [(p.src, p.dst) for p in answer] == [(web.address, client)],
        "the service inside answers it",
    )


# -- from a container to the outside ---------------------------------------------------


@pytest.fixture(scope="module")
def outbound(lab: LiveLab) -> Exchange:
    """Fetch a page of the machine outside from a container, captured at every point."""
    observe = Observation()
    node, outside = docker_node(lab), outside_node(lab)
    client = bridge_containers(lab, node)[0]
    packets = f"tcp port {SERVER_PORT}"
    points: dict[str, tuple[Place, str, str]] = {
        "eth0 of the container": (client, "eth0", packets),
        "veth": (node, port_of(observe, client)["ifname"], packets),
        "docker0": (node, BRIDGE, packets),
        "eth0 of the host": (node, lab.topology.interface(node.name), packets),
        "eth0 outside": (outside, lab.topology.interface(outside.name), packets),
    }
    with serving(outside, SERVER_PORT), captures(*points.values()) as seen:
        page = fetch(observe, client, f"http://{node_address(lab, outside)}:{SERVER_PORT}/")
    return Exchange(page, dict(zip(points, seen, strict=True)))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outbound-source-is-container")
def test_a_packet_starts_with_the_containers_address(
    lab: LiveLab, node: Node, outside: Node, outbound: Exchange, observe: Observation
) -> None:
    client = bridge_containers(lab, node)[0]
    outbound.note(observe, "eth0 of the container", "docker0")
    for point in ("eth0 of the container", "docker0"):
        found = [(p.src, p.dst, p.dport) for p in first(outbound.at(point))]
        observe.holds(
            found == [(client.address, node_address(lab, outside), SERVER_PORT)],
            f"on {point} the request comes from {found[0][0] if found else 'nobody'}",
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outbound-eth0-to-docker0")
def test_it_passes_eth0_veth_and_docker0(outbound: Exchange, observe: Observation) -> None:
    way = ["eth0 of the container", "veth", "docker0"]
    outbound.note(observe, *way)
    found = [first(outbound.at(point)) for point in way]
    observe.holds(
        all(len(one) == 1 for one in found) and len({p.ip_id for one in found for p in one}) == 1,
        "one and the same packet is seen on the container's eth0, on the veth device, on docker0",
    )
    times = [p.time for one in found for p in one]
    observe.holds(times == sorted(times), "in this order")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outbound-bridge-forwards-to-eth0")
def test_it_is_the_hosts_ip_layer_that_forwards(
    lab: LiveLab, node: Node, outside: Node, outbound: Exchange, observe: Observation
) -> None:
    outbound.note(observe, "docker0", "eth0 of the host")
    observe.holds_when(
        "what is meant is the way: a packet that is seen on docker0 leaves by eth0",
        outbound.page
        and [p.seq for p in first(outbound.at("docker0"))]
        == [p.seq for p in first(outbound.at("eth0 of the host"))],
    )
    client = bridge_containers(lab, node)[0]
    bridged = {port["ifname"] for port in ports(observe, node)}
    packets = f"tcp port {SERVER_PORT}"
    outer = lab.topology.interface(node.name)
    with (
        serving(outside, SERVER_PORT),
        captures((node, BRIDGE, packets), (node, outer, packets)) as (bridge, eth0),
        sysctl_set(observe, node, "net.ipv4.ip_forward", "0"),
    ):
        url = f"http://{node_address(lab, outside)}:{SERVER_PORT}/"
        page = fetch(observe, client, url, seconds=SOON)
    note(observe, bridge, eth0)
    observe.fails_when(
        "what is meant is that the bridge does it: eth0 is no port of docker0, and without IP "
        "forwarding (ip_forward=0) packets come to docker0 and go no further",
        "eth0" not in bridged and page is None and bridge.packets and not eth0.packets,
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outbound-snat-to-eth0-address")
def test_the_source_becomes_the_address_of_eth0(
    lab: LiveLab, node: Node, outbound: Exchange, observe: Observation
) -> None:
    client = bridge_containers(lab, node)[0]
    host = node_address(lab, node)
    outbound.note(observe, "docker0", "eth0 of the host")
    before, after = (first(outbound.at(point)) for point in ("docker0", "eth0 of the host"))
    assert [p.src for p in before] == [client.address], "it does not come from the container"
    observe.holds(
        [p.src for p in after] == [host], f"on eth0 the request comes from {host}, eth0's address"
    )
    found = {rule.target for rule in docker_rules(lab, observe, node, "nat")}
    translating = found & {"MASQUERADE", "SNAT"}
    observe.holds(translating, f"the nat table has {' and '.join(sorted(translating)) or 'none'}")
    show_path(lab, observe, place_of(client), outside_node(lab).name)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outbound-reaches-external")
def test_it_reaches_the_target(
    lab: LiveLab, node: Node, outbound: Exchange, observe: Observation
) -> None:
    outbound.note(observe, "eth0 outside")
    observe.holds(outbound.page is not None, "the container has the answer")
    observe.holds(len(first(outbound.at("eth0 outside"))) == 1, "the target has the request")
    if outbound.page:
        assert client_of(outbound.page) == node_address(lab, node)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-outside-sees-internal-addresses-as-private")
@pytest.mark.testbed_needs("plain-docker")
def test_no_inner_address_is_seen_outside(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    web, port = published(lab, node)
    subnet = bridge_address(observe, node).network
    host = node_address(lab, node)
    outer = lab.topology.interface(outside.name)
    with serving(outside, SERVER_PORT), captures((outside, outer, "ip or arp")) as (seen,):
        out = fetch(observe, web, f"http://{node_address(lab, outside)}:{SERVER_PORT}/")
        into = fetch(observe, outside, f"http://{host}:{port.host_port}/")
    note(observe, seen)
    assert out
    assert into
    found = {address for p in seen.packets for address in (p.src, p.dst) if address}
    found |= {address for p in seen.packets if p.arp for address in (p.arp.sender, p.arp.target)}
    assert host in found, "the exchanges were not seen"
    inner = sorted(address for address in found if IPv4Address(address) in subnet)
    observe.holds(
        not inner, f"of {subnet} the machine outside sees {', '.join(inner) or 'no address'}"
    )
