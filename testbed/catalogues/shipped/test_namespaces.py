"""Network namespaces, veth pairs and a bridge by hand (documents 000 and 002).

For the lab netns-experiments, the final state of document 002.  Checks that
depend on the steps before repeat them with the document's own commands, on a
scratch machine: a network stack of its own on the lab's node.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING

import pytest

from testbed.observe.capture import capture, captures
from testbed.suites.helpers import (
    SOON,
    Inside,
    addresses,
    answers,
    fetch,
    is_up,
    kind,
    link,
    links,
    listeners,
    netns,
    note,
    ping,
    policies,
    ports,
    route_to,
    routes,
    rules,
    scratch_machine,
    serving,
    settle,
    sysctl,
    sysctl_set,
    undone,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

pytestmark = pytest.mark.testbed_needs("namespaces")

# Document 002, as printed; `ifconfig DEV up` is written with ip.
NAMESPACES = ("ip netns add ns1", "ip netns add ns2")
PAIR = ("ip link add veth0 type veth peer name veth1",)
MOVE = ("ip link set veth0 netns ns1", "ip link set veth1 netns ns2")
ADDRESS = (
    "ip netns exec ns1 ip addr add local 192.168.10.200/24 dev veth0",
    "ip netns exec ns2 ip addr add local 192.168.10.201/24 dev veth1",
)
UP = ("ip netns exec ns1 ip link set veth0 up", "ip netns exec ns2 ip link set veth1 up")
DIRECT = (*NAMESPACES, *PAIR, *MOVE, *ADDRESS, *UP)

BRIDGE = ("ip l a br0 type bridge", "ip l s br0 up")
BRIDGE_PAIRS = (
    "ip l a br-veth0 type veth peer name brvethotherend0",
    "ip l a br-veth1 type veth peer name brvethotherend1",
)
BRIDGE_MOVE = ("ip l s br-veth0 netns ns1", "ip l s br-veth1 netns ns2")
BRIDGE_MASTER = ("ip l s brvethotherend0 master br0", "ip l s brvethotherend1 master br0")
BRIDGE_PORTS_UP = ("ip l s brvethotherend0 up", "ip l s brvethotherend1 up")
BRIDGE_ADDRESS = (
    "ip netns exec ns1 ip a a 192.168.11.200/24 dev br-veth0",
    "ip netns exec ns2 ip a a 192.168.11.201/24 dev br-veth1",
)
BRIDGE_ENDS_UP = (
    "ip netns exec ns1 ip l s br-veth0 up",
    "ip netns exec ns2 ip l s br-veth1 up",
)
BRIDGED = (
    *NAMESPACES,
    *BRIDGE,
    *BRIDGE_PAIRS,
    *BRIDGE_MOVE,
    *BRIDGE_MASTER,
    *BRIDGE_PORTS_UP,
    *BRIDGE_ADDRESS,
    *BRIDGE_ENDS_UP,
)


def do(observe: Observation, where: Inside, *commands: str) -> None:
    """Run commands as a document prints them; each must succeed."""
    for command in commands:
        observe.run(where, shlex.split(command))


@pytest.fixture
def node(lab: LiveLab) -> Node:
    """The node with the namespaces of document 002."""
    return lab.node(lab.topology.with_role("namespaces")[0].name)


@pytest.fixture
def ns1(node: Node) -> Inside:
    return netns(node, "ns1")


@pytest.fixture
def ns2(node: Node) -> Inside:
    return netns(node, "ns2")


@pytest.fixture
def machine(node: Node) -> Iterator[Inside]:
    """A machine for one experiment, fresh as after a boot."""
    with scratch_machine(node) as scratch:
        yield scratch


def namespace_names(observe: Observation, where: Inside | Node) -> set[str]:
    return {one["name"] for one in observe.json(where, ["ip", "-j", "netns", "list"]) or []}


def link_names(observe: Observation, where: Inside | Node) -> set[str]:
    return {one["ifname"] for one in links(observe, where)}


def own_namespace(observe: Observation, where: Inside | Node) -> str:
    return observe.run(where, ["readlink", "/proc/self/ns/net"]).stdout.strip()


def file_namespace(observe: Observation, where: Inside, name: str) -> str:
    """Return the namespace of /run/netns/NAME in the format of /proc/self/ns/net."""
    inode = observe.run(where, ["stat", "-L", "-c%i", f"/run/netns/{name}"]).stdout.strip()
    return f"net:[{inode}]"


# -- document 000: namespaces ----------------------------------------------------


@pytest.mark.testbed_claim("netns-independent-stacks")
def test_each_namespace_has_a_stack_of_its_own(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *NAMESPACES, "ip -n ns1 link set lo up", "ip -n ns2 link set lo up")
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    do(observe, ns1, "ip link add only-in-ns1 type bridge", "sysctl -qw net.ipv4.ip_forward=1")
    do(observe, ns2, "sysctl -qw net.ipv4.ip_forward=0")
    with serving(ns1, 8000), serving(ns2, 8000):
        both = [{one.port for one in listeners(observe, ns)} for ns in (ns1, ns2)]
        second = observe.run(
            ns1, ["python3", "-c", "import socket; socket.create_server(('', 8000))"], check=False
        )
        observe.holds(both == [{8000}, {8000}], "TCP port 8000 is bound in both at once")
        names = [
            (fetch(observe, ns, "http://127.0.0.1:8000/") or {}).get("name") for ns in (ns1, ns2)
        ]
        observe.holds(names == ["ns1", "ns2"], "127.0.0.1:8000 is another server in each")
    assert not second.ok, "a port can be bound twice here, so the check would show nothing"
    forwarding = [sysctl(observe, ns, "net.ipv4.ip_forward") for ns in (ns1, ns2)]
    observe.holds(forwarding == ["1", "0"], "net.ipv4.ip_forward is 1 in one and 0 in the other")
    devices = [link_names(observe, where) for where in (ns1, ns2, machine)]
    observe.holds(
        ["only-in-ns1" in names for names in devices] == [True, False, False],
        "a device made in one is in no other",
    )


@pytest.mark.testbed_claim("netns-cannot-communicate")
def test_namespaces_reach_each_other_only_when_something_joins_them(
    machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *NAMESPACES)
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    for ns, address in ((ns1, "192.168.10.200/32"), (ns2, "192.168.10.201/32")):
        do(observe, ns, "ip link set lo up", f"ip addr add {address} dev lo")
    assert ping(observe, ns2, "192.168.10.201"), "ns2 does not answer even itself"
    observe.holds_when(
        "nothing joins the two namespaces",
        not ping(observe, ns1, "192.168.10.201", seconds=SOON),
    )
    for ns, address in ((ns1, "192.168.10.200/32"), (ns2, "192.168.10.201/32")):
        do(observe, ns, f"ip addr del {address} dev lo")
    do(observe, machine, *PAIR, *MOVE, *ADDRESS, *UP)
    observe.fails_when(
        "a veth pair joins the two namespaces", answers(observe, ns1, "192.168.10.201")
    )


@pytest.mark.testbed_claim("netns-own-routing-table")
def test_each_namespace_has_its_own_routes(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *NAMESPACES, "ip -n ns1 route add blackhole 203.0.113.0/24")
    places = (machine.netns("ns1"), machine.netns("ns2"), machine)
    has = ["203.0.113.0/24" in {r["dst"] for r in routes(observe, where)} for where in places]
    assert has[0], "the route was not added"
    observe.holds(has == [True, False, False], "a route added in ns1 is in ns1's table alone")


@pytest.mark.testbed_claim("netns-own-netfilter")
def test_each_namespace_has_its_own_firewall(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *NAMESPACES, "ip -n ns1 link set lo up", "ip -n ns2 link set lo up")
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    do(observe, ns1, "iptables -A INPUT -p icmp -j DROP")
    do(observe, ns1, "iptables -t nat -A POSTROUTING -s 192.168.10.0/24 -j MASQUERADE")
    for table, target in (("filter", "DROP"), ("nat", "MASQUERADE")):
        has = [
            target in {rule.target for rule in rules(observe, where, table)}
            for where in (ns1, ns2, machine)
        ]
        observe.holds(has == [True, False, False], f"the {target} rule of ns1 is in ns1 alone")
    answers = [
        ping(observe, ns1, "127.0.0.1", seconds=SOON),
        *(ping(observe, where, "127.0.0.1") for where in (ns2, machine)),
    ]
    observe.holds(answers == [False, True, True], "it drops the packets of ns1 alone")


def echoes_received(observe: Observation, where: Inside) -> int:
    """Return a namespace's received ICMP echo requests, from its /proc/net/snmp."""
    lines = observe.run(where, ["cat", "/proc/net/snmp"]).stdout.splitlines()
    head, values = (line.split() for line in lines if line.startswith("Icmp: "))
    return int(values[head.index("InEchos")])


