"""Compose files of a node: what is read, what arrives on the node, and when Compose runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import cli
from testbed.cli import common
from testbed.errors import (
    ArtifactError,
    ContainerError,
    StepsFailed,
    TopologyError,
    UsageError,
)
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.nodes.fake import Answer, Call, FakeNode
from testbed.roles.docker import compose, glance
from testbed.roles.docker.engine import ContainerState
from testbed.roles.docker.glance import Glance
from testbed.testing.fakes import Bench, FakeEngine
from testbed.topology import Topology, load, load_data

LAB = """\
name: lab
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}, roles: [docker], compose: compose.yaml}
"""
#: Prints what a test has prepared, and writes down how it was called.
PROGRAM = """\
#!/bin/sh
printf '%s\\n' "$*" >> calls
printf '%s' "$TAG" > tag
[ -e refusal ] && { cat refusal >&2; exit 15; }
case "$*" in *--no-path-resolution*) cat written.json;; *) cat model.json; cat log >&2;; esac
"""


class Folder:
    """A folder with a topology, and a stand-in for Compose with what it prints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "lab.yaml").write_text(LAB)
        (path / "compose.yaml").write_text("services: {}\n")
        (path / "log").touch()
        self.program = path / "docker-compose"
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)
        self.says({"services": {"web": {"image": "nginx"}}})

    def says(self, model: dict[str, Any], written: dict[str, Any] | None = None) -> None:
        (self.path / "model.json").write_text(json.dumps(model))
        (self.path / "written.json").write_text(json.dumps(written or model))

    @property
    def topology(self) -> Topology:
        return load(self.path / "lab.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "files").mkdir()
    return Folder(tmp_path / "files")


@pytest.fixture
def bench(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.install(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    plain = bench.store.binary
    monkeypatch.setattr(
        bench.store,
        "binary",
        lambda name, *parts: folder.program if name == compose.PROGRAM else plain(name, *parts),
    )
    bench.provider.script(["docker", "compose"], run)
    bench.provider.script(["sh", "-c", compose.EXISTING], Answer())
    return bench


def run(call: Call) -> Answer:
    """Compose on a node: its services become containers of the engine in memory."""
    assert call.at is not None
    here = FakeEngine._all.setdefault(call.at, {})
    for name in [name for name in here if name.startswith("lab-")]:
        del here[name]
    if "down" in call.words:
        return Answer()
    model = json.loads(call.at.files[compose.MODEL])
    for service, wanted in model["services"].items():
        name = f"lab-{service}-1"
        here[name] = ContainerState(
            name=name, id=name, running=True, pid=7, network="lab_default", address="172.18.0.2",
            gateway="", image=wanted["image"], digest=None, status="running",
            health=wanted.get("x-health", ""),
        )  # fmt: skip
    return Answer(status=1, err=b"it is bad\n") if "x-fails" in model else Answer()


def started(bench: Bench) -> list[tuple[str, ...]]:
    return [call.words for call in bench.provider.calls if call.words[:2] == ("docker", "compose")]


def up(bench: Bench, topology: Topology) -> list[str]:
    """Bring the lab up; returns the steps that changed something."""
    bench.forget()
    return [done.step.name for done in Lab("lab", bench.settings).up(topology).changed]


# Reading


def test_paths_that_are_not_absolute_are_of_this_machine(folder: Folder, bench: Bench) -> None:
    def volumes(*sources: str) -> list[dict[str, Any]]:
        return [{"type": "bind", "source": one, "target": f"/{i}"} for i, one in enumerate(sources)]

    def device(path: str) -> dict[str, Any]:
        return {"driver_opts": {"type": "none", "o": "bind", "device": path}}

    named = {"type": "volume", "source": "named", "target": "/n"}
    folder.says(
        {
            "services": {
                "a": {"image": "x", "volumes": [*volumes("/h/a", "/b", "/root/c"), named]}
            },
            "secrets": {"s": {"file": "/h/s"}, "e": {"environment": "TOKEN"}},
            "configs": {"c": {"file": "/c"}, "d": {"content": "x"}},
            "volumes": {"b": device("/h/v"), "c": device("/v"), "d": device(":/v"), "e": {}},
        },
        {
            "services": {"a": {"image": "x", "volumes": [*volumes("./a", "/b", "~/c"), named]}},
            "secrets": {"s": {"file": "s"}, "e": {"environment": "TOKEN"}},
            "configs": {"c": {"file": "/c"}, "d": {"content": "x"}},
            "volumes": {"b": device("v"), "c": device("/v"), "d": device(":/v"), "e": {}},
        },
    )
    topology = replace(folder.topology, variables={"TOKEN": "t"})
    found = compose.read(bench.store, topology, "node1")
    assert [str(bind.path) for bind in found.binds] == ["/h/a", "/root/c", "/h/v", "/h/s"]
    assert [bind.read_only for bind in found.binds] == [False, False, False, True]
    assert found.env == {"TOKEN": "t"}
    assert found.images == ["x"]
    assert found.services["a"]["labels"] == {"testbed.labs": "lab"}


def test_a_build_is_refused_unless_an_image_is_named(folder: Folder, bench: Bench) -> None:
    build = {"build": {"context": "."}}
    folder.says({"services": {"a": build, "b": {"image": "x"}, "c": build}})
    with pytest.raises(UsageError, match="services a, c") as caught:
        compose.read(bench.store, folder.topology, "node1")
    assert "compose.yaml" in caught.value.where
    assert "--images-from" in (caught.value.hint or "")
    folder.says(
        {"services": {"a": {**build, "image": "x", "pull_policy": "build", "label_file": ["/l"]}}}
    )
    (service,) = compose.read(bench.store, folder.topology, "node1").services.values()
    assert service.keys() == {"image", "labels"}


def test_composes_own_words(folder: Folder, bench: Bench) -> None:
    warning = 'time="2026" level=warning msg="The \\"b\\" variable is not set."\n'
    (folder.path / "log").write_text(warning * 2)
    found = compose.read(bench.store, folder.topology, "node1")
    assert found.warnings == ('The "b" variable is not set.',)
    (folder.path / "refusal").write_text(f"{warning}service web is odd\n")
    with pytest.raises(UsageError, match="service web is odd") as caught:
        compose.read(bench.store, folder.topology, "node1")
    assert caught.value.where == str(folder.path / "compose.yaml")
    assert "level=" not in str(caught.value)


def test_several_files_with_variables(folder: Folder, bench: Bench) -> None:
    (folder.path / "more.yaml").touch()
    path = folder.path / "lab.yaml"
    path.write_text(LAB.replace("compose.yaml", "[compose.yaml, more.yaml]"))
    topology = load(path, variables={"TAG": "7"})
    assert topology.variables == {"TAG": "7"}, "a Compose file has variables of its own"
    compose.read(bench.store, topology, "node1")
    assert (folder.path / "tag").read_text() == "7"
    words = (folder.path / "calls").read_text().splitlines()[0].split()
    files = [words[i + 1] for i, word in enumerate(words) if word == "-f"]
    assert files == [str(folder.path / name) for name in ("compose.yaml", "more.yaml")]
    assert words[words.index("-p") + 1] == "lab"


# Topologies


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("[docker]", "[namespaces]", "the role docker"),
        ("compose.yaml", "nowhere.yaml", "no file 'nowhere.yaml'"),
        ("compose.yaml", "[]", "an empty list"),
        ("compose.yaml", "{a: b}", "a mapping"),
    ],
)
def test_wrong_keys(folder: Folder, old: str, new: str, word: str) -> None:
    (folder.path / "lab.yaml").write_text(LAB.replace(old, new))
    with pytest.raises(TopologyError, match=word) as caught:
        _ = folder.topology
    assert [problem.line for problem in caught.value.problems] == [4]


def test_a_path_is_relative_to_the_file_that_has_it(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("include: files/lab.yaml\n")
    assert load(path).nodes["node1"].compose == (str(folder.path / "compose.yaml"),)
    (tmp_path / "link.yaml").symlink_to("files/lab.yaml")
    linked = load(tmp_path / "link.yaml")
    assert linked.folder / linked.nodes["node1"].compose[0] == folder.path / "compose.yaml"
    monkeypatch.chdir(folder.path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LAB.encode())))
    assert load("-").nodes["node1"].compose == (str(folder.path / "compose.yaml"),)


