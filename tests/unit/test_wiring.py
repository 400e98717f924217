"""The wiring of a node: what ip(8) is told, done on links in memory, and what is then read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from testbed.nodes import wiring
from testbed.nodes.base import NodeSpec
from testbed.nodes.fake import Answer, Call, FakeNode, FakeProvider
from testbed.nodes.wiring import FORWARDING, LOOK, Difference, Link, Route, Seen
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.topology.model import Topology

TEXT = """
name: t
networks: {a: {subnet: 10.1.0.0/24}, b: {subnet: 10.2.0.0/16}}
nodes:
  n: {networks: {a: 10.1.0.2, b: 10.2.0.2}}
  r: {networks: {a: 10.1.0.1}, gateway: true}
  alone: {networks: {b: 10.2.0.9}}
"""
TOPOLOGY = load_text(TEXT, "t.yaml")
#: Lines of /proc/net/ipv6_route (Linux 6.1) of `default via fd00:1::1`, of a subnet and of lo.
ZERO = "0" * 32
ROUTE6 = f"""\
fd000001000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 fd000001000000000000000000000001 00000400 00000001 00000000 00000003     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
"""


@dataclass
class Links:
    """The links, routes and settings of one node, and ip(8) and sysctl(8) that change them."""

    links: dict[str, dict[str, Any]]
    gateway: str = ""
    forwarding: str = "0"
    gateway6: str = ""
    six: dict[str, str] = field(default_factory=dict)  #: each setting with the link's state then
    asked: list[str] = field(default_factory=list)

    def ip(self, call: Call) -> Answer:
        assert call.words == ("ip", "-batch", "-")
        for line in (call.input or b"").decode().splitlines():
            self.asked.append(line)
            self._do(line.split())
        return Answer()

    def _do(self, words: list[str]) -> None:
        match words:
            case ["link", "set", "dev", name, *settings]:
                self._set(self.links[name], settings)
            case ["address", "add", address, "broadcast", "+", "dev", name]:
                # A second one of another prefix length would leave two routes to its network.
                there = [one.partition("/")[0] for one in self.links[name]["addresses"]]
                assert address.partition("/")[0] not in there
                self.links[name]["addresses"].append(address)
            case ["address", "add", address, "dev", name, "nodad"]:
                assert ":" in address
                self.links[name]["addresses"].append(address)
            case ["address", "del", address, "dev", name]:
                self.links[name]["addresses"].remove(address)
            case ["route", "replace", "default", "via", gateway, "dev", name] if ":" in gateway:
                self.gateway6 = f"{gateway} {name}"
            case ["route", how, "default", "via", gateway]:
                assert how == "replace" or not self.gateway, "File exists"
                assert any(one["flags"] for one in self.links.values()), "Network is unreachable"
                self.gateway = gateway
            case _:
                raise AssertionError(words)

    @staticmethod
    def _set(link: dict[str, Any], words: list[str]) -> None:
        while words:
            word = words.pop(0)
            if word == "up":
                link["flags"] = ["UP"]
            else:
                link[word] = int(words.pop(0)) if word == "mtu" else words.pop(0)

    def sysctl(self, call: Call) -> Answer:
        words = [word for word in call.words if word != "-e"]
        assert words[:3] == ["sysctl", "-q", "-w"]
        six = [word for word in words[3:] if word.startswith("net/ipv6/")]
        for word in six:
            name = word.split("/")[3]
            self.six[word.partition("=")[0]] = "up" if self.links[name]["flags"] else "down"
        if four := [word for word in words[3:] if word not in six]:
            assert four == [f"{FORWARDING}=1"]
            self.forwarding = "1"
        return Answer()

    def look(self, _: Call) -> Answer:
        links = [
            {
                "ifname": name,
                "flags": one["flags"],
                "mtu": one.get("mtu", 1500),
                "address": one.get("address", ""),
                "qdisc": one.get("qdisc", "noqueue"),
                "addr_info": [
                    {
                        "family": "inet6" if ":" in a else "inet",
                        "local": a.split("/")[0],
                        "prefixlen": int(a.split("/")[1]),
                    }
                    for a in one["addresses"]
                ],
            }
            for name, one in self.links.items()
        ]
        routes = [{"dst": "default", "gateway": self.gateway, "dev": "eth0"}]
        said = [self.forwarding, *([ROUTE6] if self.gateway6 else [])]
        parts = json.dumps(links), json.dumps(routes if self.gateway else []), "\n".join(said)
        return Answer(out="\0".join(parts).encode())


def made(name: str, links: Links) -> FakeNode:
    provider = FakeProvider()
    node = provider.create_one("t", NodeSpec(name, "digest"))
    provider.script(["ip"], links.ip)
    provider.script(["sysctl"], links.sysctl)
    provider.script(LOOK, links.look)
    assert isinstance(node, FakeNode)
    return node


def bare(*names: str) -> Links:
    return Links(
        {name: {"flags": [], "addresses": [], "mtu": 1500, "address": ""} for name in names}
    )


def set_up(name: str, links: Links) -> FakeNode:
    node = made(name, links)
    wiring.set_up(TOPOLOGY, node)
    return node


def differences(node: FakeNode, topology: Topology = TOPOLOGY) -> list[Difference]:
    return wiring.differences(topology, node.name, wiring.look(node))


@pytest.mark.parametrize(
    ("name", "links"), [("n", ("eth0", "eth1")), ("r", ("eth0",)), ("alone", ("eth0",))]
)
def test_a_node_that_is_set_up_lacks_nothing(name: str, links: tuple[str, ...]) -> None:
    node = set_up(name, bare(*links))
    assert differences(node) == []
    assert node.files["/etc/hostname"] == f"{name}\n".encode()


def test_what_a_provider_does_first_comes_first() -> None:
    links = bare("eth0", "eth1")
    wiring.set_up(TOPOLOGY, made("n", links), ["link set dev eth1 up"])
    assert links.asked[0] == "link set dev eth1 up"


def test_only_a_gateway_forwards() -> None:
    one, other = bare("eth0", "eth1"), bare("eth0")
    set_up("n", one)
    set_up("r", other)
    assert (one.forwarding, other.forwarding) == ("0", "1")
    assert (one.gateway, other.gateway) == ("10.1.0.1", "")


def _address(links: Links) -> None:
    links.links["eth1"]["addresses"].clear()


def _first(links: Links) -> None:
    links.links["eth0"]["addresses"].clear()


def _prefix(links: Links) -> None:
    links.links["eth1"]["addresses"] = ["10.2.0.2/24"]


def _down(links: Links) -> None:
    links.links["eth1"]["flags"] = []


def _route(links: Links) -> None:
    links.gateway = ""


def _other_route(links: Links) -> None:
    links.gateway = "10.1.0.77"


@pytest.mark.parametrize(
    ("take", "difference"),
    [
        (_address, Difference("address", "10.2.0.2/16 on eth1", "missing", 1)),
        (_first, Difference("address", "10.1.0.2/24 on eth0", "missing", 0)),
        (_prefix, Difference("address", "10.2.0.2/16 on eth1", "missing", 1)),
        (_down, Difference("link", "eth1", "down", 1)),
        (_route, Difference("route", "default via 10.1.0.1", "missing")),
        (_other_route, Difference("route", "default via 10.1.0.1", "via 10.1.0.77")),
    ],
)
def test_a_difference_is_found_and_restored(
    take: Callable[[Links], None], difference: Difference
) -> None:
    links = bare("eth0", "eth1")
    node = set_up("n", links)
    take(links)
    assert differences(node) == [difference]
    wiring.restore(TOPOLOGY, node, differences(node))
    assert differences(node) == []


def test_an_address_of_the_users_stays() -> None:
    links = bare("eth0", "eth1")
    node = set_up("n", links)
    links.links["eth1"]["addresses"] = ["192.168.7.1/24", "10.2.0.2/24"]
    wiring.restore(TOPOLOGY, node, differences(node))
    assert links.links["eth1"]["addresses"] == ["192.168.7.1/24", "10.2.0.2/16"]


def test_a_setting_is_put_back() -> None:
    links = bare("eth0")
    node = set_up("r", links)
    links.forwarding = "0"
    (difference,) = differences(node)
    assert difference == Difference("setting", f"{FORWARDING}=1", "0")
    assert str(difference) == f"{FORWARDING}=1 (0)"
    wiring.restore(TOPOLOGY, node, [difference])
    assert differences(node) == []


def test_a_link_made_anew_is_bare_and_its_route_is_gone() -> None:
    links = bare("eth0", "eth1")
    node = set_up("n", links)
    links.links["eth0"] = {"flags": [], "addresses": []}
    links.gateway = ""
    wiring.restore(TOPOLOGY, node, [Difference("link", "eth0", "missing", 0)], anew=[0])
    assert differences(node) == []


def test_only_what_is_lacking_is_touched() -> None:
    links = bare("eth0", "eth1")
    node = set_up("n", links)
    links.asked.clear()
    wiring.restore(TOPOLOGY, node, [])
    assert links.asked == []
    wiring.restore(TOPOLOGY, node, [Difference("port", "port of eth1 on b", "detached", 1)])
    assert not [line for line in links.asked if "eth0" in line]


def test_a_link_that_is_not_there() -> None:
    node = set_up("n", links := bare("eth0", "eth1"))
    del links.links["eth1"]
    assert differences(node) == [Difference("link", "eth1", "missing", 1)]


# As ip(8) of iproute2 prints them.
ADDRESS = [
    {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"],
     "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8},
                   {"family": "inet6", "local": "::1", "prefixlen": 128}]},
    {},  # a link that `ip -4` would leave out
    {"ifname": "eth0", "flags": ["NO-CARRIER", "BROADCAST", "MULTICAST", "UP"], "addr_info": []},
    {"ifname": "eth1", "flags": ["BROADCAST", "MULTICAST"]},
]  # fmt: skip
ROUTES = [
    {"dst": "default", "gateway": "10.1.0.1", "dev": "eth0"},
    {"dst": "default", "dev": "ppp0"},
    {"dst": "10.1.0.0/24", "dev": "eth0"},
    {"type": "blackhole", "dst": "10.9.0.0/16"},
]


def test_the_output_of_ip_is_read() -> None:
    printed = f"{json.dumps(ADDRESS)}\0\n{json.dumps(ROUTES)}\0\n1\n"
    seen = wiring.read(printed.encode())
    assert seen == Seen(
        {
            "lo": Link("lo", "up", ("127.0.0.1/8",), ("::1/128",)),
            "eth0": Link("eth0", "no carrier"),
            "eth1": Link("eth1", "down"),
        },
        [
            Route("default", "10.1.0.1", "eth0"),
            Route("default", "", "ppp0"),
            Route("10.1.0.0/24", "", "eth0"),
            Route("10.9.0.0/16", "", ""),
        ],
        {FORWARDING: "1"},
    )
    assert seen.gateways == ["10.1.0.1"]


def test_a_machine_without_links_and_routes() -> None:
    assert wiring.read("\0".join(("", "", "0\n")).encode()) == Seen({}, [], {FORWARDING: "0"})


# -- settings of ports --------------------------------------------------------------------------

ODD = load_text(
    """
