"""Images as the file systems of nodes: what a file can say, and how layers are unpacked."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from topology_texts import problems

from testbed.artifacts import image_tree
from testbed.artifacts.image_tree import ImageTree, environment, white_out
from testbed.artifacts.source import Job
from testbed.errors import ArtifactError, CommandError
from testbed.labs import plan
from testbed.labs.base_steps import node_spec
from testbed.nodes.netns import beside
from testbed.nodes.netns.beside import Beside
from testbed.process import Completed, in_network, run
from testbed.topology import Topology, load_data, load_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from testbed.nodes.base import Result

TEXT = """\
name: i
networks: {lan: {subnet: 10.1.0.0/24}}
nodes:
  a: {image: "alpine:3.20", networks: {lan: 10.1.0.2}}
  b: {networks: {lan: 10.1.0.3}}
"""


def topology(text: str = TEXT) -> Topology:
    return load_text(text, "t.yaml")


def test_it_is_read_told_and_fetched() -> None:
    found = topology()
    assert found.images == ("alpine:3.20",)
    assert load_data(found.to_dict(), "t.yaml") == found
    assert "image" not in found.to_dict()["nodes"]["b"]
    about = {step.name: step.about for step in plan.make(found).steps.values()}
    assert "alpine:3.20" in about["node a"]
    assert "image" not in about["node b"]


@pytest.mark.parametrize("provider", ["netns", "containerlab"])
def test_providers_of_containers_and_namespaces_have_it(provider: str) -> None:
    found = topology(TEXT.replace("a: {", f"a: {{provider: {provider}, "))
    assert node_spec(found, found.nodes["a"]).image == "alpine:3.20"
    assert node_spec(found, found.nodes["b"]).image == ""


def test_another_image_is_another_node() -> None:
    before, after = topology(), topology(TEXT.replace("3.20", "3.21"))
    assert [n for n in after.nodes if after.node_digest(n) != before.node_digest(n)] == ["a"]


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("a: {", "a: {roles: [docker], ", "docker"),
        ("a: {", "a: {roles: [etcd], ", "etcd"),
        ("a: {", "a: {packages: [tcpdump], ", "tcpdump"),
        ("a: {", "a: {provider: qemu, ", "a by qemu, which has the files of the box"),
        ("a: {", "a: {provider: vagrant, ", "a by vagrant, which has the files of the box"),
        ("a: {", "a: {provider: containerlab, roles: [docker], ", "docker"),
        ('"alpine:3.20"', '"Alpine 3"', "Alpine 3"),
    ],
)
def test_what_cannot_be(old: str, new: str, seen: str) -> None:
    (problem,) = problems(TEXT.replace(old, new))
    assert (problem.line, seen in problem.seen, bool(problem.hint)) == (4, True, True)


def layer(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


def archive(path: Path, layers: Sequence[bytes], env: Sequence[str] = ()) -> Path:
    config = {"architecture": "amd64", "config": {"Env": list(env)}}
    members = {f"{number}/layer.tar": data for number, data in enumerate(layers)}
    manifest = [{"Config": "c.json", "Layers": list(members), "RepoTags": ["box:1"]}]
    files = {**members, "c.json": json.dumps(config).encode()}
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The devices and attributes that only root may make, as they are asked for."""
    found: dict[str, object] = {}

    def mknod(path: Path, mode: int, device: int) -> None:
        found[str(path)] = (stat.S_ISCHR(mode), device)

    def setxattr(path: str, name: str, value: bytes) -> None:
        found[path] = (name, value)

    monkeypatch.setattr(os, "mknod", mknod)
    monkeypatch.setattr(os, "setxattr", setxattr)
    return found


def job(folder: Path) -> Job:
    (folder / "into").mkdir()
    nothing = lambda *_: None  # noqa: E731
    return Job(folder / "into", folder, nothing, run, threading.Event(), lambda name: folder / name)


