"""Words for the ends of a walk, on an inventory made by hand."""

from __future__ import annotations

import pytest

from testbed.errors import LabError, UsageError
from testbed.observe.inventory import Inventory, Link, Machine, Network, Peer, Service, Space
from testbed.walk.ends import End, source_of, target_of

LAN = Link("eth0", 2, addresses=("10.0.0.1/24", "fd00::1/64"), joins="lan")
OWN = "/proc/self/ns/net"


def own(lan: str, *more: Link) -> Space:
    links = (Link("lo", 1, loopback=True, addresses=("127.0.0.1/8",)), *more)
    return Space("", path=OWN, links=(*links, Link("eth9", 9, addresses=(lan,), joins="lan")))


def inside(name: str, address: str) -> Space:
    link = Link("eth0", 2, addresses=(address,))
    return Space(name, "container", f"/proc/{len(name)}/ns/net", links=(link,))


BRIDGE = Link("br0", 3, addresses=("172.17.0.1/16",))
INVENTORY = Inventory(
    "lab",
    (
        Machine("node1", spaces=(
            own("10.0.0.1/24", BRIDGE),
            inside("web", "172.17.0.2/16"),
            Space("beside", "container", shares="web", mode="container"),
            Space("in-host", "container", mode="host"),
            inside("twice", "172.17.0.3/16"),
        )),
        Machine("node2", spaces=(own("10.0.0.2/24", BRIDGE), inside("twice", "172.17.0.3/16"),
                                 inside("space/pod-1", "10.244.0.2/24"))),
    ),
    services=(Service("space/dns", ("10.96.0.10",), ("53/udp", "53/tcp")),
              Service("space/log", ("10.96.0.11",), ("514/udp",))),
)  # fmt: skip


def nothing(name: str) -> str:
    del name
    return ""


def target(word: str, source: str = "node1", family: int = 4) -> End:
    return target_of(INVENTORY, word, source_of(INVENTORY, source), family, nothing)


@pytest.mark.parametrize(("word", "place"), [
    ("node1", ("node1", "")), ("node1/web", ("node1", "web")), ("web", ("node1", "web")),
    ("beside", ("node1", "web")), ("in-host", ("node1", "")),
    ("node2/twice", ("node2", "twice")), ("pod-1", ("node2", "space/pod-1")),
    ("10.244.0.2", ("node2", "space/pod-1")),
])  # fmt: skip
def test_a_source_is_a_place(word: str, place: tuple[str, str]) -> None:
    assert source_of(INVENTORY, word).place == place