def test_a_record_outlives_the_file(folder: Folder) -> None:
    data = folder.topology.to_dict()
    (folder.path / "compose.yaml").unlink()
    assert load_data(data, "record").nodes["node1"].compose == ("compose.yaml",)


def test_a_node_stays_when_the_key_changes(folder: Folder) -> None:
    before = folder.topology
    (folder.path / "lab.yaml").write_text(LAB.replace(", compose: compose.yaml", ""))
    assert folder.topology.node_digest("node1") == before.node_digest("node1")


def test_plan_names_the_images(folder: Folder, bench: Bench) -> None:
    folder.says({"services": {"a": {"image": "absent"}}})
    bench.store.absent.add("absent")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr("testbed.artifacts.Store", lambda **_: bench.store)
        assert cli.run(["plan", str(folder.path / "lab.yaml")]) == 0
        bench.store.unbuilt.add(compose.PROGRAM)
        assert "absent" in out.getvalue()
        out.truncate(0)
        assert cli.run(["plan", str(folder.path / "lab.yaml")]) == 0
        assert "absent" not in out.getvalue(), "nothing is built to know them"
    with pytest.raises(ArtifactError, match="absent"):
        up(bench, folder.topology)
    assert not bench.provider.nodes("lab")


# On a node


def test_compose_runs_when_something_differs(folder: Folder, bench: Bench) -> None:
    assert "compose node1" in up(bench, folder.topology)
    (words,) = started(bench)
    assert {"up", "-d", "--wait", "--no-build", "--remove-orphans"} <= set(words)
    assert words[words.index("--pull") + 1] == "never"
    assert ("node1", "load nginx") in bench.engine_log
    assert up(bench, folder.topology) == []
    assert not started(bench)

    folder.says({"services": {"web": {"image": "nginx"}, "db": {"image": "redis@sha256:0a"}}})
    assert up(bench, folder.topology) == ["compose node1"]
    node = bench.provider.nodes("lab")["node1"]
    model = json.loads(node.get(compose.MODEL))
    assert model["services"]["db"]["image"] == "redis:sha256-0a", "it has no digest when loaded"
    assert up(bench, folder.topology) == []

    del FakeEngine._all[node]["lab-db-1"]
    assert up(bench, folder.topology) == ["compose node1"]
    assert up(bench, folder.topology) == []


