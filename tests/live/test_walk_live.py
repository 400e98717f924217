"""Walks on real labs, held against captures of tcpdump, rules and counters read independently."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hops import all_listed, checked, counted, devices, end, fine, labels, rules, why
from labs import brought_up
from pages import masked, sessions, unlike

from testbed.errors import LabError, UsageError
from testbed.labs.live import LiveLab
from testbed.observe.inventory import inventory
from testbed.polling import until
from testbed.topology import Overrides, load
from testbed.walk import drops, watch
from testbed.walk.observer import posts
from testbed.walk.request import Request
from testbed.walk.run import _Run, walk

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node
    from testbed.walk.model import Hop, Walk

#: Three machines in a row, and beside them one with a published port.
ROW = """
name: walk-row
links:
  - {ends: [a:eth1, b:eth1], subnet: 10.0.0.0/30, subnet6: "fd00:1::/64"}
  - {ends: [b:eth2, c:eth1], subnet: 10.0.0.4/30, subnet6: "fd00:2::/64", mtu: 1400}
nodes:
  a: {routes: [default via 10.0.0.2, default via fd00:1::2]}
  b: {forward: true}
  c: {routes: [default via 10.0.0.5, default via fd00:2::1]}
"""
C, C6 = "10.0.0.6", "fd00:2::2"
NO_ANSWER = Request(seconds=0.3)  # nothing will come


STATES: dict[str, Path] = {}  # of each lab
REPORTS = Path(drops.BTF).exists()  # of the kernel, on what it drops


def up(topology: str, state: Path, **given: str) -> Iterator[LiveLab]:
    found = load(topology, Overrides(**given) if given else None)
    STATES[found.name] = state
    lab: Lab
    for lab in brought_up(found, state):
        with LiveLab(lab.context()) as live:
            yield live


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLab]:
    folder = tmp_path_factory.mktemp("row")
    (folder / "row.yaml").write_text(ROW)
    yield from up(str(folder / "row.yaml"), folder / "state")


@pytest.fixture(scope="module")
def vxlan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLab]:
    yield from up("two-node", tmp_path_factory.mktemp("vxlan"), name="walk-vxlan")


KINDS = {
    "iptables-nft": {"firewall": "iptables-nft"},
    "iptables-legacy": {"firewall": "iptables-legacy"},
    "nftables": {"docker": "29", "firewall": "nftables"},
}


@pytest.fixture(scope="module", params=KINDS)
def docker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveLab]:
    """One machine with a published port, by each kind of netfilter's rules."""
    state = tmp_path_factory.mktemp("docker")
    yield from up("docker-single", state, name="walk-docker", **KINDS[request.param])


# -- devices, against tcpdump ----------------------------------------------------------


def test_two_nodes_by_vxlan(vxlan: LiveLab) -> None:
    found = checked(vxlan, "container-1", "node2/container-2", Request("tcp", 80))
    there = fine(found)
    assert devices(there) == [
        "node1/container-1:eth0 out", "node1:veth* in", "node1:docker0 in", "node1:flannel.1 out",
        "node1:eth0 out", "lan:node1 in", "lan:node2 out", "node2:eth0 in", "node2:flannel.1 in",
        "node2:docker0 out", "node2:veth* out", "node2/container-2:eth0 in",
    ]  # fmt: skip
    wrapped = [hop for hop in there.hops if hop.view is not None and hop.view.inside is not None]
    assert {hop.view.carrier for hop in wrapped if hop.view} == {"vxlan 1"}
    routes = [hop.facts[0].text for hop in there.hops if hop.kind == "route"]
    # The first says where a container's packets go, the second where those of the other node do.
    assert routes[0].startswith("default via 100.96.1.1 dev eth0")
    assert "via 100.96.2.0 dev flannel.1" in routes[1]
    vtep = next(hop for hop in there.hops if hop.label == "node1:flannel.1 out")
    fdb = vxlan.node("node1").run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout
    assert vtep.view is not None
    assert f"{vtep.view.dst_mac} dst 10.168.0.3" in fdb
    assert "10.168.0.3" in why(vtep)


