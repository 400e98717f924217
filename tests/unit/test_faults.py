"""Faults as values: read from words, held against a topology; the commands that make them."""

from __future__ import annotations

import json

import pytest

from testbed.errors import TopologyError, UsageError
from testbed.faults import means
from testbed.faults.force import fault_of
from testbed.faults.means import queue_lines
from testbed.faults.model import (
    KINDS,
    RESERVED,
    Fault,
    Unreadable,
    bits,
    parse,
    require,
)
from testbed.nodes.fake import FakeProvider
from testbed.registry import ROLES
from testbed.roles.flannel.breakage import Peer, look
from testbed.roles.flannel.role import BREAKABLE, OF_BACKENDS
from testbed.topology import Topology, load, load_data, load_text
from testbed.topology.variant import Overrides

WORDS = {
    "partition node1": Fault("partition", "node1"),
    "partition node1:node2": Fault("partition", "node1", "node2"),
    "loss node2 20%": Fault("loss", "node2", percent=20),
    "loss node1:node2 0.5%": Fault("loss", "node1", "node2", percent=0.5),
    "rate node2 10mbit": Fault("rate", "node2", rate=10_000_000),
    "delay node2 50ms": Fault("delay", "node2", delay=50),
    "delay node2 1500ms 5ms": Fault("delay", "node2", delay=1500, jitter=5),
    "kill node1/flanneld": Fault("kill", "node1", service="flanneld"),
    "stop node2": Fault("stop", "node2"),
    "stop node1/etcd": Fault("stop", "node1", service="etcd"),
    "break node1 route": Fault("break", "node1", what="route"),
}


@pytest.mark.parametrize(("words", "fault"), WORDS.items())
def test_words_are_read_and_written(words: str, fault: Fault) -> None:
    assert parse(words.split()) == fault
    assert fault.words == words


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_an_example_that_is_one(kind: str) -> None:
    about = KINDS[kind]  # type: ignore[index]
    assert parse(about.example.split()).kind == kind
    assert kind in {fault.kind for fault in WORDS.values()}


def test_a_link_has_no_direction() -> None:
    assert parse(["partition", "b:a"]) == parse(["partition", "a:b"])


@pytest.mark.parametrize(
    ("written", "same"),
    [("delay a 1.5s", "delay a 1500ms"), ("rate a 0.5gbit", "rate a 500mbit")],
)
def test_amounts_in_other_units(written: str, same: str) -> None:
    assert parse(written.split()) == parse(same.split())
    assert parse(written.split()).words == same


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "a fault"),
        ("partion a", "did you mean 'partition'"),
        ("partition", "NODE[:PEER]"),
        ("partition a b", "NODE[:PEER]"),
        ("partition a:a", "two different nodes"),
        ("partition a:", "NODE[:PEER]"),
        ("partition :a", "NODE[:PEER]"),
        ("partition a/etcd", "NODE[:PEER]"),
        ("partition a:b/etcd", "NODE[:PEER]"),
        ("rate a:b 1mbit", "NODE"),
        ("loss a", "PERCENT"),
        ("loss a 20", "such as 20%"),
        ("loss a 100%", "`partition`"),
        ("loss a 0%", "0.001%"),
        ("loss a -1%", "0.001%"),
        ("rate a 10", "10mbit"),
        ("rate a 10MBit", "10mbit"),
        ("rate a 1bit", "8kbit"),
        ("rate a 101gbit", "100gbit"),
        ("delay a 50", "50ms"),
        ("delay a 0ms", "50ms"),
        ("delay a 61s", "60s"),
        ("delay a 5ms 6ms", "lower the jitter"),
        ("delay a 5ms 1ms 1ms", "JITTER"),
        ("kill a", "NODE/SERVICE"),
        ("kill a/", "NODE/SERVICE"),
        ("stop a/etcd now", "NODE[/SERVICE]"),
        ("break a rout", "did you mean 'route'"),
        ("break a/etcd route", "NODE"),
    ],
)
def test_what_is_no_fault_is_told(words: str, told: str) -> None:
    with pytest.raises(Unreadable, match=r"wanted .* saw ") as caught:
        parse(words.split())
    assert told in str(caught.value)


