"""Documents 000 and 003, claims that something is faster or slower, measured.

Labs: docker-single for Docker's network modes, three-node-udp for flannel, or
two-node-udp if selected.  The links are virtual and of one machine: the
checks compare the CPU cost of ways, not the speed of a wire.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from testbed.claims.model import Measurement
from testbed.claims.observation import Observation, spread
from testbed.roles.flannel.role import SERVICE
from testbed.suites.helpers import (
    docker_node,
    extra_container,
    in_mode,
    node_address,
    outside_node,
    undone,
)
from testbed.suites.measuring import (
    CPU,
    ECHO_PORT,
    MICROSECOND,
    NOTHING,
    P50,
    STREAM_PORT,
    THROUGHPUT,
    TRIPS,
    CpuTime,
    Rounds,
    Way,
    cpu_time,
    measured_server,
    need_iperf3,
    on_one_cpu,
    round_trips,
    stream,
)
from testbed.suites.overlay import OWN_NETWORK, End, ends, need, own_vxlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

pytestmark = pytest.mark.testbed_alone

ROUNDS = 5
DOCKER_ROUNDS = 25  # round trips: the modes differ little, the back ends much

# -- Docker's modes, seen from another machine -----------------------------

HOST, NAT, BRIDGE = "host mode", "host mode, port translated", "bridge mode, port published"
#: Ports of the stream and of the round trips.
PORTS = {HOST: (STREAM_PORT, ECHO_PORT), NAT: (7201, 7202), BRIDGE: (6201, 6202)}
DOCKER_OCTETS = 30_000_000
#: A table of our own beside Docker's rules, for both firewalls.
TRANSLATE = """
table ip testbed {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    tcp dport 7201 counter redirect to :5201
    tcp dport 7202 counter redirect to :5202
  }
}
"""


@dataclass(frozen=True)
class Modes:
    """The ways to a server in each mode, the measurements, and the translating rules."""

    ways: dict[str, Way]
    rounds: Rounds
    rules: str


@pytest.fixture(scope="module")
def modes(lab: LiveLab) -> Iterator[Modes]:
    """Measure a server in host mode and one behind a published port from outside."""
    need(lab, "plain-docker", "gateway")
    node, outside = docker_node(lab), outside_node(lab)
    (in_host_mode, *_) = in_mode(lab, node, "host")
    need_iperf3(node, outside)
    bound = {port: port for port in PORTS[BRIDGE]}
    idle = ["sleep", "infinity"]
    with (
        extra_container(lab, node, command=idle, expose=[*bound], port_bindings=bound) as name,
        measured_server(in_host_mode, "0.0.0.0", *PORTS[HOST]),
        measured_server(lab.container(name, node=node.name), "0.0.0.0", *PORTS[BRIDGE]),
        _translating(node),
    ):
        address, prefix = node_address(lab, node), on_one_cpu(outside)
        ways = {way: Way(way, outside, address, *PORTS[way], prefix=prefix) for way in PORTS}
        rounds = Rounds()
        for _ in range(ROUNDS):
            for way in ways.values():
                rounds.stream(way, DOCKER_OCTETS)
        rounds.trips(*ways.values(), rounds=DOCKER_ROUNDS)
        rules = node.run(["nft", "-j", "list", "table", "ip", "testbed"]).stdout
        yield Modes(ways, rounds, rules)


@contextlib.contextmanager
def _translating(node: Node) -> Iterator[None]:
    """Redirect ports of the host to those of the server in host mode."""
    if not node.run(["which", "nft"], check=False).ok:
        pytest.skip(f"{node.name} has no nft (Debian package nftables)")
    node.run(["nft", "-f", "-"], input=TRANSLATE.encode())
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", "ip", "testbed"])


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("nat-performance-cost")
@pytest.mark.testbed_needs("plain-docker", "gateway")
def test_nat_costs_performance(observe: Observation, modes: Modes) -> None:
    rounds = modes.rounds
    rounds.keep(observe)
    observe.note("nft -j list table ip testbed", modes.rules)
    rules = [entry["rule"] for entry in json.loads(modes.rules)["nftables"] if "rule" in entry]
    translated = sum(
        part["counter"]["packets"] for r in rules for part in r["expr"] if "counter" in part
    )
    assert translated >= DOCKER_ROUNDS, "the ports are translated"
    slower = rounds.decide(observe, P50, BRIDGE, HOST)
    if slower is None:
        return
    observe.holds_when(
        "Docker publishes the port: the packet is translated, forwarded and bridged", slower
    )
    whole, alone = rounds.added(P50, BRIDGE, HOST), rounds.added(P50, NAT, HOST)
    both = {"all of it": whole, "translation alone": alone}
    added = Measurement("added to a round trip", "µs", both, "lower")
    observe.measured(added)
    price, part = statistics.median(whole), statistics.median(alone)
    if abs(part - price / 2) < spread(alone):
        observe.unclear("the figures spread too much to say whether it is more or less than half")
        return
    observe.fails_when(
        "the port is translated and no more: that is less than half of the price",
        part < price / 2,
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("mode-host-faster")
@pytest.mark.testbed_needs("plain-docker", "gateway")
def test_host_mode_is_faster_than_bridge_mode(observe: Observation, modes: Modes) -> None:
    modes.rounds.keep(observe)
    slower = modes.rounds.decide(observe, P50, BRIDGE, HOST)
    if slower is None:
        return
    observe.holds_when("the CPU is what limits: round trips on an idle link", slower)
    slow = Measurement(f"over a link of {LINK_MBITS} Mbit/s", "Mbit/s", _slow_link(modes), "higher")
    observe.measured(slow)
    lost = [
        host - bridge for host, bridge in zip(slow.series[HOST], slow.series[BRIDGE], strict=True)
    ]
    limited = statistics.median(slow.series[HOST]) < 1.2 * LINK_MBITS  # plus its burst
    if not limited:
        observe.unclear("the link does not limit: host mode is faster than the shaper's rate")
        return
    price, little = abs(statistics.median(lost)), LITTLE * LINK_MBITS
    if abs(price - little) < spread(lost):
        observe.unclear(
            "the rounds over the slow link spread too much to say whether bridge mode is as fast, "
            f"within {LITTLE:.0%}"
        )
        return
    if price > little:  # a busy machine: the link limits host mode alone
        observe.unclear("bridge mode is slower than the link: the CPU limits it")
        return
    as_fast = f"the link is what limits: bridge mode is as fast, within {LITTLE:.0%}"
    observe.fails_when(as_fast, price <= little)


LINK_MBITS = 200
LITTLE = 0.1
SLOW_OCTETS = 1_500_000


def _slow_link(modes: Modes) -> dict[str, tuple[float, ...]]:
    """Measure streams in both modes, with the client's interface shaped to a slow link."""
    client = modes.ways[HOST].client
    shape = ["root", "tbf", "rate", f"{LINK_MBITS}mbit", "burst", "128kb", "latency", "50ms"]
    add = ["tc", "qdisc", "add", "dev", "eth0", *shape]
    found: dict[str, list[float]] = {HOST: [], BRIDGE: []}
    with undone(Observation(), client, add, ["tc", "qdisc", "del", "dev", "eth0", "root"]):
        for _ in range(ROUNDS):
            for way, figures in found.items():
                figures.append(stream(modes.ways[way], SLOW_OCTETS).gbits * 1000)
    return {way: tuple(figures) for way, figures in found.items()}


