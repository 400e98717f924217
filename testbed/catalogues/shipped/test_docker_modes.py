"""The network modes bridge, host, none and container (documents 000 and 001).

For the lab docker-single, which has a container in each.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.errors import NotFound
from testbed.observe.capture import captures
from testbed.suites.helpers import (
    BRIDGE,
    SOON,
    addresses,
    answers,
    bridge_address,
    bridge_containers,
    client_of,
    client_port,
    docker_rules,
    extra_container,
    fetch,
    flows,
    in_mode,
    last_host,
    link,
    links,
    listeners,
    namespace,
    network_entries,
    node_address,
    note,
    opened,
    ping,
    ports,
    serving,
    undone,
    wait_serving,
    wait_until,
    web_port,
)

if TYPE_CHECKING:
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node

pytestmark = pytest.mark.testbed_needs("docker")

FREE_PORT = 18090  # unused in all labs


@pytest.fixture
def in_host_mode(lab: LiveLab, node: Node) -> LiveContainer:
    return in_mode(lab, node, "host")[0]


@pytest.fixture
def in_none_mode(lab: LiveLab, node: Node) -> LiveContainer:
    return in_mode(lab, node, "none")[0]


def joined(lab: LiveLab, node: Node) -> tuple[LiveContainer, LiveContainer]:
    """Return a container in container mode, and the one whose namespace it joins."""
    guest = in_mode(lab, node, "container")[0]
    name = lab.topology.containers[guest.name].network.partition(":")[2]
    return guest, lab.container(name)


def own(observe: Observation, container: LiveContainer) -> str:
    """Return the network namespace of a container's first process."""
    return namespace(observe, container.node, container.pid)


def network_entry(observe: Observation, container: LiveContainer) -> list[dict[str, Any]]:
    """Return the network namespace entries of the container's OCI configuration."""
    found = network_entries(container.node, container.state.id)
    observe.note(f"network namespaces in the OCI configuration of {container.name}", found)
    return found


# -- all of them ------------------------------------------------------------------