@pytest.mark.testbed_claim("netns-kernel-globals-moved")
def test_settings_and_counters_of_the_stack_are_per_namespace(
    machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *NAMESPACES, "ip -n ns1 link set lo up")
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    do(observe, ns1, "sysctl -qw net.ipv4.ip_default_ttl=99")
    values = [sysctl(observe, where, "net.ipv4.ip_default_ttl") for where in (ns1, ns2, machine)]
    observe.holds(values == ["99", "64", "64"], f"ip_default_ttl set in ns1 reads {values}")
    before = [echoes_received(observe, where) for where in (ns1, ns2, machine)]
    assert ping(observe, ns1, "127.0.0.1", count=3)
    after = [echoes_received(observe, where) for where in (ns1, ns2, machine)]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    observe.holds(grown == [3, 0, 0], f"three echo requests in ns1 are counted as {grown}")


@pytest.mark.testbed_claim("netns-add-command")
def test_ip_netns_add_makes_a_namespace(machine: Inside, observe: Observation) -> None:
    assert namespace_names(observe, machine) == set()
    do(observe, machine, "ip netns add name")
    observe.holds(namespace_names(observe, machine) == {"name"}, "`ip netns list` has the name")
    system = observe.run(machine, ["stat", "-f", "-c%T", "/run/netns/name"]).stdout.strip()
    observe.holds(system == "nsfs", "/run/netns/name is a namespace")
    observe.holds(
        file_namespace(observe, machine, "name") != own_namespace(observe, machine),
        "it is another network namespace than the one it was made in",
    )