def test_layers_are_folders(tmp_path: Path, marks: dict[str, object]) -> None:
    layers = [
        layer({"etc/old": "old", "etc/kept": "kept", "srv/data/one": "1"}),
        layer({"etc/.wh.old": "", "srv/data/.wh..wh..opq": "", "srv/data/two": "2", "new": "n"}),
    ]
    tree = ImageTree("box:1", archive(tmp_path / "box.tar", layers, ["PATH=/opt", "A=b=c"]))
    work = job(tmp_path)
    tree.fill(work)
    found = {
        str(path.relative_to(work.into)): path.read_text()
        for path in sorted((work.into / "layers").rglob("*"))
        if path.is_file()
    }
    assert found == {
        "layers/0/etc/old": "old", "layers/0/etc/kept": "kept", "layers/0/srv/data/one": "1",
        "layers/1/new": "n", "layers/1/srv/data/two": "2",
    }  # fmt: skip
    below = work.into / "layers/1"
    assert marks == {
        str(below / "etc/old"): (True, os.makedev(0, 0)),
        str(below / "srv/data"): ("trusted.overlay.opaque", b"y"),
    }
    assert environment(work.into) == {"PATH": "/opt", "A": "b=c"}
    assert tree.whole(work.into)
    assert not tree.whole(tmp_path)
    assert stat.S_IMODE(work.into.stat().st_mode) == 0o700, "setuid programs are root's alone"


def test_other_marks_of_a_layer_go(tmp_path: Path, marks: dict[str, object]) -> None:
    for name in (".wh..wh.plnk", ".wh.same", "same"):
        (tmp_path / name).write_text(name)
    white_out(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    assert not marks


def test_an_archive_that_is_written_again_is_another_one(tmp_path: Path) -> None:
    tree = ImageTree("box:1", archive(tmp_path / "box.tar", [layer({"a": "1"})]))
    before = tree.key()
    assert tree.key() == before
    archive(tmp_path / "box.tar", [layer({"a": "1"}), layer({"b": "2"})])
    assert tree.key() != before


def test_too_many_layers(tmp_path: Path) -> None:
    path = archive(tmp_path / "box.tar", [layer({"a": "1"})] * (image_tree.MOST + 1))
    with pytest.raises(ArtifactError) as caught:
        ImageTree("box:1", path).fill(job(tmp_path))
    assert caught.value.hint
    (tmp_path / "two").mkdir()
    none = ImageTree("box:1", archive(tmp_path / "none.tar", []))
    with pytest.raises(ArtifactError):
        none.fill(job(tmp_path / "two"))


class Node:
    """A node that says whether it runs."""

    name, slowness = "a", 1.0
    init = SimpleNamespace(pid=7)
    asked = 0

    def refuse_ended(self) -> None:
        self.asked += 1

    def require(self, result: Result) -> Result:
        if result.status:
            raise CommandError(result.argv, where=self.name, status=result.status)
        return result


def test_programs_in_a_network_have_a_run_of_their_own() -> None:
    """iptables would leave its lock in this machine's."""
    command = in_network("/n", ["a", "b c"])
    assert command[:4] == ["nsenter", "--net=/n", "unshare", "--mount"]
    assert "mount -n -t tmpfs testbed /run" in command[-4]
    assert command[-2:] == ["a", "b c"]


def test_its_network_is_set_up_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def fake(argv: Sequence[str], **more: Any) -> Completed:
        calls.append((tuple(argv), more["input"]))
        return Completed(tuple(argv), 3 if "bad" in argv else 0, b"out", b"")

    monkeypatch.setattr(beside, "run", fake)
    node: Any = Node()
    place = Beside(node)
    result = place.run(["ip", "-batch", "-"], input=b"x")
    assert (result.argv, result.stdout) == (("ip", "-batch", "-"), "out")
    assert calls == [(tuple(in_network("/proc/7/ns/net", ["ip", "-batch", "-"])), b"x")]
    assert place.run(["bad"], check=False).status == 3
    with pytest.raises(CommandError) as caught:
        place.run(["bad"])
    assert caught.value.where == "a"
    assert node.asked == 3
