"""Namespace nodes are stopped through their cgroups, of either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.errors import LabError, MachineError
from testbed.nodes.netns import cgroups
from testbed.nodes.netns.provider import NetnsProvider

LAB = "lab"


@pytest.fixture
def provider(tmp_path: Path) -> NetnsProvider:
    return NetnsProvider(tmp_path / "state", lambda: pytest.fail("nothing is made here"))


@pytest.fixture(params=[1, 2])
def hierarchy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cgroup hierarchy of a version, as files; gives the folder of the lab."""
    version: int = request.param
    controllers = ("freezer",) if version == 1 else ()
    hierarchy = cgroups.Hierarchy(tmp_path / "cgroup", version, controllers)
    monkeypatch.setattr(cgroups, "freezer", lambda: cgroups.Freezer(hierarchy))
    name = cgroups.folder_name(LAB, (tmp_path / "state").resolve())
    folder = hierarchy.mount / cgroups.TOP / name
    for node in ("node1", "node2"):
        (folder / node).mkdir(parents=True)
        if version == 1:
            (folder / node / "freezer.state").write_text("THAWED\n")
        else:
            (folder / node / "cgroup.freeze").write_text("0\n")
            (folder / node / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return folder


@pytest.fixture
def obedient(hierarchy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One in which the kernel's half of version 2 comes about as soon as it is asked for."""
    write = Path.write_text

    def writing(path: Path, text: str) -> int:
        if path.name == "cgroup.freeze":
            write(path.parent / "cgroup.events", f"populated 1\nfrozen {text}\n")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", writing)
    return hierarchy


@pytest.mark.usefixtures("obedient")
def test_a_node_is_stopped_and_goes_on(provider: NetnsProvider) -> None:
    assert provider.paused(LAB) == []
    provider.pause(LAB, "node2")
    provider.pause(LAB, "node2")
    assert provider.paused(LAB) == ["node2"]
    assert provider.paused("another") == []
    provider.resume(LAB, "node2")
    assert provider.paused(LAB) == []


@pytest.mark.usefixtures("hierarchy")
def test_a_node_without_a_cgroup_of_its_own(provider: NetnsProvider) -> None:
    with pytest.raises(LabError) as caught:
        provider.pause(LAB, "outside")
    assert caught.value.hint


def test_a_machine_that_can_stop_no_node(
    provider: NetnsProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "freezer", lambda: None)
    assert provider.paused(LAB) == []
    with pytest.raises(MachineError) as caught:
        provider.pause(LAB, "node2")
    assert caught.value.hint


def test_a_node_that_does_not_stop_in_time(tmp_path: Path) -> None:
    folder = tmp_path / cgroups.TOP / "lab" / "a"
    folder.mkdir(parents=True)
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    freezer = cgroups.Freezer(cgroups.Hierarchy(tmp_path, 2, ()))
    with pytest.raises(LabError, match=r"stopped after 0\.01 s"):
        freezer.set("lab", "a", on=True, timeout=0.01)