@pytest.mark.testbed_claim("netns-exec-command")
def test_ip_netns_exec_runs_a_command_inside(machine: Inside, observe: Observation) -> None:
    do(observe, machine, "ip netns add name")
    seen = observe.run(
        machine, ["ip", "netns", "exec", "name", "readlink", "/proc/self/ns/net"]
    ).stdout.strip()
    observe.holds(seen == file_namespace(observe, machine, "name"), f"the command is in {seen}")
    observe.holds(seen != own_namespace(observe, machine), "that is not where it was started")


@pytest.mark.testbed_claim("netns-exec-shell")
def test_bash_through_ip_netns_exec_is_inside(machine: Inside, observe: Observation) -> None:
    do(observe, machine, "ip netns add name", "ip link add outside-only type bridge")
    script = b"readlink /proc/self/ns/net; ip -j link\n"
    argv = ["ip", "netns", "exec", "name", "bash"]
    result = machine.run(argv, input=script)
    observe.note(f"{script.decode().strip()} | {shlex.join(argv)}", result.stdout)
    seen, _, listing = result.stdout.partition("\n")
    assert "outside-only" in link_names(observe, machine)
    observe.holds(seen == file_namespace(observe, machine, "name"), f"the shell is in {seen}")
    observe.holds('"outside-only"' not in listing, "what it lists has no link of the machine")


# -- document 002: the direct connection ------------------------------------------


@pytest.mark.testbed_claim("netns-create-ns1-ns2")
def test_ns1_and_ns2_are_there(node: Node, machine: Inside, observe: Observation) -> None:
    observe.holds(namespace_names(observe, node) >= {"ns1", "ns2"}, "the lab has ns1 and ns2")
    do(observe, machine, *NAMESPACES)
    observe.holds(
        namespace_names(observe, machine) == {"ns1", "ns2"}, "the two commands make the two"
    )


@pytest.mark.testbed_claim("veth-created-in-pairs")
def test_veth_devices_come_and_go_in_pairs(machine: Inside, observe: Observation) -> None:
    before = link_names(observe, machine)
    do(observe, machine, "ip link add one type veth")
    made = link_names(observe, machine) - before
    observe.holds(len(made) == 2, f"asked for one veth device, the kernel made {sorted(made)}")
    do(observe, machine, "ip link delete one")
    observe.holds(link_names(observe, machine) == before, "with the one the other is gone")