# -- flannel's back ends ---------------------------------------------------

UDP, VXLAN, HOST_GW, DIRECT = "udp", "vxlan", "host-gw", "node to node"
OCTETS = {UDP: 3_000_000, VXLAN: 30_000_000, HOST_GW: 30_000_000, DIRECT: 30_000_000}
SEGMENT = 1380  # fits all of them: vxlan's MTU of 1450 less headers and TCP's options
TICKS = 30  # of 10 ms: fewer do not show which part of the time is larger
MORE_ROUNDS = 30  # round trips at most, until flanneld has used that many ticks
#: Host numbers from the end of a subnet: Docker assigns addresses from its beginning.
SPARE = {VXLAN: -10, HOST_GW: -11}


@dataclass
class Overlay:
    """Measurements over the ways between two hosts, and flanneld's share.

    ``used`` is the CPU time of flanneld on both hosts during the round trips, by way;
    ``carried`` the packets that passed flannel0 of the first host during those over udp.
    """

    rounds: Rounds = field(default_factory=Rounds)
    used: dict[str, CpuTime] = field(default_factory=lambda: dict.fromkeys(OCTETS, NOTHING))
    carried: int = 0
    ticked: CpuTime = NOTHING  #: of flanneld in extra round trips over udp, for its ticks

    @property
    def per_round_trip(self) -> float:
        """CPU time of flanneld in microseconds: two packets, each carried on both hosts."""
        return self.used[UDP].seconds / MICROSECOND / self.carried * 2


