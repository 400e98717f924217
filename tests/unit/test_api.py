"""The public interface: what a script or notebook imports."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import testbed
from testbed import api
from testbed.errors import LabError, MachineError, NoSuchLab, TopologyError, UsageError
from testbed.roles.flannel.section import FlannelSection

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.testing.fakes import Bench


@pytest.fixture(autouse=True)
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interface work with fakes, as root."""
    monkeypatch.setattr(api, "settings", lambda: bench.settings)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_what_is_listed_is_there() -> None:
    assert testbed.__all__ == sorted(testbed.__all__)
    assert set(testbed.__all__) < set(dir(testbed))
    for name in testbed.__all__:
        assert getattr(testbed, name) is getattr(api, name)
        assert getattr(testbed, name).__doc__
    with pytest.raises(AttributeError):
        testbed.no_such_name  # noqa: B018  the look is the test


def test_importing_the_package_imports_no_part_of_it() -> None:
    code = "import sys, testbed; print([m for m in sys.modules if m.startswith('testbed.')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_a_lab_is_created_and_removed() -> None:
    with testbed.lab("two-node") as lab:
        assert testbed.labs_running() == ["two-node"]
        assert set(lab.nodes) == {"node1", "node2", "outside"}
        assert testbed.Lab("two-node").live().name == lab.name
    assert testbed.labs_running() == []
    with pytest.raises(NoSuchLab):
        testbed.Lab("two-node").live()


def test_a_lab_without_nodes_is_not_up(bench: Bench) -> None:
    with testbed.lab("two-node"):
        bench.provider.destroy("two-node")
        with pytest.raises(NoSuchLab):
            testbed.Lab("two-node").live()


def test_a_variant_under_another_name() -> None:
    with testbed.lab("two-node", backend="udp", name="mine") as lab:
        assert lab.name == "mine"
        assert FlannelSection.find(lab.topology)
        assert FlannelSection.of(lab.topology).backend == "udp"
        assert testbed.labs_running() == ["mine"]


def test_a_topology_that_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nnodes: {a: {}}\n", encoding="utf-8")
    topology = testbed.load(file)
    assert isinstance(topology, testbed.Topology)
    with testbed.lab(topology) as lab:
        assert list(lab.nodes) == ["a"]
    assert testbed.load(topology, name="other").name == "other"


@pytest.mark.parametrize("keep", [False, True])
def test_an_error_in_the_block_removes_the_lab_unless_it_is_kept(keep: bool) -> None:
    with pytest.raises(ZeroDivisionError), testbed.lab("two-node", keep=keep):
        _ = 1 // 0
    assert testbed.labs_running() == (["two-node"] if keep else [])


@pytest.mark.parametrize("fails", [False, True])
def test_a_lab_that_ran_before_is_left_running(fails: bool) -> None:
    with testbed.lab("two-node"):
        if fails:
            with pytest.raises(ZeroDivisionError), testbed.lab("two-node"):
                _ = 1 // 0
        else:
            with testbed.lab("two-node"):
                pass
        assert testbed.labs_running() == ["two-node"]
    assert testbed.labs_running() == []


def test_a_lab_that_cannot_be_created_leaves_nothing(bench: Bench) -> None:
    bench.provider.fail("create", "node1", LabError("no luck"))
    with pytest.raises(LabError), testbed.lab("two-node"):
        pytest.fail("it is not there")
    assert testbed.labs_running() == []


def test_wrong_use() -> None:
    with pytest.raises(UsageError) as caught:
        testbed.load("two-node", colour="blue")
    assert "backend" in (caught.value.hint or "")
    with pytest.raises(UsageError):
        testbed.load("no-such-topology")
    with pytest.raises(UsageError), testbed.lab("two-node", nodes=1000):
        pytest.fail("it is not there")
    with pytest.raises(TopologyError), testbed.lab("two-node", name="Not A Name"):
        pytest.fail("it is not there")


def test_others_than_root_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError), testbed.lab("two-node"):
        pytest.fail("it is not there")
    assert testbed.load("two-node").name == "two-node"
