"""Docker's bridge docker0: address, routes and ports (documents 000, 001, 002).

For every lab with Docker; docker-single has the values of document 002,
docker-10-1-27 those of document 001.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from testbed.observe.capture import captures
from testbed.roles.docker.section import DockerSection
from testbed.suites import helpers
from testbed.suites.helpers import (
    BRIDGE,
    SOON,
    addresses,
    answers,
    bridge_address,
    bridge_containers,
    direct_access,
    extra_container,
    extra_network,
    fetch,
    fresh_docker,
    in_mode,
    is_address,
    is_up,
    kind,
    link,
    link_down,
    links,
    node_address,
    note,
    ping,
    port_of,
    ports,
    published,
    route_to,
    routes,
    scratch_machine,
    undone,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node
    from testbed.suites.helpers import Inside

pytestmark = pytest.mark.testbed_needs("docker")


@pytest.fixture
def machine(node: Node) -> Iterator[Inside]:
    """A machine on which Docker has never run."""
    with scratch_machine(node) as scratch:
        yield scratch


def bridge_network(lab: LiveLab, node: Node, observe: Observation) -> dict[str, Any]:
    """Return Docker's own description of its default network."""
    network: dict[str, Any] = lab.engine(node.name).api.inspect_network("bridge")
    observe.note(f"{node.name}: GET /networks/bridge", network)
    return network


def needs_bip(lab: LiveLab, node: Node, wanted: str) -> None:
    """Skip if docker0 has another address than the document's."""
    given = str(DockerSection.of(lab.topology).bip[node.name])
    if given != wanted:
        pytest.skip(f"the lab's docker0 has the address {given}, not the document's {wanted}")


def is_served_by(page: dict[str, Any] | None, container: LiveContainer) -> bool:
    """Tell whether a page was sent from the container's address, by any server."""
    return page is not None and page["server"].rpartition(":")[0] == container.address


# -- existence and kind ---------------------------------------------------------


@pytest.mark.testbed_claim("bridge-docker0-is-linux-bridge")
def test_docker0_is_a_linux_bridge(lab: LiveLab, node: Node, observe: Observation) -> None:
    docker0 = link(observe, node, BRIDGE)
    observe.holds(kind(docker0) == "bridge", "docker0 is a link of the kind bridge")
    options = bridge_network(lab, node, observe)["Options"]
    observe.holds(
        options["com.docker.network.bridge.name"] == BRIDGE,
        "the engine says that its default network is docker0",
    )


@pytest.mark.testbed_claim("bridge-docker0-virtual-device")
def test_docker0_is_not_hardware(node: Node, observe: Observation) -> None:
    folder = observe.run(node, ["readlink", "-f", f"/sys/class/net/{BRIDGE}"]).stdout.strip()
    observe.holds(folder == f"/sys/devices/virtual/net/{BRIDGE}", f"the kernel has it as {folder}")
    device = observe.run(node, ["test", "-e", f"/sys/class/net/{BRIDGE}/device"], check=False)
    observe.holds(not device.ok, "no device of any hardware bus is behind it")