name: t
networks: {a: {subnet: 10.1.0.0/24, mtu: 9000}, b: {subnet: 10.2.0.0/16}, wire: {}}
nodes:
  n:
    networks:
      a: {addresses: [10.1.0.2, 192.0.2.1/32], mac: "02:00:00:00:00:01"}
      b: 10.2.0.2
      wire: {}
""",
    "t.yaml",
)


def test_settings_of_ports_are_set_seen_and_restored() -> None:
    links = bare("eth0", "eth1", "eth2")
    links.links["eth0"]["address"] = "02:00:00:00:00:01"  # set by the provider
    node = made("n", links)
    wiring.set_up(ODD, node)
    assert [link["mtu"] for link in links.links.values()] == [9000, 1500, 1500]
    assert links.links["eth0"]["addresses"] == ["10.1.0.2/24", "192.0.2.1/32"]
    assert links.links["eth2"] == {"flags": ["UP"], "addresses": [], "mtu": 1500, "address": ""}
    assert differences(node, ODD) == []
    for link in links.links.values():
        link |= {"mtu": 1280, "address": "02:00:00:00:00:09"}
    links.links["eth0"]["addresses"].pop()
    found = differences(node, ODD)
    assert [(one.kind, one.seen, one.index) for one in found] == [
        ("address", "missing", 0), ("mtu", "1280", 0), ("mac", "02:00:00:00:00:09", 0),
    ]  # fmt: skip
    wiring.restore(ODD, node, found)
    assert [link["mtu"] for link in links.links.values()] == [9000, 1280, 1280]
    assert differences(node, ODD) == []


SIX = load_text(
    """
