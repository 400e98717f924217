"""Networks with an uplink: what a file can say, and what follows for nodes and their gateway."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from topology_texts import problems

from testbed.errors import LabError, TopologyError
from testbed.labs.preflight import kernel_features, programs
from testbed.nodes import wiring
from testbed.nodes.netns.provider import UPLINK, NetnsProvider, bridge_of
from testbed.nodes.netns.uplink import Uplink
from testbed.topology import Topology, load_data, load_text

TEXT = """\
name: up
networks:
  out: {subnet: 10.99.0.0/24, uplink: true}
  other: {subnet: 169.254.1.0/24, uplink: true, mtu: 1400}
  lan: {subnet: 10.1.0.0/24}
nodes:
  r: {networks: {out: 10.99.0.2, lan: 10.1.0.1}, gateway: true}
  s: {networks: {out: 10.99.0.3, other: 169.254.1.3}}
  b: {networks: {lan: 10.1.0.2}}
  lone: {}
"""


def topology(text: str = TEXT) -> Topology:
    return load_text(text, "t.yaml")


def test_the_first_address_is_the_gateway() -> None:
    found = topology()
    assert [network.name for network in found.uplinks] == ["out", "other"]
    gateways = {name: str(found.gateway_of(name)) for name in found.nodes}
    assert gateways == {"r": "10.99.0.1", "s": "10.99.0.1", "b": "10.1.0.1", "lone": "None"}
    # It is no node, so nothing is on the way to another node.
    assert (found.gateway_node("r"), found.gateway_node("b")) == (None, ("r", "lan"))
    assert not found.reaches("s", "b")


def test_each_router_may_be_the_gateway_of_its_own_networks() -> None:
    """Two routers with a network each, both on the one with the uplink."""
    two = TEXT.replace("other: 169.254.1.3}", "home: 10.2.0.1}, gateway: true")
    two = two.replace("nodes:", "  home: {subnet: 10.2.0.0/24}\nnodes:")
    found = topology(two + "  c: {networks: {home: 10.2.0.2}}\n")
    assert [str(found.gateway_of(name)) for name in ("b", "c", "r")] == [
        "10.1.0.1", "10.2.0.1", "10.99.0.1",
    ]  # fmt: skip
    with pytest.raises(TopologyError):
        topology(two.replace(", uplink: true", ""))


def test_nodes_ask_the_uplink_on_their_way_out() -> None:
    found = topology()
    resolvers = {name: str(found.resolver(name)) for name in found.nodes}
    assert resolvers == {"r": "10.99.0.1", "s": "10.99.0.1", "b": "10.99.0.1", "lone": "None"}
    assert topology(TEXT.replace(", uplink: true", "")).resolver("b") is None


@pytest.mark.parametrize(
    ("lan", "link"),
    [
        ("10.1.0", "169.254.2"),
        ("169.254.2", "169.254.3"),  # behind a router: the way back to it is another one
    ],
)
def test_the_link_of_the_program_has_a_subnet_that_the_lab_lacks(lan: str, link: str) -> None:
    lines = Uplink(topology(TEXT.replace("10.1.0", lan)))._lines()
    assert lines[0] == f"address add {link}.100/24 dev out"
    assert f"route replace {lan}.0/24 via 10.99.0.2" in lines


def test_a_lab_may_have_all_link_local_addresses() -> None:
    wide = TEXT.replace("169.254.1.0/24", "169.254.0.0/16")
    assert Uplink(topology(wide))._lines()[0] == "address add 198.18.1.100/24 dev out"
    both = wide.replace("10.1.0.0/24", "198.0.0.0/8").replace("10.1.0", "198.0.0")
    with pytest.raises(LabError) as caught:
        Uplink(topology(both))
    assert caught.value.hint


def test_a_default_route_of_its_own_takes_the_place_of_the_uplink() -> None:
    found = topology(TEXT.replace("b: {", "b: {routes: [default via 10.1.0.9], "))
    assert found.gateway_of("b") is None
    assert str(found.offered_gateway("b")) == "10.1.0.1"


def test_it_is_said_and_read_back() -> None:
    plain = topology().to_dict()
    assert plain["networks"]["out"] == {"subnet": "10.99.0.0/24", "uplink": True}
    assert load_data(plain, "t.yaml") == topology()
    assert (
        "uplink"
        not in topology(TEXT.replace("uplink: true", "uplink: false")).to_dict()["networks"]["out"]
    )
    assert "10.99.0.1" in topology().networks["out"].words
    assert "uplink" not in topology().networks["lan"].words


def test_nodes_of_a_network_with_an_uplink_are_others() -> None:
    before, after = topology(TEXT.replace("24, uplink: true}", "24}")), topology()
    changed = {n for n in after.nodes if after.node_digest(n) != before.node_digest(n)}
    assert changed == {"r", "s"}


@pytest.mark.parametrize(
    ("old", "new", "line", "seen"),
    [
        ("subnet: 10.99.0.0/24, ", "", 3, "no subnet"),
        ("10.99.0.0/24", "10.99.0.2/31", 3, "10.99.0.2/31"),
        ("out: 10.99.0.2", "out: 10.99.0.1", 7, "10.99.0.1"),
        ("169.254.1.0/24", "10.99.0.0/16", 4, "10.99.0.0"),
        ("uplink: true", "uplink: yes please", 3, "'yes please'"),
    ],
)
def test_what_cannot_be(old: str, new: str, line: int, seen: str) -> None:
    text = TEXT.replace(old, new, 1)
    if "24, " in old or "/31" in new:
        text = text.replace("out: 10.99.0.2", "out: {address: 10.99.0.2/24}")
        text = text.replace("out: 10.99.0.3", "out: {address: 10.99.0.4/24}")
    if "/16" in new:
        text = text.replace("169.254.1.3", "10.99.1.3").replace("out: 10.99.0.3, ", "")
    found = problems(text)
    assert [one.line for one in found] == [line]
    assert seen in found[0].seen
    assert found[0].hint


def test_only_fabrics_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetnsProvider, "uplinks", False)
    assert {one.line for one in problems(TEXT)} == {3, 4}


def test_the_machine_needs_a_tap_and_nat() -> None:
    assert {"tun", "nft nat"} <= kernel_features(topology())
    assert "nft" in programs(topology())
    plain = topology(TEXT.replace(", uplink: true", ""))
    assert not {"tun", "nft nat"} & kernel_features(plain)
    assert "nft" not in programs(plain)


def test_the_gateway_knows_the_ways_back() -> None:
    made = Uplink(topology())
    lines = made._lines()
    assert lines[0] == "address add 169.254.2.100/24 dev out", "169.254.1.0/24 is taken"
    assert "address add 10.99.0.1/24 broadcast + dev eth0" in lines
    assert "address add 169.254.1.1/24 broadcast + dev eth1" in lines
    assert [line for line in lines if "route" in line] == [
        "route add default via 169.254.2.2", "route replace 10.1.0.0/24 via 10.99.0.2",
    ]  # fmt: skip
    rules = made._rules()
    for address in ("10.99.0.1", "169.254.1.1"):
        assert f"ip daddr {address} udp dport 53 dnat to 169.254.2.3" in rules
    assert "policy drop" in rules
    assert made.ports() == [UPLINK, f"{UPLINK}.1"]
    assert all(len(name) < 16 for name in made.ports())


class Gateway:
    """The namespace of an uplink, as a node that answers."""

    def __init__(
        self, digest: str, seen: wiring.Seen, *, ready: bool = True, nat: bool = True
    ) -> None:
        self.digest, self.seen, self.works = digest, seen, {"test": ready, "nft": nat}

    def run(self, argv: list[str], **_: object) -> object:
        ok = self.works[argv[0]]
        return type("Result", (), {"ok": ok, "status": 0 if ok else 1})


def link(name: str, *addresses: str, state: wiring.State = "up") -> wiring.Link:
    return wiring.Link(name, state, addresses)


WHOLE = {
    one.name: one
    for one in (
        link("out", "169.254.2.100/24"),
        link("eth0", "10.99.0.1/24"),
        link("eth1", "169.254.1.1/24"),
    )
}  # fmt: skip
WAY = (wiring.Route("default", "169.254.2.2", "out"),)
PORTS = {
    UPLINK: {"state": "up", "master": "br-out"},
    f"{UPLINK}.1": {"state": "up", "master": "br-other"},
}


BOTH = {"out", "other"}
DOWN = {"eth1": link("eth1", "169.254.1.1/24", state="down")}


@pytest.mark.parametrize(
    ("links", "routes", "works", "ports", "wrong"),
    [
        (WHOLE, WAY, {}, PORTS, set()),
        (WHOLE | DOWN, WAY, {}, PORTS, BOTH),
        (WHOLE | {"eth0": link("eth0")}, WAY, {}, PORTS, BOTH),
        ({name: one for name, one in WHOLE.items() if name != "out"}, WAY, {}, PORTS, BOTH),
        (WHOLE, (), {}, PORTS, BOTH),
        (WHOLE, WAY, {"ready": False}, PORTS, BOTH),
        (WHOLE, WAY, {"nat": False}, PORTS, BOTH),
        (WHOLE, WAY, {}, {UPLINK: PORTS[UPLINK]}, {"other"}),
        (WHOLE, WAY, {}, {**PORTS, UPLINK: {"state": "up", "master": "br-other"}}, {"out"}),
    ],
)
def test_what_is_missing_is_seen(
    monkeypatch: pytest.MonkeyPatch,
    links: dict[str, wiring.Link],
    routes: tuple[wiring.Route, ...],
    works: dict[str, bool],
    ports: dict[str, dict[str, str]],
    wrong: set[str],
) -> None:
    monkeypatch.setattr(wiring, "look", lambda node: node.seen)
    made = Uplink(topology())
    gateway = Gateway(made.digest, wiring.Seen(links, routes), **works)
    assert made.missing(gateway, ports).keys() == wrong  # type: ignore[arg-type]


def test_another_or_no_gateway_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Uplink(topology())
    assert made.missing(None, PORTS).keys() == {"out", "other"}
    other = Uplink(topology(TEXT.replace("lan: 10.1.0.1", "lan: 10.1.0.7")))
    assert other.digest == made.digest, "an address behind a router is nothing to it"
    other = Uplink(topology(TEXT.replace("out: 10.99.0.2", "out: 10.99.0.7")))
    assert made.missing(Gateway(other.digest, wiring.Seen()), PORTS)  # type: ignore[arg-type]

    def ended(_: object) -> None:
        raise LabError("it has ended")

    monkeypatch.setattr(wiring, "look", ended)
    assert made.missing(Gateway(made.digest, wiring.Seen()), PORTS)  # type: ignore[arg-type]


def test_a_provider_without_the_program_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="slirp4netns"):
        NetnsProvider(tmp_path, lambda: tmp_path)._nat()


def test_its_names_are_no_others() -> None:
    with pytest.raises(TopologyError):
        topology(TEXT.replace("lone:", f"{UPLINK}:"))
    assert bridge_of("uplink") != UPLINK
    assert ipaddress.ip_address("169.254.2.2").is_link_local
