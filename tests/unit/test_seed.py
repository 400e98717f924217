"""Seeds: what a daemon made of images is kept as it was, or not at all."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import every_kind
import pytest

from testbed.artifacts.source import Job
from testbed.artifacts.store import Store
from testbed.errors import ArtifactError, CommandError, LabError, TimeoutExpired
from testbed.nodes.fake import FakeProvider
from testbed.nodes.seed import FAITHFUL, LINKED, Layout, Seed, harvest, keep
from testbed.process import run
from testbed.testing.provider import spec

LARGE = 24 << 20
LAYOUT = Layout(root="/var/lib/daemon", parts=("meta", "layers"), linked=("layers/*/fs",))
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="devices are made by root only")


def data_root(folder: Path) -> Path:
    """A daemon's data root with a layer of every kind of file."""
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "db").write_text("db")
    (folder / "layers" / "one").mkdir(parents=True)
    every_kind.make(folder / "layers" / "one" / "fs")
    return folder


def seed_of(root: Path, harvested: bytes | None = None) -> Seed:
    def harvest(job: Job, target: Path) -> None:
        if harvested is None:
            job.run(["tar", "-C", root, "-cf", target, *FAITHFUL, *LAYOUT.parts])
        else:
            target.write_bytes(harvested)

    return Seed("1.0", LAYOUT, [], harvest)


def job(folder: Path) -> Job:
    folder.mkdir()
    return Job(folder, folder, lambda _: None, run, threading.Event(), lambda _: folder)


@AS_ROOT
def test_a_layer_is_kept_with_all_its_kinds_of_files(tmp_path: Path) -> None:
    root = data_root(tmp_path / "root")
    store = Store(tmp_path / "cache")
    assert keep(store, seed_of(root)) == ""
    (entry,) = (tmp_path / "cache").glob("image-seed-*")
    kept = entry / "layers" / "layers" / "one" / "fs"
    wanted = every_kind.described(root / "layers" / "one" / "fs")
    assert every_kind.described(kept) == wanted
    assert wanted["opaque"][-1] == {every_kind.OPAQUE: b"y"}
    assert wanted["whiteout"][3] == every_kind.WHITEOUT
    assert str((entry / "root" / "layers" / "one" / "fs").readlink()) == f"{LINKED}/layers/one/fs"


@AS_ROOT
def test_it_goes_again_with_all_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    keep(store, seed_of(data_root(tmp_path / "root")))
    assert store.remove("image-seed") > 0
    assert not list((tmp_path / "cache").glob("*image-seed-1.0*"))
    assert store.leftovers() == []


def test_a_lab_does_without_a_seed_that_cannot_be_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert "image-seed" in keep(store, seed_of(tmp_path, b"no archive at all" * 100))
    assert store.leftovers() == []


@pytest.mark.parametrize("error", [TimeoutExpired("tar was killed"), LabError("it has ended")])
def test_a_lab_does_without_a_seed_that_its_node_does_not_give(
    tmp_path: Path, error: LabError
) -> None:
    def harvest(*_: object) -> None:
        raise error

    store = Store(tmp_path / "cache")
    assert keep(store, Seed("1.0", LAYOUT, [], harvest)) == error.message
    assert store.leftovers() == []


@AS_ROOT
def test_large_layers_do_not_go_through_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data_root(tmp_path / "root")
    with (root / "layers" / "one" / "fs" / "large").open("wb") as file:
        file.truncate(LARGE)
    node = FakeProvider().create_one("lab", spec("node1"))
    monkeypatch.setattr(node, "socket", lambda _: "/")
    layout = Layout(str(root), LAYOUT.parts, LAYOUT.linked)
    tracemalloc.start()
    try:
        assert keep(Store(tmp_path / "cache"), Seed("1.0", layout, [], harvest(node, layout))) == ""
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (entry,) = (tmp_path / "cache").glob("image-seed-*")
    assert (entry / "layers" / "layers" / "one" / "fs" / "large").stat().st_size == LARGE
    assert sorted(path.name for path in entry.iterdir() if path.suffix == ".tar") == []
    assert peak < LARGE / 4


def test_one_that_is_not_as_it_was_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tar only warns of an attribute that it cannot set: an opaque folder would show what is
    below it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tar = folder / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: setxattrat: Cannot set opaque' >&2\n")
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(ArtifactError, match="setxattrat"):
        seed_of(tmp_path, b"").fill(job(tmp_path / "entry"))


def test_a_node_that_cannot_be_asked_is_told(tmp_path: Path) -> None:
    def harvest(*_: object) -> None:
        raise CommandError(["tar"], where="node1", status=2, stderr="no")

    assert "node1" in keep(Store(tmp_path), Seed("1.0", LAYOUT, [], harvest))