SEND = """
import socket, sys
frame = bytes.fromhex(sys.argv[2])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
    out.bind((sys.argv[1], 0))
    out.send(frame)
"""


@pytest.mark.testbed_claim("veth-ends-join-stack-and-peer")
def test_what_goes_into_one_end_comes_out_of_the_other(
    machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *PAIR, "ip link set veth0 up", "ip link set veth1 up")
    settle(machine)
    ends = [link(observe, machine, name) for name in ("veth0", "veth1")]
    addressed = "".join(end["address"].replace(":", "") for end in reversed(ends))
    # 0x88b5 is IEEE 802's ethertype for local experiments: no other program sends it.
    sent = bytes.fromhex(addressed + "88b5") + bytes(range(64))
    with captures(
        (machine, "veth0", "ether proto 0x88b5"), (machine, "veth1", "ether proto 0x88b5")
    ) as (into, out):
        observe.run(machine, ["python3", "-c", SEND, "veth0", sent.hex()])
    note(observe, into, out)
    observe.holds([p.frame for p in out.packets] == [sent], "the frame leaves veth1 octet by octet")
    assert [p.frame for p in into.packets] == [sent]
    do(observe, machine, "ip link add name elsewhere type veth", "ip link set elsewhere up")
    with capture(machine, "elsewhere", "ether proto 0x88b5") as other:
        observe.run(machine, ["python3", "-c", SEND, "veth0", sent.hex()])
    assert other.packets == [], "the frame is seen on a device of another pair too"


@pytest.mark.testbed_claim("veth-add-named-pair")
def test_the_pair_has_the_two_names(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *PAIR)
    one, other = link(observe, machine, "veth0"), link(observe, machine, "veth1")
    observe.holds(kind(one) == kind(other) == "veth", "veth0 and veth1 are veth devices")
    observe.holds(
        one.get("link") == "veth1" and other.get("link") == "veth0", "each names the other as peer"
    )


@pytest.mark.testbed_claim("veth-visible-after-create")
def test_both_ends_are_listed_where_they_were_made(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *PAIR)
    listed = {one["ifname"]: one for one in observe.json(machine, ["ip", "-j", "addr", "show"])}
    observe.holds(listed.keys() >= {"veth0", "veth1"}, "`ip a s` lists both")
    for name in sorted(listed.keys() & {"veth0", "veth1"}):
        assert listed[name]["operstate"] == "DOWN"
        assert listed[name]["addr_info"] == []


@pytest.mark.testbed_claim("veth-move-to-netns")
def test_the_ends_move_into_their_namespaces(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *NAMESPACES, *PAIR)
    assert link_names(observe, machine) >= {"veth0", "veth1"}
    do(observe, machine, *MOVE)
    left = link_names(observe, machine) & {"veth0", "veth1"}
    observe.holds(not left, "the machine itself has neither any more")
    for ns, wanted in (("ns1", "veth0"), ("ns2", "veth1")):
        seen = link_names(observe, machine.netns(ns)) & {"veth0", "veth1"}
        observe.holds(seen == {wanted}, f"{ns} has {wanted} alone")


@pytest.mark.testbed_claim("ip-direct-pair-same-subnet")
def test_the_ends_have_addresses_of_one_subnet(
    ns1: Inside, ns2: Inside, observe: Observation
) -> None:
    found = [addresses(observe, ns1, "veth0"), addresses(observe, ns2, "veth1")]
    observe.holds(
        [[str(address) for address in end] for end in found]
        == [["192.168.10.200/24"], ["192.168.10.201/24"]],
        f"veth0 has {found[0]}, veth1 has {found[1]}",
    )
    observe.holds(found[0][0].network == found[1][0].network, "both are in one subnet")
    for ns, device in ((ns1, "veth0"), (ns2, "veth1")):
        connected = routes(observe, ns, "dev", device, "proto", "kernel")
        observe.holds(
            [route["dst"] for route in connected] == ["192.168.10.0/24"],
            f"{device} is the way to that subnet",
        )