def test_the_page_on_graphs_shows_what_the_commands_print(vxlan: LiveLab) -> None:
    """On a lab with another name than that of the page."""
    env = {**environment(vxlan), "COLUMNS": "100", "TESTBED_LAB": vxlan.name}
    found = sessions("graph.md")
    assert [command.split()[1] for command, _ in found] == ["graph", "capture"]
    for command, shown in found:
        argv = [word.replace("two-node", vxlan.name) for word in shlex.split(command)[1:]]
        with subprocess.Popen(
            [sys.executable, "-m", "testbed", *argv],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as running:  # fmt: skip
            assert running.stderr is not None
            listening = running.stderr.readline() if argv[0] == "capture" else ""
            if listening:
                walk(vxlan, "container-1", "node2/container-2", Request())
            printed, errors = running.communicate(timeout=300)
        assert (running.returncode, errors) == (0, "testbed: 3 packets\n" if listening else "")
        if argv[0] == "graph":  # devices are in the order in which daemons have created them
            there = {*masked(printed.replace(vxlan.name, "two-node")).splitlines(), "..."}
            assert {*masked(shown).splitlines()} <= there, printed
        else:
            assert not (difference := unlike(shown, listening + printed)), difference


@pytest.mark.parametrize("request_", [Request(), Request("udp", 80), Request("tcp", 81)],
                         ids=str)  # fmt: skip
def test_requests_of_each_kind_arrive(vxlan: LiveLab, request_: Request) -> None:
    """A closed port is an arrival, too: its answer is a reset or an ICMP error."""
    found = walk(vxlan, "container-1", "container-2", request_, reply=True)
    assert [leg.direction for leg in found.legs] == ["there", "back"]
    fine(found)
    assert found.legs[1].hops[-1].spot.space == "container-1"


def test_a_published_port_and_the_way_out(docker: LiveLab) -> None:
    found = checked(docker, "outside", "host", Request("tcp", 8080))
    there, back = found.legs
    web = docker.container("web")
    (translation,) = [hop for hop in there.hops if hop.kind == "conntrack"]
    changed = {(one.field, one.after) for one in translation.changes}
    assert changed == {("dst", web.address), ("dport", "80")}
    (again,) = [hop for hop in back.hops if hop.kind == "conntrack"]
    assert {(one.field, one.before) for one in again.changes} == {
        ("src", web.address), ("sport", "80"),
    }  # fmt: skip
    assert there.hops[-1].spot.space == "web"
    out = checked(docker, "nginx-1", "outside", Request())
    (masked,) = [hop for hop in fine(out).hops if hop.kind == "conntrack"]
    assert [(one.field, one.after) for one in masked.changes] == [("src", "10.168.0.2")]
    met = [rule.verdict.upper() for hop in out.legs[0].hops for rule in hop.rules]
    assert "MASQUERADE" in met


def test_from_the_machine_itself_to_its_port(docker: LiveLab) -> None:
    """The hook output translates, and the packet is routed again."""
    there = fine(checked(docker, "host", "host", Request("tcp", 8080)))
    kinds = [hop.kind for hop in there.hops]
    assert kinds.index("conntrack") < len(kinds) - 1 - kinds[::-1].index("route")
    first, second = [hop.facts[0].text for hop in there.hops if hop.kind == "route"][:2]
    assert first.startswith("local 10.168.0.2")
    assert "dev docker0" in second


def test_a_proxy_is_followed_to_the_container_behind_it(docker: LiveLab) -> None:
    """From the loopback a published port is docker-proxy's, or translated by nftables."""
    found = walk(docker, "host", "127.0.0.1", Request("tcp", 8080), reply=True)
    there = fine(found)
    assert there.hops[-1].spot.space == "web"
    proxies = [hop for hop in there.hops if hop.kind == "process" and "docker-proxy" in why(hop)]
    translations = [hop for hop in there.hops if hop.kind == "conntrack"]
    assert len(proxies) + len(translations) > 0
    assert found.legs[1].hops[-1].spot.space == ""
    if proxies:  # its own connection is seen, not a further request like it
        assert "inferred" not in {fact.origin for hop in there.hops for fact in hop.facts}
        view, seconds = there.hops[-3].view, there.hops[-3].seconds
        assert view is not None
        assert seconds is not None
        assert f"from port {view.sport}" in why(proxies[0])
        assert (view.dst, view.dport) == (docker.container("web").address, 80)


def test_two_containers_of_one_bridge_and_one_with_itself(docker: LiveLab) -> None:
    there = fine(checked(docker, "nginx-1", "nginx-2", Request()))
    routes = [str(hop.spot) for hop in there.hops if hop.kind == "route"]
    assert routes == ["host/nginx-1", "host/nginx-2:eth0"]  # none on the host
    itself = fine(walk(docker, "sidecar", "nginx-1", Request()))
    assert [label for label in labels(itself) if ":" in label] == [
        "host/nginx-1:lo out", "host/nginx-1:lo in",
    ]  # fmt: skip
    host = fine(walk(docker, "nginx-1", "in-host-mode", Request("tcp", 81)))
    assert str(host.hops[-1].spot) == "host"


HIDDEN = """
unshare -n sleep 600 >/dev/null 2>&1 & pid=$!
until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add hid0 type veth peer name eth0 netns $pid
ip address add 10.99.0.1/24 dev hid0
ip link set hid0 up
nsenter -t $pid -n sh -ec 'ip address add 10.99.0.2/24 dev eth0; ip link set eth0 up'
echo $pid
"""


def test_a_way_to_a_hidden_namespace_ends_with_the_answer_of_its_address(row: LiveLab) -> None:
    """No container and no named namespace has it, so that nothing there can be asked."""
    node = row.node("c")
    pid = node.run(["sh", "-ec", HIDDEN]).stdout.strip()
    try:
        for request_, word in ((Request(), "answers"), (Request("tcp", 81), "refuses")):
            there = fine(walk(row, "c", "10.99.0.2", request_))
            before, last = there.hops[-2:]
            assert (before.kind, str(before.spot)) == ("blind", "c")
            assert (last.kind, str(last.spot)) == ("process", "10.99.0.2")
            assert word in why(last)
            assert "listens on" not in why(last)  # not asked at the wrong place
    finally:
        node.run(["kill", pid])


# -- rules, against what lists them ---------------------------------------------------


def test_rules_have_their_text_position_and_counter(
    docker: LiveLab, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.params["docker"]
    node = docker.node("host")
    before = counted(node, kind) if kind != "nftables" else {}
    found = walk(docker, "outside", "host", Request("tcp", 8080))
    there = fine(found)
    assert len(rules(there)) >= 4
    all_listed(docker, there, lambda _: kind)
    if kind != "nftables":
        after = counted(node, kind)
        risen = {rule for rule, count in after.items() if count > before.get(rule, 0)}
        assert {rule.text for rule in rules(there)} <= risen


# -- routers -------------------------------------------------------------------------------

TO_ROUTER1 = ["pc1:eth0 out", "pc1r1:pc1 in", "pc1r1:router1.2 out", "router1:eth2 in"]
STRAIGHT = ["router1:eth0 out", "r1r2:router1 in", "r1r2:router2 out", "router2:eth0 in"]
AROUND = [
    "router1:eth1 out",
    "r1r3:router1.1 in",
    "r1r3:router3 out",
    "router3:eth0 in",
    "router3:eth1 out",
    "r2r3:router3.1 in",
    "r2r3:router2.1 out",
    "router2:eth1 in",
]
TO_PC2 = ["router2:eth2 out", "pc2r2:router2.2 in", "pc2r2:pc2 out", "pc2:eth0 in"]  # fmt: skip


@pytest.fixture(scope="module")
def triangle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLab]:
    yield from up("ospf-triangle", tmp_path_factory.mktemp("triangle"), name="walk-triangle")


@pytest.mark.thorough
def test_a_walk_follows_the_choice_of_ospf(triangle: LiveLab) -> None:
    """Each direction by itself: the other router does not know a cost that one sets for sending."""
    router1, router2 = triangle.node("router1"), triangle.node("router2")

    def chosen(router: Node, prefix: str) -> str:
        shown = json.loads(router.run(["vtysh", "-c", f"show ip route {prefix} json"]).stdout)
        steps = [step for route in shown.get(prefix, ()) if route.get("installed")
                 for step in route["nexthops"] if step.get("fib")]  # fmt: skip
        return " ".join(f"via {one.get('ip')} dev {one['interfaceName']}" for one in steps)

    def cost(words: str) -> None:
        lines = ["configure terminal", "interface eth0", words]
        router1.run(["vtysh", *(word for line in lines for word in ("-c", line))])

    there, back = "192.168.12.0/24", "192.168.11.0/24"
    ways = {
        "no ip ospf cost": ("192.168.1.2", STRAIGHT),
        "ip ospf cost 100": ("192.168.2.2", AROUND),
    }
    home = "via 192.168.1.1 dev eth0"
    for words, (via, between) in ways.items():
        cost(words)
        assert until(lambda via=via: f"via {via} " in f"{chosen(router1, there)} ", 120)  # type: ignore[misc]
        assert until(lambda: chosen(router2, back) == home, 120)
        found = checked(triangle, "pc1", "pc2", Request())
        assert devices(fine(found)) == [*TO_ROUTER1, *between, *TO_PC2]
        assert len(devices(found.legs[1])) == len([*TO_ROUTER1, *STRAIGHT, *TO_PC2])
        routes = [hop for leg in found.legs for hop in leg.hops if hop.kind == "route"]
        by = {hop.spot.machine: why(hop) for hop in reversed(routes) if "proto ospf" in why(hop)}
        assert chosen(router1, there) in by["router1"]
        assert home in by["router2"]
    cost("no ip ospf cost")


# -- losses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """Commands that break the row, those that mend it, and what the walk says of it."""

    broken: Sequence[str]
    mended: Sequence[str]
    place: str
    words: str
    rule: str = ""
    target: str = C
    request: Request = field(default=NO_ANSWER)
    family: Literal[4, 6] = 4
    reason: str | None = ""  #: the kernel's own word (skb:kfree_skb); None if it depends on time
    copies: int = 0


NFT = "nft add table inet t; nft 'add chain inet t f {{ type filter hook forward priority 0; {} }}'"
LOSSES = {
    "a rule of nftables": Loss(
        ["b: " + NFT.format(""), f"b: nft add rule inet t f ip daddr {C} drop"],
        ["b: nft delete table inet t"], "b", "rule 1 of t f", f"ip daddr {C} drop"),
    "a policy": Loss(["b: " + NFT.format("policy drop;")], ["b: nft delete table inet t"],
                     "b", "policy of t f", "policy drop"),
    "a policy for IPv6": Loss(["b: " + NFT.format("policy drop;")], ["b: nft delete table inet t"],
                              "b", "policy of t f", "policy drop", C6, family=6),
    "a rule of iptables": Loss(
        ["c: iptables -A INPUT -p icmp -j DROP"], ["c: iptables -F"],
        "c", "rule 1 of filter INPUT", "-A INPUT -p icmp -j DROP"),
    "iptables at the sender": Loss(
        ["a: iptables -A OUTPUT -p tcp --dport 80 -j DROP"], ["a: iptables -F"], "a",
        "rule 1 of filter OUTPUT", "-A OUTPUT -p tcp -m tcp --dport 80 -j DROP",
        request=Request("tcp", 80, seconds=0.3)),
    "a rule that rejects": Loss(
        ["b: iptables -A FORWARD -p icmp -j REJECT"], ["b: iptables -F"], "b",
        "port unreachable",
        "-A FORWARD -p icmp -j REJECT --reject-with icmp-port-unreachable"),
    "iptables-legacy": Loss(
        ["b: iptables-legacy -A FORWARD -p icmp -j DROP"], ["b: iptables-legacy -F"],
        "b", "rule 1 of filter FORWARD", "-A FORWARD -p icmp -j DROP"),
    "iptables-legacy without a match": Loss(
        ["b: iptables-legacy -A FORWARD -j DROP"], ["b: iptables-legacy -F"],
        "b", "rule 1 of filter FORWARD", "-A FORWARD -j DROP"),
    "a table at the ingress": Loss(
        ["b: nft add table netdev t; nft 'add chain netdev t i "
         '{ type filter hook ingress device "eth1" priority 0; }\'; '
         "nft add rule netdev t i drop"],
        ["b: nft delete table netdev t"], "b", "rule 1 of t i", "drop"),
    "forwarding is off": Loss(
        ["b: sysctl -qw net.ipv4.ip_forward=0"], ["b: sysctl -qw net.ipv4.ip_forward=1"],
        "b:eth1", "net.ipv4.conf.eth1.forwarding = 0", reason="IP_INADDRERRORS"),
    "no route": Loss([], [], "b:eth1", "Network is unreachable", target="192.0.2.1",
                     reason="IP_INNOROUTES"),
    "no route for IPv6": Loss([], [], "b:eth1", "fd00:1::2 sent no route", target="fd00:9::1",
                              family=6, reason="IP_INNOROUTES"),
    "a route that refuses": Loss(
        ["b: ip route add unreachable 192.0.2.0/24"], ["b: ip route del unreachable 192.0.2.0/24"],
        "b:eth1", "unreachable 192.0.2.0/24", target="192.0.2.1", reason="in ip_error"),
    "a black hole": Loss(
        ["b: ip route add blackhole 192.0.2.0/24"], ["b: ip route del blackhole 192.0.2.0/24"],
        "b:eth1", "blackhole 192.0.2.0/24", target="192.0.2.1", reason="in ip_error"),
    "no route at the sender": Loss(
        ["a: ip route del default"], ["a: ip route add default via 10.0.0.2"],
        "a", "Network is unreachable"),
    "no neighbour": Loss(
        ["b: ip addr add 192.0.2.1/24 dev eth2"], ["b: ip addr del 192.0.2.1/24 dev eth2"],
        "b:eth1", "192.0.2.9 dev eth2", target="192.0.2.9"),
    "rp_filter": Loss(
        ["b: sysctl -qw net.ipv4.conf.all.rp_filter=1", "b: ip route add 192.0.2.7 via 10.0.0.6",
         "a: ip addr add 192.0.2.7/32 dev lo",
         "a: ip route replace default via 10.0.0.2 src 192.0.2.7"],
        ["a: ip route replace default via 10.0.0.2", "a: ip addr del 192.0.2.7/32 dev lo",
         "b: ip route del 192.0.2.7", "b: sysctl -qw net.ipv4.conf.all.rp_filter=0"],
        "b:eth1", "rp_filter", reason="IP_RPFILTER"),
    "rp_filter, to the node itself": Loss(
        ["b: sysctl -qw net.ipv4.conf.all.rp_filter=1", "b: ip route add 192.0.2.7 via 10.0.0.6",
         "a: ip addr add 192.0.2.7/32 dev lo",
         "a: ip route replace 10.0.0.0/30 dev eth1 src 192.0.2.7"],
        ["a: ip route replace 10.0.0.0/30 dev eth1 src 10.0.0.1",
         "a: ip addr del 192.0.2.7/32 dev lo", "b: ip route del 192.0.2.7",
         "b: sysctl -qw net.ipv4.conf.all.rp_filter=0"],
        "b:eth1", "rp_filter", target="10.0.0.2", reason="IP_RPFILTER"),
    "a new destination that is not there": Loss(
        ["b: ip link add br9 type bridge; ip addr add 192.0.2.1/24 dev br9; ip link set br9 up",
         "b: ip link add v9 type veth peer v8; ip link set v9 master br9 up",  # no carrier
         "b: iptables -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to 192.0.2.9:80"],
        ["b: iptables -t nat -F", "b: ip link del v9; ip link del br9"],
        "b", "br9 is down: <NO-CARRIER",
        target="10.0.0.2", request=Request("tcp", 8080, seconds=0.3), reason=None),
    "the MTU": Loss([], ["a: ip route flush cache"], "b:eth1", "fragmentation needed, MTU 1400",
                    request=Request(size=1380, seconds=0.3), reason="PKT_TOO_BIG"),
    "the MTU of IPv6": Loss([], ["a: ip -6 route flush cache"], "b:eth1",
                            "packet too big, MTU 1400", target=C6, family=6,
                            request=Request(size=1380, seconds=0.3), reason="PKT_TOO_BIG"),
    "a connection by IPv6 that is begun again": Loss(
        ["b: " + NFT.format("policy drop;")], ["b: nft delete table inet t"], "b",
        "policy of t f", "policy drop", C6, Request("tcp", 80, seconds=1.4), 6, copies=1),
    "a link that is down": Loss(
        ["c: ip link set eth1 down"],
        ["c: ip link set eth1 up", "c: ip route add default via 10.0.0.5",
         "c: ip addr add fd00:2::2/64 dev eth1 nodad", "c: ip route add default via fd00:2::1"],
        "b", "eth2 is down"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_packet_has_its_place_and_its_cause(row: LiveLab, name: str) -> None:
    loss = LOSSES[name]

    def do(commands: Sequence[str]) -> None:
        for node, _, command in (one.partition(": ") for one in commands):
            row.node(node).run(["sh", "-ec", command])

    family = loss.family
    whole = C6 if family == 6 else C
    fine(walk(row, "a", whole, Request(), family=family))  # and ARP is done
    try:
        do(loss.broken)
        found = walk(row, "a", loss.target, loss.request, family=family)
    finally:
        do(loss.mended)
    last = end(found)
    assert (str(last.spot).partition(":")[0], loss.words in why(last)) == (
        loss.place.partition(":")[0], True,
    ), last  # fmt: skip
    assert [rule.text for rule in last.rules] == ([loss.rule] if loss.rule else [])
    assert found.legs[0].copies == loss.copies
    told = {fact.text for fact in last.facts if "kfree_skb" in fact.source}
    if REPORTS and loss.reason is not None:
        assert [loss.reason in one for one in told] == ([True] if loss.reason else [])
    fine(walk(row, "a", whole, Request(), family=family))


def test_rules_of_iptables_legacy_that_change_meanwhile_are_told(
    row: LiveLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are known by their positions, which an insertion moves."""
    b = row.node("b")
    real = _Run._send

    def send(run: _Run) -> dict[str, object]:
        found = real(run)
        b.run(["iptables-legacy", "-I", "FORWARD", "-s", "192.0.2.1", "-j", "DROP"])
        return found

    # Losses by iptables-nft have left the empty chain of that name.
    b.run(["sh", "-c", "nft delete table ip filter 2> /dev/null || :"])
    b.run(["iptables-legacy", "-A", "FORWARD", "-p", "icmp", "-j", "ACCEPT"])
    try:
        (whole,) = met(walk(row, "a", C, Request()))
        monkeypatch.setattr(_Run, "_send", send)
        (moved,) = met(walk(row, "a", C, Request()))
    finally:
        b.run(["iptables-legacy", "-F"])
    assert [rule.text for rule in whole.rules if rule.position] == ["-A FORWARD -p icmp -j ACCEPT"]
    assert "changed meanwhile" not in why(whole)
    assert "changed meanwhile" in why(moved)


def met(found: Walk) -> list[Hop]:
    """The hops in the chain FORWARD."""
    return [hop for hop in fine(found).hops if hop.label == "filter FORWARD"]


TAKE = (
    "import socket; s = socket.create_server(('', 61007)); print('taken', flush=True); s.accept()"
)


def test_a_source_port_that_is_taken_is_not_used(
    row: LiveLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an earlier walk, whose connection is in the state TIME-WAIT for a minute."""
    chosen = iter([1, 7, 2, 8])  # a token and a port, and again
    monkeypatch.setattr("testbed.walk.run.secrets.randbelow", lambda _: next(chosen))
    with row.node("a").spawn(["python3", "-c", TAKE]) as taker:
        assert until(lambda: b"taken" in taker.out, 60)
        first = fine(walk(row, "a", C, Request("tcp", 80))).hops[1:]
        taker.kill()
    assert {hop.view.sport for hop in first if hop.view is not None} == {61008}


def test_an_answer_that_is_lost(row: LiveLab) -> None:
    row.node("c").run(["ip", "route", "del", "default"])
    try:
        found = walk(row, "a", C, NO_ANSWER, reply=True)
    finally:
        row.node("c").run(["ip", "route", "add", "default", "via", "10.0.0.5"])
    there, back = found.legs
    assert (there.arrived, back.arrived) == (True, False)
    assert (str(back.hops[-1].spot), "unreachable" in why(back.hops[-1])) == ("c", True)


# -- nothing is left -----------------------------------------------------------------------


def left(lab: LiveLab) -> list[str]:
    """Possible leftovers of a walk: tables, and the logger of legacy tables."""
    found = []
    for node in lab.nodes.values():
        tables = node.run(["nft", "list", "tables"]).stdout
        logger = node.run(["cat", "/proc/sys/net/netfilter/nf_log/2"]).stdout
        found += [node.name, *sorted(tables.splitlines()), logger]
    return found


def test_walks_at_the_same_time_are_all_right(row: LiveLab) -> None:
    """They take turns at the trace of iptables-legacy, which has one reader at a time."""
    b = row.node("b")
    b.run(["iptables-legacy", "-A", "FORWARD", "-p", "icmp", "-j", "ACCEPT"])
    try:
        before = left(row)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: walk(row, "a", C, Request(), reply=True), range(3)))
        assert left(row) == before
    finally:
        b.run(["iptables-legacy", "-F"])
    for one in found:
        met = [rule.text for rule in rules(fine(one))]
        assert "-A FORWARD -p icmp -j ACCEPT" in met
        assert [leg.copies for leg in one.legs] == [0, 0]
        assert one.hops == found[0].hops


@pytest.mark.parametrize("step", range(8))
def test_a_walk_that_is_killed_leaves_nothing(row: LiveLab, step: int) -> None:
    """Also the logger is put back, which a table of iptables-legacy needs for the trace."""
    b = row.node("b")
    b.run(["iptables-legacy", "-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT"])
    try:
        before = left(row)
        argv = [sys.executable, "-m", "testbed", "walk", "-l", row.name, "a", "192.0.2.1"]
        with subprocess.Popen(
            [*argv, "--timeout", "2"],
            env=environment(row),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running:
            time.sleep(0.15 + 0.1 * step)  # not a wait: so that it is killed at many points
            running.send_signal(signal.SIGKILL)
        assert until(lambda: left(row) == before, 60), left(row)
    finally:
        b.run(["iptables-legacy", "-F"])


def test_the_logger_is_put_back_without_the_process_that_guards_it(row: LiveLab) -> None:
    b = row.node("b")
    b.run(["iptables-legacy", "-A", "FORWARD", "-p", "icmp", "-j", "ACCEPT"])
    logger = ["cat", "/proc/sys/net/netfilter/nf_log/2"]
    try:
        before = b.run(logger).stdout
        (post,) = [one for one in posts(row, inventory(row)) if one.key == ("b", "")]
        eyes, errors = watch.open_eyes([[post.name, post.path]], [[28, 4, [1]]])
        assert (b.run(logger).stdout.strip(), errors) == (watch.LOGS_HERE, {})
        for pid, *_ in eyes[post.name]._guards:
            os.kill(pid, signal.SIGKILL)
        watch.close_eyes([*eyes.values()])
        assert b.run(logger).stdout == before
        assert before.strip() != watch.LOGS_HERE
        assert eyes[post.name].warnings == []
    finally:
        b.run(["iptables-legacy", "-F"])


REPORT = (
    "import time; from testbed.walk import drops; kept = drops.Drops([[28, 4, [1]]]); "
    "print('ready', flush=True); time.sleep(600)"
)
PROGRAM_BY_ID = 13  # BPF_PROG_GET_FD_BY_ID, linux/bpf.h


@pytest.mark.skipif(not REPORTS, reason="this kernel does not tell its types")
def test_the_program_that_reports_drops_goes_with_its_process() -> None:
    with subprocess.Popen([sys.executable, "-c", REPORT], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        entries = Path(f"/proc/{running.pid}/fdinfo").iterdir()
        text = "".join(one.read_text() for one in entries)
        number = int(re.findall(r"^prog_id:\s*(\d+)$", text, re.MULTILINE)[0])
        assert _is_loaded(number)
        running.send_signal(signal.SIGKILL)
    assert until(lambda: not _is_loaded(number), 60)


def _is_loaded(number: int) -> bool:
    try:
        os.close(drops._bpf(PROGRAM_BY_ID, struct.pack("=III", number, 0, 0)))
    except FileNotFoundError:
        return False
    return True


def environment(lab: LiveLab) -> dict[str, str]:
    return {**os.environ, "TESTBED_STATE": str(STATES[lab.name])}


def test_a_lab_that_goes_away_ends_a_walk(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(ROW.replace("walk-row", "walk-gone"))
    with contextlib.contextmanager(up)(str(tmp_path / "lab.yaml"), tmp_path / "state") as lab:
        state = environment(lab)
        argv = [sys.executable, "-m", "testbed"]
        lab.node("b").run(["iptables", "-A", "FORWARD", "-j", "DROP"])  # nothing is answered
        with subprocess.Popen(
            [*argv, "walk", "a", "10.0.0.6", "--timeout", "60"],
            env=state,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            # Until it watches; it waits for an answer then.
            assert until(lambda: "testbed_walk" in "".join(left(lab)), 60)
            subprocess.run([*argv, "down", "walk-gone"], env=state, check=True, capture_output=True)
            _, errors = running.communicate(timeout=120)
        assert running.returncode in {1, 4}
        assert b"has gone" in errors


def test_a_container_that_does_not_run_is_no_unknown_place(vxlan: LiveLab) -> None:
    api = vxlan.engine("node2").api
    api.stop("container-2", 0)
    try:
        for ends in (("container-2", "node1"), ("node1", "node2/container-2")):
            with pytest.raises(LabError) as error:
                walk(vxlan, *ends, NO_ANSWER)
            assert "testbed start node2/container-2" in (error.value.hint or "")
    finally:
        api.start("container-2")
    assert until(lambda: walk(vxlan, "node2", "container-2", NO_ANSWER).arrived, 60)


def test_an_unknown_place_has_its_nearest(vxlan: LiveLab) -> None:
    with pytest.raises(UsageError) as error:
        walk(vxlan, "container-1", "node2/contaner-2", Request())
    assert error.value.hint is not None
    assert "node2/container-2" in error.value.hint