@contextlib.contextmanager
def _ways(observe: Observation, one: End, other: End) -> Iterator[dict[str, Way]]:
    """Yield ways between containers by each back end, one address pair each.

    flannel runs one back end at a time.  The equivalents of vxlan and host-gw, the
    kernel's VXLAN and routes through the hosts, are set up beside it for an
    additional address of each container.
    """
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(own_vxlan(observe, one, other))
        for here, there, vtep in ((one, other, OWN_NETWORK[2]), (other, one, OWN_NETWORK[1])):
            hops = {VXLAN: ["via", str(vtep), "dev", device], HOST_GW: ["via", there.address]}
            for way, number in SPARE.items():
                address = [f"{here.subnet[number]}/32", "dev", "eth0"]
                route = [f"{there.subnet[number]}/32", *hops[way]]
                for place, kind, words in (
                    (here.container, "address", address),
                    (here.node, "route", route),
                ):
                    add, delete = (["ip", kind, verb, *words] for verb in ("add", "del"))
                    stack.enter_context(undone(observe, place, add, delete))
        client, server = one.container, other.container
        prefix = on_one_cpu(one.node)
        ways = {UDP: Way(UDP, client, server.address, segment=SEGMENT, prefix=prefix)}
        for way, number in SPARE.items():
            own, target = str(one.subnet[number]), str(other.subnet[number])
            ways[way] = Way(way, client, target, own=own, segment=SEGMENT, prefix=prefix)
        ways[DIRECT] = Way(DIRECT, one.node, other.address, segment=SEGMENT, prefix=prefix)
        for made in ways.values():
            place = other.node if made.name == DIRECT else server
            stack.enter_context(measured_server(place, made.address))
        yield ways


@pytest.fixture(scope="module")
def measured(lab: LiveLab) -> Overlay:
    """Measure all ways between two hosts of the udp back end, in turn."""
    need(lab, "flannel-udp", "docker")
    one, other = ends(lab)
    need_iperf3(one.node, other.node)
    daemons = [(end.node, end.node.services()[SERVICE].pid) for end in (one, other)]
    found = Overlay()

    def used() -> CpuTime:
        return sum((cpu_time(node, pid) for node, pid in daemons), NOTHING)

    def carried() -> int:
        path = "/sys/class/net/flannel0/statistics"
        counters = one.node.run(["cat", f"{path}/rx_packets", f"{path}/tx_packets"]).stdout
        return sum(map(int, counters.split()))

    with _ways(Observation(), one, other) as ways:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                found.rounds.stream(way, OCTETS[name], lambda: used().seconds)
                passed, before = carried(), used()
                found.rounds.trips(way)
                found.used[name] += used() - before
                found.carried += carried() - passed if name == UDP else 0
        found.ticked = found.used[UDP]
        for _ in range(MORE_ROUNDS):
            if found.ticked.user + found.ticked.system >= TICKS:
                break
            before = used()
            round_trips([ways[UDP]], 1)
            found.ticked += used() - before
    return found


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-slowest")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_udp_is_the_slowest_back_end(observe: Observation, measured: Overlay) -> None:
    rounds = measured.rounds
    rounds.keep(observe)
    for other in (VXLAN, HOST_GW):
        faster = rounds.decide(observe, THROUGHPUT, other, UDP)
        if faster is not None:
            observe.holds(faster, f"one TCP stream is slower over udp than over {other}")
        for quantity, words in ((P50, "a round trip takes longer"), (CPU, "an octet costs more")):
            more = rounds.decide(observe, quantity, UDP, other)
            if more is not None:
                observe.holds(more, f"{words} over udp than over {other}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-udp-crossings-cost")
@pytest.mark.testbed_needs("flannel-udp", "docker", "flannel-defaults")
def test_crossings_are_what_makes_udp_slow(observe: Observation, measured: Overlay) -> None:
    rounds, used = measured.rounds, measured.used[UDP]
    rounds.keep(observe)
    observe.note("flanneld of both hosts", {way: str(u) for way, u in measured.used.items()})
    asked = 2 * TRIPS * ROUNDS  # one packet in each direction
    passed = measured.carried
    observe.holds(passed >= asked, f"{passed} packets passed flannel0, at least {asked}")
    if not measured.carried:
        return
    longer = rounds.decide(observe, P50, UDP, VXLAN)
    if longer is None:
        return
    observe.holds(longer, "packet by packet udp is slower than VXLAN in the kernel")
    extra = statistics.median(rounds.added(P50, UDP, VXLAN))
    wrapping = statistics.median(rounds.added(P50, VXLAN, HOST_GW))
    observe.holds(
        wrapping < extra / 2,
        f"wrapping as such, in the kernel, adds {wrapping:.1f} µs to a round trip; udp {extra:.1f}",
    )
    own = measured.per_round_trip
    # During the rest flanneld, woken for each packet, waits for the CPU.
    observe.holds(own > extra / 4, f"flanneld's CPU time for its packets is {own:.1f} µs")
    ticked = measured.ticked
    parts = f"{ticked.system} ticks in system calls, {ticked.user} in its own code"
    if ticked.system + ticked.user < TICKS:
        observe.unclear(f"too few to tell where flanneld spends its time: {parts}")
    else:
        observe.holds(ticked.system > ticked.user, f"most of that in system calls: {parts}")
    others = max(u.seconds for way, u in measured.used.items() if way != UDP)
    observe.holds(others < used.seconds / 10, "over the other ways flanneld has next to no part")