def test_a_project_is_removed_with_its_key(folder: Folder, bench: Bench) -> None:
    up(bench, folder.topology)
    (folder.path / "lab.yaml").write_text(LAB.replace(", compose: compose.yaml", ""))
    up(bench, folder.topology)
    (words,) = started(bench)
    assert {"down", "--volumes"} <= set(words)
    up(bench, folder.topology)
    assert not started(bench)


def test_files_arrive_on_the_node(folder: Folder, bench: Bench) -> None:
    html, data = folder.path / "html", folder.path / "data"
    html.mkdir()
    (html / "index").write_text("x")
    (html / "index").chmod(0o640)

    def model(html: str, data: str) -> dict[str, Any]:
        binds = [("/a", html, True), ("/b", data, False), ("/c", "/run/docker.sock", False)]
        volumes = [
            {"type": "bind", "target": target, "source": source, "read_only": read_only}
            for target, source, read_only in binds
        ]
        return {"services": {"web": {"image": "nginx", "volumes": volumes}}}

    folder.says(model(str(html), str(data)), model("./html", "./data"))
    up(bench, folder.topology)
    node = bench.provider.nodes("lab")["node1"]
    sources = [
        volume["source"]
        for volume in json.loads(node.get(compose.MODEL))["services"]["web"]["volumes"]
    ]
    assert sources[2] == "/run/docker.sock", "an absolute path is the node's"
    assert all(one.startswith(f"{compose.FOLDER}/") for one in sources[:2])
    (sent,) = [call for call in bench.provider.calls if call.words[:1] == ("tar",)]
    assert sent.words[-1] == sources[0].rpartition("/")[0]
    with tarfile.open(fileobj=io.BytesIO(sent.input or b"")) as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert modes["html/index"] == 0o640
    ran = bench.provider.asked("run", "node1")
    assert ("mkdir", "-p", sources[1]) in ran
    assert ("find", sources[0], "-mindepth", "1", "-delete") in ran
    assert not any(words[:2] == ("find", sources[1]) for words in ran), "containers write there"

    assert up(bench, folder.topology) == []
    (html / "index").write_text("another")
    assert up(bench, folder.topology) == ["compose node1"]

    # A node that sees them needs no copy of files that no container writes to.
    bench.provider.script(["sh", "-c", compose.EXISTING], Answer(out=f"{html}\0".encode()))
    up(bench, folder.topology)
    assert not [call for call in bench.provider.calls if call.words[:1] == ("tar",)]
    (html / "index").write_text("a third")
    assert up(bench, folder.topology) == []