def test_a_rate_is_written_in_its_largest_whole_unit() -> None:
    assert [bits(n) for n in (8000, 1_000_001, 2 * 10**9)] == ["8kbit", "1000001bit", "2gbit"]


# -- what a lab has ------------------------------------------------------------------


@pytest.fixture(scope="module")
def vxlan() -> Topology:
    return load("two-node")


#: Shipped labs with the roles that two-node does not have.
LABS = {"kubernetes": "k8s-two-node", "frr": "bgp-frr-bird", "bird": "bgp-frr-bird"}


@pytest.mark.parametrize("name", list(ROLES))
def test_the_services_of_a_role_can_be_killed(name: str) -> None:
    topology = load(LABS.get(name, "two-node"))
    for service in ROLES[name].services:
        node = topology.with_role(name)[0].name
        assert fault_of(f"kill {node}/{service}", topology).service == service


@pytest.mark.parametrize("words", WORDS)
def test_two_node_has_what_these_are_done_to(words: str, vxlan: Topology) -> None:
    assert fault_of(words, vxlan) == WORDS[words]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("stop node3", "known: node1, node2"),
        ("partition node1:nod2", "did you mean 'node2'"),
        ("kill node2/etcd", "dockerd, flanneld"),
        ("kill outside/etcd", "it has none"),
        ("break outside route", "role flannel"),
    ],
)
def test_what_a_lab_has_not_is_told(words: str, told: str, vxlan: Topology) -> None:
    with pytest.raises(UsageError) as caught:
        fault_of(words, vxlan)
    assert told in str(caught.value)


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw"])
@pytest.mark.parametrize("what", BREAKABLE)
def test_what_can_be_broken_with_a_back_end(what: str, backend: str) -> None:
    topology = load("two-node", Overrides(backend=backend))
    fault = Fault("break", "node1", what=what)
    if backend in OF_BACKENDS.get(what, (backend,)):
        require(fault, topology)
    else:
        with pytest.raises(Unreadable, match="the back end"):
            require(fault, topology)


def test_nodes_without_a_common_network_have_no_link() -> None:
    text = (
        "name: t\nnetworks: {l: {subnet: 10.0.0.0/24}, r: {subnet: 10.0.1.0/24}}\n"
        "nodes: {a: {networks: {l: 10.0.0.2}}, b: {networks: {r: 10.0.1.2}}, c: {}}\n"
    )
    topology = load_text(text, "t.yaml")
    for words in ("partition a:b", "partition c", "rate c 1mbit"):
        with pytest.raises(UsageError, match="network"):
            fault_of(words, topology)


# -- in a topology -------------------------------------------------------------------

FILE = """\
name: t
networks: {{lan: {{subnet: 10.0.0.0/24}}}}
nodes:
  a: {{networks: {{lan: 10.0.0.2}}}}
  b: {{networks: {{lan: 10.0.0.3}}}}
faults:
{faults}
"""


def with_faults(*lines: str) -> Topology:
    return load_text(FILE.format(faults="\n".join(f"  {line}" for line in lines)), "t.yaml")


def test_faults_have_names() -> None:
    topology = with_faults("cut: partition a:b", "slow: rate b 1mbit")
    assert topology.faults == {
        "cut": Fault("partition", "a", "b"),
        "slow": Fault("rate", "b", rate=10**6),
    }
    assert fault_of("cut", topology) == fault_of("partition a:b", topology)
    assert load_data(topology.to_dict(), "record") == topology
    plain = load_data({k: v for k, v in topology.to_dict().items() if k != "faults"}, "plain")
    assert plain.node_digest("a") == topology.node_digest("a"), "no node is made anew for a fault"


