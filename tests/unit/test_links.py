"""Names of links: the kernel takes each, and no two are the same."""

from __future__ import annotations

import re

import pytest

from testbed.labs.base_steps import hosts
from testbed.nodes.fake import FakeProvider
from testbed.nodes.links import LONGEST, link_name
from testbed.nodes.links import port_name as port
from testbed.nodes.vagrant import hypervisor
from testbed.topology import keys, load, load_text, reserved

NODES = ["a", "a-1", "a-10", "if-1", "n" * keys.NODE_MAX, "m" * keys.NODE_MAX]


def test_every_port_has_a_name_that_fits_and_is_its_own() -> None:
    names = [port(node, index) for node in NODES for index in range(1200)]
    assert max(map(len, names)) <= LONGEST == keys.INTERFACE_MAX
    assert len(set(names)) == len(names)
    derived = [name for name in names if not any(name.startswith(node) for node in NODES)]
    assert len(derived) == 2 * (1200 - 100)
    assert not any(re.fullmatch(keys.LABEL, name) for name in derived), "no node is called so"


def test_what_fits_is_readable() -> None:
    assert [port("node1", index) for index in (0, 1, 10)] == ["node1", "node1.1", "node1.10"]
    assert link_name("x" * LONGEST) == "x" * LONGEST
    assert link_name("x" * 16) == link_name("x" * 16) != link_name("y" * 16)


def test_the_hypervisors_links_fit_too() -> None:
    for name in (hypervisor.bridge, hypervisor.joint):
        names = {name(node, index) for node in NODES for index in range(200)}
        assert max(map(len, names)) <= LONGEST
        assert len(names) == len(NODES) * 200


def test_every_port_of_a_node_is_named() -> None:
    nets = {f"n{i}": i for i in range(101)}
    text = "name: t\nnetworks:\n"
    text += "".join(f"  {name}: {{subnet: 10.0.{i}.0/24}}\n" for name, i in nets.items())
    text += f"nodes:\n  {'a' * 12}:\n    networks:\n"
    text += "".join(f"      {name}: 10.0.{i}.2\n" for name, i in nets.items())
    ports = FakeProvider().ports(load_text(text, "t.yaml"), "a" * 12)
    assert ports == [port("a" * 12, index) for index in range(101)]
    assert len(ports[100]) == LONGEST


def test_localhost_is_127_0_0_1_alone() -> None:
    """With ::1 of that name too, getaddrinfo(3) would put it first (RFC 6724)."""
    topology = load("two-node")
    lines = [line.split() for line in hosts(topology, "node1").splitlines()]
    assert [line[0] for line in lines if "localhost" in line[1:]] == ["127.0.0.1"]
    names = [name for line in lines for name in line[1:]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("names", "among"),
    [
        ("all default lo if0 if12", reserved.LINKS),
        ("fabric br-lan all default lo if7 1 017 08 0x 0xff localhost tasks", reserved.NODES),
        ("12 0x1 localhost ip6-loopback", reserved.CONTAINERS),
    ],
)
def test_reserved_names_say_why(names: str, among: tuple[reserved.Reserved, ...]) -> None:
    assert all(reserved.why(name, among) for name in names.split())


def test_others_are_free() -> None:
    names = "a br fabric0 lo0 if ifa 1a 0y cafe x0 alla task host docker eth0 up dev none"
    assert [name for name in names.split() if reserved.why(name, reserved.NODES)] == []
