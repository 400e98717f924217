"""The image of nodes that are containers: its tree, its two layers, and its command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.artifacts import Store, bootstrap, node_image
from testbed.artifacts.cc import CProgram
from testbed.artifacts.image import write_layer
from testbed.artifacts.node_image import GONE, INIT, NAME, NodeImage, NodeTree
from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, MachineError
from testbed.nodes.containerlab.cli import _named
from testbed.nodes.keeper import COMMANDS
from testbed.process import Completed


class Builder:
    """Does what mmdebstrap and dpkg-query would do, and notes what they were asked."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, argv: Sequence[str | Path], **_: Any) -> Completed:
        words = [str(word) for word in argv]
        if "mmdebstrap" in words:
            self.words = words
            tree(Path(words[-1]))
            return Completed(tuple(words), 0, b"", b"")
        return Completed(tuple(words), 0, b"bash\t5.2\t7000\niproute2\t6.1\t\n", b"")


def tree(root: Path) -> None:
    """As much of a Debian as matters here."""
    for place in ("boot", "dev", "proc", "run/lock", "sys", "tmp", "usr/bin", "var/log/apt", "etc"):
        (root / place).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/perl").write_text("perl")
    (root / "usr/bin/perl5").hardlink_to(root / "usr/bin/perl")
    (root / "usr/bin/su").write_text("su")
    (root / "usr/bin/su").chmod(0o4755)
    for place in ("etc/machine-id", "etc/resolv.conf", "var/log/apt/term.log", "run/lock/x"):
        (root / place).write_text("of the builder")


class Program(Source):
    """A source of ``testbed-init``."""

    origin: Origin = "cc"  # type: ignore[misc]  # a ClassVar in a source of the house

    def __init__(self, content: str = "init") -> None:
        self.content = content

    def recipe(self) -> Mapping[str, object]:
        return {"content": self.content}

    def fill(self, job: Job) -> str:
        raise NotImplementedError


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(bootstrap, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bootstrap, "KEYRING", Path("/"))
    return Builder()


@pytest.fixture
def job(tmp_path: Path, builder: Builder) -> Job:
    def part(name: str) -> Path:
        folder = tmp_path / name
        if name == node_image.TREE_PART:
            folder.mkdir()
            NodeTree().fill(replace(made, into=folder))
        else:
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / name).write_text("init")
        return folder

    into = tmp_path / "into"
    into.mkdir()
    made = Job(into, tmp_path / "shared", lambda _: None, builder, threading.Event(), part)
    return made