@pytest.mark.parametrize(("word", "hint"), [
    ("node1/wep", "node1/web"), ("172.17.0.1", "known"), ("twice", "node2/twice"), ("", "known"),
])  # fmt: skip
def test_a_word_for_no_place_or_several_has_a_hint(word: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        source_of(INVENTORY, word)
    assert error.value.hint is not None
    assert hint in error.value.hint


@pytest.mark.parametrize(("word", "source", "address"), [
    ("node2", "node1", "10.0.0.2"),  # on their common network, not that of a bridge
    ("in-host", "web", "172.17.0.1"),  # the nearest for a container
    ("node1", "node1", "172.17.0.1"),
    ("web", "node1", "172.17.0.2"),
    ("192.0.2.1", "node1", "192.0.2.1"),
])  # fmt: skip
def test_a_target_has_the_address_nearest_to_the_source(
    word: str, source: str, address: str
) -> None:
    assert target(word, source).address == address


def test_a_service_has_the_port_of_its_first_protocol() -> None:
    found = target("space/dns")
    assert (found.address, found.port, found.protocol) == ("10.96.0.10", 53, "tcp")
    assert target("log").protocol == "udp"


def test_a_name_is_asked_of_the_source() -> None:
    source = source_of(INVENTORY, "web")
    found = target_of(INVENTORY, "shop.example", source, 4, {"shop.example": "10.0.0.2"}.get)  # type: ignore[arg-type]
    assert (found.address, found.place) == ("10.0.0.2", ("node2", ""))
    with pytest.raises(UsageError):
        target_of(INVENTORY, "shop.invalid", source, 4, nothing)


def test_a_mistyped_place_is_not_resolved() -> None:
    source = source_of(INVENTORY, "web")
    with pytest.raises(UsageError):
        target_of(INVENTORY, "node2/contaner-2", source, 4, pytest.fail)


def test_a_name_with_an_address_of_ipv4_alone_is_no_target_of_ipv6() -> None:
    """getaddrinfo(3) gives a mapped address then, to which a socket sends IPv4."""
    with pytest.raises(LabError) as error:
        target_of(INVENTORY, "shop", source_of(INVENTORY, "web"), 6, lambda _: "::ffff:10.0.0.2")
    assert error.value.hint == "leave out -6"
    with pytest.raises(UsageError):
        target("::ffff:10.0.0.2", family=6)


def test_an_address_of_another_family_is_refused() -> None:
    for word, family, hint in (("fd00::1", 4, "-6 chooses"), ("10.0.0.2", 6, "leave out -6")):
        with pytest.raises(UsageError) as error:
            target(word, family=family)
        assert error.value.where == word
        assert hint in str(error.value.hint)
    with pytest.raises(LabError):
        target("web", family=6)


def test_a_link_of_the_lab_comes_before_the_network_that_manages_nodes() -> None:
    """As in a file of containerlab, whose links have no names of networks."""

    def node(name: str, last: int, *links: Link) -> Machine:
        eth0 = Link("eth0", 2, addresses=(f"172.20.20.{last}/24",))
        return Machine(name, spaces=(Space("", path=OWN, links=(eth0, *links)),))

    def wire(number: int, address: str, *peer: str) -> Link:
        return Link(f"eth{number}", number, addresses=(address,), peer=Peer(peer[0], "", peer[1]))

    row = Inventory("row", (
        node("left", 2, wire(1, "10.1.0.2/24", "middle", "eth1")),
        node("middle", 3, wire(1, "10.1.0.1/24", "left", "eth1"),
             wire(2, "10.2.0.1/24", "right", "eth1")),
        node("right", 4, wire(1, "10.2.0.2/24", "middle", "eth2")),
        node("apart", 5),
    ))  # fmt: skip
    wanted = {("left", "right"): "10.2.0.2", ("left", "middle"): "10.1.0.1",
              ("right", "middle"): "10.2.0.1", ("left", "apart"): "172.20.20.5"}  # fmt: skip
    for (source, word), address in wanted.items():
        assert target_of(row, word, source_of(row, source), 4, nothing).address == address


@pytest.mark.parametrize("aside", [True, False])
def test_a_network_beside_the_links_of_a_lab_is_the_last_choice(aside: bool) -> None:
    """All nodes are on it, and the links are what a lab is about."""
    peer = Peer("middle", "", "eth1")
    machines = [
        Machine(name, spaces=(Space("", path=OWN, links=(
            Link("eth0", 2, addresses=(f"172.20.20.{number}/24",), joins="mgmt",
                 peer=Peer("fabric", "", f"veth{number}")),
            Link("eth1", 3, addresses=(f"10.{number}.0.2/24",), peer=peer),
        )),))
        for number, name in ((2, "left"), (3, "right"))
    ]  # fmt: skip
    networks = (Network("mgmt", "172.20.20.0/24", (), "br-5e1f", aside=aside),)
    found = Inventory("lab", tuple(machines), networks)
    end = target_of(found, "right", source_of(found, "left"), 4, nothing)
    assert end.address == ("10.3.0.2" if aside else "172.20.20.3")


def test_a_bridge_with_a_link_to_another_node_is_on_a_link() -> None:
    left = (Link("eth0", 2, addresses=("172.20.20.2/24",)),
            Link("eth1", 3, addresses=("10.9.0.1/24",), peer=Peer("right", "", "p1")))  # fmt: skip
    right = (Link("eth0", 2, addresses=("172.20.20.3/24",)),
             Link("br0", 3, addresses=("10.9.0.9/24",)),
             Link("p1", 4, master="br0", peer=Peer("left", "", "eth1")))  # fmt: skip
    machines = (Machine("left", spaces=(Space("", path=OWN, links=left),)),
                Machine("right", spaces=(Space("", path=OWN, links=right),)))  # fmt: skip
    found = Inventory("lab", machines)
    assert target_of(found, "right", source_of(found, "left"), 4, nothing).address == "10.9.0.9"