name: t
networks: {a: {subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}}
nodes:
  n: {networks: {a: 10.1.0.2}}
  r: {networks: {a: 10.1.0.1}, gateway: true}
""",
    "t.yaml",
)


def test_addresses_of_both_families_are_set_seen_and_restored() -> None:
    links = bare("eth0")
    node = made("n", links)
    wiring.set_up(SIX, node)
    assert links.links["eth0"]["addresses"] == ["10.1.0.2/24", "fd00:1::2/64"]
    assert (links.gateway, links.gateway6) == ("10.1.0.1", "fd00:1::1 eth0")
    # A link that is up has begun to look for duplicates.
    assert links.six == dict.fromkeys(
        ("net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/accept_dad"), "down"
    )
    assert differences(node, SIX) == []
    links.links["eth0"]["addresses"].pop()
    found = differences(node, SIX)
    assert [(one.what, one.seen) for one in found] == [("fd00:1::2/64 on eth0", "missing")]
    wiring.restore(SIX, node, found)
    assert differences(node, SIX) == []
    links.gateway6 = ""
    found = differences(node, SIX)
    assert [(one.what, one.seen) for one in found] == [("default via fd00:1::1", "missing")]
    wiring.restore(SIX, node, found)
    assert differences(node, SIX) == []
    other = replace(wiring.look(node), gateways6=("fd00:1::9",))
    assert [one.seen for one in wiring.differences(SIX, "n", other)] == ["via fd00:1::9"]


def test_a_queue_is_set_seen_and_restored() -> None:
    slow = load_text(
        "name: t\nnetworks: {a: {subnet: 10.1.0.0/24, rate: 1mbit}}\n"
        "nodes: {n: {networks: {a: 10.1.0.2}}}",
        "t.yaml",
    )
    links = bare("eth0")
    provider = FakeProvider()
    node = provider.create_one("t", NodeSpec("n", "digest"))
    provider.script(["ip"], links.ip)
    provider.script(LOOK, links.look)

    def tc(call: Call) -> Answer:
        assert call.words == ("tc", "-batch", "-")
        assert (call.input or b"").startswith(b"qdisc replace dev eth0 root handle ba2: tbf ")
        links.links["eth0"]["qdisc"] = "tbf"
        return Answer()

    provider.script(["tc"], tc)
    assert isinstance(node, FakeNode)
    wiring.set_up(slow, node)
    assert differences(node, slow) == []
    links.links["eth0"]["qdisc"] = "noqueue"
    found = differences(node, slow)
    assert [(one.what, one.seen) for one in found] == [("rate 1mbit of eth0", "noqueue")]
    wiring.restore(slow, node, found)
    assert differences(node, slow) == []
