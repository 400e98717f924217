"""Document 003, the parts of an IP address: pure arithmetic, no lab."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed.claims.observation import Observation

#: All addresses with a prefix length that document 003 prints or implies.
PRINTED = (
    "129.5.1.1/16",
    "10.168.0.2/24",
    "10.168.0.3/24",
    "100.96.1.2/24",
    "100.96.2.3/24",
    "100.96.1.2/16",
    "10.1.16.2/24",
    "172.17.0.3/16",
)
ALL_ONES = 0xFFFFFFFF


def parts(address: str) -> tuple[int, int, int]:
    """Return address, network mask and host mask as numbers, from the prefix length."""
    number, _, length = address.partition("/")
    host_mask = (1 << (32 - int(length))) - 1
    return int(IPv4Address(number)), ALL_ONES ^ host_mask, host_mask


def class_of(address: str) -> tuple[str, int]:
    """Return class and prefix length by the first octet's bits (RFC 791, section 3.2)."""
    first = int(IPv4Address(address)) >> 24
    if first >> 7 == 0b0:
        return "A", 8
    if first >> 6 == 0b10:
        return "B", 16
    if first >> 5 == 0b110:
        return "C", 24
    return "D or E", 32


@pytest.mark.testbed_claim("ip-two-parts")
def test_network_part_and_host_part_make_the_address(observe: Observation) -> None:
    for text in PRINTED:
        address, network_mask, host_mask = parts(text)
        network, host = address & network_mask, address & host_mask
        observe.note(text, f"network {IPv4Address(network)}, host {host}")
        observe.holds(network | host == address, f"{text}: both parts together are the address")
        observe.holds(network & host == 0, f"{text}: no bit is in both parts")


@pytest.mark.testbed_claim("ip-part-meaning")
def test_network_part_tells_the_network_host_part_the_host(observe: Observation) -> None:
    one, two, far = (IPv4Interface(f"{a}/24") for a in ("10.168.0.2", "10.168.0.3", "100.96.1.2"))
    hosts = {address: int(address) & int(address.network.hostmask) for address in (one, two, far)}
    observe.note("network and host", {str(a): [str(a.network), h] for a, h in hosts.items()})
    observe.holds(one.network == two.network, "10.168.0.2 and .3: one network")
    observe.holds(hosts[one] != hosts[two], "10.168.0.2 and .3: two hosts of it")
    observe.holds(
        one.network != far.network and hosts[one] == hosts[far],
        "10.168.0.2 and 100.96.1.2: equal host parts, told apart by the network",
    )


@pytest.mark.testbed_claim("ip-network-address-zero-host")
def test_network_address_has_a_host_part_of_zeros(observe: Observation) -> None:
    for text in PRINTED:
        network = IPv4Interface(text).network.network_address
        _, network_mask, host_mask = parts(text)
        observe.note(text, f"network address {network}")
        observe.holds(int(network) & host_mask == 0, f"{network}: host bits are zero")
        observe.holds(
            int(network) == parts(text)[0] & network_mask, f"{network}: network bits unchanged"
        )


@pytest.mark.testbed_claim("ip-class-b-example")
def test_129_5_1_1_is_class_b_in_network_129_5_0_0(observe: Observation) -> None:
    name, length = class_of("129.5.1.1")
    network = IPv4Network((int(IPv4Address("129.5.1.1")), length), strict=False)
    observe.note("129.5.1.1", f"class {name}, prefix length {length}, network {network}")
    observe.holds(name == "B", "129 begins with the bits 10: class B")
    observe.holds(str(network.network_address) == "129.5.0.0", "network address 129.5.0.0")


@pytest.mark.testbed_claim("ip-broadcast-ones")
def test_broadcast_address_has_a_host_part_of_ones(observe: Observation) -> None:
    for text in PRINTED:
        address, network_mask, host_mask = parts(text)
        broadcast = IPv4Interface(text).network.broadcast_address
        observe.note(text, f"broadcast address {broadcast}")
        observe.holds(int(broadcast) & host_mask == host_mask, f"{broadcast}: host bits are one")
        observe.holds(
            int(broadcast) & network_mask == address & network_mask,
            f"{broadcast}: network bits unchanged",
        )
    assert str(IPv4Network("129.5.0.0/16").broadcast_address) == "129.5.255.255"
