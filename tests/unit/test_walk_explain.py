"""Reasons of hops and of losses, from answers of the kernel written by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace

import pytest
from walk_frames import link, seen

from testbed.observe.inventory import Link, Peer
from testbed.walk.explain import (
    Question,
    answers,
    command,
    explained,
    has_arrived,
    is_answered,
    is_dropped,
    listening,
    loss_questions,
    lost,
    onward,
    questions,
)  # fmt: skip
from testbed.walk.model import Fact, Hop, Rule, Spot, View

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
VIEW = View(A, B, "10.0.0.2", "10.2.0.3", "icmp", ttl=64)
IN = Hop("device", Spot("r", "", "eth0"), "in", view=VIEW)
OUT = Hop("device", Spot("r", "", "eth1"), "out", view=VIEW)
ROUTE = Hop("route", Spot("r", "", "eth0"))
PLACE = ("r", "")
C = "10.2.0.3"
BESIDE = Peer("s", "", "eth0")


def asked(about: str) -> Question:
    return Question(PLACE, about, (about,))


def routed(text: str) -> list[Hop]:
    return [IN, Hop("route", Spot("r", "", "eth0"), facts=(Fact(text, "asked", "ip route get"),))]


def reasons(
    hops: list[Hop],
    answered: Mapping[str, str],
    errors: tuple[Fact, ...] = (),
    peer: Peer | None = BESIDE,
) -> str:
    given = {asked(about): text for about, text in answered.items()}
    end = lost(hops, given, errors, {"eth1": Link("eth1", 3, kind="veth", peer=peer)})
    assert end.kind == "end"
    return "; ".join(fact.text for fact in end.facts)


def test_a_route_is_asked_as_the_packet_met_it() -> None:
    places = {hop.spot: seen("r", "", [link("eth0", 1), link("eth1", 2)], []) for hop in (IN, OUT)}
    some = questions([IN, ROUTE, OUT], places)
    assert [[one.text for one in of_hop] for of_hop in some] == [
        [],
        ["ip -o route get 10.2.0.3 from 10.0.0.2 iif eth0 fibmatch"],
        ["ip neigh show dev eth1"],
    ]  # fmt: skip


def test_the_neighbour_is_that_of_the_next_hop() -> None:
    """Several addresses may be at one MAC."""
    places = {hop.spot: seen("r", "", [link("eth0", 1), link("eth1", 2)], []) for hop in (IN, OUT)}
    hops = [IN, ROUTE, OUT]
    some = questions(hops, places)
    said = {
        some[1][0]: "10.2.0.0/24 via 10.1.0.9 dev eth1 \n",
        some[2][0]: f"10.1.0.1 lladdr {B} STALE\n10.1.0.9 lladdr {B} REACHABLE\n",
    }
    found = explained(hops, some, said)
    assert found[1].facts == (
        Fact("10.2.0.0/24 via 10.1.0.9 dev eth1", "asked", some[1][0].text),
    )  # fmt: skip
    assert [fact.text for fact in found[2].facts] == [f"10.1.0.9 is at {B} (REACHABLE)"]


def test_a_question_is_asked_of_a_shell_with_its_words_whole() -> None:
    words = Question(PLACE, "words", ("printf", "%s,", "a b", "", "$HOME", "*"))
    done = subprocess.run(command([words]), capture_output=True, text=True, check=True)
    assert answers([words], done.stdout) == {words: "a b,,$HOME,*,"}


def test_the_settings_of_a_vlan_are_asked_by_the_name_of_sysctl() -> None:
    """sysctl(8) takes a dot for the separator of names."""
    came = replace(IN, spot=Spot("r", "", "eth0.100"))
    place = seen("r", "", [link("eth0.100", 1)], [])
    (asked_,) = (one for one in loss_questions([came, ROUTE], place, "") if one.about == "settings")
    assert asked_.argv[1] == "net.ipv4.conf.eth0/100.forwarding"
    refused = Fact("No route to host", "asked", "ip route get")
    hops = [came, Hop("route", came.spot, facts=(refused,))]
    answered = {"settings": "net.ipv4.conf.eth0/100.forwarding = 0"}
    assert "does not forward" in reasons(hops, answered)


def test_what_has_no_answer_is_inferred() -> None:
    places = {hop.spot: seen("r", "", [link("eth0", 1)], []) for hop in (IN, OUT)}
    hops = [IN, ROUTE, OUT]
    found = explained(hops, questions(hops, places), {})
    assert [fact.origin for fact in found[1].facts] == ["inferred"]


def test_answers_belong_to_their_questions() -> None:
    some = [asked("a"), asked("b")]
    assert command(some)[-2:] == ["a", "b"]
    assert answers(some, "one\n\036two\n\036") == {some[0]: "one", some[1]: "two"}
    assert answers(some, "one\n\036")[some[0]] == "one"  # the namespace went away meanwhile


@pytest.mark.parametrize(("hops", "answered", "word"), [
    (routed("No route to host"), {"settings": "net.ipv4.conf.eth0.forwarding = 0"},
     "eth0 does not forward"),
    (routed("No route to host"), {"settings": "net.ipv4.conf.eth0.forwarding = 1"}, "no route"),
    (routed("Network is unreachable"), {}, "no route: Network is unreachable"),
    (routed("Invalid argument"), {"match": "blackhole 10.2.0.0/24"}, "blackhole 10.2.0.0/24"),
    (routed("Invalid argument"),
     {"settings": "net.ipv4.conf.eth0.rp_filter = 1\nnet.ipv4.conf.all.rp_filter = 0",
      "reverse": "10.0.0.2 dev eth1 src 10.1.0.1"}, "leaves by eth1, not by eth0"),
    (routed("Invalid cross-device link"), {"reverse": "10.0.0.2 dev eth1"}, "rp_filter"),
    (routed("Invalid argument"), {"reverse": "local 10.0.0.2 dev lo"}, "address of this namespace"),
    (routed("Invalid argument"), {"reverse": "10.0.0.2 dev eth0"}, "not valid here"),
    (routed("10.2.0.0/24 dev eth1"), {"neighbours": "10.2.0.3 dev eth1 FAILED"}, "no neighbour"),
    (routed("10.2.0.0/24 dev eth1"),
     {"neighbours": "10.2.0.3 dev eth1 INCOMPLETE",
      "links": "3: eth1@if4: <NO-CARRIER,BROADCAST,UP> mtu 1500"}, "eth1 is down"),
    (routed("10.2.0.0/24 dev eth1"), {"neighbours": "10.2.0.3 dev eth1 FAILED proto zebra"},
     "no neighbour"),
    (routed("10.2.0.0/24 dev eth1"), {"neighbours": "10.2.0.3 dev eth1 REACHABLE"},
     "nothing more was seen"),
    (routed("10.2.0.0/24 dev eth1"), {"neighbours": "10.2.0.3 dev eth2 FAILED"},
     "nothing more was seen"),
    (routed("10.2.0.0/24 dev eth1 linkdown"),
     {"links": "3: eth1@if4: <NO-CARRIER,BROADCAST,UP> mtu 1500"}, "eth1 is down"),
    (routed("10.2.0.0/24 dev eth1"),
     {"queue": "qdisc netem 1: dev eth1 root loss 100%\nqdisc netem 1: dev eth2 root loss 1%"},
     "the queue of eth1"),
    ([IN], {"ingress": "filter protocol all action drop"}, "tc at the ingress of eth0 drops"),
    ([OUT], {"links": "3: eth1@if4: <BROADCAST,UP> mtu 1500"}, "eth1 is down"),
    ([OUT], {"links": "3: eth1@if4: <BROADCAST,UP,LOWER_UP> mtu 1500"}, "did not receive it"),
    ([], {"route": "RTNETLINK answers: Network is unreachable"}, "Network is unreachable"),
    ([], {"route": "10.2.0.3 via 10.0.0.1 dev eth0 src 10.0.0.2 uid 0 \\    cache",
          "neighbours": "10.0.0.1 dev eth0 INCOMPLETE"}, "no neighbour: 10.0.0.1 dev eth0"),
    ([], {"route": "10.0.0.3 dev eth0 src 10.0.0.2 uid 0 \\    cache",
          "neighbours": "10.0.0.3 dev eth0 FAILED",
          "links": "3: eth0@if4: <NO-CARRIER,BROADCAST,UP> mtu 1500"}, "eth0 is down"),
])  # fmt: skip
def test_why_a_packet_was_lost(hops: list[Hop], answered: dict[str, str], word: str) -> None:
    assert word in reasons(hops, answered)


def test_what_nobody_watches_is_not_said_to_have_lost_it() -> None:
    """As a bridge of another tool, which the inventory does not have."""
    assert "is not watched" in reasons([OUT], {}, peer=None)
    assert "not watched" not in reasons([OUT], {})


def test_an_error_that_was_seen_is_the_reason() -> None:
    error = Fact("10.0.0.1 sent fragmentation needed, MTU 1400", "seen", "packet socket")
    assert reasons(routed("10.2.0.0/24 dev eth1"), {}, (error,)) == error.text


@pytest.mark.parametrize(("verdict", "dropped"), [
    ("drop", True), ("REJECT", True), ("policy drop", True), ("accept", False),
    ("policy accept", False), ("jump X", False),
])  # fmt: skip
def test_a_drop_is_the_last_verdict_of_the_last_chain(verdict: str, dropped: bool) -> None:
    rules = (Rule("ip", "filter", "FORWARD", 3, "-A FORWARD -j X", verdict),)
    facts = (Fact("hook forward", "seen", "nftables' trace"),)
    chain = Hop("chain", Spot("r"), "forward", rules=rules, facts=facts)
    assert is_dropped([IN, chain]) is dropped
    assert not is_dropped([chain, OUT])
    if dropped:
        end = lost([IN, chain], {})
        assert (end.rules, end.spot, end.facts[0].origin) == (rules, Spot("r"), "seen")


MINE = {"10.1.0.1", "127.0.0.1"}
TO_ME = replace(IN, view=replace(VIEW, dst="10.1.0.1"))
ONWARD = Hop("conntrack", Spot("r"), view=replace(VIEW, dst="172.17.0.2"))
TUNNELLED = replace(IN, view=replace(VIEW, dst="10.1.0.1", carrier="vxlan 1", inside=VIEW))


def route_of(text: str) -> Hop:
    return Hop("route", Spot("r", "", "eth0"), facts=(Fact(text, "asked"),))


@pytest.mark.parametrize(("hops", "arrived"), [
    ([TO_ME, route_of("local 10.1.0.1 dev eth0")], True),
    ([TO_ME], True),
    ([IN, route_of("local 10.2.0.0/16 dev lo")], True),  # AnyIP
    ([IN, route_of("10.2.0.0/16 dev eth1")], False),
    ([TO_ME, ONWARD, route_of("172.17.0.0/16 dev docker0")], False),  # a new destination
    ([TO_ME, route_of("Invalid cross-device link")], False),  # rp_filter
    ([TUNNELLED], False),  # nothing has unwrapped it
    ([TUNNELLED, route_of("local 10.1.0.1 dev eth0")], False),  # what carries it has arrived
    ([OUT], False),
    ([], False),
])  # fmt: skip
def test_a_packet_arrives_where_its_last_destination_is_local(
    hops: list[Hop], arrived: bool
) -> None:
    assert has_arrived(hops, MINE) is arrived


def test_an_answer_tells_more_than_the_routing_table() -> None:
    """The route is asked later, when it may be another one."""
    assert has_arrived([TO_ME, route_of("Network is unreachable")], MINE, answered=True)


@pytest.mark.parametrize(("outcome", "errors", "answered"), [
    ("answered", set(), True),
    ("answered", {"10.0.0.1"}, True),
    ("refused", set(), True),  # a reset
    ("refused", {C}, True),
    ("refused", {"10.0.0.1"}, False),  # REJECT on the way
    ("silent", set(), False),
    ("error", {C}, False),
])  # fmt: skip
def test_a_refusal_on_the_way_is_no_answer(outcome: str, errors: set[str], answered: bool) -> None:
    assert is_answered(outcome, errors, C) is answered


def test_questions_about_a_loss_are_those_of_the_last_place() -> None:
    place = seen("r", "", [link("eth0", 1)], [])
    about = {one.about for one in loss_questions([IN, ROUTE], place, "10.2.0.3")}
    assert {"settings", "match", "reverse", "ingress", "neighbours"} <= about
    assert "settings" not in {one.about for one in loss_questions([OUT], place, "10.2.0.3")}
    assert "route" not in {one.about for one in loss_questions([], place, "")}
    nothing = loss_questions([], place, "fd00::3")
    assert ("ip", "-6", "-o", "route", "get", "fd00::3") in [one.argv for one in nothing]


def test_who_listens_has_its_command_line() -> None:
    argv = ["sh", "-c", "", "sockets", "-lt", "sport = :8080"]
    line = "docker-proxy -container-ip 172.17.0.2 "
    printed = f"LISTEN 0.0.0.0:8080 {line}\nLISTEN [::]:8080 {line}\nLISTEN 127.0.0.1:8080 \n"
    assert [fact.text for fact in listening(argv, printed.replace("docker", "/opt/docker"))] == [
        "docker-proxy -container-ip 172.17.0.2 listens on 0.0.0.0:8080 and [::]:8080"
    ]


PROXY = "docker-proxy -host-ip 10.0.0.1 -host-port 8080 -container-ip"


@pytest.mark.parametrize(("line", "target"), [
    (f"{PROXY} 172.17.0.2 -container-port 80 ", ("172.17.0.2", 80)),
    (f"{PROXY} 172.17.0.9 -container-port 80 ", None),  # of no lab
    (f"{PROXY} 172.17.0.2 ", None),
    ("etcd --advertise-client-urls http://172.17.0.2:2379 ", None),
    ("server --node-ip 10.0.0.1 --port 80 ", None),
    ("nginx: worker process ", None),
    ("", None),
])  # fmt: skip
def test_a_proxy_is_known_by_its_command_line(line: str, target: tuple[str, int] | None) -> None:
    printed = f"LISTEN 10.0.0.1:8080 {line}\n"
    wanted = (*target, frozenset({line.strip()})) if target else None
    assert onward(printed, {"10.0.0.1"}, {"10.0.0.1", "172.17.0.2"}) == wanted


def test_a_proxy_has_a_process_for_each_family() -> None:
    lines = [f"{PROXY} 172.17.0.2 -container-port {port}" for port in (80, 80, 81)]
    lines[1] = lines[1].replace("10.0.0.1", "::")
    printed = "".join(f"LISTEN 10.0.0.1:8080 {line} \n" for line in lines)
    assert onward(printed, set(), {"172.17.0.2"}) == (
        "172.17.0.2", 80, frozenset(lines[:2]),
    )  # fmt: skip