@pytest.mark.parametrize(
    ("line", "column", "told"),
    [
        ("cut: partition a:c", 8, "the name of a node"),
        ("cut: partion a", 8, "did you mean 'partition'"),
        ("cut: loss a", 8, "PERCENT"),
        ("cut: [partition, a]", 8, "a fault in words"),
        ("cut: 7", 8, "a fault in words"),
        ("Cut: stop a", 3, "lower-case"),
        ("heal: stop a", 3, "choose another"),
        ("loss: stop a", 3, "choose another"),
    ],
)
def test_mistakes_have_their_place(line: str, column: int, told: str) -> None:
    with pytest.raises(TopologyError) as caught:
        with_faults("fine: stop a", line)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (8, column)
    assert told in problem.format("t.yaml")


def test_words_of_the_command_are_no_names() -> None:
    assert {*KINDS, "ls", "heal", "apply"} == set(RESERVED)


def test_a_variant_keeps_the_faults_of_nodes_that_it_has() -> None:
    data = load("two-node").to_dict()
    data["faults"] = {"one": "stop node2", "link": "partition node1:node2", "far": "stop outside"}
    three = load_data(data, "t")
    from testbed.topology.variant import vary

    assert set(vary(three, Overrides(nodes=1)).faults) == {"far"}
    assert set(vary(three, Overrides(nodes=3)).faults) == {"one", "link", "far"}


# -- links: nftables ------------------------------------------------------------------


def ports_of(topology: Topology) -> dict[str, list[str]]:
    return {name: FakeProvider().ports(topology, name) for name in topology.nodes}


def test_rules_of_a_link_drop_both_ways(vxlan: Topology) -> None:
    text = means.link_rules(ports_of(vxlan), [parse(["partition", "node1:node2"])])
    assert text.splitlines() == [
        "add table bridge testbed-faults",
        "delete table bridge testbed-faults",
        "add table bridge testbed-faults",
        "add chain bridge testbed-faults links "
        "{ type filter hook forward priority 0; policy accept; }",
        'add rule bridge testbed-faults links iifname { "node1" } oifname { "node2" } '
        'counter drop comment "partition node1:node2"',
        'add rule bridge testbed-faults links oifname { "node1" } iifname { "node2" } '
        'counter drop comment "partition node1:node2"',
    ]


def test_a_node_is_cut_off_at_all_of_its_ports() -> None:
    text = (
        "name: t\nnetworks: {l: {subnet: 10.0.0.0/24}, r: {subnet: 10.0.1.0/24}}\n"
        "nodes: {a: {networks: {l: 10.0.0.2, r: 10.0.1.2}}}\n"
    )
    rules = means.link_rules(ports_of(load_text(text, "t.yaml")), [Fault("partition", "a")])
    assert 'iifname { "a", "a.1" } counter drop' in rules
    assert 'oifname { "a", "a.1" } counter drop' in rules


def test_loss_is_by_chance(vxlan: Topology) -> None:
    rules = means.link_rules(ports_of(vxlan), [parse(["loss", "node2", "0.5%"])])
    assert rules.count("numgen random mod 100000 < 500 counter drop") == 2


def test_no_faults_leave_no_table(vxlan: Topology) -> None:
    assert means.link_rules(ports_of(vxlan), []).splitlines()[-1].startswith("delete table")


#: As nft 1.0.6 lists a rule of ours.
LISTED = """{"nftables": [{"metainfo": {"version": "1.0.6"}},
{"table": {"family": "bridge", "name": "testbed-faults", "handle": 1}},
{"rule": {"family": "bridge", "chain": "links", "handle": 2, "comment": "loss node1:node2 50%",
 "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "node1"}},
 {"counter": {"packets": 19, "bytes": 1596}}, {"drop": null}]}},
{"rule": {"family": "bridge", "chain": "links", "handle": 3, "comment": "loss node1:node2 50%",
 "expr": [{"counter": {"packets": 2, "bytes": 100}}, {"drop": null}]}},
{"rule": {"family": "bridge", "chain": "links", "handle": 4, "comment": "of another version",
 "expr": [{"drop": null}]}}]}"""


