"""Paths of walks: the same after a second run, and different where the packet went otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from walks import across, all_walks, dropped, published, same_bridge

from testbed.walk.compare import compare, plain
from testbed.walk.model import Change, Hop, Leg, Rule, Walk


def edited(walk: Walk, at: int, **changes: object) -> Walk:
    (leg, *rest) = walk.legs
    hops = list(leg.hops)
    hops[at] = replace(hops[at], **changes)  # type: ignore[arg-type]
    return replace(walk, legs=(replace(leg, hops=tuple(hops)), *rest))


def again(walk: Walk) -> Walk:
    """The walk as a second run gives it: other times, MACs, ids and source ports."""

    def hop(one: Hop) -> Hop:
        view = one.view and replace(
            one.view, src_mac="02:00:00:00:00:09", ip_id=9, sport=41234, frame=b"\0", length=99
        )
        changes = [
            replace(change, before="02:00:00:00:00:07", after="02:00:00:00:00:08")
            if "mac" in change.field
            else change
            for change in one.changes
        ]
        changes.append(Change("ip_id", "1", "2"))
        later = None if one.seconds is None else one.seconds + 0.5
        return replace(one, seconds=later, view=view, changes=tuple(changes))

    def leg(one: Leg) -> Leg:
        return replace(one, hops=tuple(map(hop, one.hops)))

    return replace(walk, started="2027-01-01T00:00:00Z", legs=tuple(map(leg, walk.legs)))


@pytest.mark.parametrize("walk", all_walks().values(), ids=all_walks())
def test_a_second_run_goes_the_same_way(walk: Walk) -> None:
    assert not compare(walk, again(walk))
    assert walk.path == again(walk).path
    assert all(sign == " " for sign, _ in compare(walk, walk).lines)


def test_names_that_an_engine_invents_do_not_count() -> None:
    assert not compare(same_bridge(), same_bridge(("vethffffff1", "veth0000002")))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vethc07d52e", "veth*"),
        ("br-0123456789ab", "br-*"),
        ("cali12ab34cd56e", "cali*"),
        ("-A KUBE-SERVICES -j KUBE-SVC-ERIFXISQEP7F7OF4", "-A KUBE-SERVICES -j KUBE-SVC-*"),
        ("default/web-7c5ddbdf54-x2v9k", "default/web-*"),
        ("docker0 flannel.1 eth0 node1 container-1", "docker0 flannel.1 eth0 node1 container-1"),
        ("ba:ef:87:5f:64:c2 is behind 10.168.0.3", "MAC is behind node2"),
        ("-s 10.168.0.3/32 -d 10.168.0.33/32", "-s node2/32 -d 10.168.0.33/32"),
        ("to fd00::3", "to node2"),
        ("-m tcp --dport 8080 -j DNAT --to-destination 10.168.0.3:80",
         "-m tcp --dport 8080 -j DNAT --to-destination node2:80"),
    ],
)  # fmt: skip
def test_text_without_what_differs_from_run_to_run(text: str, wanted: str) -> None:
    assert plain(text, {"10.168.0.3": "node2", "fd00::3": "node2"}) == wanted


def test_an_address_counts_by_its_owner() -> None:
    one, other = published(), published()
    other = edited(
        other,
        5,
        changes=(Change("dst", "10.168.0.2", "100.96.1.9"), Change("dport", "8080", "80")),
    )
    assert compare(one, other)
    assert not compare(one, replace(other, names={**other.names, "100.96.1.9": "container-1"}))


def test_a_lost_packet_is_a_difference_of_paths() -> None:
    found = compare(across(), dropped())
    text = str(found)
    assert found
    assert "  node1 nat POSTROUTING" in text
    assert "- " in text
    lines = text.splitlines()
    assert "+   node2 LOST" in lines
    assert "+       -A FORWARD -s node1/24 -j DROP" in lines
    assert "-   node2/container-2:eth0 in" in lines
    assert "+   LOST" in lines
    assert "-   arrived" in lines


def test_another_rule_at_the_same_place_is_shown_below_it() -> None:
    one = across()
    hop = one.legs[0].hops[7]
    (rule,) = hop.rules
    other = edited(
        one, 7, rules=(replace(rule, text="-A POSTROUTING -j MASQUERADE", verdict="MASQUERADE"),)
    )
    lines = str(compare(one, other)).splitlines()
    at = lines.index("    node1 nat POSTROUTING")
    assert lines[at + 1].startswith("-       -A POSTROUTING -s")
    assert lines[at + 2] == "+       -A POSTROUTING -j MASQUERADE"


def test_the_position_of_a_rule_does_not_count() -> None:
    one = across()
    (rule,) = one.legs[0].hops[7].rules
    assert not compare(one, edited(one, 7, rules=(replace(rule, position=9),)))


def test_a_leg_that_is_missing_is_a_difference() -> None:
    found = compare(across(reply=True), across())
    assert ("-", "back:") in found.lines
    assert ("+", "back:") in compare(across(), across(reply=True)).lines


def test_a_difference_is_json() -> None:
    data = compare(across(), dropped()).to_dict()
    assert data["different"] is True
    assert {"sign": "+", "text": "  LOST"} in data["lines"]


def test_nat_of_a_tunnel_counts_only_where_it_translates() -> None:
    """The flow of the tunnel is new for the first walk, and old for the next one."""
    one = across()
    (leg,) = one.legs
    at = next(number for number, hop in enumerate(leg.hops) if hop.view and hop.view.carrier)
    outer = leg.hops[at].view
    assert outer is not None
    policy = Rule("ip", "nat", "OUTPUT", 0, "-P OUTPUT ACCEPT", "policy accept")
    seen = replace(outer, carrier="", inside=None)
    met = Hop("chain", leg.hops[at].spot, "output", None, seen, rules=(policy,))

    def with_it(hop: Hop) -> Walk:
        hops = (*leg.hops[:at], hop, *leg.hops[at:])
        return replace(one, legs=(replace(leg, hops=hops),))

    assert not compare(one, with_it(met))
    assert compare(one, with_it(replace(met, changes=(Change("src", "node1", "node2"),))))
    assert compare(one, with_it(replace(met, view=leg.hops[0].view, rules=met.rules)))
    inner = leg.hops[1].view
    assert compare(one, with_it(replace(met, view=inner)))