def members(layer: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(layer) as tar:
        return {info.name: info for info in tar.getmembers()}


def test_the_tree_has_nothing_of_a_machine(job: Job, builder: Builder) -> None:
    NodeTree(suite="trixie").fill(job)
    there = members(job.into / "layer.tar")
    assert not there.keys() & {*GONE, "run/lock", "var/log/apt/term.log"}
    assert {"dev", "proc", "run", "sys", "tmp"} <= there.keys()
    assert there["tmp"].mode == 0o1777
    manifest = json.loads((job.into / "manifest.json").read_text())
    assert manifest == {"suite": "trixie", "packages": {"bash": "5.2", "iproute2": "6.1"}}
    (included,) = [word for word in builder.words if word.startswith("--include=")]
    wanted = set(included.partition("=")[2].split(","))
    assert {"iptables", "nftables", "iproute2", "python3"} <= wanted
    assert not wanted & {"systemd", "systemd-sysv", "linux-image-cloud-amd64", "docker.io"}
    assert not (job.into / "root").exists()


def test_files_of_packages_stay_as_they_are(tmp_path: Path) -> None:
    tree(tmp_path / "root")
    write_layer(tmp_path / "root", tmp_path / "layer", faithful=True)
    there = members(tmp_path / "layer")
    assert there["usr/bin/su"].mode == 0o4755
    assert there["usr/bin/perl5"].islnk()
    assert there["usr/bin/perl5"].linkname == "usr/bin/perl"
    assert there["bin"].issym()
    mine = tmp_path.stat()
    assert (there["etc"].uid, there["etc"].gid) == (mine.st_uid, mine.st_gid)
    again = tmp_path / "again"
    os.utime(tmp_path / "root/usr/bin/su", (1, 1))
    write_layer(tmp_path / "root", again, faithful=True)
    assert again.read_bytes() == (tmp_path / "layer").read_bytes()
    with pytest.raises(ArtifactError, match="hard link"):
        write_layer(tmp_path / "root", again)


def test_capabilities_of_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # vfs_cap_data of cap_net_raw=ep (linux/capability.h): no UTF-8, and with NUL bytes.
    data = bytes.fromhex("0100000200200000000000000000ff0000000000")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ping").write_text("ping")
    monkeypatch.setattr(os, "getxattr", lambda *_: data)
    write_layer(tmp_path / "root", tmp_path / "layer", faithful=True)
    assert data in (tmp_path / "layer").read_bytes()
    kept = members(tmp_path / "layer")["ping"].pax_headers["SCHILY.xattr.security.capability"]
    assert kept.encode("utf-8", "surrogateescape") == data


def test_the_image_is_the_tree_and_testbed_init(job: Job) -> None:
    NodeImage(NodeTree(), Program(), tag="mine/node:2").fill(job)
    with tarfile.open(job.into / "image.tar") as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file
            return file.read()

        (manifest,) = json.loads(read("manifest.json"))
        about = json.loads(read(manifest["Config"]))
        layers = [read(name) for name in manifest["Layers"]]
    assert manifest["RepoTags"] == ["mine/node:2"]
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert about["rootfs"]["diff_ids"] == digests
    assert len(about["history"]) == 2
    assert about["config"]["Entrypoint"] == [f"/{INIT}"]
    assert about["config"]["Cmd"] == ["machine"]
    assert "/var/lib/docker" in about["config"]["Volumes"]
    top = job.into / "top"
    top.write_bytes(layers[1])
    there = members(top)
    assert there[INIT].mode == 0o755
    for name in COMMANDS:
        assert there[f"usr/local/bin/{name}"].linkname == f"/{INIT}"
    assert {info.uid for info in there.values()} == {0}


def test_what_goes_in_decides_the_key() -> None:
    image = NodeImage(NodeTree(suite="bookworm"), Program())
    others = [
        replace(image, tag="other:1"),
        replace(image, init=Program("newer")),
        replace(image, tree=NodeTree(suite="trixie")),
        replace(image, tree=NodeTree(suite="bookworm", packages=("bash",))),
    ]
    assert len({image.key(), *(other.key() for other in others)}) == 5
    assert NodeImage(NodeTree(suite="bookworm"), Program()).key() == image.key()


def test_an_init_of_another_version_leaves_the_tree_valid(tmp_path: Path) -> None:
    """To build the tree takes a minute, and to add a program a second."""
    source = tmp_path / "init.c"
    source.write_text("int main(void) { return 0; }")
    image = NodeImage(NodeTree(), CProgram("testbed-init", source))
    before, tree_key = image.key(), image.tree.key()
    source.write_text("int main(void) { return 1; }")
    assert image.key() != before
    assert image.tree.key() == tree_key


def test_what_is_missing_is_said_before_anything_is_done(
    job: Job, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil._ntuple_diskusage(1 << 40, 1, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(ArtifactError, match="free"):
        NodeTree().fill(job)
    monkeypatch.setattr(bootstrap, "which", lambda _: None)
    with pytest.raises(MachineError) as caught:
        NodeTree().fill(job)
    assert "mmdebstrap" in str(caught.value.hint)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="root"):
        NodeTree().fill(job)
    assert not builder.words


# -- the command -----------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[NodeImage]:
    """The images that the store was asked for; each is a file with its name."""
    asked: list[NodeImage] = []

    def keep(_: Store, name: str, source: Any) -> Path:
        asked.append(source)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "image.tar").write_text(source.tag)
        return folder

    monkeypatch.setattr(Store, "keep", keep)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return asked


def test_the_command_writes_an_archive(
    kept: list[NodeImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["image", "build"]) == 0
    assert "node-image/image.tar" in capsys.readouterr().out
    out = tmp_path / "out.tar"
    assert cli.run(["image", "build", "--output", str(out), "--tag", "mine/node"]) == 0
    assert [one.tag for one in kept] == [NAME, "mine/node:latest"]
    assert out.read_text() == "mine/node:latest"
    assert f"docker load --input {out}" in capsys.readouterr().out


def test_an_archive_that_cannot_be_written_is_an_error(
    kept: list[NodeImage], tmp_path: Path
) -> None:
    assert cli.run(["image", "build", "--output", str(tmp_path / "no" / "such" / "x.tar")]) == 2
    assert kept == []  # nothing is built, which takes a minute


@pytest.mark.parametrize("tag", ["", "A", "a b", "a:", "a:b:c", "a//b", "-a", "a@sha256:01", "a/B"])
def test_a_name_that_docker_refuses_is_wrong_use(kept: list[NodeImage], tag: str) -> None:
    assert cli.run(["image", "build", "--tag", tag]) == 2
    assert kept == []


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("node", "node:latest"),
        ("a/b__c:V1.0", "a/b__c:V1.0"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("registry.example/a-b/c:1", "registry.example/a-b/c:1"),
    ],
)
def test_names_of_images(tag: str, name: str) -> None:
    assert _named(tag) == name


def test_only_root_can_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.run(["image", "build"]) == 3


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The archives that were pushed, by their tag, and their names; one is built already."""
    done: list[tuple[str, str]] = []
    (tmp_path / "image.tar").write_text(NAME)

    def push(_: Store, archive: Path, name: str) -> str:
        done.append((archive.read_text(), name))
        return f"{name}@sha256:01"

    def kept(_: Store, name: str, source: Any) -> Path | None:
        return tmp_path if (name, source.tag) == ("node-image", NAME) else None

    monkeypatch.setattr(Store, "push", push)
    monkeypatch.setattr(Store, "kept", kept)
    return done


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("registry.example", "registry.example/testbed/node:1"),
        ("localhost:5000", "localhost:5000/testbed/node:1"),
        ("localhost:5000/", "localhost:5000/testbed/node:1"),
        ("localhost/a", "localhost/a:latest"),
        ("registry.example:5000/group/node:7", "registry.example:5000/group/node:7"),
        ("docker.io/me/node", "docker.io/me/node:latest"),
    ],
)
def test_the_image_is_pushed_and_its_name_printed(
    pushed: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], target: str, name: str
) -> None:
    assert cli.run(["image", "push", target]) == 0
    assert pushed == [(NAME, name)]
    assert capsys.readouterr().out == f"{name}@sha256:01\n"


@pytest.mark.parametrize(
    "target",
    ["", "/", "group/node", "node", "a b.example", "r.example/A", "r.example/a@sha256:01",
     "https://r.example", "r.example:x", "r.example/a:b:c", "-r.example/.."],
)  # fmt: skip
def test_a_target_that_is_none_is_wrong_use(pushed: list[tuple[str, str]], target: str) -> None:
    assert cli.run(["image", "push", "--", target]) == 2
    assert pushed == []


def test_an_image_that_is_not_built_is_not_pushed(
    pushed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Store, "kept", lambda *_: None)
    assert cli.run(["image", "push", "localhost:5000"]) == 3
    assert "image build" in capsys.readouterr().err
    assert pushed == []


def test_an_image_that_was_built_with_a_name_is_pushed_under_it(
    pushed: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"r.example/mine:latest": tmp_path}
    monkeypatch.setattr(Store, "kept", lambda _, name, source: there.get(source.tag))
    assert cli.run(["image", "push", "r.example/mine"]) == 0
    assert [name for _, name in pushed] == [*there]
    assert cli.run(["image", "push", "r.example/other"]) == 3
