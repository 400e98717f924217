"""The order of what was seen of a packet, from frames and events made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from walk_frames import (
    ECHO,
    IN,
    NUMBER,
    OTHER,
    OUT,
    A,
    B,
    C,
    D,
    echo,
    frame,
    ip,
    keyed,
    link,
    seen,
    tcp,
    udp,
    vxlan,
)  # fmt: skip

from testbed.observe.capture import decode
from testbed.observe.conntrack import Connection, Tuple
from testbed.observe.trace import Logged, TraceEvent
from testbed.walk.follow import Seen, Trail, hops, trail, unseen, visits
from testbed.walk.frames import Signature
from testbed.walk.model import Hop, Spot
from testbed.walk.rules import Chain, Ruleset

Places = Mapping[tuple[str, str], Seen]
PING = frame(A, B, ip("10.0.0.2", "10.0.0.3", echo()))


def steps(found: Trail) -> list[str]:
    return [f"{one.machine}/{one.space}:{one.device} {one.point}" for one in found.steps]


def made(found: Trail, places: Places) -> list[Hop]:
    return hops(found, places, ECHO, 0)


def bridge(other: int = IN) -> Places:
    """Two containers at one bridge, which floods the frame to a third one as well."""
    ports = [link(f"veth{n}", n, f"node1/c{n}/eth0", master="br0") for n in (1, 2, 3)]
    host = seen("node1", "", [link("br0", 9), *ports], [
        (20, "veth1", OTHER, PING), (30, "veth2", OUT, PING), (31, "veth3", OUT, PING),
    ])  # fmt: skip
    ends = [
        seen("node1", f"c{n}", [link("eth0", 1, f"node1//veth{n}", addresses=(f"10.0.0.{n + 1}/8",))
              ], [(time, "eth0", kind, PING)])
        for n, time, kind in ((1, 10, OUT), (2, 40, other), (3, 41, OTHER))
    ]  # fmt: skip
    return keyed(host, *ends)


def test_a_bridge_hands_a_frame_to_the_port_of_its_receiver() -> None:
    found = trail("there", bridge(), ("node1", "c1"), ("node1", "c2"))
    assert steps(found) == [
        "node1/c1:eth0 out", "node1/:veth1 in", "node1/:veth2 out", "node1/c2:eth0 in",
    ]  # fmt: skip
    assert {f"{one.space}:{one.device}" for one in found.beside} == {":veth3", "c3:eth0"}


def test_a_flooded_frame_for_another_machine_is_no_way() -> None:
    """Without a known target, the way is to the device that the frame is addressed to."""
    found = trail("there", bridge(), ("node1", "c1"), None)
    assert steps(found)[-1] == "node1/c2:eth0 in"


def test_a_bridge_asks_no_routing_table() -> None:
    places = bridge()
    kinds = [
        hop.kind for hop in made(trail("there", places, ("node1", "c1"), ("node1", "c2")), places)
    ]
    assert kinds == ["route", "device", "device", "device", "device", "route"]


def overlay(clock: str = "") -> Places:
    """Two nodes joined by VXLAN, the second with a clock that is far behind."""
    late = 0 if not clock else 10**9
    inner = ip("10.1.0.2", "10.2.0.2", echo(), ttl=63)
    first = frame(A, B, ip("10.1.0.2", "10.2.0.2", echo(), ttl=64))
    wrapped = frame(C, D, inner)
    outer = frame(A, B, vxlan("192.0.2.1", "192.0.2.2", wrapped))
    last = frame(C, D, ip("10.1.0.2", "10.2.0.2", echo(), ttl=62))
    one = seen("node1", "", [link("veth1", 1, "node1/c1/eth0"), link("vx", 2, kind="vxlan"),
                             link("eth0", 3, "node2//eth0")], [
        (20, "veth1", IN, first), (30, "vx", OUT, wrapped), (40, "eth0", OUT, outer),
    ])  # fmt: skip
    two = seen("node2", "", [link("veth1", 1, "node2/c2/eth0"), link("vx", 2, kind="vxlan"),
                             link("eth0", 3, "node1//eth0")], [
        (50 - late, "eth0", IN, outer), (50 - late, "vx", IN, wrapped),
        (60 - late, "veth1", OUT, last),
    ], clock=clock)  # fmt: skip
    return keyed(
        seen("node1", "c1", [link("eth0", 1, "node1//veth1")], [(10, "eth0", OUT, first)]),
        one,
        two,
        seen("node2", "c2", [link("eth0", 1, "node2//veth1", addresses=("10.2.0.2/24",))],
             [(70 - late, "eth0", IN, last)], clock=clock),
    )  # fmt: skip


@pytest.mark.parametrize("clock", ["", "node2"])
def test_the_order_of_two_machines_does_not_follow_their_clocks(clock: str) -> None:
    places = overlay(clock)
    found = trail("there", places, ("node1", "c1"), ("node2", "c2"))
    assert steps(found) == [
        "node1/c1:eth0 out", "node1/:veth1 in", "node1/:vx out", "node1/:eth0 out",
        "node2/:eth0 in", "node2/:vx in", "node2/:veth1 out", "node2/c2:eth0 in",
    ]  # fmt: skip
    devices = [hop for hop in made(found, places) if hop.kind == "device"]
    assert [hop.seconds is None for hop in devices] == [False] * 4 + [bool(clock)] * 4


def test_a_tunnel_is_a_change_of_the_carrier_and_the_ttl_that_of_the_packet_inside() -> None:
    places = overlay()
    devices = [
        hop for hop in made(trail("there", places, ("node1", "c1"), ("node2", "c2")), places)
        if hop.kind == "device"
    ]  # fmt: skip
    changes = [{one.field: (one.before, one.after) for one in hop.changes} for hop in devices]
    assert changes[2]["ttl"] == ("64", "63")
    assert changes[3] == {"carrier": ("", "vxlan 1")}
    assert devices[3].view is not None
    assert devices[3].view.inside is not None
    assert (devices[3].view.dst, devices[3].view.inside.dst) == ("192.0.2.2", "10.2.0.2")
    assert changes[5] == {"carrier": ("vxlan 1", "")}
    assert changes[6]["ttl"] == ("63", "62")


def test_a_repeated_packet_is_counted_and_left_out() -> None:
    again = frame(A, B, ip("10.0.0.2", "10.0.0.3", echo(), ident=4712))
    places = keyed(seen("a", "", [link("eth0", 1)], [
        (10, "eth0", OUT, PING), (1000, "eth0", OUT, again), (2000, "eth0", OUT, PING),
    ]))  # fmt: skip
    found = trail("there", places, ("a", ""), None)
    assert (steps(found), found.copies) == (["a/:eth0 out"], 2)


def test_a_packet_with_a_new_id_is_followed_on() -> None:
    """A rule can give it one (nft: ip id set); what is sent again has a new one from the start."""
    came = frame(A, B, ip("10.0.0.2", "10.0.1.3", echo()))
    again = frame(A, B, ip("10.0.0.2", "10.0.1.3", echo(), ident=4712))
    gone = frame(B, C, ip("10.0.0.2", "10.0.1.3", echo(), ttl=63, ident=7))
    places = keyed(
        seen("a", "", [link("eth0", 1, "r//eth0")], [
            (10, "eth0", OUT, came), (900, "eth0", OUT, again),
        ]),
        seen("r", "", [link("eth0", 1, "a//eth0"), link("eth1", 2)], [
            (20, "eth0", IN, came), (30, "eth1", OUT, gone),
            (910, "eth0", IN, again), (920, "eth1", OUT, gone),
        ]),
    )  # fmt: skip
    found = trail("there", places, ("a", ""), None)
    assert steps(found) == ["a/:eth0 out", "r/:eth0 in", "r/:eth1 out"]
    assert found.copies == 1


def test_what_was_not_seen_is_a_hop_that_says_so() -> None:
    """A device without a capture: the frame comes out of it with another destination MAC."""
    other = frame(C, D, ip("10.0.0.2", "10.0.0.3", echo()))
    places = keyed(
        seen("a", "", [link("eth0", 1)], [(10, "eth0", OUT, PING)]),
        seen("b", "", [link("eth0", 1, addresses=("10.0.0.3/24",))], [(20, "eth0", IN, other)]),
    )
    found = trail("there", places, ("a", ""), ("b", ""))
    assert steps(found) == ["a/:eth0 out", "b/:eth0 in"]
    blind = [hop for hop in made(found, places) if hop.kind == "blind"]
    assert [hop.facts[0].origin for hop in blind] == ["inferred"]


def test_what_an_encrypted_tunnel_carries_is_a_hop_that_says_so() -> None:
    places = keyed(*(
        seen(name, "", [link("wg0", 1, kind="wireguard", addresses=(address,))],
             [(time, "wg0", point, PING)])
        for name, address, time, point in (
            ("a", "10.0.0.2/24", 10, OUT), ("b", "10.0.0.3/24", 20, IN),
        )
    ))  # fmt: skip
    found = made(trail("there", places, ("a", ""), ("b", "")), places)
    assert [hop.kind for hop in found] == ["route", "device", "blind", "device", "route"]


def test_a_packet_to_itself_passes_the_loopback() -> None:
    lo = frame("00:00:00:00:00:00", "00:00:00:00:00:00", ip("127.0.0.1", "127.0.0.1", echo()))
    places = keyed(seen("a", "", [link("lo", 1, loopback=True)], [
        (10, "lo", OUT, lo), (10, "lo", IN, lo),
    ]))  # fmt: skip
    assert steps(trail("there", places, ("a", ""), ("a", ""))) == ["a/:lo out", "a/:lo in"]


# -- chains and translations -------------------------------------------------------

SYN = Signature("tcp", 4, NUMBER, 61234)
RULES = Ruleset({
    ("ip", "nat", "PREROUTING"): Chain("ip", "nat", "PREROUTING", "prerouting", "nat", "dstnat",
                                       "accept", [4], ["-A PREROUTING -j DOCKER"]),
    ("ip", "nat", "DOCKER"): Chain("ip", "nat", "DOCKER", handles=[7, 8],
                                   texts=["-A DOCKER -i docker0 -j RETURN",
                                          "-A DOCKER -p tcp -j DNAT --to-destination 10.1.0.2:80"]),
    ("ip", "nat", "POSTROUTING"): Chain("ip", "nat", "POSTROUTING", "postrouting", "nat", "srcnat",
                                        "accept", [5], ["-A POSTROUTING -j MASQUERADE"]),
    ("ip", "filter", "FORWARD"): Chain("ip", "filter", "FORWARD", "forward", "filter", "filter",
                                       "drop", [6], ["-A FORWARD -j ACCEPT"]),
})  # fmt: skip


def event(table: str, chain: str, handle: int, verdict: str, packet: bytes = b"",
          ident: int = 1, into: str = "", out: str = "") -> TraceEvent:  # fmt: skip
    shown = Logged(indev=into, outdev=out, packet=decode(packet, 101)) if packet else None
    kind = "rule" if handle else "policy"
    return TraceEvent(table, chain, kind, handle=handle, id=ident, seen=shown,  # type: ignore[arg-type]
                      verdict=verdict, family="ip")  # fmt: skip


def published(last: str = "accept") -> Places:
    """A connection from outside to a published port, forwarded to a container."""
    data = tcp(seq=NUMBER, dport=8080)
    before = ip("192.0.2.9", "192.0.2.1", data, protocol=6)
    after = ip("192.0.2.9", "10.1.0.2", tcp(seq=NUMBER), protocol=6)
    away = ip("192.0.2.9", "10.1.0.2", tcp(seq=NUMBER), protocol=6, ttl=63)
    events = [
        event("nat", "PREROUTING", 4, "jump DOCKER", before, 1, "eth0"),
        event("nat", "DOCKER", 8, "accept", b"", 1),
        event("filter", "FORWARD", 6 if last == "accept" else 0, last, after, 2, "eth0", "docker0"),
    ]
    sent = [(20, "eth0", IN, frame(A, B, before))]
    if last == "accept":
        sent += [(30, "docker0", OUT, frame(C, D, away)), (31, "veth1", OUT, frame(C, D, away))]
    return keyed(seen(
        "node1", "",
        [link("eth0", 1), link("docker0", 2, kind="bridge"), link("veth1", 3, master="docker0")],
        sent, SYN, events=events, rules=RULES,
        connections=[Connection(Tuple("192.0.2.9", "192.0.2.1", 6, 61234, 8080),
                                Tuple("10.1.0.2", "192.0.2.9", 6, 80, 61234))],
    ))  # fmt: skip


def test_a_new_destination_comes_before_the_route() -> None:
    places = published()
    found = hops(trail("there", places, None, None), places, SYN, 0)
    assert [hop.label for hop in found] == [
        "blind", "node1:eth0 in", "nat PREROUTING", "conntrack", "route", "filter FORWARD",
        "node1:docker0 out", "node1:veth1 out",
    ]  # fmt: skip
    blind, _, chain, translation, *_, docker0, _ = found
    assert blind.facts[0].origin == "inferred"  # nothing before eth0 is watched
    assert {(one.field, one.before, one.after) for one in translation.changes} == {
        ("dst", "192.0.2.1", "10.1.0.2"), ("dport", "8080", "80"),
    }  # fmt: skip
    assert translation.facts[0].origin == "seen"
    assert [(rule.chain, rule.position, rule.verdict) for rule in chain.rules] == [
        ("PREROUTING", 1, "jump DOCKER"), ("DOCKER", 2, "DNAT"),
    ]  # fmt: skip
    # Told once, by the translation.
    assert {one.field for one in docker0.changes} == {"src_mac", "dst_mac", "ttl"}


@pytest.mark.parametrize(("words", "port", "after"), [
    ("-j DNAT --to-destination 10.9.0.9:80", 80, "10.9.0.9"),
    ("-j DNAT --to-destination 10.9.0.9 --random", 8080, "10.9.0.9"),
    ("tcp dport 8080 dnat to 10.9.0.9:81", 81, "10.9.0.9"),
    ("dnat ip6 to [fd00::9]:80", 80, "fd00::9"),
    ("dnat ip6 to fd00::9", 8080, "fd00::9"),
    ("-j DNAT --to-destination 10.9.0.1-10.9.0.9", 0, ""),  # not known which
    ("dnat ip to ip saddr map @m", 0, ""),
])  # fmt: skip
def test_a_new_destination_that_nothing_has_seen_is_that_of_the_rule(
    words: str, port: int, after: str
) -> None:
    """No chain without rules sees it, and conntrack reports no connection that gets nowhere."""
    before = ip("192.0.2.9", "192.0.2.1", tcp(seq=NUMBER, dport=8080), protocol=6)
    chain = Chain("ip", "nat", "PREROUTING", "prerouting", "nat", "dstnat", "accept", [4],
                  [f"-A PREROUTING {words}" if words[0] == "-" else words])  # fmt: skip
    places = keyed(seen(
        "node1", "", [link("eth0", 1)], [(20, "eth0", IN, frame(A, B, before))], SYN,
        events=[event("nat", "PREROUTING", 4, "accept", before, 1, "eth0")],
        rules=Ruleset({("ip", "nat", "PREROUTING"): chain}),
    ))  # fmt: skip
    found = hops(trail("there", places, None, None), places, SYN, 0)
    made = [hop for hop in found if hop.kind == "conntrack"]
    assert [hop.label for hop in found][-2:] == [
        "conntrack" if after else "nat PREROUTING",
        "route",
    ]
    assert [(hop.view.dst, hop.view.dport) for hop in made if hop.view] == (
        [(after, port)] if after else []
    )
    assert [hop.facts[0].origin for hop in made] == (["inferred"] if after else [])


def test_a_packet_that_a_policy_drops_ends_in_its_chain() -> None:
    places = published("drop")
    found = hops(trail("there", places, None, None), places, SYN, 0)
    assert [hop.label for hop in found][-1] == "filter FORWARD"
    assert [rule.verdict for rule in found[-1].rules] == ["policy drop"]


def test_a_new_source_comes_after_the_route() -> None:
    before = ip("10.1.0.2", "192.0.2.9", echo())
    after = ip("192.0.2.1", "192.0.2.9", echo(), ttl=63)
    places = keyed(seen(
        "node1", "", [link("docker0", 2), link("eth0", 1)],
        [(20, "docker0", IN, frame(A, B, before)), (30, "eth0", OUT, frame(C, D, after))],
        events=[event("nat", "POSTROUTING", 5, "accept", before, 3, "docker0", "eth0")],
        rules=RULES,
    ))  # fmt: skip
    found = made(trail("there", places, None, None), places)
    assert [hop.label for hop in found] == [
        "blind", "node1:docker0 in", "route", "nat POSTROUTING", "conntrack", "node1:eth0 out",
    ]  # fmt: skip
    assert found[4].facts[0].origin == "inferred"  # no event of conntrack
    assert found[3].rules[0].verdict == "MASQUERADE"


@pytest.mark.parametrize(("ident", "origin"), [(61234, "seen"), (99, "inferred")])
def test_a_translation_is_not_that_of_another_echo(ident: int, origin: str) -> None:
    """Echoes of the same ends differ in their id alone."""
    before = frame(A, B, ip("10.1.0.2", "192.0.2.9", echo()))
    after = frame(C, D, ip("192.0.2.1", "192.0.2.9", echo(), ttl=63))
    places = keyed(seen("node1", "", [link("docker0", 2), link("eth0", 1)], [
        (20, "docker0", IN, before), (30, "eth0", OUT, after),
    ], connections=[Connection(Tuple("10.1.0.2", "192.0.2.9", 1, ident),
                               Tuple("192.0.2.9", "192.0.2.1", 1, ident))]))  # fmt: skip
    found = made(trail("there", places, None, None), places)
    (translation,) = [hop for hop in found if hop.kind == "conntrack"]
    assert [fact.origin for fact in translation.facts] == [origin]


def test_chains_of_our_own_are_left_out() -> None:
    one = event("testbed_walk_1_2", "prerouting", 2, "continue", ip("10.0.0.2", "10.0.0.3", echo()))
    assert visits(seen("a", "", [], [], events=[one])) == []


def test_a_trace_of_iptables_legacy_is_read_by_position() -> None:
    packet = decode(ip("10.1.0.2", "192.0.2.9", echo()), 101)
    shown = Logged(indev="docker0", outdev="eth0", packet=packet)
    legacy = Ruleset(legacy={
        ("ip", "filter", "FORWARD"): Chain("ip", "filter", "FORWARD", "forward", policy="drop",
                                           texts=["-A FORWARD -j USER"]),
        ("ip", "filter", "USER"): Chain("ip", "filter", "USER", texts=["-A USER -j RETURN"]),
    })  # fmt: skip
    events = [
        TraceEvent("filter", "FORWARD", "rule", number=1, seen=shown, family="ip"),
        TraceEvent("filter", "USER", "return", number=1, seen=shown, family="ip"),
        TraceEvent("filter", "FORWARD", "policy", number=2, seen=shown, family="ip"),
    ]
    places = keyed(seen("node1", "", [link("docker0", 1)], [
        (20, "docker0", IN, frame(A, B, ip("10.1.0.2", "192.0.2.9", echo()))),
    ], events=events, rules=legacy))  # fmt: skip
    last = made(trail("there", places, None, None), places)[-1]
    assert [(rule.chain, rule.position, rule.verdict) for rule in last.rules] == [
        ("FORWARD", 1, "jump USER"), ("USER", 1, "return"), ("FORWARD", 0, "policy drop"),
    ]  # fmt: skip


def test_a_changed_chain_of_iptables_legacy_has_an_uncertain_text() -> None:
    packet = decode(ip("10.1.0.2", "192.0.2.9", echo()), 101)
    shown = Logged(indev="docker0", outdev="eth0", packet=packet)
    key = ("ip", "filter", "FORWARD")
    chain = Chain(*key, "forward", policy="drop", texts=["-A FORWARD -j USER"])
    events = [TraceEvent("filter", "FORWARD", "rule", number=1, seen=shown, family="ip")]
    for unsure in (frozenset({key}), frozenset({("ip", "filter", "USER")})):
        places = keyed(seen("node1", "", [link("docker0", 1)], [
            (20, "docker0", IN, frame(A, B, ip("10.1.0.2", "192.0.2.9", echo()))),
        ], events=events, rules=Ruleset(legacy={key: chain}, unsure=unsure)))  # fmt: skip
        facts = made(trail("there", places, None, None), places)[-1].facts
        assert any("changed meanwhile" in one.text for one in facts) is (key in unsure)


def test_a_packet_that_is_sent_again_is_told_from_the_first() -> None:
    """IPv6 has no id of packets, and a dropped packet leaves no frame after the chain."""
    syn = ip("fd00::2", "fd01::3", tcp(seq=NUMBER), protocol=6)
    events = [
        replace(event("filter", "FORWARD", handle, verdict, packet, ident, "eth0", "eth1"),
                family="ip6")
        for ident in (1, 2)
        for handle, verdict, packet in ((6, "continue", syn), (7, "drop", b""))
    ]  # fmt: skip
    chain = Chain("ip6", "filter", "FORWARD", "forward", "filter", "filter", "accept", [6, 7],
                  ["ct state established accept", "drop"])  # fmt: skip
    rules = Ruleset({("ip6", "filter", "FORWARD"): chain})
    signature = Signature("tcp", 6, NUMBER, 61234)
    places = keyed(seen("r", "", [link("eth0", 1)], [
        (10, "eth0", IN, frame(A, B, syn)), (1000, "eth0", IN, frame(A, B, syn)),
    ], signature, events=events, rules=rules))  # fmt: skip
    found = trail("there", places, None, None)
    assert found.copies == 1
    labels = [hop.label for hop in hops(found, places, signature, 0)]
    assert labels.count("filter FORWARD") == 1
    nowhere = {("r", ""): replace(places["r", ""], sightings=())}
    alone = hops(Trail("there", ()), nowhere, signature, 0, origin=("r", ""))
    assert [hop.label for hop in alone].count("filter FORWARD") == 1


def test_a_trace_of_iptables_legacy_tells_packets_apart_by_their_order() -> None:
    packet = decode(ip("10.1.0.2", "192.0.2.9", echo()), 101)
    shown = Logged(indev="docker0", outdev="eth0", packet=packet)
    events = [TraceEvent("filter", "FORWARD", "rule", number=number, seen=shown, family="ip")
              for number in (1, 3, 1, 3)]  # fmt: skip
    found = visits(seen("node1", "", [], [], events=events))
    assert [[one.number for one in visit.events] for visit in found] == [[1, 3], [1, 3]]


def test_a_rule_that_is_no_longer_there_is_not_left_out() -> None:
    packet = ip("10.1.0.2", "192.0.2.9", echo())
    events = [event("filter", "FORWARD", 99, "drop", packet, 3, "docker0", "eth0")]
    places = keyed(seen("node1", "", [link("docker0", 1)], [
        (20, "docker0", IN, frame(A, B, packet)),
    ], events=events, rules=Ruleset(RULES.nft, has_nft=True)))  # fmt: skip
    last = made(trail("there", places, None, None), places)[-1]
    assert (last.rules[-1].position, last.rules[-1].verdict) == (0, "drop")
    assert [fact.origin for fact in last.facts] == ["seen", "asked"]


def test_traces_of_both_kinds_may_have_unknown_chains() -> None:
    packet = ip("10.1.0.2", "192.0.2.9", echo())
    shown = Logged(indev="docker0", packet=decode(packet, 101))
    events = [
        event("own", "mine", 3, "accept", packet, 3, "docker0"),
        TraceEvent("raw", "PREROUTING", "policy", number=1, seen=shown, family="ip"),
    ]
    places = keyed(seen("node1", "", [link("docker0", 1)], [
        (20, "docker0", IN, frame(A, B, packet)),
    ], events=events))  # fmt: skip
    labels = [hop.label for hop in made(trail("there", places, None, None), places)]
    assert {"raw PREROUTING", "own mine"} <= {*labels}


def test_traces_of_both_kinds_are_placed_on_all_of_the_way() -> None:
    """The events of iptables-legacy come by a socket of their own, after those of nftables."""
    first = ip("10.1.0.2", "10.2.0.2", echo())
    later = ip("10.1.0.2", "10.2.0.2", echo(), ttl=63)
    wrapped = frame(C, D, later)
    outer = vxlan("192.0.2.1", "192.0.2.2", wrapped)
    ways = [(first, "veth1", "vx"), (outer, "", "eth0")]
    events = [
        event("nat", "POSTROUTING", 5, "accept", packet, 3 + number, into, out)
        for number, (packet, into, out) in enumerate(ways)
    ]
    events += [
        TraceEvent("mangle", "POSTROUTING", "policy", number=1, family="ip",
                   seen=Logged(indev=into, outdev=out, packet=decode(packet, 101)))
        for packet, into, out in ways
    ]  # fmt: skip
    places = keyed(seen(
        "node1", "", [link("veth1", 1), link("vx", 2, kind="vxlan"), link("eth0", 3)],
        [(20, "veth1", IN, frame(A, B, first)), (30, "vx", OUT, wrapped),
         (40, "eth0", OUT, frame(A, B, outer))],
        events=events, rules=RULES,
    ))  # fmt: skip
    labels = [hop.label for hop in made(trail("there", places, None, None), places)]
    both = ["mangle POSTROUTING", "nat POSTROUTING"]
    assert [one for one in labels if one in both or ":" in one] == [
        "node1:veth1 in", *both, "node1:vx out", *both, "node1:eth0 out",
    ]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_error_that_a_rule_sends_does_not_hide_the_rule(wrapped: bool) -> None:
    """Its own events come first, between those of two chains; they cut off what it cites."""
    packet = ip("10.1.0.2", "192.0.2.9", echo())
    error = ip("10.1.0.1", "10.1.0.2", bytes([3, 3, 0, 0, 0, 0, 0, 0]) + packet, ident=77)
    error = vxlan("192.0.2.1", "192.0.2.2", frame(A, B, error)) if wrapped else error
    mangle = Chain("ip", "mangle", "FORWARD", "forward", "filter", "mangle", "accept")
    forward = Chain("ip", "filter", "FORWARD", "forward", "filter", "filter", "accept", [6],
                    ["-A FORWARD -j REJECT"])  # fmt: skip
    events = [
        event("mangle", "FORWARD", 0, "accept", packet, 1, "docker0", "eth0"),
        event("filter", "OUTPUT", 0, "accept", error[:40], 2, "", "docker0"),
        event("filter", "FORWARD", 6, "drop", packet, 1, "docker0", "eth0"),
    ]
    rules = Ruleset({("ip", one.table, one.name): one for one in (mangle, forward)})
    places = keyed(seen("node1", "", [link("docker0", 1), link("eth0", 2)], [
        (20, "docker0", IN, frame(A, B, packet)),
    ], events=events, rules=rules))  # fmt: skip
    found = made(trail("there", places, None, None), places)
    assert [hop.label for hop in found][-2:] == ["mangle FORWARD", "filter FORWARD"]
    assert found[-1].rules[-1].verdict == "REJECT"


def test_an_error_about_a_packet_of_ipv6_is_not_the_packet() -> None:
    """Both are of ICMPv6, and neither has an id."""
    packet = ip("fd00::2", "fd01::3", echo(128), protocol=58)
    error = ip("fd00::1", "fd00::2", bytes([2, 0, 0, 0, 0, 0, 5, 120]) + packet, protocol=58)
    events = [
        event("raw", "PREROUTING", 0, "accept", packet, 1, "eth0"),
        event("raw", "OUTPUT", 0, "accept", error[:60], 2, "", "eth0"),
    ]
    signature = Signature("icmp", 6, NUMBER, 61234)
    places = keyed(seen("r", "", [link("eth0", 1)], [(10, "eth0", IN, frame(A, B, packet))],
                        signature, events=events))  # fmt: skip
    found = hops(trail("there", places, None, None), places, signature, 0)
    labels = [hop.label for hop in found]
    assert labels == ["blind", "r:eth0 in", "raw PREROUTING", "route"]


def test_a_redirect_is_no_loss() -> None:
    """A router sends it for a packet that it forwards (RFC 792)."""
    cited = ip("10.0.0.2", "10.0.0.3", echo())
    told = [
        ECHO.tell(
            decode(ip("10.0.0.1", "10.0.0.2", bytes([kind, 1, 0, 0, 0, 0, 0, 0]) + cited), 101)
        )
        for kind in (3, 5)
    ]
    assert told == ["error", None]


# -- recognising the request -------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_a_request_and_its_answer_are_told_apart(protocol: str, family: int) -> None:
    a, b = ("10.0.0.2", "10.0.0.3") if family == 4 else ("fd00::2", "fd00::3")
    token = NUMBER.to_bytes(4, "big")
    kinds = (8, 0) if family == 4 else (128, 129)
    number = {"icmp": 1 if family == 4 else 58, "tcp": 6, "udp": 17}[protocol]
    request = {"icmp": echo(kinds[0]), "tcp": tcp(seq=NUMBER), "udp": udp(token)}[protocol]
    answer = {
        "icmp": echo(kinds[1]), "udp": udp(b"x", 53, 61234),
        "tcp": tcp(seq=7, ack=NUMBER + 1, flags=0x12, sport=80, dport=61234),
    }[protocol]  # fmt: skip
    stranger = {"icmp": echo(kinds[0], 1), "tcp": tcp(seq=9), "udp": udp(b"else")}[protocol]
    signature = Signature(protocol, family, NUMBER, 61234)  # type: ignore[arg-type]
    told = [
        signature.tell(decode(frame(A, B, ip(a, b, data, protocol=number))))
        for data in (request, answer, stranger)
    ]
    assert told == ["there", "back", None]


def test_the_data_of_a_server_are_no_copies_of_its_answer() -> None:
    """The first of them acknowledge the same number, such as the banner of sshd."""
    flags = {"SYN+ACK": 0x12, "RST+ACK": 0x14, "PSH+ACK": 0x18, "FIN+ACK": 0x11}
    told = {
        name: SYN.tell(decode(frame(A, B, ip(
            "10.0.0.3", "10.0.0.2", tcp(seq=7, ack=NUMBER + 1, flags=bits), protocol=6
        ))))
        for name, bits in flags.items()
    }  # fmt: skip
    assert [name for name, one in told.items() if one == "back"] == ["SYN+ACK", "RST+ACK"]


# -- an end that is not seen -------------------------------------------------------


@pytest.mark.parametrize(("device", "point", "words"), [
    ("alone", "out", "behind alone"), ("joined", "out", "the rest"), ("alone", "in", "the rest"),
])  # fmt: skip
def test_the_rest_of_a_way_that_is_not_seen_is_one_hop(device: str, point: str, words: str) -> None:
    place = seen("node1", "c1", [link("alone", 1), link("joined", 2, "node2//eth0")], [])
    found = unseen([Hop("device", Spot("node1", "c1", device), point)], Spot("node9"), place)
    assert (found.kind, found.spot) == ("blind", Spot("node1", "c1"))
    assert words in found.facts[0].text


def test_a_way_of_which_nothing_is_seen_begins_at_its_source() -> None:
    found = unseen([], Spot("node9"), None)
    assert (found.kind, found.spot, found.facts[0].origin) == ("blind", Spot("node9"), "inferred")