def test_compose_has_the_variables_of_secrets(
    folder: Folder, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose reads the value of such a secret when it starts the project."""
    given: list[Mapping[str, str] | None] = []
    plain = FakeNode.spawn

    def spawn(node: FakeNode, argv: list[str], **options: Any) -> Any:
        given.append(options.get("env"))
        return plain(node, argv, **options)

    monkeypatch.setattr(FakeNode, "spawn", spawn)
    folder.says(
        {
            "services": {"web": {"image": "nginx"}},
            "secrets": {"token": {"environment": "TOKEN"}, "no": {"environment": "UNSET"}},
        }
    )
    up(bench, replace(folder.topology, variables={"TOKEN": "t", "OTHER": "o"}))
    assert given == [{"TOKEN": "t"}]


def test_a_failure_is_told_with_the_containers_log(folder: Folder, bench: Bench) -> None:
    web = {"image": "nginx", "x-health": "unhealthy"}
    folder.says({"services": {"web": web}, "x-fails": True})
    with pytest.raises(StepsFailed, match="it is bad") as caught:
        up(bench, folder.topology)
    ((_, error),) = caught.value.failures
    assert isinstance(error, ContainerError)
    assert (error.container, error.node) == ("lab-web-1", "node1")
    assert str(folder.path / "compose.yaml") in str(error)


def test_status(folder: Folder, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.says({"services": {"a": {"image": "x"}, "b": {"image": "x", "x-health": "healthy"}}})
    up(bench, folder.topology)
    seen = {"lab-a-1": Glance("lab-a-1", "running", "172.18.0.2")}
    seen["lab-b-1"] = Glance("lab-b-1", "running", "", health="healthy")
    monkeypatch.setattr(glance, "containers", lambda _: dict(seen))

    def states() -> dict[str, tuple[str, bool]]:
        (node,) = status(Lab("lab", bench.settings).context()).nodes
        return {part.name: (part.state, part.ok) for part in node.containers}

    assert states() == {"lab-a-1": ("running", True), "lab-b-1": ("healthy", True)}
    seen["lab-b-1"] = Glance("lab-b-1", "running", "", health="unhealthy")
    del seen["lab-a-1"]
    seen["other"] = Glance("other", "exited", "")
    assert states() == {
        "lab-a-1": ("missing", False), "lab-b-1": ("unhealthy", False), "other": ("exited", True),
    }  # fmt: skip