def test_faults_of_links_are_read_from_the_rules() -> None:
    (seen,) = means.links_seen(LISTED)
    assert seen.fault == parse(["loss", "node1:node2", "50%"])
    assert seen.how == "21 frames dropped"


# -- queues: tc -----------------------------------------------------------------------


def lines(topology: Topology, *words: str, there: bool = False) -> list[str]:
    faults = [parse(text.split()) for text in words]
    return queue_lines(ports_of(topology)["node2"], "node2", faults, there=there).splitlines()


def test_a_limit_is_a_bucket(vxlan: Topology) -> None:
    # 10 Mbit/s are 12500 octets in 10 ms: the bucket's least of 32 KiB is more.
    assert lines(vxlan, "rate node2 10mbit") == [
        "qdisc add dev node2 root handle fa1: tbf rate 10000000bit burst 32768b latency 50ms"
    ]
    (fast,) = lines(vxlan, "rate node2 1gbit")
    assert " burst 1250000b " in fast, "what 1 Gbit/s lets pass in 10 ms"


def test_a_delay_is_netem(vxlan: Topology) -> None:
    assert lines(vxlan, "delay node2 50ms 5ms") == [
        "qdisc add dev node2 root handle fa2: netem limit 10000 delay 50ms 5ms"
    ]


def test_a_limit_below_a_delay_is_its_child(vxlan: Topology) -> None:
    assert lines(vxlan, "rate node2 1mbit", "delay node2 0.5ms", there=True) == [
        "qdisc del dev node2 root",
        "qdisc add dev node2 root handle fa2: netem limit 10000 delay 0.5ms",
        "qdisc add dev node2 parent fa2:1 handle fa1: tbf rate 1000000bit burst 32768b "
        "latency 50ms",
    ]


def test_faults_of_others_are_no_queues_here(vxlan: Topology) -> None:
    assert lines(vxlan, "rate node1 1mbit", "partition node2") == []
    assert lines(vxlan, there=True) == ["qdisc del dev node2 root"]


def test_faults_are_read_from_the_queues(vxlan: Topology) -> None:
    listed = [  # as tc of iproute2 6.1 prints them: rates in octets a second, times in seconds
        {"kind": "noqueue", "handle": "0:", "dev": "lo", "root": True, "options": {}},
        {
            "kind": "netem",
            "handle": "fa2:",
            "dev": "node2",
            "root": True,
            "options": {
                "limit": 10000,
                "delay": {"delay": 0.049999936, "jitter": 0.005, "correlation": 0},
            },
        },
        {
            "kind": "tbf",
            "handle": "fa1:",
            "dev": "node2",
            "parent": "fa2:1",
            "options": {"rate": 1250000, "burst": 32767, "lat": 50000},
        },
        {"kind": "tbf", "handle": "8001:", "dev": "node1", "root": True, "options": {"rate": 1}},
    ]
    seen = means.queues_seen(json.dumps(listed), ports_of(vxlan))
    assert [one.fault.words for one in seen] == ["delay node2 50ms 5ms", "rate node2 10mbit"]
    assert means.queues_seen("", ports_of(vxlan)) == []


# -- what is broken on a node -----------------------------------------------------------

