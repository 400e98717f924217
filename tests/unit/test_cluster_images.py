"""Images and network plugins on a cluster's node: what is there is neither made nor lost again."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.artifacts import archive
from testbed.artifacts.reference import full_name
from testbed.nodes.base import Result
from testbed.roles.kubernetes import runtime
from testbed.roles.kubernetes.runtime import GATHER, LOADED
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.context import Context
from testbed.testing.fakes import FakeStore, Files
from testbed.topology.load import load

PLAIN = load("k8s-two-node")


class Machine(Files):
    """A node with a containerd, told by ``ctr`` alone."""

    shares_files = False  # no seed is kept of it

    def __init__(self, *there: str) -> None:
        super().__init__()
        self.there = set(there)
        self.imported: list[str] = []
        self.tagged: list[tuple[str, str]] = []

    def run(self, argv: list[str], **_: Any) -> Result:
        if argv[3:5] == ["images", "list"]:
            return Result(tuple(argv), 0, "\n".join(self.there).encode(), b"", 0.0)
        if argv[3:5] == ["images", "tag"]:
            assert argv[5] == "--force"
            assert argv[6] in self.there
            self.there.add(argv[7])
            self.tagged.append((argv[6], argv[7]))
            return Result(tuple(argv), 0, b"", b"", 0.0)
        assert argv[3:5] == ["images", "import"]
        self.imported.append(Path(argv[5]).name)
        self.there |= archive.names(Path(argv[5]))
        return Result(tuple(argv), 0, b"", b"", 0.0)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives by the names of images; that of "ours" has a name of its makers'."""
    tags = {name: full_name(name) for name in runtime.images(PLAIN)}
    tags["ours"] = "quay.io/makers/agent:9"
    for name, tag in tags.items():
        (tmp_path / name.replace("/", "-")).write_text(tag)
    monkeypatch.setattr(archive, "names", lambda path: frozenset({path.read_text()}))
    monkeypatch.setattr(runtime, "images", lambda *_: list(tags))
    return tmp_path


def context_of(house: Path, machine: Machine) -> Context:
    store = FakeStore()
    store.own = {"ours"}
    store.image = lambda name: house / name.replace("/", "-")  # type: ignore[method-assign]
    return Context(PLAIN, cast("Any", None), store, {"node1": cast("Any", machine)})


def test_what_is_there_by_the_names_of_its_archive_is_not_imported(house: Path) -> None:
    machine = Machine("quay.io/makers/agent:9", "docker.io/library/nginx:latest")
    context = context_of(house, machine)
    words, changed = runtime.load_images(context, "node1")
    assert changed
    assert "ours" not in machine.imported
    assert "nginx" not in machine.imported
    assert "testbed-pause:1" in machine.imported

    machine.imported.clear()
    assert runtime.load_images(context, "node1") == (words.replace("loaded", "present"), False)
    machine.files.clear()  # a node of an earlier version
    assert not runtime.load_images(context, "node1")[1]
    assert machine.imported == []


def test_another_archive_with_the_same_names_is_imported(house: Path) -> None:
    machine = Machine()
    context = context_of(house, machine)
    runtime.load_images(context, "node1")
    machine.imported.clear()
    os.utime(house / "ours", ns=(7, 7))
    runtime.load_images(context, "node1")
    assert machine.imported == ["ours"]
    noted = json.loads(machine.files[f"/run/testbed/done/{LOADED}"])
    assert noted["ours"].endswith(" 7")


SUM = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(("name", "said", "tagged"), [
    ("redis:7", "docker.io/library/redis:7", []),
    (f"a/b@{SUM}", f"docker.io/a/b:{SUM.replace(':', '-')}", [f"docker.io/a/b@{SUM}"]),
    (f"a/b:1@{SUM}", "docker.io/a/b:1", [f"docker.io/a/b@{SUM}"]),
    ("mine:1", "quay.io/other/name:2", ["docker.io/library/mine:1"]),
])  # fmt: skip
def test_images_of_the_file_have_the_names_that_pods_ask_for(
    house: Path, name: str, said: str, tagged: list[str]
) -> None:
    (house / name.replace("/", "-")).write_text(said)
    cluster = replace(KubernetesSection.of(PLAIN), images=(name,))
    topology = replace(PLAIN, sections={**PLAIN.sections, "kubernetes": cluster})
    assert topology.images == (name,)
    assert topology.node_digest("node1") == PLAIN.node_digest("node1")
    machine = Machine()
    context = replace(context_of(house, machine), topology=topology)
    real = runtime.images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "images", lambda *of: [*real(*of), name])
        runtime.load_images(context, "node1")
        assert machine.tagged == [(said, one) for one in tagged]
        runtime.load_images(context, "node1")
        assert len(machine.tagged) == len(tagged)
        os.utime(house / name.replace("/", "-"), ns=(7, 7))
        runtime.load_images(context, "node1")
        assert len(machine.tagged) == 2 * len(tagged)


# -- the folder of network plugins --------------------------------------------------------------


def gather(target: Path, *words: Path) -> dict[str, str]:
    """The files of a folder by name, after containerd was started once more."""
    subprocess.run(["sh", "-c", GATHER, str(target), *map(str, words)], check=True)
    return {path.name: path.read_text() for path in target.iterdir()}


def test_what_a_plugin_has_installed_stays(tmp_path: Path) -> None:
    reference, own, target = tmp_path / "reference", tmp_path / "own", tmp_path / "cni" / "bin"
    reference.mkdir()
    for name in ("bridge", "host-local", "loopback", "portmap"):
        (reference / name).write_text("Debian's")
    own.write_text("ours")
    seen = gather(target, reference, own)
    assert seen == dict.fromkeys(("bridge", "host-local", "loopback", "portmap"), "Debian's") | {
        "own": "ours"
    }

    # As installers do it: a file that takes the place of what is there, and one that is new.
    for name in ("host-local", "portmap", "calico"):
        part = target / f"{name}.part"
        part.write_text("makers'")
        part.rename(target / name)
    (target / "loopback").unlink()
    (target / "loopback").symlink_to("calico")
    installed = gather(target, reference, own)
    assert installed == {
        "bridge": "Debian's", "host-local": "makers'", "loopback": "makers'",
        "portmap": "makers'", "calico": "makers'", "own": "ours",
    }  # fmt: skip
    assert gather(target, reference, own) == installed


def test_a_link_to_what_is_gone_is_made_anew(tmp_path: Path) -> None:
    """The reference plugins are in the cache, from which they may be removed."""
    first, second, target = tmp_path / "first", tmp_path / "second", tmp_path / "cni" / "bin"
    for folder in (first, second):
        folder.mkdir()
        (folder / "bridge").write_text(folder.name)
    gather(target, first)
    (first / "bridge").unlink()
    assert gather(target, second) == {"bridge": "second"}
