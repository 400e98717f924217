"""A walk on the terminal: whole at every width, and clear about a loss."""

from __future__ import annotations

import re
from dataclasses import replace

import click
import pytest
from walks import across, all_walks, dropped, published, same_bridge

from testbed.walk.compare import compare
from testbed.walk.model import Change, Fact, Hop, Leg, Rule, Spot, Walk
from testbed.walk.render import tree, words

WIDTHS = (40, 57, 72, 80, 100, 132, 200)
WALKS = all_walks()


def shown(walk: Walk, width: int = 100) -> list[str]:
    return [click.unstyle(line) for line in tree.lines(walk, width=width)]


def run_on(lines: list[str]) -> str:
    """The text without line breaks, gutters and spaces."""
    return re.sub(r"[\s│║]+", "", "".join(lines))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", WALKS)
def test_no_line_is_too_long_and_no_word_is_lost(name: str, width: int) -> None:
    walk = WALKS[name]
    lines = shown(walk, width)
    assert max(map(len, lines)) <= width
    whole = run_on(lines)
    for leg in walk.legs:
        for hop in leg.hops:
            texts = [*(fact.text for fact in hop.facts), *(rule.text for rule in hop.rules)]
            for text in [hop.spot.machine, hop.spot.space, hop.spot.interface, *texts]:
                assert run_on([text]) in whole, text
    for warning in walk.warnings:
        assert run_on([warning]) in whole


def test_the_time_of_an_arrival_is_not_that_of_an_earlier_place() -> None:
    """The clock of another kernel tells nothing about the time since the request."""
    walk = across()
    assert any("arrived after " in line for line in shown(walk))
    (leg, *_) = walk.legs
    hops = [replace(hop, seconds=None) if hop.spot.machine == "node2" else hop for hop in leg.hops]
    other = replace(walk, legs=(replace(leg, hops=tuple(hops)),))
    assert any("arrived, " in line for line in shown(other))