@pytest.mark.testbed_claim("bridge-default-netns-name")
def test_a_bridge_named_docker0_is_in_the_hosts_namespace(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    own, first = (
        observe.run(node, ["readlink", f"/proc/{process}/ns/net"]).stdout
        for process in ("self", "1")
    )
    assert own == first, "what is looked at is not the namespace of process 1"
    bridges = {one["ifname"] for one in links(observe, node, "type", "bridge")}
    observe.holds(BRIDGE in bridges, f"bridges in the host's own namespace: {sorted(bridges)}")
    inside = bridge_containers(lab, node)[0]
    assert not links(observe, inside, "type", "bridge")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-docker0-created-at-first-start")
def test_the_daemon_makes_docker0_at_its_first_start(machine: Inside, observe: Observation) -> None:
    assert link(observe, machine, BRIDGE) == {}, "docker0 is there before Docker has ever run"
    with fresh_docker(machine) as fresh:
        assert fresh.api(observe, "/containers/json?all=1") == []
        docker0 = link(observe, machine, BRIDGE)
        observe.holds(
            kind(docker0) == "bridge", "docker0 is there once the daemon runs, with no container"
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-docker0-address-172")
def test_docker0s_address_begins_with_172(machine: Inside, observe: Observation) -> None:
    with fresh_docker(machine) as fresh:
        assert fresh.api(observe, "/version")["ApiVersion"]
        address = bridge_address(observe, machine)
        observe.holds(
            address.packed[0] == 172, f"a daemon without any setting gives docker0 {address}"
        )


@pytest.mark.testbed_claim("bridge-docker0-private-subnet")
@pytest.mark.testbed_needs("plain-docker")
def test_the_bridges_subnet_is_private(lab: LiveLab, node: Node, observe: Observation) -> None:
    subnet = IPv4Network(bridge_network(lab, node, observe)["IPAM"]["Config"][0]["Subnet"])
    private = [IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    observe.holds(
        any(subnet.subnet_of(one) for one in private), f"{subnet} is in RFC 1918's private space"
    )
    assert bridge_address(observe, node).network == subnet


# -- its address ------------------------------------------------------------------


@pytest.mark.testbed_claim("bridge-docker0-first-address")
def test_docker0_has_the_first_address(node: Node, observe: Observation) -> None:
    address = bridge_address(observe, node)
    first = address.network.network_address + 1
    observe.holds(address.ip == first, f"docker0 has {address}; the subnet's first is {first}")


@pytest.mark.testbed_claim("bridge-docker0-address-32")
def test_docker0s_address_is_not_a_32(node: Node, observe: Observation) -> None:
    address = bridge_address(observe, node)
    observe.holds(address.network.prefixlen == 32, f"docker0 has {address}")
    # A /32 has no network, so no route to one.
    connected = routes(observe, node, "dev", BRIDGE, "proto", "kernel")
    wanted = [str(address.network)] if address.network.prefixlen < 32 else []
    assert [route["dst"] for route in connected] == wanted


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("ip-container-range-is-24")
def test_the_containers_range_is_24_only_where_it_is_set(
    machine: Inside, observe: Observation
) -> None:
    with fresh_docker(machine, "--bip=10.1.27.1/24"):
        given = bridge_address(observe, machine)
        observe.holds_when(
            "docker0 is given a /24, by --bip or by flannel", given.network.prefixlen == 24
        )
    with scratch_machine(machine.node, "another") as another, fresh_docker(another) as fresh:
        (config,) = fresh.api(observe, "/networks/bridge")["IPAM"]["Config"]
        subnet = bridge_address(observe, another).network
        assert config["Subnet"] == str(subnet)
        observe.fails_when("Docker chooses: it takes a /16", subnet.prefixlen == 16)


@pytest.mark.testbed_claim("ip-host-and-docker0-different-ranges")
def test_the_host_and_docker0_are_in_different_ranges(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    inner = bridge_address(observe, node).network
    outer = addresses(observe, node, lab.topology.interface(node.name))
    assert str(outer[0].ip) == node_address(lab, node)
    observe.holds(
        not any(address.network.overlaps(inner) for address in outer),
        f"{inner} of docker0 and {outer[0].network} of eth0 do not overlap",
    )


@pytest.mark.testbed_claim("ip-host-route-docker0")
def test_the_host_routes_the_containers_range_to_docker0(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    needs_bip(lab, node, "172.17.0.1/16")
    found = [route for route in routes(observe, node) if route["dst"] == "172.17.0.0/16"]
    observe.holds(
        [route["dev"] for route in found] == [BRIDGE], "172.17.0.0/16 goes to docker0 alone"
    )
    observe.holds(
        all((r["scope"], r.get("prefsrc")) == ("link", "172.17.0.1") for r in found),
        "it is on docker0's link, with docker0's address as the source",
    )
    for container in bridge_containers(lab, node):
        chosen = route_to(observe, node, container.address)
        observe.holds(chosen["dev"] == BRIDGE, f"{container.address} goes to {chosen['dev']}")


# -- its ports ------------------------------------------------------------------------


@pytest.mark.testbed_claim("bridge-container-ip-from-subnet")
def test_a_containers_address_is_from_the_bridges_subnet(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    configs = bridge_network(lab, node, observe)["IPAM"]["Config"]
    (subnet,) = (IPv4Network(one["Subnet"]) for one in configs if ":" not in one["Subnet"])
    for container in bridge_containers(lab, node):
        found = addresses(observe, container, "eth0")
        observe.holds(found and found[0].ip in subnet, f"{container.name} has {found}, of {subnet}")
        observe.holds(
            [str(address.ip) for address in found] == [container.address],
            f"the engine says {container.address}",
        )


@pytest.mark.testbed_claim("bridge-is-container-default-gateway")
def test_docker0_is_the_containers_default_gateway(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    docker0 = bridge_address(observe, node)
    for container in bridge_containers(lab, node):
        defaults = routes(observe, container, "default")
        observe.holds(
            [(route["gateway"], route["dev"]) for route in defaults] == [(str(docker0.ip), "eth0")],
            f"{container.name} has the default gateway {docker0.ip}, docker0's address",
        )


@pytest.mark.testbed_claim("bridge-example-gateway-10-1-27-1")
def test_the_samples_gateway_is_docker0(lab: LiveLab, node: Node, observe: Observation) -> None:
    needs_bip(lab, node, "10.1.27.1/24")
    container = bridge_containers(lab, node)[0]
    (default,) = routes(observe, container, "default")
    observe.holds(default["gateway"] == "10.1.27.1", f"the gateway is {default['gateway']}")
    address = bridge_address(observe, node)
    observe.holds(str(address.ip) == "10.1.27.1", f"docker0 has {address}")


@pytest.mark.testbed_claim("ip-gateway-written-as-32")
def test_the_gateway_is_a_bare_address(lab: LiveLab, node: Node, observe: Observation) -> None:
    container = bridge_containers(lab, node)[0]
    (default,) = routes(observe, container, "default")
    gateway = default["gateway"]
    # `ip` prints a /32 without its length, so a host route would look like this.
    host_routes = [route for route in routes(observe, container) if is_address(route["dst"])]
    observe.holds(
        gateway.endswith("/32") or any(route["dst"] == gateway for route in host_routes),
        f"the container knows its gateway {gateway} as a /32",
    )
    assert is_address(gateway)
    subnet = bridge_address(observe, node).network
    on_link = routes(observe, container, "dev", "eth0", "scope", "link")
    assert str(subnet) in [route["dst"] for route in on_link]


@pytest.mark.testbed_claim("ip-container-subnet-on-link")
def test_the_containers_own_subnet_needs_no_next_hop(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    container, sibling, *_ = bridge_containers(lab, node, 2)
    subnet = bridge_address(observe, node).network
    found = [route for route in routes(observe, container) if route["dst"] == str(subnet)]
    observe.holds(
        [(route["dev"], route.get("scope"), route.get("gateway")) for route in found]
        == [("eth0", "link", None)],
        f"{subnet} is on eth0's link, without a gateway",
    )
    chosen = route_to(observe, container, sibling.address)
    observe.holds("gateway" not in chosen, f"{sibling.address} is sent to without a gateway")
    outside = route_to(observe, container, subnet.broadcast_address + 1)
    assert "gateway" in outside, "nothing has a gateway here"


@pytest.mark.testbed_claim("ip-first-container-172-17-0-2")
def test_the_first_container_has_172_17_0_2(lab: LiveLab, node: Node, observe: Observation) -> None:
    needs_bip(lab, node, "172.17.0.1/16")
    engine = lab.engine(node.name)
    started = {}
    for container in bridge_containers(lab, node, 3):
        started[engine.inspect_raw(container.name)["Created"]] = container
    in_order = [started[when] for when in sorted(started)]
    observe.note("created, in order", {c.name: c.address for c in in_order})
    observe.holds(
        in_order[0].address == "172.17.0.2",
        f"the first, {in_order[0].name}, has {in_order[0].address}",
    )
    observe.holds(
        [c.address for c in in_order[:3]] == ["172.17.0.2", "172.17.0.3", "172.17.0.4"],
        "the next ones have the next addresses",
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-one-bridge-per-host")
def test_all_containers_share_a_bridge_only_in_the_default_network(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    containers = bridge_containers(lab, node, 2)
    masters = [port_of(observe, container).get("master") for container in containers]
    observe.holds_when("all are in bridge mode, on the default network", set(masters) == {BRIDGE})
    with (
        extra_network(lab, node) as network,
        extra_container(lab, node, mode=network) as name,
    ):
        other = port_of(observe, lab.container(name, node=node.name))
        observe.fails_when(
            "one is on a user-defined network, which has a bridge of its own",
            other["master"] != BRIDGE and other["master"].startswith("br-"),
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-docker0-four-ports")
def test_docker0_has_four_ports_when_there_are_four_network_namespaces(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    there = bridge_containers(lab, node)
    if len(there) > 4:
        pytest.skip(f"{len(there)} containers are on docker0, more than four")
    with ExitStack() as extra:
        for _ in range(4 - len(there)):
            extra.enter_context(extra_container(lab, node, mode="bridge"))
        names = [port["ifname"] for port in ports(observe, node)]
        observe.holds_when("four Pods, or four containers in bridge mode, run", len(names) == 4)
        with extra_container(lab, node, mode="bridge"):
            names = [port["ifname"] for port in ports(observe, node)]
            observe.fails_when("another number of them runs: five", len(names) == 5)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-two-containers-two-ports")
def test_two_containers_are_two_ports(lab: LiveLab, node: Node, observe: Observation) -> None:
    before = {port["ifname"]: port for port in ports(observe, node)}
    with extra_container(lab, node), extra_container(lab, node):
        now = {port["ifname"]: port for port in ports(observe, node)}
        new = sorted(now.keys() - before.keys())
        observe.holds(
            len(new) == 2 and all(kind(now[name]) == "veth" for name in new),
            f"two containers more are the two veth ports {', '.join(new)}",
        )
        assert now.keys() >= before.keys()


# -- its packets ---------------------------------------------------------------------


@pytest.mark.testbed_claim("bridge-same-host-direct-ip")
def test_containers_of_a_host_reach_each_other_by_address(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    one, other, *_ = bridge_containers(lab, node, 2)
    with captures((node, BRIDGE, "tcp port 80")) as (bridge,):
        page = fetch(observe, one, f"http://{other.address}:80/")
    note(observe, bridge)
    observe.holds(is_served_by(page, other), f"{one.name} has the page of {other.address}")
    observe.holds(ping(observe, one, other.address), f"{one.name} pings {other.address}")
    ends = {frozenset((p.src, p.dst)) for p in bridge.packets}
    observe.holds(
        ends == {frozenset((one.address, other.address))}, "on docker0 they have those addresses"
    )
    assert lab.engine(node.name).inspect_raw(other.name)["HostConfig"]["PortBindings"] in (None, {})


@pytest.mark.testbed_claim("bridge-curl-172-17-0-2")
def test_nginx_2_curls_172_17_0_2(lab: LiveLab, node: Node, observe: Observation) -> None:
    needs_bip(lab, node, "172.17.0.1/16")
    found = {container.name: container for container in bridge_containers(lab, node)}
    if "nginx-2" not in found:
        pytest.skip("the lab has no container nginx-2 on docker0")
    client = found["nginx-2"]
    limit = f"-m{helpers.LATE:g}"
    argv = client.argv(["curl", "-sS", limit, "-w", "\n%{json}", "172.17.0.2"], mounts=True)
    result = observe.run(node, argv, check=False)
    observe.holds(result.ok, "the image's own curl in nginx-2 has an answer")
    observe.holds('"http_code":200' in result.stdout.partition("\n")[2], "the answer is 200")
    assert client.address != "172.17.0.2"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-docker0-links-local-containers")
def test_without_docker0_the_containers_do_not_reach_each_other(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    one, other, *_ = bridge_containers(lab, node, 2)
    with captures((one, "eth0", "icmp"), (node, BRIDGE, "icmp")) as (sent, bridge):
        answered = ping(observe, one, other.address, count=2)
    note(observe, bridge)
    observe.holds(answered, "one container pings another")
    seen = {(p.src, p.icmp) for p in bridge.packets}
    observe.holds(
        seen == {(p.src, p.icmp) for p in sent.packets} and len(seen) == 4,
        "requests and replies between two containers are seen on docker0",
    )
    with link_down(observe, node, BRIDGE):
        stopped = not ping(observe, one, other.address, seconds=SOON)
    observe.holds(stopped, "while docker0 is down they stop")
    assert is_up(link(observe, node, BRIDGE))
    observe.holds(answers(observe, one, other.address), "once it is up they go on")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-docker0-routes-to-container")
def test_docker0_delivers_and_does_not_route(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    one, other, *_ = bridge_containers(lab, node, 2)
    observe.run(node, ["ip", "neigh", "flush", "dev", BRIDGE])
    with captures(
        (node, BRIDGE, "arp or icmp"), (one, "eth0", "icmp"), (other, "eth0", "icmp")
    ) as (bridge, bystander, meant):
        answered = ping(observe, node, other.address)
    note(observe, bridge, meant, bystander)
    asked = [p.arp.target for p in bridge.packets if p.arp and p.arp.op == 1]
    observe.holds_when(
        "what is meant is delivery: a packet of the host reaches the container that has the "
        "address, found by ARP, and no other",
        answered and other.address in asked and len(meant.packets) == 2 and not bystander.packets,
    )
    with captures((one, "eth0", "icmp"), (other, "eth0", "icmp")) as (sent, came):
        answered = ping(observe, one, other.address)
    note(observe, sent, came)
    before, after = ([p for p in c.packets if p.is_echo_request] for c in (sent, came))
    observe.fails_when(
        "what is meant is a router's work: between containers docker0 lowers no TTL and passes "
        "the frame on as it is",
        answered
        and [p.ttl for p in before] == [p.ttl for p in after]
        and [p.frame for p in before] == [p.frame for p in after],
    )


# -- from outside -------------------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-not-addressable-from-outside")
@pytest.mark.testbed_needs("plain-docker", "gateway")
def test_outside_docker0_is_known_only_by_a_route(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    address = bridge_address(observe, node)
    observe.holds_when(
        "nobody outside has a route to its subnet",
        not ping(observe, outside, address.ip, seconds=SOON),
    )
    way = [str(address.network), "via", node_address(lab, node)]
    with undone(observe, outside, ["ip", "route", "add", *way], ["ip", "route", "del", *way]):
        observe.fails_when(
            "the machine outside has a route to it by way of the host",
            ping(observe, outside, address.ip),
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("bridge-container-ip-not-reachable-externally")
@pytest.mark.testbed_needs("plain-docker", "gateway")
def test_outside_a_container_is_reached_only_by_a_route_and_with_leave(
    lab: LiveLab, node: Node, outside: Node, observe: Observation
) -> None:
    web, port = published(lab, node)
    (private, *_) = (c for c in in_mode(lab, node, "bridge", 2) if c.name != web.name)
    subnet = bridge_address(observe, node).network
    mapped = f"http://{web.address}:{port.container_port}/"
    observe.holds_when(
        "nobody outside has a route to the container",
        fetch(observe, outside, mapped, seconds=SOON) is None,
    )
    way = [str(subnet), "via", node_address(lab, node)]
    with undone(observe, outside, ["ip", "route", "add", *way], ["ip", "route", "del", *way]):
        observe.holds_when(
            "there is a route, and the port is not published",
            fetch(observe, outside, f"http://{private.address}:80/", seconds=SOON) is None,
        )
        kept_out = fetch(observe, outside, mapped, seconds=SOON) is None
        with direct_access(lab, observe, node, web.address) as lifted:
            words = "there is a route, and the port is published"
            if lifted:
                observe.holds_when(f"{words}, and the engine drops direct access", kept_out)
                words += ", and the engine's drop of direct access (28 and later) is lifted"
            observe.fails_when(words, is_served_by(fetch(observe, outside, mapped), web))