@pytest.mark.testbed_claim("ip-addr-add-local-keyword")
def test_ip_addr_add_takes_the_word_local(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *PAIR)
    command = "ip addr add local 192.168.10.200/24 dev veth0"
    result = observe.run(machine, shlex.split(command), check=False)
    observe.holds(result.ok, "the command is accepted")
    found = [str(address) for address in addresses(observe, machine, "veth0")]
    observe.holds(found == ["192.168.10.200/24"], f"veth0 has {found}")


@pytest.mark.testbed_claim("veth-must-be-set-up")
def test_the_ends_work_only_once_they_are_up(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *NAMESPACES, *PAIR, *MOVE, *ADDRESS)
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    before = [link(observe, ns1, "veth0"), link(observe, ns2, "veth1")]
    observe.holds(not any(map(is_up, before)), "moved and addressed, both ends are down")
    observe.holds(
        not ping(observe, ns1, "192.168.10.201", seconds=SOON), "while they are, no ping passes"
    )
    do(observe, machine, UP[0])
    observe.holds(not ping(observe, ns1, "192.168.10.201", seconds=SOON), "nor with one of them up")
    do(observe, machine, UP[1])
    observe.holds(answers(observe, ns1, "192.168.10.201"), "once both are up it does")


@pytest.mark.testbed_claim("veth-direct-ping")
def test_ns1_pings_ns2_over_the_pair(ns1: Inside, ns2: Inside, observe: Observation) -> None:
    with captures((ns1, "veth0", "icmp"), (ns2, "veth1", "icmp")) as (near, far):
        answered = ping(observe, ns1, "192.168.10.201", count=3)
    note(observe, near, far)
    observe.holds(answered, "three echo requests from ns1 to 192.168.10.201 are answered")
    for seen in (near, far):
        assert sum(p.is_echo_request for p in seen.packets) == 3, f"not by way of {seen}"


@pytest.mark.testbed_claim("veth-crosses-namespaces")
def test_the_pair_is_what_carries_packets_between_namespaces(
    machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *DIRECT)
    ns1, ns2 = machine.netns("ns1"), machine.netns("ns2")
    url = "http://192.168.10.201:8000/"
    with serving(ns2, 8000):
        observe.holds(answers(observe, ns1, "192.168.10.201"), "ping passes")
        page = fetch(observe, ns1, url)
        observe.holds(page and page["name"] == "ns2", "a TCP exchange passes")
        do(observe, machine, "ip -n ns1 link delete veth0")
        gone = fetch(observe, ns1, url, seconds=SOON) is None
        gone &= not ping(observe, ns1, "192.168.10.201", seconds=SOON)
        observe.holds(gone, "without the pair neither does")


# -- document 002: the bridge ----------------------------------------------------


@pytest.mark.testbed_claim("bridge-acts-as-switch")
def test_a_bridge_switches_frames_by_their_address(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *BRIDGED, "ip netns add ns3")
    do(observe, machine, "ip link add br-veth2 type veth peer name brvethotherend2")
    do(observe, machine, "ip link set br-veth2 netns ns3")
    do(observe, machine, "ip link set brvethotherend2 master br0 up")
    ns1, ns2, ns3 = (machine.netns(name) for name in ("ns1", "ns2", "ns3"))
    do(observe, ns3, "ip addr add 192.168.11.202/24 dev br-veth2", "ip link set br-veth2 up")
    settle(machine, ns1, ns2, ns3)
    with captures((ns2, "br-veth1", "arp or icmp"), (ns3, "br-veth2", "arp or icmp")) as (
        meant,
        bystander,
    ):
        answered = ping(observe, ns1, "192.168.11.201", count=2)
    note(observe, meant, bystander)
    assert answered
    observe.holds(
        all(any(p.arp and p.arp.op == 1 for p in c.packets) for c in (meant, bystander)),
        "the ARP broadcast of ns1 reaches ns2 and ns3",
    )
    observe.holds(
        sum(p.is_echo_request for p in meant.packets) == 2
        and not any(p.icmp for p in bystander.packets),
        "its echo requests to ns2 reach ns2 and not ns3",
    )
    table = observe.json(machine, ["bridge", "-j", "fdb", "show", "br", "br0", "dynamic"])
    learned = {entry["mac"]: entry["ifname"] for entry in table}
    ends = {
        link(observe, ns1, "br-veth0")["address"]: "brvethotherend0",
        link(observe, ns2, "br-veth1")["address"]: "brvethotherend1",
    }
    observe.holds(learned.items() >= ends.items(), "br0 has learned the port of each sender")