def test_a_terminal_of_no_width_is_as_one_of_40_columns() -> None:
    assert shown(across(), 0) == shown(across(), 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_loss_is_named_at_its_place_and_in_the_last_line(width: int) -> None:
    lines = shown(dropped(), width)
    (at,) = [number for number, line in enumerate(lines) if "✗ LOST " in line and "│" in line]
    below = run_on(lines[at : at + 8])
    assert "atnode2,filterFORWARD" in below
    assert "#1-AFORWARD-s100.96.1.0/24-jDROP" in below
    last = next(n for n, line in enumerate(lines) if line.startswith("✗ LOST"))
    assert "rule1offilterFORWARDdropsthepacket" in run_on(lines[last:])
    assert not any("✗" in line for line in shown(across(), width))


def test_a_lost_packet_without_a_known_end_is_lost_at_its_last_place() -> None:
    walk = across()
    (leg,) = walk.legs
    cut = replace(walk, legs=(replace(leg, hops=leg.hops[:4], arrived=False),))
    assert shown(cut)[-1] == "✗ LOST at node1:docker0"
    nothing = replace(walk, legs=(Leg("there", (), arrived=False),))
    assert shown(nothing)[-1].startswith("✗ LOST")


def test_hops_are_grouped_by_machine_and_namespace_in_their_order() -> None:
    heads = [line for line in shown(across()) if not line.startswith("│")]
    wanted = ["node1", "┌ container-1", "├ host", "═ lan  network", "node2", "┌ host",
              "├ container-2"]  # fmt: skip
    assert [line for line in heads if line in wanted] == wanted


def test_the_reasons_stand_beside_the_places_where_there_is_room() -> None:
    (line,) = [one for one in shown(published(), 120) if "nat PREROUTING" in one]
    assert "#1 -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER" in line
    lines = shown(published(), 60)
    at = next(number for number, line in enumerate(lines) if "nat PREROUTING" in line)
    assert lines[at + 1].startswith("│     #1 -A PREROUTING")


def test_the_source_of_a_fact_is_shown_where_there_is_room() -> None:
    assert any("(bridge fdb show br docker0)" in line for line in shown(same_bridge(), 132))
    assert not any("(bridge fdb" in line for line in shown(same_bridge(), 60))


def test_the_legend_has_the_signs_that_are_used() -> None:
    assert any("● seen" in line and "~ inferred" in line for line in shown(across()))
    hop = Hop("route", Spot("node1"), facts=(Fact("a route", "asked"),))
    walk = replace(across(), legs=(Leg("there", (hop,), arrived=True),))
    (legend,) = [line for line in shown(walk) if "the kernel's answer" in line]
    assert legend == "? asked: the kernel's answer there"


def test_the_sign_beside_a_place_tells_whether_the_packet_was_seen_there() -> None:
    proof, reason = Fact("frame captured", "seen", "tcpdump"), Fact("a route", "seen")
    hops = (
        Hop("device", Spot("node1", "", "eth0"), "in", facts=(proof,)),
        Hop("device", Spot("node1", "", "eth1"), "out", facts=(Fact("only way", "inferred"),)),
        Hop("conntrack", Spot("node1"), facts=(reason,)),
    )
    lines = shown(replace(across(), legs=(Leg("there", hops, arrived=True),)))
    assert [line.rstrip() for line in lines if line.startswith("│")] == [
        "│           ● eth0 in",
        "│           ~ eth1 out   ~ only way",
        "│             conntrack  ● a route",
    ]


def test_encapsulation_is_told_once_and_without_the_fields_of_the_other_header() -> None:
    lines = shown(across(), 132)
    (line,) = [one for one in lines if "wrapped in vxlan 1" in one and "un" not in one]
    assert "10.168.0.2:51515 → 10.168.0.3:8472 UDP" in line
    assert not any("source 100.96.1.2 →" in one for one in lines)


def test_translation_of_addresses_is_told_by_the_names_of_the_fields() -> None:
    lines = shown(published(), 132)
    assert any("destination 10.168.0.2 → 100.96.1.2" in line for line in lines)
    assert any("destination port 8080 → 80" in line for line in lines)


def test_rules_of_nft_are_shown_with_their_chain_and_verdict() -> None:
    rules = (
        Rule("inet", "filter", "forward", 2, "jump docker", "jump docker"),
        Rule("inet", "filter", "docker", 1, 'iifname "docker0" counter', "accept"),
    )
    hop = Hop("chain", Spot("node1"), "forward", rules=rules)
    walk = replace(across(), legs=(Leg("there", (hop,), arrived=True),))
    text = "\n".join(shown(walk))
    assert "#2 jump docker\n" in text
    assert '#1 docker: iifname "docker0" counter → accept' in text


def test_a_difference_is_shown_at_every_width() -> None:
    found = compare(across(), dropped())
    for width in WIDTHS:
        lines = [click.unstyle(line) for line in tree.difference(found, width=width)]
        assert max(map(len, lines)) <= width
        assert any(line.startswith("+   node2 LOST") for line in lines)


def test_a_device_without_frames_is_told_in_words() -> None:
    gone = (Change("src_mac", "02:00:00:00:00:01", ""), Change("dst_mac", "02:00:00:00:00:02", ""))
    come = (Change("src_mac", "", "02:00:00:00:00:01"), Change("dst_mac", "", "02:00:00:00:00:02"))
    hops = tuple(
        Hop("device", Spot("node1", "", "tun0"), "out", 0.0, changes=one) for one in (gone, come)
    )
    lines = shown(replace(across(), legs=(Leg("there", hops, arrived=True),)))
    first, second = (line for line in lines if "tun0" in line)
    assert first.endswith("without a frame")
    assert second.endswith("MAC 02:00:00:00:00:01 → 02:00:00:00:00:02")


def test_a_long_name_does_not_narrow_the_reasons_of_others() -> None:
    rule = Rule("ip", "docker-bridges", "filter-FORWARD", 1, "accept", "accept")
    hops = (
        Hop("device", Spot("node1", "", "eth0"), "in", 0.0, changes=(Change("ttl", "64", "63"),)),
        Hop("chain", Spot("node1"), "forward", 0.0, rules=(rule,)),
    )
    lines = shown(replace(across(), legs=(Leg("there", hops, arrived=True),)))
    assert [line for line in lines if line.startswith("│")] == [
        "│  0.000 ms ● eth0 in  TTL 64 → 63",
        "│  0.000 ms ● docker-bridges filter-FORWARD",
        "│                      #1 accept",
    ]


def hidden(*, arrived: bool = True) -> Leg:
    """A leg that nothing has seen behind eth0."""
    return Leg("there", (
        Hop("process", Spot("node1"), seconds=0.0),
        Hop("device", Spot("node1", "", "eth0"), "out", seconds=0.001),
        Hop("blind", Spot("node1"), facts=(Fact("eth0 leads out of sight", "inferred"),)),
        Hop("process" if arrived else "end", Spot("10.0.0.9"), facts=(Fact("answers", "seen"),)),
    ), arrived)  # fmt: skip


def test_a_hidden_end_is_told_with_the_last_place_that_was_seen() -> None:
    """The time of that place is not the one of the arrival."""
    (text,) = map(click.unstyle, tree.closing(hidden(), 100))
    assert "arrived" in text
    assert "node1:eth0 out" in text
    assert "ms" not in text
    assert words.duration(hidden()) == ""
    assert words.beyond(hidden(arrived=False)) is None


def test_a_walk_to_a_hidden_end_closes_with_the_answer_at_its_address() -> None:
    found = Walk("lab", "node1", "10.0.0.9", "icmp echo", "", (hidden(),), {})
    text = shown(found, 80)
    at = text.index("10.0.0.9")
    assert "answers" in text[at + 1]
    assert "not visible" in text[at - 1]


RULE = '-A POSTROUTING -s 10.0.0.0/8 ! -o docker0 -m comment --comment "a b c" -j MASQUERADE'


@pytest.mark.parametrize("width", range(24, 100, 3))
def test_an_option_stays_beside_its_value(width: int) -> None:
    lines = words.wrapped(RULE, width)
    assert " ".join(lines) == RULE
    assert max(map(len, lines)) <= width
    for part in ("-s 10.0.0.0/8", "! -o docker0", '--comment "a b c"', "-j MASQUERADE"):
        assert any(part in line for line in lines), lines


def test_what_is_too_long_for_a_line_is_wrapped_between_words() -> None:
    lines = words.wrapped('--comment "one two three four"', 16)
    assert lines == ['--comment "one', 'two three four"']
    assert words.wrapped("one two three", 8, most=1) == ["one …"]


def test_the_header_keeps_a_field_with_its_value() -> None:
    walk = replace(across(), legs=across().legs[:1])
    for width in range(60, 100):
        text = shown(walk, width)
        assert not any(line.endswith((" TTL", " id")) for line in text), text


def test_pieces_of_a_text_are_its_words_and_options() -> None:
    assert words.pieces('-A INPUT ! -s a --comment "b c" to x-y') == [
        "-A INPUT", "! -s a", '--comment "b c"', "to", "x-y",
    ]  # fmt: skip
    assert " ".join(words.pieces(RULE)) == RULE