@pytest.mark.testbed_claim("mode-four-modes")
def test_docker_has_four_network_modes_and_more(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    engine = lab.engine(node.name)
    modes = {}
    for mode in ("host", "container", "none", "bridge"):
        container = in_mode(lab, node, mode)[0]
        modes[mode] = engine.inspect_raw(container.name)["HostConfig"]["NetworkMode"]
    observe.note(f"{node.name}: network modes of running containers", modes)
    observe.holds_when(
        "what is meant are the modes that need nothing set up: a container runs in each",
        all(given.partition(":")[0] == mode for mode, given in modes.items()),
    )
    drivers = set(engine.api.info()["Plugins"]["Network"])
    observe.note(f"{node.name}: network drivers", sorted(drivers))
    further = drivers - {"host", "null", "bridge"}
    observe.fails_when(
        f"the engine's other drivers count too: {', '.join(sorted(further))}", further
    )


@pytest.mark.testbed_claim("netns-one-per-container")
def test_whether_a_container_has_its_own_namespace_depends_on_its_mode(
    lab: LiveLab,
    node: Node,
    in_host_mode: LiveContainer,
    in_none_mode: LiveContainer,
    observe: Observation,
) -> None:
    alone = [*bridge_containers(lab, node, 2), in_none_mode]
    inodes = {own(observe, container) for container in alone}
    host = namespace(observe, node, 1)
    observe.holds_when(
        "the containers are in bridge or none mode", len({*inodes, host}) == len(alone) + 1
    )
    observe.fails_when("one is in host mode", own(observe, in_host_mode) == host)
    guest, partner = joined(lab, node)
    observe.fails_when(
        "one is in container mode, as those of a Pod are",
        own(observe, guest) == own(observe, partner),
    )


# -- bridge -----------------------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-bridge-is-default")
def test_bridge_mode_is_the_default(lab: LiveLab, node: Node, observe: Observation) -> None:
    with extra_container(lab, node) as name:
        networks = lab.engine(node.name).inspect_raw(name)["NetworkSettings"]["Networks"]
        observe.note(f"{node.name}: networks of {name}, made without a network option", networks)
        observe.holds(list(networks) == ["bridge"], f"it is on {', '.join(networks)}")
        eth0 = link(observe, lab.container(name, node=node.name), "eth0")
        indexes = {port["ifindex"] for port in ports(observe, node)}
        observe.holds(eth0.get("link_index") in indexes, "it has a veth pair to docker0")


@pytest.mark.testbed_claim("mode-bridge-own-stack")
def test_in_bridge_mode_a_container_has_its_own_stack(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    one, other, *_ = bridge_containers(lab, node, 2)
    inodes = {own(observe, one), own(observe, other), namespace(observe, node, 1)}
    observe.holds(len(inodes) == 3, "two containers and the host are in three namespaces")
    bound = [{each.port for each in listeners(observe, c)} for c in (one, other)]
    observe.holds(80 in bound[0] & bound[1], "both containers listen on port 80 at once")
    assert 80 not in {each.port for each in listeners(observe, node)}


# -- host -------------------------------------------------------------------------


@pytest.mark.testbed_claim("mode-host-shares-host-netns")
def test_in_host_mode_the_namespace_is_the_hosts(
    lab: LiveLab, node: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    host = namespace(observe, node, 1)
    observe.holds(own(observe, in_host_mode) == host, f"both are in {host}")
    assert own(observe, bridge_containers(lab, node)[0]) != host


@pytest.mark.testbed_claim("mode-host-no-clone-newnet")
def test_in_host_mode_no_namespace_is_asked_for(
    lab: LiveLab, node: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    asked = [entry for entry in network_entry(observe, in_host_mode) if not entry.get("path")]
    observe.holds(not asked, "the runtime is not asked to make a network namespace")
    observe.holds(
        own(observe, in_host_mode) == namespace(observe, node, 1), "the process is in the host's"
    )
    other = network_entry(observe, bridge_containers(lab, node)[0])
    assert [entry.get("path", "") for entry in other] == [""], "nor is it in bridge mode"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-host-uses-host-eth0")
@pytest.mark.testbed_needs("gateway")
def test_in_host_mode_traffic_uses_the_hosts_eth0(
    lab: LiveLab, node: Node, outside: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    host = node_address(lab, node)
    interface = lab.topology.interface(node.name)
    inside = [str(address.ip) for address in addresses(observe, in_host_mode, interface)]
    observe.holds(inside == [host], f"inside, eth0 has the host's address {host}")
    target = node_address(lab, outside)
    packets = f"tcp port {FREE_PORT}"
    with (
        serving(outside, FREE_PORT),
        captures((node, interface, packets), (node, BRIDGE, packets)) as (eth0, bridge),
    ):
        page = fetch(observe, in_host_mode, f"http://{target}:{FREE_PORT}/")
    note(observe, eth0, bridge)
    observe.holds(page and client_of(page) == host, "the machine outside sees the host's address")
    observe.holds(
        eth0.packets and not bridge.packets, "its packets pass eth0, and docker0 sees none"
    )


@pytest.mark.testbed_claim("mode-host-shares-port-space")
def test_in_host_mode_ports_are_the_hosts(
    lab: LiveLab, node: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    number = web_port(lab, in_host_mode)
    found = [one for one in listeners(observe, node) if one.port == number]
    observe.holds(found, f"the host itself listens on port {number}")
    held = opened(observe, node, in_host_mode.pid)
    for one in found:
        observe.holds(
            f"socket:[{one.inode}]" in held,
            f"the socket at {one.address} is one of the container's process",
        )
    nat = docker_rules(lab, observe, node, "nat")
    mapped = [rule for rule in nat if rule.get("--dport") == str(number)]
    assert mapped == [], "the port is mapped"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-host-port-conflict")
def test_in_host_mode_a_port_can_be_taken(lab: LiveLab, node: Node, observe: Observation) -> None:
    engine = lab.engine(node.name)
    command = ["iperf3", "-s", "-p", str(FREE_PORT)]

    def state(name: str) -> dict[str, Any]:
        return dict(engine.inspect_raw(name)["State"])

    def has_port(name: str) -> bool:
        """Tell whether a process of the container listens on the port, in any network."""
        quiet = Observation()
        with contextlib.suppress(NotFound):  # it has ended meanwhile
            container = lab.container(name, node=node.name)
            held = opened(quiet, node, container.pid)
            bound = [one for one in listeners(quiet, container) if one.port == FREE_PORT]
            return any(f"socket:[{one.inode}]" in held for one in bound)
        return False

    with serving(node, FREE_PORT):
        with extra_container(lab, node, mode="host", command=command) as name:
            wait_until(
                lambda: not state(name)["Running"] or has_port(name),
                f"{name} to end, or to listen on port {FREE_PORT}",
            )
            observe.note(f"{node.name}: state of {name} in host mode", state(name))
            observe.holds(state(name)["ExitCode"] != 0, "in host mode its server cannot start")
        with extra_container(lab, node, mode="bridge", command=command) as name:
            wait_serving(lab, node, name, FREE_PORT)
            inner = listeners(observe, lab.container(name, node=node.name))
            observe.holds(
                FREE_PORT in {one.port for one in inner}, "in bridge mode it has that port"
            )
    with extra_container(lab, node, mode="host", command=command) as name:
        wait_serving(lab, node, name, FREE_PORT)


@pytest.mark.testbed_claim("mode-host-no-nat")
@pytest.mark.testbed_needs("gateway")
def test_in_host_mode_nothing_is_translated(
    lab: LiveLab, node: Node, outside: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    number, host = web_port(lab, in_host_mode), node_address(lab, node)

    def translated() -> int:
        found = docker_rules(lab, observe, node, "nat")
        return sum(r.packets for r in found if r.target in {"DNAT", "SNAT", "MASQUERADE"})

    before = translated()
    page = fetch(observe, outside, f"http://{host}:{number}/")
    observe.holds(
        page and client_of(page) == node_address(lab, outside), "it sees its client's own address"
    )
    observe.holds(translated() == before, "no rule that translates has had a packet more")
    every = flows(observe, node, "--orig-port-dst", str(number))
    # By port: entries of earlier connections stay for minutes after their end.
    tracked = [flow for flow in every if page and flow.original.sport == client_port(page)]
    observe.holds(
        tracked and not any(flow.is_translated for flow in tracked),
        "its connections are tracked as they are, both ways",
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-host-no-isolation")
def test_in_host_mode_nothing_of_the_host_is_hidden(
    lab: LiveLab, node: Node, in_host_mode: LiveContainer, observe: Observation
) -> None:
    url = f"http://127.0.0.1:{FREE_PORT}/"
    with serving(node, FREE_PORT, "127.0.0.1"):
        page = fetch(observe, in_host_mode, url)
        observe.holds(
            page and page["name"] == node.name, "it reaches a server on the host's own 127.0.0.1"
        )
        seen = {one.port for one in listeners(observe, in_host_mode)}
        observe.holds(FREE_PORT in seen, "and sees that it listens")
        other = bridge_containers(lab, node)[0]
        assert fetch(observe, other, url, seconds=SOON) is None, "a bridge container does too"


# -- container --------------------------------------------------------------------


@pytest.mark.testbed_claim("mode-container-shares-other-netns")
def test_in_container_mode_the_namespace_is_the_others(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    guest, partner = joined(lab, node)
    mode = lab.engine(node.name).inspect_raw(guest.name)["HostConfig"]["NetworkMode"]
    observe.holds(mode == f"container:{partner.state.id}", f"the engine says that it is in {mode}")
    shared = own(observe, partner)
    observe.holds(own(observe, guest) == shared, f"{guest.name} and {partner.name} are in {shared}")
    observe.holds(shared != namespace(observe, node, 1), "that is not the host's")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-container-lookup-then-join")
def test_in_container_mode_the_other_is_looked_up_first(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    import docker.errors

    guest, partner = joined(lab, node)
    (entry,) = network_entry(observe, guest)
    observe.holds(
        entry.get("path") == f"/proc/{partner.pid}/ns/net",
        f"the runtime is given the namespace of {partner.name}'s process",
    )
    with (
        extra_container(lab, node, mode="bridge", start=False) as stopped,
        extra_container(lab, node, mode=f"container:{stopped}", start=False) as name,
    ):
        try:
            lab.engine(node.name).api.start(name)
        except docker.errors.APIError as error:
            observe.note(f"{node.name}: start of {name}", str(error.explanation))
            refused = True
        else:
            refused = False
        observe.holds(refused, "with a partner that does not run there is nothing to join")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-container-localhost")
def test_in_container_mode_localhost_is_shared(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    guest, partner = joined(lab, node)
    with serving(partner, FREE_PORT, "127.0.0.1"):
        url = f"http://127.0.0.1:{FREE_PORT}/"
        page = fetch(observe, guest, url)
        observe.holds(
            page and page["name"] == partner.name,
            f"{guest.name} reaches what listens on 127.0.0.1 alone in {partner.name}",
        )
        others = [c for c in bridge_containers(lab, node, 2) if c.name != partner.name]
        assert fetch(observe, others[0], url, seconds=SOON) is None
    url = f"http://localhost:{web_port(lab, guest)}/"
    page = fetch(observe, partner, url)
    observe.holds(
        page and page["name"] == guest.name, f"{partner.name} reaches {guest.name} at {url}"
    )


# -- none -------------------------------------------------------------------------


@pytest.mark.testbed_claim("mode-none-own-netns")
def test_in_none_mode_a_container_has_its_own_namespace(
    lab: LiveLab, node: Node, in_none_mode: LiveContainer, observe: Observation
) -> None:
    others = [c for c in lab.containers.values() if c.name != in_none_mode.name]
    found = own(observe, in_none_mode)
    observe.holds(found != namespace(observe, node, 1), "it is not the host's")
    observe.holds(
        found not in {own(observe, c) for c in others if c.node.name == node.name},
        "nor that of any other container",
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-none-unconfigured")
def test_in_none_mode_nothing_is_set_up(
    lab: LiveLab, node: Node, in_none_mode: LiveContainer, observe: Observation
) -> None:
    names = [one["ifname"] for one in links(observe, in_none_mode)]
    observe.holds(names == ["lo"], f"its links are {names}")
    found = [str(address) for address in addresses(observe, in_none_mode)]
    observe.holds(found == ["127.0.0.1/8"], f"its addresses are {found}")
    before = {port["ifname"] for port in ports(observe, node)}
    with extra_container(lab, node, mode="none"):
        after = {port["ifname"] for port in ports(observe, node)}
    observe.holds(after <= before, "one more such container adds no port to docker0")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-none-manual-networking")
def test_in_none_mode_a_network_can_be_made_by_hand(
    lab: LiveLab, node: Node, in_none_mode: LiveContainer, observe: Observation
) -> None:
    docker0 = bridge_address(observe, node)
    neighbour = bridge_containers(lab, node)[0]
    address = last_host(docker0.network)
    assert not ping(observe, neighbour, address, seconds=SOON)
    make = ["ip", "link", "add", "by-hand", "type", "veth", "peer", "name", "eth0"]
    with undone(
        observe,
        node,
        [*make, "netns", str(in_none_mode.pid)],
        ["ip", "link", "delete", "by-hand"],
    ):
        observe.run(node, ["ip", "link", "set", "by-hand", "master", BRIDGE, "up"])
        prefix = docker0.network.prefixlen
        for words in (
            ["addr", "add", f"{address}/{prefix}", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", str(docker0.ip)],
        ):
            observe.run(in_none_mode, ["ip", *words])
        observe.holds(answers(observe, in_none_mode, docker0.ip), "it pings the gateway")
        observe.holds(ping(observe, in_none_mode, neighbour.address), "it pings a neighbour")
        page = fetch(observe, neighbour, f"http://{address}:{web_port(lab, in_none_mode)}/")
        observe.holds(page and page["name"] == in_none_mode.name, "the neighbour has its page")
    assert [one["ifname"] for one in links(observe, in_none_mode)] == ["lo"]