@pytest.mark.testbed_claim("bridge-create-br0")
def test_ip_link_makes_the_bridge_br0(node: Node, machine: Inside, observe: Observation) -> None:
    do(observe, machine, *BRIDGE)
    for where in (node, machine):
        br0 = link(observe, where, "br0")
        observe.holds(kind(br0) == "bridge", f"br0 is a bridge ({where.name})")
        observe.holds(br0 and is_up(br0), f"br0 is up ({where.name})")


@pytest.mark.testbed_claim("ip-ifname-15-chars")
def test_an_interface_name_has_at_most_15_characters(machine: Inside, observe: Observation) -> None:
    name = "brvethotherend0"
    do(observe, machine, BRIDGE_PAIRS[0])
    observe.holds(
        name in link_names(observe, machine), f"{name}, {len(name)} characters, is accepted"
    )
    longer = observe.run(machine, ["ip", "link", "add", f"{name}0", "type", "bridge"], check=False)
    assert len(name) == 15
    assert not longer.ok, "a name of 16 characters is accepted too"


@pytest.mark.testbed_claim("veth-br-veth0-in-ns1")
def test_the_first_end_of_the_bridge_pair_is_in_ns1(
    node: Node, ns1: Inside, observe: Observation
) -> None:
    inner, port = link(observe, ns1, "br-veth0"), link(observe, node, "brvethotherend0")
    observe.holds(kind(inner) == "veth", "br-veth0 is a veth device of ns1")
    observe.holds(
        inner.get("link_index") == port.get("ifindex")
        and port.get("link_index") == inner.get("ifindex"),
        "its peer is brvethotherend0",
    )
    observe.holds("br-veth0" not in link_names(observe, node), "the machine itself has none")


@pytest.mark.testbed_claim("bridge-attach-veth-master")
def test_master_br0_makes_the_other_end_a_port(
    node: Node, machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *BRIDGE, BRIDGE_PAIRS[0])
    assert ports(observe, machine, "br0") == []
    do(observe, machine, BRIDGE_MASTER[0])
    made = {port["ifname"] for port in ports(observe, machine, "br0")}
    observe.holds(made == {"brvethotherend0"}, f"after the command br0 has the ports {made}")
    bridged = {
        one["ifname"]: one.get("master") for one in observe.json(node, ["bridge", "-j", "link"])
    }
    observe.holds(bridged.get("brvethotherend0") == "br0", "in the lab it is a port of br0")


def port_state(observe: Observation, where: Inside, name: str) -> str:
    (port,) = (p for p in ports(observe, where, "br0") if p["ifname"] == name)
    return str(port["linkinfo"]["info_slave_data"]["state"])


@pytest.mark.testbed_claim("bridge-port-must-be-up")
def test_the_end_at_the_bridge_must_be_up_too(machine: Inside, observe: Observation) -> None:
    do(observe, machine, *(c for c in BRIDGED if c != BRIDGE_PORTS_UP[0]))
    ns1 = machine.netns("ns1")
    before = port_state(observe, machine, "brvethotherend0")
    observe.holds(before == "disabled", f"before, the port is {before}")
    observe.holds(not ping(observe, ns1, "192.168.11.201", seconds=SOON), "before, no ping passes")
    do(observe, machine, BRIDGE_PORTS_UP[0])
    settle(machine)
    after = port_state(observe, machine, "brvethotherend0")
    observe.holds(after == "forwarding", f"afterwards it is {after}")
    observe.holds(answers(observe, ns1, "192.168.11.201"), "afterwards ping passes")