VIA_VTEP = ("100.96.2.0/24", "via", "100.96.2.0", "dev", "flannel.1", "onlink")
PEER = Peer("node2", "10.168.0.3", "100.96.2.0/24", "ae:28:62:41:9b:b8")
#: As ip and bridge of iproute2 6.1 and iptables 1.8.9 print what flannel has set.
WHOLE = {
    "route": "default via 10.168.0.1 dev eth0 \n"
    "100.96.2.0/24 via 100.96.2.0 dev flannel.1 onlink \n",
    "neighbour": "100.96.2.0 lladdr ae:28:62:41:9b:b8 PERMANENT\n",
    "fdb": "ae:28:62:41:9b:b8 dst 10.168.0.3 self permanent\n",
}
RULE = {
    "forward": '-A FORWARD -m comment --comment "testbed fault" -j DROP',
    "port": '-A INPUT -p udp -m udp --dport 8472 -m comment --comment "testbed fault" -j DROP',
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_is_gone_is_broken(what: str, vxlan: Topology) -> None:
    found = look(vxlan, what, [PEER])
    assert not found.is_broken(WHOLE[what])
    assert found.is_broken("default via 10.168.0.1 dev eth0 \n")
    assert found.missing("") == [0]
    assert found.missing(WHOLE[what]) == []
    assert not look(vxlan, what, []).is_broken(""), "without another node nothing is missing"


OTHER = {
    "route": "100.96.2.0/24 via 10.168.0.9 dev eth0",
    "neighbour": "100.96.2.0 lladdr 02:00:00:00:00:01 PERMANENT",
    "fdb": "ae:28:62:41:9b:b8 dst 10.168.0.9 self permanent",
}


@pytest.mark.parametrize("what", OTHER)
def test_what_has_changed_is_not_called_gone(what: str, vxlan: Topology) -> None:
    found = look(vxlan, what, [PEER])
    assert found.is_broken(OTHER[what])
    assert found.seen(f"{OTHER[what]} \n") == f"changed: {OTHER[what]}"
    assert found.seen("") == "", "all are gone, as the fault does it"
    assert found.seen(WHOLE[what]) == ""


@pytest.mark.parametrize("what", RULE)
def test_a_rule_that_is_there_is_the_fault(what: str, vxlan: Topology) -> None:
    found = look(vxlan, what, [])
    others = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"
    assert not found.is_broken(others)
    assert found.is_broken(f"-P FORWARD DROP\n{RULE[what]}\n-A FORWARD -j DOCKER-USER\n")
    (gone,), (back,) = found.gone, found.back
    assert gone[:3] == ("iptables", "-w", "-I")
    assert back == (*gone[:2], "-D", gone[3], *gone[5:]), "what is put in is what is taken out"


def test_entries_are_put_back_as_flannel_sets_them(vxlan: Topology) -> None:
    assert look(vxlan, "route", [PEER]).back == (
        (
            "ip",
            "route",
            "replace",
            *["100.96.2.0/24", "via", "100.96.2.0", "dev", "flannel.1", "onlink"],
        ),
    )
    assert look(vxlan, "neighbour", [PEER]).back == (
        tuple(f"ip neigh replace 100.96.2.0 lladdr {PEER.mac} dev flannel.1 nud permanent".split()),
    )
    assert look(vxlan, "fdb", [PEER]).back == (
        tuple(f"bridge fdb append {PEER.mac} dev flannel.1 dst 10.168.0.3".split()),
    )


@pytest.mark.parametrize(
    ("backend", "route"),
    [
        ("udp", "100.96.0.0/16 dev flannel0"),
        ("host-gw", "100.96.2.0/24 via 10.168.0.3"),
    ],
)
def test_routes_of_other_back_ends(backend: str, route: str) -> None:
    topology = load("two-node", Overrides(backend=backend))
    found = look(topology, "route", [PEER])
    assert found.back == (("ip", "route", "replace", *route.split()),)
    assert not found.is_broken(f"{route} \n")
    assert found.is_broken("")


def test_a_process_that_is_stopped() -> None:
    assert means.is_stopped("7 (a) T) T 1 7 7 0")
    assert not means.is_stopped("7 (T T) S 1 7 7 0")
    assert not means.is_stopped("")
