"""What the checks of flannel read and decide without a lab."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

import pytest

from testbed.suites import overlay, test_flannel_vxlan
from testbed.topology import load
from testbed.topology.load import Overrides

if TYPE_CHECKING:
    from testbed.lab.live import LiveLab
    from testbed.topology.model import Topology


class FakeLab:
    """What :func:`overlay.quoted` uses of a LiveLab."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology


@pytest.mark.parametrize(
    ("name", "has_it"),
    [
        ("three-node-udp", True),
        ("two-node-udp", False),  # the same two hosts; its container-2 is the first of its host
        ("vxlan-10-1-16", True),
        ("two-node", False),
        ("two-node-host-gw", False),
        ("docker-single", False),
    ],
)
def test_the_labs_with_the_printed_plan(name: str, has_it: bool) -> None:
    topology = load(name)
    assert overlay.has_printed_plan(topology) is has_it
    there = cast("LiveLab", FakeLab(topology))
    assert overlay.quoted(there, "10.1.16.0", 1) == ("10.1.16.0" if has_it else "1")


def test_another_back_end_has_another_plan() -> None:
    assert not overlay.has_printed_plan(load("three-node-udp", Overrides(backend="vxlan")))


@pytest.mark.skipif(sys.byteorder != "little", reason="the texts are of such a machine")
@pytest.mark.parametrize(
    ("line", "printed"),
    [
        (
            "flannel.1\t0010010A\t0010010A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "10.1.16.0 10.1.16.0 255.255.255.0 UG 0 0 0 flannel.1",
        ),
        (
            "docker0\t000F010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "10.1.15.0 0.0.0.0 255.255.255.0 U 0 0 0 docker0",
        ),
        (
            "eth0\t0200A80A\t0100A80A\t0007\t2\t3\t100\tFFFFFFFF\t0\t0\t0",
            "10.168.0.2 10.168.0.1 255.255.255.255 UGH 100 2 3 eth0",
        ),
    ],
)
def test_a_route_as_net_tools_print_it(line: str, printed: str) -> None:
    assert test_flannel_vxlan.as_route_prints(line) == printed
