"""Document 003, the sample of iptables TRACE: a ping between two containers.

For the lab docker-single, with the lab's own iptables of either variant.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from testbed.claims.model import Measurement
from testbed.claims.observation import Observation
from testbed.errors import CommandError
from testbed.observe.capture import NFLOG, Capture, Packet, captures
from testbed.observe.trace import (
    ETHERNET_HEADER,
    LEGACY_GROUP,
    LOGGER,
    NFNETLINK_LOG,
    Logged,
    TraceEvent,
    Way,
    legacy_events,
    logged,
    nft_events,
    nft_trace,
    ways,
)
from testbed.pytest_checks import features
from testbed.roles.docker.daemon import facts_of
from testbed.suites import helpers
from testbed.suites.helpers import (
    BRIDGE,
    bridge_containers,
    docker_node,
    link,
    node_address,
    outside_node,
    port_of,
    rules,
    scratch_machine,
    sysctl,
    sysctl_set,
    undone,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node
    from testbed.nodes.place import Place, Runs

pytestmark = pytest.mark.testbed_needs("docker", "plain-docker")

LEGACY, NFT = "iptables-legacy", "iptables-nft"
BRIDGED = "net.bridge.bridge-nf-call-iptables"
RAW = ("raw", "PREROUTING")
FORWARD = ("filter", "FORWARD")
ECHO_ID, LAST = 3, 6  # as printed: ID=3 SEQ=6
GROUP = 7  # of NFLOG, unused by other programs on a node
ALL_LOG = "net.netfilter.nf_log_all_netns"  # only in the initial network namespace
PINGS = 30
ROUNDS = 4
ABOUT_MICROSECONDS = 10  # 5 are printed; up to the double counts as "about"
CHAIN, RULES = "TESTBED", 4000
#: Error messages of both iptables on a kernel built without a table, a target or a match.
MISSING = re.compile(
    r"do you need to insmod|No chain/target/match by that name|missing kernel module"
    r"|RULE_\w+ failed \(No such file or directory\)|Failed to initialize nft"
)


# -- tracing --------------------------------------------------------------------


@contextlib.contextmanager
def whole_table(where: Runs, program: str, table: str) -> Iterator[None]:
    """Remove a table after the block if it did not exist before.

    iptables-nft creates a table with its first rule, and leaves it.  A table of
    iptables-legacy can't be removed; left empty it has no effect.
    """
    had = program == LEGACY or where.run(["nft", "list", "table", "ip", table], check=False).ok
    try:
        yield
    finally:
        if not had:
            where.run(["nft", "delete", "table", "ip", table])


@contextlib.contextmanager
def ruled(observe: Observation, where: Runs, program: str, *rule: str) -> Iterator[None]:
    """Add a rule, given as ``-t TABLE -A CHAIN ...``, for the time of the block."""
    add, table = [program, "-w", *rule], rule[1]
    delete = [program, "-w", *("-D" if word in {"-A", "-I"} else word for word in rule)]
    with whole_table(where, program, table), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(undone(observe, where, add, delete))
        except CommandError as error:
            if not MISSING.search(error.stderr):
                raise
            pytest.skip(f"{where.name} cannot have such a rule: {error.stderr.strip()}")
        yield


def interfaces(where: Runs) -> dict[int, str]:
    """Map the interfaces' numbers to their names."""
    listed = where.run(["ip", "-j", "link", "show"]).json()
    return {one["ifindex"]: one["ifname"] for one in listed if one}


@contextlib.contextmanager
def nflog(observe: Observation, where: Place, group: int) -> Iterator[Capture]:
    """Capture the packets logged to a group.

    nfnetlink_log is the logger of IPv4 meanwhile.  tcpdump itself sets that logger,
    for any group, and leaves it set.
    """
    with (
        sysctl_set(observe, where, LOGGER, NFNETLINK_LOG),
        captures((where, f"{NFLOG}{group}", "")) as (seen,),
    ):
        yield seen


