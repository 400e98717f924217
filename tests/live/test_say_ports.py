"""Networks, ports and links of a topology file, on a small lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.faults.force import Faults
from testbed.faults.model import parse
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.polling import until
from testbed.topology import load_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.labs.lab import Lab

LAB = """\
name: say-ports
networks: {lan: {subnet: 10.1.0.0/24, subnet6: "fd00:1::/64", mtu: 1400}, wire: {rate: 10mbit}}
links:
  - [r1:eth1, r2:eth1]
  - {ends: [r1:eth2, r2:up0], subnet: 10.0.0.0/31, subnet6: "fd00:9::/127", mtu: 9000}
nodes:
  r1: {networks: {lan: [10.1.0.1, {addresses: [10.1.0.11, 10.1.0.12/32], name: lan1}]}}
  r2:
    networks:
      wire: {mac: "02:00:00:00:00:0a"}
      lan: {address: 10.1.0.2, mtu: 1300, name: lan0}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from brought_up(load_text(LAB, "say-ports"), tmp_path_factory.mktemp("state"))


@pytest.fixture
def live(lab: Lab) -> Iterator[LiveLab]:
    found = LiveLab(lab.context())
    yield found
    found.close()


def links(live: LiveLab, node: str) -> dict[str, tuple[str, int, list[str]]]:
    """The MAC address, MTU and addresses of each link of a node."""
    found = live.node(node).run(["ip", "-j", "address"]).json()
    return {
        link["ifname"]: (
            link["address"],
            link["mtu"],
            [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] != "link"],
        )
        for link in found
        if link["ifname"] != "lo"
    }


def reaches(live: LiveLab, node: str, address: str, *more: str) -> bool:
    argv = ["ping", "-c1", "-W1", *more, address]
    return live.node(node).run(argv, check=False).ok


def mended(lab: Lab) -> None:
    """The lab is not as its file says; `up` restores it."""
    assert not status(lab.context()).ok
    lab.up(lab.topology(), keep=True)
    assert status(lab.context()).ok


def test_ports_are_as_the_file_says(live: LiveLab) -> None:
    one, two = links(live, "r1"), links(live, "r2")
    assert {name: found[1:] for name, found in one.items()} == {
        "eth0": (1400, ["10.1.0.1/24", "fd00:1::1/64"]),
        "lan1": (1400, ["10.1.0.11/24", "10.1.0.12/32", "fd00:1::b/64"]),
        "eth1": (1500, []),
        "eth2": (9000, ["10.0.0.0/31", "fd00:9::/127"]),
    }
    assert {name: found[1:] for name, found in two.items()} == {
        "eth0": (1500, []),
        "lan0": (1300, ["10.1.0.2/24", "fd00:1::2/64"]),
        "eth1": (1500, []),
        "up0": (9000, ["10.0.0.1/31", "fd00:9::1/127"]),
    }
    assert two["eth0"][0] == "02:00:00:00:00:0a"
    assert reaches(live, "r1", "10.1.0.2")
    assert reaches(live, "r2", "10.1.0.12")
    for address in ("fd00:1::2", "fd00:9::1"):
        assert reaches(live, "r1", address)
    assert reaches(live, "r1", "r2", "-6")
    for name in ("accept_ra", "accept_dad"):
        assert live.node("r1").get(f"/proc/sys/net/ipv6/conf/eth0/{name}") == b"0\n"
    assert reaches(live, "r1", "10.0.0.1", "-s", "8972", "-M", "do")  # 9000 with both headers


def test_an_end_of_a_link_sees_the_other_go_down(lab: Lab, live: LiveLab) -> None:
    live.node("r1").run(["ip", "link", "set", "dev", "eth2", "down"])
    (far,) = live.node("r2").run(["ip", "-j", "link", "show", "dev", "up0"]).json()
    assert "NO-CARRIER" in far["flags"]
    mended(lab)
    assert reaches(live, "r2", "10.0.0.0")


@pytest.mark.parametrize(
    ("node", "change"),
    [
        ("r2", "link delete dev up0"),
        ("r1", "link set dev eth2 down name other"),
        ("r2", "link set dev lan0 mtu 1200"),
        ("r2", "link set dev eth0 address 02:00:00:00:00:0b"),
        ("r1", "address delete 10.1.0.12/32 dev lan1"),
        ("r2", "link set dev eth0 down"),
        ("r1", "address delete fd00:1::1/64 dev eth0"),
    ],
)
def test_what_has_changed_is_shown_and_restored(
    lab: Lab, live: LiveLab, node: str, change: str
) -> None:
    before = links(live, "r1"), links(live, "r2")
    live.node(node).run(["ip", *change.split()])
    mended(lab)
    assert (links(live, "r1"), links(live, "r2")) == before
    assert reaches(live, "r1", "10.0.0.1")


def test_faults_are_on_networks_and_on_links(lab: Lab, live: LiveLab) -> None:
    ways = ("10.0.0.1", "10.1.0.2")
    Faults(lab).apply(parse(["partition", "r1:r2"]))
    assert [reaches(live, "r1", one) for one in ways] == [False, False]
    assert [seen.fault.words for seen in Faults(lab).in_force()] == ["partition r1:r2"]
    Faults(lab).heal()
    # The kernel asks a neighbour that has not answered once a second.
    assert until(lambda: all(reaches(live, "r1", one) for one in ways), 60)
    Faults(lab).apply(parse(["rate", "r2", "10mbit"]))
    assert "10Mbit" in live.node("r1").run(["tc", "qdisc", "show", "dev", "eth2"]).stdout
    assert [seen.fault.words for seen in Faults(lab).in_force()] == ["rate r2 10mbit"]
    Faults(lab).heal()
    assert Faults(lab).in_force() == []


def test_a_node_that_is_created_again_has_its_links(lab: Lab, live: LiveLab) -> None:
    before = links(live, "r1"), links(live, "r2")
    lab.context().provider.destroy(lab.name, ["r2"])
    lab.up(lab.topology(), keep=True)
    assert status(lab.context()).ok
    again = LiveLab(lab.context())
    assert (links(again, "r1"), links(again, "r2")) == before
    assert reaches(again, "r1", "10.0.0.1")
    again.close()


def test_a_network_has_its_rate(lab: Lab, live: LiveLab) -> None:
    show = ["tc", "qdisc", "show", "dev", "eth0"]
    assert "tbf" in live.node("r2").run(show).stdout
    assert "10Mbit" in live.node("r2").run(show).stdout
    live.node("r2").run(["tc", "qdisc", "delete", "dev", "eth0", "root"])
    mended(lab)
    assert "10Mbit" in live.node("r2").run(show).stdout
