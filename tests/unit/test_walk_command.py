"""Options of ``testbed walk`` for saved walks, forms and comparison, which need no lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from walks import across, dropped, published

from testbed import cli
from testbed.walk.model import Walk


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name, walk in (("across", across()), ("dropped", dropped()), ("other", published())):
        (tmp_path / f"{name}.json").write_text(json.dumps(walk.to_dict()))
    return tmp_path


def test_a_saved_walk_is_shown(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["walk", "--from", "across.json"]) == 0
    shown = capsys.readouterr().out
    assert "nat POSTROUTING" in shown
    assert shown.splitlines()[-1].startswith("✓ arrived")


def test_a_lost_packet_is_exit_status_1(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["walk", "--from", "dropped.json"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("✗ LOST at node2, filter FORWARD")


@pytest.mark.parametrize(
    ("form", "begin"),
    [("json", "{"), ("mermaid", "---\n"), ("svg", "<svg"), ("html", "<!doctype html>")],
)
def test_each_form_goes_to_standard_output(
    form: str, begin: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["walk", "--from", "across.json", f"--{form}"]) == 0
    assert capsys.readouterr().out.startswith(begin)


def test_files_are_written_beside_the_tree(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["w.json", "w.mmd", "w.svg", "w.html", "w.pcapng"]
    argv = [word for name in names for word in ("-o", name)]
    assert cli.run(["walk", "--from", "across.json", *argv, "--pcapng", "x.pcapng"]) == 0
    assert "nat POSTROUTING" in capsys.readouterr().out
    assert Walk.from_dict(json.loads(Path("w.json").read_text())) == across()
    assert Path("w.pcapng").read_bytes() == Path("x.pcapng").read_bytes()
    assert Path("w.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    for name, begin in (("w.mmd", "---"), ("w.svg", "<svg"), ("w.html", "<!doctype")):
        assert Path(name).read_text().startswith(begin)


def test_the_expected_path_is_exit_status_0_also_of_a_lost_packet(saved: Path) -> None:
    assert cli.run(["walk", "--from", "dropped.json", "--expect", "dropped.json"]) == 0
    assert cli.run(["walk", "--from", "across.json", "--expect", "dropped.json"]) == 1


def test_a_difference_is_shown_as_paths(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["walk", "--from", "dropped.json", "--expect", "across.json"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert "+   node2 LOST" in shown
    assert "-   node2/container-2:eth0 in" in shown
    assert shown[-1] == "✗ differs from the path of across.json"


def test_a_difference_is_part_of_the_json(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["walk", "--from", "dropped.json", "--expect", "across.json", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["difference"]["different"] is True
    assert Walk.from_dict(data) == dropped()


def test_two_saved_walks_are_compared(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["walk", "--compare", "across.json", "across.json"]) == 0
    assert capsys.readouterr().out == "✓ the same as the path of across.json\n"
    assert cli.run(["walk", "--compare", "across.json", "dropped.json"]) == 1
    assert "+   node2 LOST" in capsys.readouterr().out
    assert cli.run(["walk", "--compare", "across.json", "dropped.json", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["different"] is True


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["node1"],
        ["--from", "none.json"],
        ["--from", "across.json", "node1", "node2"],
        ["--from", "across.json", "--compare", "across.json", "across.json"],
        ["--compare", "across.json", "none.json"],
        ["--compare", "across.json", "across.json", "--svg"],
        ["--compare", "across.json", "across.json", "-o", "walk.svg"],
        ["--compare", "across.json", "across.json", "--expect", "across.json"],
        ["--from", "across.json", "--tcp", "80"],
        ["--from", "across.json", "-6"],
        ["--from", "across.json", "--reply"],
        ["--from", "across.json", "-o", "walk.txt"],
        ["--from", "across.json", "-o", "nowhere/walk.svg"],
        ["--from", "across.json", "--svg", "--pcapng", "-"],
        ["--from", "across.json", "--expect", "none.json"],
        ["--from", "across.json", "--lang", "xx"],
    ],
)
def test_wrong_use_is_exit_status_2(
    argv: list[str], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["walk", *argv]) == 2
    assert capsys.readouterr().out == ""


def test_what_is_wrong_with_a_file_is_named(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = across().to_dict()
    data["legs"][0]["hops"][3]["kind"] = "car"
    Path("bad.json").write_text(json.dumps(data))
    assert cli.run(["walk", "--from", "bad.json"]) == 2
    assert "bad.json: legs[0].hops[3].kind" in capsys.readouterr().err
