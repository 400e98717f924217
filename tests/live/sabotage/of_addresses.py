"""Arithmetic that is told other numbers."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

import pytest

from sabotage.trials import NO_LAB, sabotage
from testbed.catalogues.shipped import test_addresses

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab


@sabotage(NO_LAB, "ip-two-parts")
def a_bit_is_in_both_parts(lab: LiveLab) -> Iterator[None]:
    """The host mask is a bit longer than what the network mask leaves."""
    real = test_addresses.parts

    def parts(address: str) -> tuple[int, int, int]:
        number, network_mask, host_mask = real(address)
        return number, network_mask, host_mask << 1 | 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_addresses, "parts", parts)
        yield


@sabotage(NO_LAB, "ip-two-parts")
def a_bit_is_in_no_part(lab: LiveLab) -> Iterator[None]:
    """The host mask is a bit shorter than what the network mask leaves."""
    real = test_addresses.parts

    def parts(address: str) -> tuple[int, int, int]:
        number, network_mask, host_mask = real(address)
        return number, network_mask, host_mask >> 1 & ~1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_addresses, "parts", parts)
        yield


@sabotage(NO_LAB, "ip-part-meaning", "ip-network-address-zero-host", "ip-broadcast-ones")
def all_addresses_are_one(lab: LiveLab) -> Iterator[None]:
    """Every address is read as 203.0.113.7, with its own prefix length."""

    def interface(text: str) -> IPv4Interface:
        return IPv4Interface(f"203.0.113.7/{text.partition('/')[2]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_addresses, "IPv4Interface", interface)
        yield


@sabotage(NO_LAB, "ip-part-meaning", "ip-network-address-zero-host", "ip-broadcast-ones")
def prefixes_are_taken_for_32(lab: LiveLab) -> Iterator[None]:
    """Every prefix length is read as 32, so that a network is one host."""

    def interface(text: str) -> IPv4Interface:
        return IPv4Interface(f"{text.partition('/')[0]}/32")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_addresses, "IPv4Interface", interface)
        yield


@sabotage(NO_LAB, "ip-class-b-example")
def class_b_is_taken_for_c(lab: LiveLab) -> Iterator[None]:
    """Addresses that begin with the bits 10 are read as class C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_addresses, "class_of", lambda _address: ("C", 24))
        yield
