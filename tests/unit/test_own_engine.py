"""An engine of one's own, by the folder of its programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.artifacts import Store
from testbed.errors import ArtifactError, TopologyError
from testbed.nodes.engine import OF_A_FOLDER, number_of, parts_of, program, version_of
from testbed.registry import ROLES
from testbed.roles.docker.section import engine_of
from testbed.testing.fakes import FakeStore
from testbed.topology import Topology, load, load_data

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.testing.fakes import Bench

TEXT = """\
name: t
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  own: {networks: {lan: 10.168.0.2}, roles: [docker], docker: {engine: @}}
  old: {networks: {lan: 10.168.0.3}, roles: [docker]}
"""


def engine(folder: Path, version: str = "26.1.4", lacking: str = "") -> Path:
    folder.mkdir()
    for name in OF_A_FOLDER:
        if name != lacking:
            file = folder / name
            file.write_text(f"#!/bin/sh\necho 'Docker version {version}, build x'\n")
            file.chmod(0o755)
    return folder


def lab(tmp_path: Path, value: str = "./docker", more: str = "") -> Topology:
    file = tmp_path / "lab.yaml"
    file.write_text(TEXT.replace("@", f"{value}{more}"))
    return load(file)


def test_a_folder_beside_the_file(tmp_path: Path) -> None:
    folder = engine(tmp_path / "docker")
    topology = lab(tmp_path)
    release = engine_of(topology, "own")
    assert (release, engine_of(topology, "old")) == (str(folder), "20.10")
    assert number_of(release) == (26, 1, 4)
    assert (number_of("29"), number_of("20.10")) == ((29, 0, 0), (20, 10, 0))
    assert f"26.1.4 of {folder}" in ROLES["docker"].summary(topology)
    again = load_data(topology.to_dict(), "the record")
    assert again == topology
    (folder / "dockerd").unlink()
    assert load_data(topology.to_dict(), "the record") == topology, "the lab still runs"


def test_its_programs_come_first(tmp_path: Path) -> None:
    folder = engine(tmp_path / "docker")
    (tmp_path / "config.toml").touch()
    store = Store(tmp_path / "cache", config=tmp_path / "config.toml")
    release = str(folder)
    assert program(store, release, "dockerd") == folder / "dockerd"
    assert store.made("docker", *parts_of(release)) == folder / "docker"
    assert folder in store.folders, "nodes see it, wherever it is"
    assert store.packages(release) == {}
    assert parts_of(release)[-1] == "docker", "helpers that it lacks are Debian's"


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    store = Store(tmp_path / "cache", config=tmp_path / "config.toml")
    parts = parts_of(str(tmp_path / "gone"))
    for act in (lambda: store.binary("dockerd", *parts), lambda: store.path_dirs(*parts)):
        with pytest.raises(ArtifactError, match="gone") as caught:
            act()
        assert caught.value.hint


def test_its_version_is_that_of_the_daemon(bench: Bench, tmp_path: Path) -> None:
    folder = engine(tmp_path / "docker")
    node = bench.provider.create_one("lab", _spec())
    assert "26.1.4" in version_of(FakeStore(), node, str(folder))


def _spec() -> NodeSpec:
    from testbed.testing.provider import spec

    return spec("n")


@pytest.mark.parametrize(
    ("value", "version", "lacking", "word"),
    [
        ("./nosuch", "26.1.4", "", "no folder"),
        ("./docker", "26.1.4", "runc", "no runc"),
        ("./docker", "18.09.1", "", "18.09.1"),
        ("./docker", "of nothing", "", "19.03"),
        ("./docker, firewall: nftables", "26.1.4", "", "engine 26.1.4 of"),
        ("26.0", "26.1.4", "", "26.0"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, value: str, version: str, lacking: str, word: str
) -> None:
    engine(tmp_path / "docker", version, lacking)
    with pytest.raises(TopologyError) as caught:
        lab(tmp_path, value)
    (problem,) = caught.value.problems
    assert problem.line == 4
    assert word in problem.wanted + problem.seen
    assert value != "26.0" or "folder" in problem.hint


def test_what_it_lacks_is_said_of_this_engine(tmp_path: Path) -> None:
    engine(tmp_path / "docker")
    text = TEXT.replace("@", "./docker") + (
        "docker: {networks: {one: {subnet: 172.30.0.0/24}}}\n"
        "containers: {web: {node: own, networks: {one: {gw_priority: 1}}}}\n"
    )
    (tmp_path / "lab.yaml").write_text(text)
    with pytest.raises(TopologyError) as caught:
        load(tmp_path / "lab.yaml")
    (problem,) = caught.value.problems
    assert problem.seen == f"26.1.4 of {tmp_path / 'docker'}"
