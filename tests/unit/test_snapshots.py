"""`testbed snapshot` and `restore`: which nodes, which snapshot, and what refuses them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from testbed import cli
from testbed.cli import common
from testbed.errors import LabError
from testbed.labs import snapshots
from testbed.labs.lab import Lab
from testbed.labs.run import Watch
from testbed.labs.stopping import Stopping
from testbed.nodes.base import Provider, Service
from testbed.nodes.fake import FakeProvider
from testbed.topology import load_text

if TYPE_CHECKING:
    from collections.abc import Collection

    from testbed.testing.fakes import Bench

TEXT = """\
name: two
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {a: {networks: {lan: 10.168.0.2}}, b: {networks: {lan: 10.168.0.3}}}
"""


@pytest.fixture
def lab(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)
    made = Lab("two", bench.settings)
    made.up(load_text(TEXT, "two.yaml"))
    return made


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert cli.run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_lab_returns_to_what_it_was(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        lab.node(name).put(name.encode(), "/srv/x")
    made = asked(capsys, "snapshot", "two")
    assert (made["lab"], made["name"], made["nodes"], made["missing"]) == (
        "two", "1", ["a", "b"], [],
    )  # fmt: skip
    lab.node("a").put(b"changed", "/srv/x")
    lab.node("b").put(b"new", "/srv/y")
    assert asked(capsys, "snapshot", "two", "later")["name"] == "later"
    assert asked(capsys, "restore", "two", "1")["name"] == "1"
    assert lab.node("a").get("/srv/x") == b"a"
    with pytest.raises(FileNotFoundError):
        lab.node("b").get("/srv/y")
    assert asked(capsys, "restore", "two")["name"] == "later", "the newest"
    assert lab.node("b").get("/srv/y") == b"new"


def test_status_and_ls_show_them_and_down_removes_them(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "SNAPSHOTS" not in _said(capsys, "ls")
    for _ in range(2):
        assert cli.run(["snapshot", "two"]) == 0
    assert [one["name"] for one in asked(capsys, "status", "two")["snapshots"]] == ["1", "2"]
    assert "  snapshot   2 " in _said(capsys, "status", "two")
    assert asked(capsys, "ls")[0]["snapshots"] == ["1", "2"]
    assert "SNAPSHOTS" in _said(capsys, "ls")
    assert cli.run(["snapshot", "two", "1", "--delete"]) == 0
    assert cli.run(["snapshot", "two"]) == 0, "under the number that is free again"
    assert sorted(one.name for one in snapshots.found(lab)) == ["1", "2"]
    lab.down()
    lab.up(load_text(TEXT, "two.yaml"))
    assert snapshots.found(lab) == []


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.run([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("lab")
def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["snapshot", "two", "x"]) == 0
    assert cli.run(["snapshot", "two", "x"]) == 2
    assert cli.run(["snapshot", "two", "x", "--replace"]) == 0
    for wrong in ("", "a b", "../x", "-", "a" * 41):
        assert cli.run(["snapshot", "--", "two", wrong]) == 2, wrong
    assert cli.run(["snapshot", "two", "--delete"]) == 2
    for words in (["restore", "two", "y"], ["snapshot", "two", "y", "--delete"]):
        assert cli.run(words) == 4
    capsys.readouterr()
    assert cli.run(["restore", "three"]) == 4


def test_without_a_snapshot_there_is_nothing_to_return_to(lab: Lab) -> None:
    with pytest.raises(LabError) as caught:
        snapshots.restore(lab)
    assert "testbed snapshot two" in str(caught.value.hint)


def test_a_node_that_was_created_again_has_it_no_more(lab: Lab, bench: Bench) -> None:
    snapshots.take(lab, "x")
    edited = load_text(TEXT.replace("10.168.0.3}", "10.168.0.3}, memory: 1G"), "two.yaml")
    lab.up(edited, replace=True)
    (kept,) = snapshots.found(lab)
    assert kept.missing == ["b"]
    bench.forget()
    with pytest.raises(LabError, match="b of lab two"):
        snapshots.restore(lab)
    assert bench.provider.asked("revert") == [], "and a stays as it is"
    snapshots.take(lab, "x", replace=True)
    assert snapshots.found(lab)[0].missing == []


def test_a_lab_that_is_not_whole_is_refused(lab: Lab, bench: Bench) -> None:
    snapshots.take(lab, "x")
    bench.provider.pause("two", "a")
    with pytest.raises(LabError, match="a of lab two"):
        snapshots.take(lab)
    bench.provider.resume("two", "a")
    bench.provider.destroy("two", ["b"])
    for act in (snapshots.take, snapshots.restore):
        with pytest.raises(LabError, match="b not running"):
            act(lab)


def test_what_runs_again_is_no_longer_stopped_by_hand(lab: Lab) -> None:
    for name in ("web", "db"):
        lab.node("a").start(Service(name, ("sleep", "9")))
    Stopping(lab).stop("a/db")
    snapshots.take(lab, "x")
    Stopping(lab).stop("a/web")
    assert lab.record().stopped == ["a/db", "a/web"]
    snapshots.restore(lab, "x")
    assert lab.node("a").services()["web"].state == "ready"
    assert lab.record().stopped == ["a/db"]


def test_up_continues_what_a_killed_snapshot_has_halted(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    told: list[str] = []

    def recover(_self: FakeProvider, lab: str, nodes: Collection[str]) -> list[str]:
        assert lab == "two"
        asked.append([*nodes])
        return ["b"]

    monkeypatch.setattr(FakeProvider, "recover", recover)
    lab.up(load_text(TEXT, "two.yaml"), watch=Watch(words=told.append))
    assert asked == [["a", "b"]]
    assert any("continued b" in words for words in told)
    bench.forget()
    lab.down()
    lab.up(load_text(TEXT, "two.yaml"))
    assert asked[1:] == [], "a new lab has no nodes to continue"


@pytest.mark.usefixtures("lab")
def test_nodes_whose_provider_cannot_are_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeProvider, "snapshot_parts", ())
    bench.forget()
    for verb in ("snapshot", "restore"):
        assert cli.run([verb, "two"]) == 2
        said = capsys.readouterr().err
        assert "a, b (netns)" in said
        assert "qemu" in said
    assert not bench.provider.asked("snapshot")
    monkeypatch.setattr(Provider, "snapshots", lambda *_: pytest.fail("asked"), raising=False)
    assert asked(capsys, "ls")[0]["snapshots"] == []


def test_a_lab_that_testbed_is_only_attached_to_is_refused(lab: Lab, bench: Bench) -> None:
    record = lab.record()
    foreign = {"format": "x", "lab": "two", "attached": "elsewhere"}
    bench.state.write(dataclasses.replace(record, topology={**record.topology, "foreign": foreign}))
    assert snapshots.found(lab) == []
    assert cli.run(["snapshot", "two"]) == 2
