"""The inventory of a lab and its graph: veth pairs, and what is made of what iproute2 prints."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.errors import LabError
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.nodes.base import Result
from testbed.nodes.fake import Answer
from testbed.observe import graph, inventory
from testbed.observe.inventory import (
    End,
    Inventory,
    Link,
    Machine,
    Peer,
    Service,
    Space,
    Step,
    pairs,
)
from testbed.roles.docker import drawn
from testbed.roles.docker.role import Docker
from testbed.testing import Bench
from testbed.topology import load_text
from testbed.topology.foreign import End as ForeignEnd
from testbed.topology.foreign import Foreign, ForeignNode
from testbed.topology.foreign import Link as ForeignLink

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.fake import Call
    from testbed.topology.model import Topology

PAIR = """
name: pair
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  one: {networks: {lan: 10.168.0.2}}
  two: {networks: {lan: 10.168.0.3}}
"""


def names(found: list[tuple[End, End]]) -> set[frozenset[str]]:
    return {frozenset((one.name, other.name)) for one, other in found}


def test_pairs_by_index() -> None:
    ends = [End("", "veth1", 5, 2, 0), End("web", "eth0", 2, 5, 0)]
    assert names(pairs(ends)) == {frozenset(("veth1", "eth0"))}


def test_the_same_indexes_are_told_apart_by_what_is_known() -> None:
    """Two containers, each with eth0 of index 2, have peers of the same index in two bridges."""
    ends = [
        End("", "veth1", 5, 2, 0), End("one", "eth0", 2, 5, 0),
        End("", "veth2", 6, 3, 0), End("one", "eth1", 3, 6, 0),
        # Its numbers fit veth1 as well, but namespace 0 of the node is "one" by then.
        End("two", "net0", 2, 5, 0),
    ]  # fmt: skip
    assert names(pairs(ends)) == {frozenset(("veth1", "eth0")), frozenset(("veth2", "eth1"))}


def test_what_cannot_be_told_is_left_out() -> None:
    ends = [
        End("", "veth1", 5, 2, 0), End("", "veth2", 5, 2, 1),
        End("one", "eth0", 2, 5, 0), End("two", "eth0", 2, 5, 0),
    ]  # fmt: skip
    assert pairs(ends) == []


def test_a_peer_that_is_nowhere_to_be_seen() -> None:
    assert pairs([End("", "eth0", 2, 3, 0)]) == []


def entry(**more: Any) -> dict[str, Any]:
    return {"ifname": "eth0", "ifindex": 2, "link_type": "ether", "flags": ["UP"], **more}


def test_a_link() -> None:
    vxlan = {"info_kind": "vxlan", "info_data": {"id": 1, "port": 8472}}
    addresses = [
        {"family": "inet", "local": "100.96.1.0", "prefixlen": 32},
        {"family": "inet6", "local": "fe80::1", "prefixlen": 64},
        {"family": "inet6", "local": "2001:db8::1", "prefixlen": 64},
    ]
    link = inventory._link(entry(linkinfo=vxlan, addr_info=addresses, mtu=1450, master="br0"))
    assert link.addresses == ("100.96.1.0/32", "fe80::1/64", "2001:db8::1/64")
    found = graph._link(link)
    assert found["addresses"] == ["100.96.1.0/32", "2001:db8::1/64"]
    assert (found["kind"], found["vni"], found["port"], found["mtu"]) == ("vxlan", 1, 8472, 1450)
    assert (found["up"], found["master"]) == (True, "br0")


def test_loopback_and_what_modules_bring_are_not_shown() -> None:
    assert inventory._link(entry()).shown
    assert not inventory._link(entry(ifname="lo", link_type="loopback")).shown
    assert not inventory._link(entry(ifname="tunl0", link_type="ipip")).shown


def test_a_port_is_published_once_whatever_the_addresses() -> None:
    ports = {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "443/tcp": None,
    }
    assert drawn._published(ports) == ["8080:80/tcp"]


@pytest.mark.parametrize("said", ["7", "[7]", '[{"link_type": 7}]', '{"a": 1}', "true"])
def test_what_ip_never_says_is_told_and_stops_nothing(said: str) -> None:
    class Node:
        @staticmethod
        def run(*_: object, **__: object) -> Result:
            return Result((), 0, f"{inventory.SEPARATOR}links\n{said}".encode(), b"")

    spec = SimpleNamespace(roles=(), gateway=False, image="")
    lab = SimpleNamespace(
        topology=SimpleNamespace(nodes={"n": spec}, foreign=None), node=lambda _: Node
    )
    found = inventory.machine(cast("LiveLab", lab), "n")
    assert " of ip on n: " in found.error


def test_links_of_another_tools_file() -> None:
    links = [
        ForeignLink((ForeignEnd("a", "eth1"), ForeignEnd("b", "eth1"))),
        ForeignLink((ForeignEnd("b", "eth2"), ForeignEnd("br1", "x"))),
        ForeignLink((ForeignEnd("a", "lost"), ForeignEnd("c", ""))),
    ]
    foreign = Foreign("containerlab", links=tuple(links))
    topology = cast("Topology", SimpleNamespace(foreign=foreign, links={}))
    seen = {"a": {"eth1": True}, "b": {"eth1": False, "eth2": True}}
    nodes = [
        Machine(name, spaces=(Space("", links=tuple(Link(k, 2, up=v) for k, v in links.items())),))
        for name, links in seen.items()
    ]
    found = [
        [(end.at, end.interface, end.up) for end in wire]
        for wire in inventory.wires(topology, nodes)
    ]
    assert found == [
        [("a", "eth1", True), ("b", "eth1", False)],
        [("b", "eth2", True), ("br1", "x", True)],
        [("a", "lost", False), ("c", "", True)],
    ]
    own = cast("Topology", SimpleNamespace(foreign=None, links={}))
    assert [*inventory.wires(own, nodes)] == []


def veth(name: str, index: int, peer: int, netns: int, **given: Any) -> Link:
    data = {"peer_index": peer, "peer_netns": netns}
    return Link(name, index, "veth", up=True, data=data, **given)


def foreign_lab() -> tuple[Foreign, list[Machine], Machine]:
    """Two nodes at a bridge that the file draws, and at one of the engine that it does not."""
    ends = [ForeignLink((ForeignEnd(name, "eth1"), ForeignEnd("br-x", f"p{name}")))
            for name in ("a", "b")]  # fmt: skip
    networks = ("mgmt-net", "br-x", "br0|a:x")
    ends.append(ForeignLink((ForeignEnd("b", "eth2"), ForeignEnd("br0|a", "x"))))
    known = {name: ForeignNode(name, networks=networks) for name in ("a", "b")}
    foreign = Foreign("containerlab", nodes=known, links=tuple(ends))
    nodes = [
        Machine(name, spaces=(Space("", links=(
            veth("eth0", 5, 10 + number, 0, addresses=(f"172.20.20.{number + 2}/24",)),
            veth("eth1", 6, 20 + number, 0),
        )),))
        for number, name in enumerate("ab")
    ]  # fmt: skip
    ports = [
        veth(name, index, peer, netns, master=master)
        for name, index, peer, netns, master in (
            ("veth1", 10, 5, 0, "br-5e1f"), ("veth2", 11, 5, 1, "br-5e1f"),
            ("pa", 20, 6, 0, "br-x"), ("pb", 21, 6, 1, "br-x"),
        )
    ]  # fmt: skip
    bridges = (Link("br-x", 2, "bridge"), Link("br-5e1f", 3, "bridge"))
    return foreign, nodes, Machine("fabric", fabric=True,
                                   spaces=(Space("", links=(*bridges, *ports)),))  # fmt: skip


def test_bridges_of_another_tool_join_its_nodes() -> None:
    foreign, nodes, fabric = foreign_lab()
    plugged = inventory._plugged(nodes, fabric)
    networks = [*inventory.bridged(foreign, plugged, fabric)]
    assert [(one.name, one.bridge, one.subnet, one.ports, one.aside) for one in networks] == [
        ("mgmt-net", "br-5e1f", "172.20.20.0/24", (("a", "eth0"), ("b", "eth0")), True),
        ("br-x", "br-x", "", (("a", "eth1"), ("b", "eth1")), False),
    ]
    joined = [inventory._on(networks, one) for one in plugged]
    assert [link.joins for one in joined for link in one.own.links] == ["mgmt-net", "br-x"] * 2
    peers = [link.peer for one in joined for link in one.own.links]
    assert [peer.link for peer in peers if peer] == ["veth1", "pa", "veth2", "pb"]
    reflected = inventory._reflected(fabric, joined).own
    assert {link.name: link.joins for link in reflected.links if link.kind == "bridge"} == {
        "br-x": "br-x", "br-5e1f": "mgmt-net",
    }  # fmt: skip


def test_a_node_that_does_not_answer_has_no_ports() -> None:
    foreign, nodes, fabric = foreign_lab()
    plugged = inventory._plugged([nodes[0], Machine("b", error="gone")], fabric)
    networks = [*inventory.bridged(foreign, plugged, fabric)]
    assert [one.ports for one in networks] == [(("a", "eth0"),), (("a", "eth1"),)]
    assert inventory._on(networks, plugged[1]) == plugged[1]


# -- what iproute2 prints --------------------------------------------------------

MULTIPATH = {
    "dst": "10.1.0.0/16", "protocol": "bird", "metric": 32, "flags": [],
    "nexthops": [
        {"gateway": "10.0.1.1", "dev": "eth1", "weight": 1, "flags": []},
        {"via": {"family": "inet6", "host": "fe80::1"}, "dev": "eth2", "weight": 2, "flags": []},
    ],
}  # fmt: skip
PRINTED = [
    entry(ifname="eth0", link_index=7, link_netnsid=0, linkinfo={"info_kind": "veth"}),
    entry(ifname="a", ifindex=3, link="b", linkinfo={"info_kind": "veth"}),
    entry(ifname="b", ifindex=4, link="a", linkinfo={"info_kind": "veth"}, master="br0"),
    {"dst": "10.0.0.9", "dev": "eth0", "lladdr": "02:00:00:00:00:09", "state": ["STALE"]},
    {"dst": "10.0.0.8", "dev": "eth0", "state": ["FAILED"]},
    {"dst": "default", "gateway": "10.0.0.1", "dev": "eth0", "flags": []},
    {"dst": "default", "dev": "eth0", "metric": 1024, "flags": [], "pref": "medium"},
    {"type": "blackhole", "dst": "10.9.0.0/16", "table": "100", "flags": []},
    MULTIPATH,
    {},
    {"priority": 9, "src": "10.0.0.0", "srclen": 24, "fwmark": "0x4000", "fwmask": "0x4000",
     "iif": "eth0", "table": "100"},
    {"priority": 0, "src": "all", "table": "local"},
]  # fmt: skip
RULES6 = [{"priority": 0, "src": "all", "table": "local"}]
FDB = [
    {"mac": "01:00:5e:00:00:01", "ifname": "eth0", "flags": ["self"], "state": "permanent"},
    {"mac": "02:00:00:00:00:07", "ifname": "b", "flags": [], "master": "br0", "state": ""},
    {"mac": "02:00:00:00:00:06", "ifname": "flannel.1", "dst": "10.0.0.3", "state": "permanent"},
]


def read(*values: Any) -> Space:
    return inventory._read(Space(""), "\n".join(json.dumps(value) for value in values))


def test_all_of_a_namespace_is_read_whatever_the_order() -> None:
    found = read(PRINTED, "inet6", RULES6, FDB)
    assert [one.name for one in found.links] == ["eth0", "a", "b"]
    assert [(one.address, one.mac, one.state) for one in found.neighbours] == [
        ("10.0.0.9", "02:00:00:00:00:09", "STALE"),
        ("10.0.0.8", "", "FAILED"),
    ]
    # Multicast addresses that a device listens to are no entries of a bridge.
    assert [(one.mac[-2:], one.dev, one.master, one.to, one.permanent) for one in found.fdb] == [
        ("07", "b", "br0", "", False),
        ("06", "flannel.1", "", "10.0.0.3", True),
    ]
    assert [(one.family, one.priority, one.text, one.table) for one in found.rules] == [
        ("inet", 9, "from 10.0.0.0/24 fwmark 0x4000/0x4000 iif eth0 lookup 100", "100"),
        ("inet", 0, "from all lookup local", "local"),
        ("inet6", 0, "from all lookup local", "local"),
    ]


def test_routes_of_both_families_and_all_kinds() -> None:
    four, six, none, several = read(PRINTED).routes
    assert (four.family, four.to, four.steps) == ("inet", "default", (Step("10.0.0.1", "eth0"),))
    assert (six.family, six.steps, six.metric) == ("inet6", (Step("", "eth0"),), 1024)
    assert (none.type, none.table, none.steps) == ("blackhole", "100", ())
    assert several.steps == (Step("10.0.1.1", "eth1"), Step("fe80::1", "eth2", 2))


def test_what_is_cut_off_by_the_end_of_a_namespace_is_left_out() -> None:
    assert inventory._read(Space("c"), "nsenter: no such file") == Space("c")
    whole = json.dumps(PRINTED)
    assert inventory._read(Space("c"), f"{whole}\n[{{") == replace(read(PRINTED), name="c")


def test_both_ends_of_a_pair_in_one_namespace() -> None:
    (own,) = inventory._paired("n", [read(PRINTED)])
    peers = {link.name: link.peer for link in own.links}
    assert peers == {"eth0": None, "a": Peer("n", "", "b"), "b": Peer("n", "", "a")}


def test_one_namespace_of_two_names_is_shown_once() -> None:
    printed = "".join(
        f"{inventory.SEPARATOR}{part}\n{text}\n"
        for part, text in (
            ("inodes", "1 /proc/self/ns/net\n5 /run/netns/cni-1\n6 /run/netns/mine"),
            ("links", "[]"),
            ("namespace cni-1", "[]"),
            ("namespace mine", "[]"),
            ("inodes", "5 /proc/77/ns/net"),
            ("container web", json.dumps([entry()])),
        )
    )
    drawn: list[dict[str, Any]] = [
        {"name": "web", "pid": 77, "mode": "bridge", "published": ["8080:80/tcp"]},
        {"name": "beside", "pid": 78, "mode": "container", "published": [], "shares": "web"},
    ]
    own, mine, web, beside = inventory._spaces(printed, drawn)
    assert (own.kind, own.inode) == ("own", 1)
    assert (mine.name, mine.kind, mine.path) == ("mine", "namespace", "/run/netns/mine")
    assert (web.path, web.inode, web.published) == ("/proc/77/ns/net", 5, ("8080:80/tcp",))
    assert [one.name for one in web.links] == ["eth0"]
    assert (beside.path, beside.shares) == ("", "web")


def test_a_pod_has_the_namespace_with_its_address() -> None:
    addresses = [{"family": "inet", "local": "10.244.1.2", "prefixlen": 24}]
    printed = (
        f"{inventory.SEPARATOR}links\n[]\n"
        f"{inventory.SEPARATOR}namespace cni-2\n{json.dumps([entry()])}\n"
        f"{inventory.SEPARATOR}namespace cni-1\n{json.dumps([entry(addr_info=addresses)])}\n"
    )
    drawn: list[dict[str, Any]] = [
        {"name": "default/web", "kind": "pod", "mode": "pod", "published": [],
         "addresses": ["10.244.1.2"]},
        {"name": "default/new", "kind": "pod", "mode": "pod", "published": [], "addresses": []},
    ]  # fmt: skip
    _, other, web, new = inventory._spaces(printed, drawn)
    assert (web.name, web.kind, web.path) == ("default/web", "pod", "/run/netns/cni-1")
    assert (other.name, other.kind) == ("cni-2", "namespace")
    assert (new.path, new.links) == ("", ())


def test_names_of_addresses_are_those_that_one_owner_has() -> None:
    def space(name: str, *addresses: str) -> Space:
        return Space(name, links=(Link("eth0", 2, addresses=addresses),))

    found = Inventory(
        "lab",
        (
            Machine(
                "a", spaces=(space("", "10.0.0.1/24", "172.17.0.1/16"), space("c", "fd::2/64"))
            ),
            Machine("b", spaces=(space("", "10.0.0.2/24", "172.17.0.1/16", "fe80::1/64"),)),
            Machine("fabric", fabric=True, spaces=(space("", "10.0.0.9/24"),)),
        ),
        services=(Service("default/web", ("10.96.0.1",)),),
    )
    assert found.names() == {
        "10.0.0.1": "a", "10.0.0.2": "b", "fd::2": "c", "10.96.0.1": "default/web",
    }  # fmt: skip
    assert json.loads(json.dumps(found.to_dict()))["machines"][0]["name"] == "a"


def test_ports_of_nodes_and_of_the_fabric_are_each_other_s_peers(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        bench.install(patch)

        def answer(call: Call) -> Answer:
            shown = ["br-lan", "one", "two"] if call.node == "fabric" else ["eth0"]
            links = [
                entry(ifname=name, ifindex=index, master="" if index == 2 else "br-lan")
                for index, name in enumerate(shown, 2)
            ]
            return Answer(out=f"{inventory.SEPARATOR}links\n{json.dumps(links)}".encode())

        bench.provider.script(["sh", "-c"], answer)
        lab = Lab("pair", bench.settings)
        lab.up(load_text(PAIR, "pair.yaml"))
        found = inventory.inventory(LiveLab(lab.context()))
        lab.down()
    assert found.fabric is not None
    assert [one.name for one in found.nodes] == ["one", "two"]
    for node in found.nodes:
        (eth0,) = node.own.links
        assert eth0.joins == "lan"
        assert eth0.peer is not None
        port = found.at(eth0.peer)
        assert port is not None
        assert (port.name, port.joins, port.peer) == (node.name, "lan", Peer(node.name, "", "eth0"))
    (lan,) = found.networks
    assert (lan.bridge, lan.ports) == ("br-lan", (("one", "eth0"), ("two", "eth0")))
    bridge = found.fabric.own.link("br-lan")
    assert bridge is not None
    assert bridge.joins == "lan"


def test_devices_are_shown_without_the_daemon_of_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LabError("dockerd is not running")

    printed = f"{inventory.SEPARATOR}links\n{json.dumps([entry()])}"
    node = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=printed))
    spec = SimpleNamespace(roles=["docker"], gateway=False, image="")
    topology = SimpleNamespace(nodes={"n": spec}, foreign=None)
    lab = SimpleNamespace(topology=topology, node=lambda _: node)
    monkeypatch.setattr(Docker, "drawn", refuse)
    found = inventory.machine(cast("LiveLab", lab), "n")
    assert found.error == "dockerd is not running"
    assert [link.name for link in found.own.links] == ["eth0"]
