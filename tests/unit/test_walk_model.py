"""A walk as a value: what tests assert on, and what is written as JSON."""

from __future__ import annotations

import json

import pytest

from testbed.walk.ends import End
from testbed.walk.model import Change, Fact, Hop, Leg, Rule, Spot, View, Walk

RULE = Rule("ip", "nat", "POSTROUTING", 1, "-A POSTROUTING -j MASQUERADE", "MASQUERADE")
CHAIN = Hop("chain", Spot("node1"), "postrouting", 0.001, rules=(RULE,))
DEVICE = Hop(
    "device",
    Spot("node1", "web", "eth0"),
    "out",
    0.0,
    View(src="10.0.0.2", frame=b"\x01\xff"),
    (Change("ttl", "64", "63"),),
    facts=(Fact("the default route", "asked", "ip route get"),),
)
WALK = Walk(
    "lab", "a", "b", "icmp echo", "2026-01-01T00:00:00Z",
    (Leg("there", (DEVICE, CHAIN), arrived=True), Leg("back", (), arrived=False)),
    {"10.0.0.2": "a"},
)  # fmt: skip


def test_hops_are_labels_that_a_test_can_ask_for() -> None:
    assert WALK.hops == ["node1/web:eth0 out", "nat POSTROUTING"]
    assert Hop("route", Spot("node1")).label == "route"


def test_a_walk_arrived_if_all_its_legs_did() -> None:
    assert not WALK.arrived


def test_a_walk_is_json() -> None:
    data = json.loads(json.dumps(WALK.to_dict()))
    assert data["format"] == 1
    assert data["legs"][0]["hops"][0]["view"]["frame"] == "01ff"
    assert data["legs"][0]["hops"][1]["rules"][0]["chain"] == "POSTROUTING"
    assert data["names"] == {"10.0.0.2": "a"}


@pytest.mark.parametrize(
    ("word", "address", "host"),
    [
        ("web.example", "10.0.0.2", "web.example"),
        ("node1/web", "10.0.0.2", "10.0.0.2"),
        ("node1/web", "fd00::2", "[fd00::2]"),
        ("fd00::2", "fd00::2", "[fd00::2]"),
    ],
)
def test_a_request_names_a_host_that_a_server_takes(word: str, address: str, host: str) -> None:
    assert End(word, address=address).host == host