@contextlib.contextmanager
def traced(observe: Observation, where: Place, program: str) -> Iterator[list[TraceEvent]]:
    """Trace ICMP from raw PREROUTING on; the list has the events after the block."""
    events: list[TraceEvent] = []
    names = interfaces(where)
    words = ("-t", "raw", "-A", "PREROUTING", "-p", "icmp", "-j", "TRACE")
    rule = ruled(observe, where, program, *words)
    if program == LEGACY:
        with nflog(observe, where, LEGACY_GROUP) as seen, rule:
            yield events
        events += legacy_events(seen.packets, names)
    else:
        with nft_trace(where) as listener, rule:
            yield events
        events += nft_events(listener.messages, names)


def variety(lab: LiveLab, node: Node) -> str:
    """Return the iptables program that the node's rules are made with."""
    return LEGACY if facts_of(lab.context, node.name)["firewall"] == LEGACY else NFT


def note(observe: Observation, one: Way, what: str) -> None:
    """Record the way of a packet as evidence."""
    observe.note(f"TRACE, {what}", one.lines())


# -- the exchange of most checks ------------------------------------------------


@dataclass
class Exchange:
    """Echo requests from one container to another, and the replies, traced on the host.

    ``received`` are the packets that the client container got; ``routed`` is one
    more request, to a machine outside, None if the lab has none.
    """

    node: Node
    asker: LiveContainer
    answerer: LiveContainer
    requests: list[Way]
    replies: list[Way]
    routed: Way | None
    received: list[Packet]
    looked: Observation = field(default_factory=Observation)

    @property
    def reply(self) -> Way:
        """The packet that the document prints: the reply to the sixth request."""
        return self.replies[-1]

    def show(self, observe: Observation, *seen: tuple[str, Way]) -> None:
        """Record commands and the ways of some packets as evidence."""
        observe.evidence += self.looked.evidence
        for what, one in seen:
            note(observe, one, what)

    def show_reply(self, observe: Observation) -> Way:
        """Record the reply's way as evidence, and return it."""
        self.show(observe, (f"echo reply {LAST}", self.reply))
        return self.reply


def pair(lab: LiveLab, node: Node) -> tuple[LiveContainer, LiveContainer]:
    """Return client and server: the last two on docker0, .3 and .4 in docker-single."""
    asker, answerer = bridge_containers(lab, node, 2)[-2:]
    return asker, answerer


def ask(
    observe: Observation, asker: LiveContainer, address: str, count: int = LAST, *options: str
) -> None:
    """Send echo requests with the printed identifier; all must be answered."""
    argv = [
        "ping",
        "-n",
        "-q",
        f"-c{count}",
        f"-e{ECHO_ID}",
        "-i0.002",
        f"-W{helpers.LATE:g}",
        *options,
        address,
    ]
    observe.run(asker, argv)


def forget(node: Node, source: str) -> None:
    """Delete a container's tracked connections, so that the next packet starts a new one."""
    node.run(["conntrack", "-D", "-p", "icmp", "--orig-src", source], check=False)


@pytest.fixture(scope="module")
def exchange(lab: LiveLab) -> Exchange:
    """One exchange, shared by all checks that only look."""
    node = docker_node(lab)
    asker, answerer = pair(lab, node)
    looked = Observation()
    outside = node_address(lab, outside_node(lab)) if "gateway" in features(lab.topology) else ""
    forget(node, asker.address)
    with (
        bridge_filtered(looked, node, "1"),
        captures((asker, "eth0", "icmp")) as (seen,),
        traced(looked, node, variety(lab, node)) as events,
    ):
        ask(looked, asker, answerer.address)
        if outside:
            ask(looked, asker, outside, 1)
    found = ways(events)
    requests = [one for one in found if one.packet.is_echo_request]
    there = [one for one in requests if one.packet.dst == answerer.address]
    back = [one for one in found if one.packet.is_echo_reply and one.packet.src == answerer.address]
    away = [one for one in requests if one.packet.dst == outside]
    assert len(there) == len(back) == LAST, f"{len(there)} requests and {len(back)} replies traced"
    received = [p for p in seen.packets if p.is_echo_reply and p.src == answerer.address]
    return Exchange(node, asker, answerer, there, back, away[0] if away else None, received, looked)


