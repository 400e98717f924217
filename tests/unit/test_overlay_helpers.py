"""Parsing and decisions of flannel's checks that need no lab."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.catalogues.shipped import test_flannel_vxlan
from testbed.errors import CommandError, NoAnswer
from testbed.nodes.fake import Answer, FakeNode, FakeProvider
from testbed.suites import overlay
from testbed.testing.provider import spec
from testbed.topology import load
from testbed.topology.load import Overrides

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.topology.model import Topology


class FakeLab:
    """The part of a LiveLab that :func:`overlay.quoted` uses."""

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


# -- etcd ----------------------------------------------------------------------------


class WithEtcd:
    """A LiveLab for :func:`overlay.etcd`: one node, whose etcdctl gives scripted answers."""

    def __init__(self, **answer: Any) -> None:
        self.topology = load("two-node")
        self.silent: dict[str, NoAnswer] = {}
        self.provider = FakeProvider()
        self.provider.script(["etcdctl"], Answer(**answer))
        self.made = self.provider.create_one("lab", spec("node1"))
        store = SimpleNamespace(binary=lambda name: name)
        self.context = SimpleNamespace(node=self.node, store=store)

    def node(self, _: str) -> FakeNode:
        return self.made

    @property
    def lab(self) -> LiveLab:
        return cast("LiveLab", self)

    @property
    def asked(self) -> int:
        return sum(call.what == "run" for call in self.made._machine.calls)


HUNG = b'{"level":"warn","error":"..."}\nError: context deadline exceeded\n'


def test_an_etcd_that_hangs_is_asked_once_in_a_run() -> None:
    with_etcd = WithEtcd(status=1, err=HUNG)
    for _ in range(3):
        with pytest.raises(NoAnswer) as caught:
            overlay.keys(with_etcd.lab)
        assert "etcd on node1" in caught.value.message
    assert with_etcd.asked == 1


def test_an_etcd_that_refuses_has_answered() -> None:
    with_etcd = WithEtcd(status=1, err=b"Error: no such lease\n")
    for _ in range(2):
        with pytest.raises(CommandError):
            overlay.etcd(with_etcd.lab, "lease", "revoke", "1")
    assert with_etcd.asked == 2
    assert not overlay.etcd(with_etcd.lab, "ls", check=False).ok


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
