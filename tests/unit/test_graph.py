"""The graph of a lab: veth pairs, and what is made of what iproute2 prints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.nodes.base import Result
from testbed.observe import graph
from testbed.observe.graph import End, pairs
from testbed.roles.docker import drawn
from testbed.topology.foreign import End as ForeignEnd
from testbed.topology.foreign import Foreign, Link

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.topology.model import Topology


def names(found: list[tuple[End, End]]) -> set[frozenset[str]]:
    return {frozenset((one.name, other.name)) for one, other in found}


def test_pairs_by_index() -> None:
    ends = [End("", "veth1", 5, 2, 0), End("web", "eth0", 2, 5, 0)]
    assert names(pairs(ends)) == {frozenset(("veth1", "eth0"))}


def test_ends_in_one_namespace() -> None:
    ends = [End("", "a", 5, 6, None), End("", "b", 6, 5, None)]
    assert names(pairs(ends)) == {frozenset("ab")}


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
    found = graph._link(entry(linkinfo=vxlan, addr_info=addresses, mtu=1450, master="br0"))
    assert found["addresses"] == ["100.96.1.0/32", "2001:db8::1/64"]
    assert (found["kind"], found["vni"], found["port"], found["mtu"]) == ("vxlan", 1, 8472, 1450)
    assert (found["up"], found["master"]) == (True, "br0")


def test_loopback_and_what_modules_bring_are_not_shown() -> None:
    assert graph._shown(entry())
    assert not graph._shown(entry(ifname="lo", link_type="loopback"))
    assert not graph._shown(entry(ifname="tunl0", link_type="ipip"))


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
            return Result((), 0, f"{graph.SEPARATOR}links\n{said}".encode(), b"")

    spec = SimpleNamespace(roles=(), gateway=False)
    lab = SimpleNamespace(
        topology=SimpleNamespace(nodes={"n": spec}, foreign=None), node=lambda _: Node
    )
    found = graph._node(cast("LiveLab", lab), "n")
    assert " of ip on n: " in found["error"]


def test_links_of_another_tools_file() -> None:
    links = [
        Link((ForeignEnd("a", "eth1"), ForeignEnd("b", "eth1"))),
        Link((ForeignEnd("b", "eth2"), ForeignEnd("br1", "x"))),
        Link((ForeignEnd("a", "lost"), ForeignEnd("c", ""))),
    ]
    foreign = Foreign("containerlab", links=tuple(links))
    topology = cast("Topology", SimpleNamespace(foreign=foreign, links={}))
    nodes = [
        {"name": "a", "links": [{"name": "eth1", "up": True}]},
        {"name": "b", "links": [{"name": "eth1", "up": False}, {"name": "eth2", "up": True}]},
    ]
    found = [
        [(end["at"], end["interface"], end["up"]) for end in wire]
        for wire in graph.wires(topology, nodes)
    ]
    assert found == [
        [("a", "eth1", True), ("b", "eth1", False)],
        [("b", "eth2", True), ("br1", "x", True)],
        [("a", "lost", False), ("c", "", True)],
    ]
    own = cast("Topology", SimpleNamespace(foreign=None, links={}))
    assert [*graph.wires(own, nodes)] == []
