"""A machine that its provider's own tool has made joins the lab; others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from testbed.errors import NoSuchNode
from testbed.labs import base_steps
from testbed.labs.lab import Lab
from testbed.labs.run import Watch
from testbed.nodes.base import NodeSpec
from testbed.topology import Topology, load_text

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

TEXT = """
name: t
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  one: {networks: {lan: 10.1.0.2}, provider: qemu}
  two: {networks: {lan: 10.1.0.3}, provider: qemu}
  near: {networks: {lan: 10.1.0.4}}
"""


@pytest.fixture
def topology() -> Topology:
    return load_text(TEXT, "t.yaml")


def made(bench: Bench, topology: Topology, name: str, *, provider: str = "qemu") -> None:
    """As the tool leaves a machine: there, and on no network."""
    spec = base_steps.node_spec(topology, topology.nodes[name])
    bench.settings.providers[provider].create_one("t", spec)


def test_the_last_of_its_provider_completes_the_lab(bench: Bench, topology: Topology) -> None:
    lab = Lab("t", bench.settings)
    made(bench, topology, "one")
    assert lab.adopt(topology, "one") is False
    made(bench, topology, "two")
    assert lab.adopt(topology, "two") is True  # nodes of other providers come with `up`
    for name, node in bench.settings.providers["qemu"].nodes("t").items():
        assert base_steps.is_joined(node)
        assert b"10.1.0.4 near\n" in node.get("/etc/hosts")
        assert bench.provider.asked("connect", name)


def test_one_that_runs_but_was_not_adopted_is_missing(bench: Bench, topology: Topology) -> None:
    made(bench, topology, "one")
    made(bench, topology, "two")
    assert Lab("t", bench.settings).adopt(topology, "two") is False


def test_an_adopted_machine_is_kept_by_up(bench: Bench, topology: Topology) -> None:
    made(bench, topology, "one")
    Lab("t", bench.settings).adopt(topology, "one")
    before = bench.settings.providers["qemu"].nodes("t")["one"]
    outcome = Lab("t", bench.settings).up(topology)
    assert bench.settings.providers["qemu"].nodes("t")["one"] is before
    assert "node one" not in {done.step.name for done in outcome.changed}


@pytest.mark.parametrize("how", ["none", "other settings"])
def test_what_is_no_machine_of_the_topology_is_refused(
    bench: Bench, topology: Topology, how: str
) -> None:
    if how == "other settings":
        bench.settings.providers["qemu"].create_one("t", NodeSpec("one", "of another file"))
    with pytest.raises(NoSuchNode) as caught:
        Lab("t", bench.settings).adopt(topology, "one")
    assert caught.value.name == "one"
    assert caught.value.hint
    assert bench.provider.asked("connect") == []


def test_who_holds_the_lab_is_told(bench: Bench, topology: Topology) -> None:
    made(bench, topology, "one")
    words: list[str] = []
    lab = Lab("t", bench.settings)
    held = bench.state.lock("t", "up t")
    held.__enter__()

    def told(holder: str) -> None:
        words.append(holder)
        held.__exit__(None, None, None)

    lab.adopt(topology, "one", Watch(words=told))
    (said,) = words
    assert "testbed up t" in said