@pytest.mark.testbed_claim("bridge-second-pair")
def test_the_second_pair_joins_ns2(node: Node, ns2: Inside, observe: Observation) -> None:
    found = [str(address) for address in addresses(observe, ns2, "br-veth1")]
    observe.holds(found == ["192.168.11.201/24"], f"br-veth1 in ns2 has {found}")
    names = {port["ifname"] for port in ports(observe, node, "br0")}
    observe.holds(names == {"brvethotherend0", "brvethotherend1"}, f"br0 has the ports {names}")
    inner = link(observe, ns2, "br-veth1")
    port = link(observe, node, "brvethotherend1")
    observe.holds(inner.get("link_index") == port["ifindex"], "the one is the peer of the other")


@pytest.mark.testbed_claim("ip-bridge-pair-same-subnet")
def test_the_bridged_interfaces_are_in_one_subnet(
    ns1: Inside, ns2: Inside, observe: Observation
) -> None:
    found = addresses(observe, ns1, "br-veth0")
    observe.holds([str(a) for a in found] == ["192.168.11.200/24"], f"br-veth0 has {found}")
    other = addresses(observe, ns2, "br-veth1")
    observe.holds(
        [a.network for a in found] == [a.network for a in other], "ns2's is in the same subnet"
    )


@pytest.mark.testbed_claim("bridge-netns-ping")
def test_a_ping_through_the_bridge_may_be_stopped_by_iptables(
    machine: Inside, observe: Observation
) -> None:
    do(observe, machine, *BRIDGED)
    ns1 = machine.netns("ns1")
    settle(machine, ns1, machine.netns("ns2"))
    name = "net.bridge.bridge-nf-call-iptables"
    with contextlib.ExitStack() as stack:
        if not observe.run(machine, ["sysctl", "-n", name], check=False).ok:
            if not machine.node.owns_kernel:
                pytest.skip("the kernel has no br_netfilter")
            do(observe, machine, "iptables -P FORWARD DROP")
            observe.holds_when(
                "br_netfilter is not loaded, as on a machine without Docker, whatever the policy",
                ping(observe, ns1, "192.168.11.201", count=3),
            )
            do(observe, machine, "iptables -P FORWARD ACCEPT")
            # Not by modprobe -r, which removes the module bridge, too, with all bridges.
            load, unload = (["modprobe", "br_netfilter"], ["rmmod", "br_netfilter"])
            stack.enter_context(undone(observe, machine, load, unload))
        with sysctl_set(observe, machine, name, "1"):
            observe.holds_when(
                "iptables forwards what comes (policy ACCEPT)",
                ping(observe, ns1, "192.168.11.201", count=3),
            )
            do(observe, machine, "iptables -P FORWARD DROP")
            assert policies(observe, machine, "filter")["FORWARD"] == "DROP"
            observe.fails_when(
                "bridged packets pass iptables (bridge-nf-call-iptables=1) and its FORWARD policy "
                "is DROP, as on a machine with Docker",
                not ping(observe, ns1, "192.168.11.201", seconds=SOON),
            )
        with sysctl_set(observe, machine, name, "0"):
            observe.holds_when(
                "bridged packets do not pass iptables (bridge-nf-call-iptables=0)",
                ping(observe, ns1, "192.168.11.201", count=3),
            )


@pytest.mark.testbed_claim("bridge-needs-no-address")
def test_the_bridge_works_without_an_address(
    node: Node, ns1: Inside, ns2: Inside, observe: Observation
) -> None:
    observe.holds(addresses(observe, node, "br0") == [], "br0 has no IPv4 address")
    with captures((node, "br0", "icmp"), (ns2, "br-veth1", "icmp")) as (bridge, far):
        answered = ping(observe, ns1, "192.168.11.201", count=3)
    note(observe, bridge, far)
    observe.holds(answered, "ns1 pings ns2 through it")
    for seen in (bridge, far):
        assert sum(p.is_echo_request for p in seen.packets) == 3, f"not by way of {seen}"


@pytest.mark.testbed_claim("ip-two-subnets-coexist")
def test_direct_and_bridged_link_coexist(ns1: Inside, observe: Observation) -> None:
    for address, device in (("192.168.10.201", "veth0"), ("192.168.11.201", "br-veth0")):
        chosen = route_to(observe, ns1, address)
        observe.holds(chosen["dev"] == device, f"{address} is reached by {chosen['dev']}")
        observe.holds(ping(observe, ns1, address, count=3), f"{address} answers")