@contextlib.contextmanager
def bridge_filtered(observe: Observation, node: Node, value: str) -> Iterator[None]:
    """Let bridged packets pass iptables ("1") or not ("0")."""
    if not node.run(["sysctl", "-n", BRIDGED], check=False).ok:
        pytest.skip("the node's kernel has no br_netfilter")
    with sysctl_set(observe, node, BRIDGED, value):
        yield


def packets_at(way: Way) -> tuple[Packet, Packet]:
    """Return a packet at raw PREROUTING, and in the forward hook."""
    first = way.at(*RAW)[0].packet
    second = forwarded(way).packet
    assert first is not None
    assert second is not None
    return first, second


def forwarded(way: Way) -> TraceEvent:
    """Return the first event of the forward hook, the only one with both devices."""
    found = [event for event in way.events if event.seen and event.seen.outdev]
    assert found, "the packet is not forwarded"
    return found[0]


# -- properties of TRACE -------------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-shows-packet-path")
def test_where_the_trace_goes_depends_on_the_iptables(node: Node, observe: Observation) -> None:
    for program in (LEGACY, NFT):
        if not node.run([program, "--version"], check=False).ok:
            pytest.skip(f"the node has no {program}")
    wanted = [RAW, ("filter", "INPUT")]
    for program in (LEGACY, NFT):
        with scratch_machine(node, program) as machine:
            logger = usual_logger(observe, machine) if program == LEGACY else ""
            with contextlib.ExitStack() as stack:
                enter = stack.enter_context
                if program == NFT:
                    log = enter(nflog(observe, machine, LEGACY_GROUP))
                rule = ("-t", "filter", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT")
                enter(ruled(observe, machine, program, *rule))
                events = enter(traced(observe, machine, program))
                observe.run(machine, ["ping", "-n", "-q", "-c1", "127.0.0.1"])
        request = next(one for one in ways(events) if one.packet.is_echo_request)
        note(observe, request, f"{program}, a ping of 127.0.0.1")
        passed = [chain for chain in request.chains if chain in wanted]
        assert passed == wanted, f"{program} does not show the way: {request.chains}"
        if program == LEGACY:
            observe.holds_when(
                f"iptables-legacy: the events go to the logger of IPv4 ({logger} unless another "
                "is chosen, which writes the kernel's log), under the words printed",
                logger == "nf_log_ipv4" and all(event.number for event in request.events),
            )
        else:
            observe.note("what was logged meanwhile", log.lines())
            observe.fails_when(
                "iptables-nft: nothing goes to that logger, the events come by netlink",
                not log.packets,
            )
    if node.owns_kernel:
        look_into_the_kernels_log(node, observe)


def look_into_the_kernels_log(node: Node, observe: Observation) -> None:
    """Check the kernel's log, on nodes with a kernel of their own."""
    words = ("-t", "raw", "-A", "PREROUTING", "-p", "icmp", "-j", "TRACE")

    def written(where: Runs, program: str) -> list[str]:
        with kernel_log(observe, node) as lines, ruled(observe, where, program, *words):
            observe.run(where, ["ping", "-n", "-q", "-c1", "127.0.0.1"])
        return [line for line in lines if "TRACE: raw:PREROUTING:" in line]

    observe.holds_when(
        "iptables-legacy, in the machine's initial network namespace", written(node, LEGACY)
    )
    with scratch_machine(node, LEGACY) as machine:
        observe.fails_when(
            f"iptables-legacy, in another network namespace, {ALL_LOG}=0",
            not written(machine, LEGACY),
        )
        with sysctl_set(observe, node, ALL_LOG, "1"):
            observe.holds_when(
                f"iptables-legacy, in another network namespace, {ALL_LOG}=1",
                written(machine, LEGACY),
            )
    # In its own namespace: an existing iptables-legacy table logs packets marked by iptables-nft.
    with sysctl_set(observe, node, ALL_LOG, "1"), scratch_machine(node, NFT) as machine:
        observe.fails_when(
            f"iptables-nft, in another network namespace, {ALL_LOG}=1", not written(machine, NFT)
        )


@contextlib.contextmanager
def kernel_log(observe: Observation, node: Node) -> Iterator[list[str]]:
    """Collect a node's kernel log during the block; its lines are available after it."""
    lines: list[str] = []
    begin = f"testbed: {uuid.uuid4()}"
    node.run(["tee", "/dev/kmsg"], input=begin.encode())
    yield lines
    lines += node.run(["dmesg"]).stdout.partition(begin)[2].splitlines()[1:]
    observe.note(f"{node.name}# dmesg, since then", "\n".join(lines))


def usual_logger(observe: Observation, machine: Runs) -> str:
    """Return iptables-legacy's default logger, which a rule may load into the kernel."""
    rule = ("-t", "raw", "-A", "OUTPUT", "-p", "udp", "-j", "TRACE")
    with ruled(observe, machine, LEGACY, *rule):
        return sysctl(observe, machine, LOGGER)


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-bridged-traffic-hits-iptables")
def test_bridged_packets_pass_iptables_only_when_asked_to(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    asker, answerer = pair(lab, node)
    found = {}
    for value in ("1", "0"):
        with (
            bridge_filtered(observe, node, value),
            traced(observe, node, variety(lab, node)) as events,
        ):
            ask(observe, asker, answerer.address, 1)
            observe.run(node, ["ping", "-n", "-q", "-c1", asker.address])
        seen = ways(events)
        # The host's own ping shows that it is traced all the time.
        to_host = [w for w in seen if w.packet.src == asker.address and w.packet.is_echo_reply]
        assert to_host, "the reply to the host was not traced"
        found[value] = [
            one
            for one in seen
            if {one.packet.src, one.packet.dst} == {asker.address, answerer.address}
        ]
        for one in found[value]:
            note(observe, one, f"with {BRIDGED}={value}")
    ends = [one.packet.is_echo_request for one in found["1"]]
    observe.holds_when(
        f"br_netfilter is there and {BRIDGED} is 1: request and reply are traced",
        sorted(ends) == [False, True],
    )
    observe.fails_when(f"{BRIDGED} is 0", not found["0"])


# -- the two lines ------------------------------------------------------------------


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-raw-prerouting-then-forward")
def test_raw_prerouting_comes_first_and_filter_forward_next(
    exchange: Exchange, observe: Observation
) -> None:
    reply = exchange.show_reply(observe)
    # A table of iptables-legacy exists, without rules, after the first listing.
    chains = [chain for chain in reply.chains if not is_empty(reply.at(*chain))]
    names = ", ".join(f"{table} {chain}" for table, chain in chains)
    observe.holds(chains[:2] == [RAW, FORWARD], f"chains with rules that the reply passes: {names}")


def is_empty(events: Sequence[TraceEvent]) -> bool:
    """Tell whether the chain of these events has no rules: its policy comes first."""
    return [(event.kind, event.number) for event in events] == [("policy", 1)]


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-raw-policy-2")
def test_the_policy_of_raw_prerouting_is_entry_2(exchange: Exchange, observe: Observation) -> None:
    reply = exchange.show_reply(observe)
    *_, last = reply.at(*RAW)
    assert last.kind == "policy", "the packet leaves raw PREROUTING by a rule"
    observe.holds(last.number == 2, f"the event is {last.table}:{last.chain}:policy, {last.number}")
    others = [r for r in rules(observe, exchange.node, "raw") if r.chain == "PREROUTING"]
    observe.holds(not others, f"raw PREROUTING has {len(others)} rules besides that of TRACE")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-forward-rule-1")
def test_the_first_rule_of_forward_matches(exchange: Exchange, observe: Observation) -> None:
    events = exchange.show_reply(observe).at(*FORWARD)
    observe.holds(events, "the reply meets a chain FORWARD in a table filter")
    if not events:
        return
    first = events[0]
    number = first.number or position(observe, exchange.node, first)
    observe.holds(
        first.kind == "rule" and number == 1, f"in FORWARD it matches rule {number} first"
    )


def position(observe: Observation, node: Node, event: TraceEvent) -> int:
    """Return the number of an event's rule in its chain, looked up by its handle."""
    listed = observe.json(
        node, ["nft", "-j", "-a", "list", "chain", "ip", event.table, event.chain]
    )
    handles = [one["rule"]["handle"] for one in listed["nftables"] if "rule" in one]
    return handles.index(event.handle) + 1


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-in-and-out-docker0")
def test_the_packet_comes_in_and_goes_out_by_docker0(
    exchange: Exchange, observe: Observation
) -> None:
    reply = exchange.show_reply(observe)
    seen = forwarded(reply).seen
    assert seen is not None
    observe.holds(
        (seen.indev, seen.outdev) == (BRIDGE, BRIDGE),
        f"in FORWARD: in by {seen.indev}, out by {seen.outdev}",
    )
    if exchange.routed:
        note(observe, exchange.routed, "for comparison, to the machine outside")
        away = forwarded(exchange.routed).seen
        assert away is not None
        assert away.outdev not in {"", BRIDGE}, "what leaves the host goes out by docker0 too"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-physin-physout")
def test_the_bridge_ports_are_those_of_the_two_containers(
    lab: LiveLab, exchange: Exchange, observe: Observation
) -> None:
    into, out = (port_of(observe, one)["ifname"] for one in (exchange.answerer, exchange.asker))
    assert into != out
    seen = forwarded(exchange.show_reply(observe)).seen
    assert seen is not None
    printed = (seen.physindev, seen.physoutdev) == (into, out)
    if variety(lab, exchange.node) == LEGACY:
        observe.holds(printed, f"the trace has PHYSIN={seen.physindev} PHYSOUT={seen.physoutdev}")
        return
    (second,) = (
        after
        for _, after in pass_hooks(lab, exchange.node, observe)
        if after.packet and after.packet.is_echo_reply
    )
    observe.note("the same by a rule with the target NFLOG", str(second))
    observe.holds_when(
        f"an NFLOG rule is asked: in by {second.physindev}, out by {second.physoutdev}",
        (second.physindev, second.physoutdev) == (into, out),
    )
    observe.fails_when(
        "the trace of iptables-nft is asked: it names no port of the bridge",
        not (seen.physindev or seen.physoutdev),
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-mac-field-layout")
def test_the_mac_field_is_the_frame_header(exchange: Exchange, observe: Observation) -> None:
    reply = exchange.show_reply(observe)
    macs = [
        bytes.fromhex(str(link(observe, one, "eth0")["address"]).replace(":", ""))
        for one in (exchange.asker, exchange.answerer)
    ]
    wanted = b"".join(macs) + b"\x08\x00"  # IEEE 802.3, 3.2: destination, source, type
    for event in (reply.at(*RAW)[0], forwarded(reply)):
        assert event.seen is not None
        header = event.seen.hwheader
        observe.holds(
            len(header) == ETHERNET_HEADER and header == wanted,
            f"{event.table}:{event.chain} has {header.hex(':')}, the receiver's and the "
            "sender's address and the type of IPv4",
        )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-mac-from-ip")
def test_the_mac_holds_the_address(exchange: Exchange, observe: Observation) -> None:
    for one in (exchange.asker, exchange.answerer):
        mac = str(link(observe, one, "eth0")["address"])
        address = IPv4Address(one.address).packed.hex(":")
        observe.holds(mac == f"02:42:{address}", f"{one.name}: {one.address} has {mac}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-ttl-stays-64")
def test_the_ttl_stays(exchange: Exchange, observe: Observation) -> None:
    first, second = packets_at(exchange.show_reply(observe))
    third = exchange.received[-1]
    observe.note(f"{exchange.asker.name}: the reply on eth0", str(third))
    ttls = [first.ttl, second.ttl, third.ttl]
    observe.holds(ttls == [64, 64, 64], f"at both hooks and at the receiver it is {ttls}")
    if exchange.routed:
        note(observe, exchange.routed, "for comparison, to the machine outside")
        before, after = packets_at(exchange.routed)
        assert (before.ttl, after.ttl) == (64, 63), "what is routed shows no difference either"


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-length-84")
def test_a_ping_is_84_octets_long(exchange: Exchange, observe: Observation) -> None:
    reply = exchange.show_reply(observe)
    received = exchange.received[-1]
    observe.note(f"{exchange.asker.name}: the reply on eth0", str(received))
    lengths = [packet.ip_length for packet in (*packets_at(reply), received)]
    observe.holds(lengths == [84, 84, 84], f"in the trace and on the wire: {lengths}")
    parts = (received.length - ETHERNET_HEADER, len(received.payload) - ECHO_WORDS)
    observe.holds(
        parts == (84, 56), f"of {parts[0]} octets {parts[1]} are data, which leaves 20 and 8"
    )


ECHO_WORDS = 4  # identifier and sequence number, which a decoded packet includes in its payload


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-same-ip-id")
def test_the_ip_id_is_the_packets_own(exchange: Exchange, observe: Observation) -> None:
    exchange.show(observe, *((f"echo reply {i}", one) for i, one in enumerate(exchange.replies, 1)))
    found = []
    for one in exchange.replies:
        before, after = packets_at(one)
        observe.holds(before.ip_id == after.ip_id, f"{before.ip_id} at both hooks")
        found.append(before.ip_id)
    observe.holds(len(set(found)) == len(found), f"each packet has another: {found}")


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-is-echo-reply")
def test_the_traced_packet_is_the_sixth_reply(exchange: Exchange, observe: Observation) -> None:
    asked, answered = exchange.asker.address, exchange.answerer.address
    if (asked, answered) != ("172.17.0.3", "172.17.0.4"):
        pytest.skip("the lab's last two containers on docker0 are not 172.17.0.3 and 172.17.0.4")
    exchange.show(observe, (f"request {LAST}", exchange.requests[-1]), ("reply", exchange.reply))
    kinds = {}
    for name, one in (("request", exchange.requests[-1]), ("reply", exchange.reply)):
        for packet in packets_at(one):
            assert packet.icmp is not None
            echo = packet.icmp
            kinds[name] = (packet.src, packet.dst, echo.type, echo.code, echo.id, echo.seq)
    observe.note("source, destination, type, code, id, sequence number", kinds)
    observe.holds(
        kinds["reply"] == (answered, asked, 0, 0, ECHO_ID, LAST),
        f"the reply of {answered} to {asked} has TYPE=0 CODE=0 ID=3 SEQ=6",
    )
    observe.holds(
        kinds["request"] == (asked, answered, 8, 0, ECHO_ID, LAST), "the request has TYPE=8"
    )


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-reply-skips-nat")
def test_the_reply_meets_no_nat_rule(
    lab: LiveLab, exchange: Exchange, observe: Observation
) -> None:
    first, second = exchange.requests[:2]
    exchange.show(observe, ("echo request 1", first), ("echo request 2", second))
    note(observe, exchange.replies[0], "echo reply 1")
    nat = nat_chains(observe, exchange, variety(lab, exchange.node))
    met = {
        name: [f"{table}:{chain}" for table, chain in way.chains if (table, chain) in nat]
        for name, way in (("first", first), ("second", second), ("reply", exchange.replies[0]))
    }
    observe.note("chains of the nat kind that were met", met)
    assert met["first"], "the first packet of the connection meets no nat rule either"
    observe.holds(not met["reply"], "the reply to the first request meets none")
    observe.holds(not met["second"], "nor does the next request: they are asked once a connection")


def nat_chains(observe: Observation, exchange: Exchange, program: str) -> set[tuple[str, str]]:
    """Return the chains that translate addresses, each with its table."""
    if program == LEGACY:
        return {one for way in exchange.requests for one in way.chains if one[0] == "nat"}
    listed = observe.json(exchange.node, ["nft", "-j", "list", "chains", "ip"])["nftables"]
    chains = [one["chain"] for one in listed if "chain" in one]
    return {(one["table"], one["name"]) for one in chains if one.get("type") == "nat"}


# -- the time between the hooks ---------------------------------------------------


def pass_hooks(
    lab: LiveLab, node: Node, observe: Observation, count: int = 1
) -> list[tuple[Logged, Logged]]:
    """Send echo requests between two containers, with an NFLOG rule at both hooks.

    Returns each packet, request or reply, as it was in raw PREROUTING, and as it first
    appeared in filter FORWARD.
    """
    asker, answerer = pair(lab, node)
    names = interfaces(node)
    log = ["-p", "icmp", "-j", "NFLOG", "--nflog-group", str(GROUP)]
    log += ["--nflog-threshold", "1", "--nflog-prefix"]  # otherwise many are held back for a second
    with (
        bridge_filtered(observe, node, "1"),
        nflog(observe, node, GROUP) as seen,
        ruled(observe, node, variety(lab, node), "-t", "raw", "-I", "PREROUTING", *log, RAW[0]),
        ruled(observe, node, variety(lab, node), "-t", "filter", "-I", "FORWARD", *log, FORWARD[0]),
    ):
        # -U: otherwise the kernel stamps ping's packets on arrival, and both hooks see that stamp.
        ask(observe, asker, answerer.address, count, "-U")
    at: dict[str, dict[object, Logged]] = {RAW[0]: {}, FORWARD[0]: {}}
    for record in seen.packets:
        one = logged(record.frame, names)
        assert one.packet is not None
        at[one.prefix][one.packet.src, one.packet.icmp] = one
    assert at[RAW[0]].keys() == at[FORWARD[0]].keys(), "not all packets passed both hooks"
    assert len(at[RAW[0]]) == 2 * count, "not all packets were logged"
    return [(one, at[FORWARD[0]][key]) for key, one in at[RAW[0]].items()]


def times_between(lab: LiveLab, node: Node, observe: Observation) -> tuple[float, ...]:
    """Return each packet's time from hook to hook in microseconds.

    Packets that the kernel stamped on arrival are left out, since both hooks then
    see the same time.  It stamps all packets while any socket on the machine
    requests it, as a capture does.  Other kernels log no other time.
    """
    found: list[float] = []
    for _ in range(ROUNDS):
        both = pass_hooks(lab, node, observe, PINGS)
        if not any(one.stamp for pair in both for one in pair):
            pytest.skip(
                f"the kernel of {node.name} logs no time of a packet not stamped on arrival"
            )
        found += [float(after.stamp - first.stamp) for first, after in both]
        if sum(map(bool, found)) >= PINGS:
            break
    left_out = found.count(0.0)
    if left_out:
        observe.note("packets with one time at both hooks, left out", f"{left_out} of {len(found)}")
    return tuple(filter(None, found))


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("trace-hook-time-5us")
@pytest.mark.testbed_alone
def test_the_time_between_the_hooks_depends_on_what_is_in_between(
    lab: LiveLab, node: Node, observe: Observation
) -> None:
    usual = times_between(lab, node, observe)
    with many_rules(node, variety(lab, node)):
        longer = times_between(lab, node, observe)
    if min(len(usual), len(longer)) < PINGS:
        observe.unclear("something on this machine has the kernel stamp all packets on arrival")
        return
    if emulated(node):
        observe.unclear("the processor is emulated: how long it takes says nothing of a machine")
        return
    series = {"as the lab is": usual, f"with {RULES} rules in between": longer}
    what = "from raw PREROUTING to filter FORWARD, each packet of a ping"
    observe.measured(Measurement(what, "us", series, "lower"))
    # The minimum of many: other load on the machine at the time does not matter.
    observe.holds_when(
        f"little is in between: {min(usual):g} us at the least", min(usual) <= ABOUT_MICROSECONDS
    )
    observe.fails_when(
        f"the packet has {RULES} rules to pass in between: {min(longer):g} us at the least",
        min(longer) > ABOUT_MICROSECONDS,
    )


def emulated(node: Node) -> bool:
    """Tell whether the node's processor is emulated by QEMU."""
    return "TCG" in node.get("/proc/cpuinfo").decode()


@contextlib.contextmanager
def many_rules(node: Node, program: str) -> Iterator[None]:
    """Add rules to the end of raw PREROUTING that no echo matches."""
    rule = f"-A {CHAIN} -p icmp -m icmp --icmp-type timestamp-request -j ACCEPT\n"
    jump = "PREROUTING -p icmp -j " + CHAIN
    make = f"*raw\n:{CHAIN} -\n{rule * RULES}-A {jump}\nCOMMIT\n"
    undo = f"*raw\n-D {jump}\n-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n"
    restore = [f"{program}-restore", "-w", "--noflush"]
    with whole_table(node, program, "raw"):
        node.run(restore, input=make.encode())
        try:
            yield
        finally:
            node.run(restore, input=undo.encode())
