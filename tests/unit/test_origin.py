"""Origin of labs: the file of a lab, and the lab of a file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from testbed import cli
from testbed.cli import common
from testbed.errors import NoSuchLab, TopologyError, UsageError
from testbed.labs import origin
from testbed.labs.lab import Lab, labs
from testbed.labs.run import Watch
from testbed.labs.state import Record
from testbed.testing.provider import spec
from testbed.topology import Overrides, load, load_text
from testbed.topology.load import file_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

ONE = "name: orch\nnodes: {n1: {}}\n"
OTHER = "name: orch\nnodes: {other: {}}\n"


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people's folders, with a file of the same name in each, and we are in the second."""
    monkeypatch.delenv("TESTBED_LAB", raising=False)
    for folder, text in (("p1", ONE), ("p2", OTHER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lab.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "p2")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tmp_path / "p1" / "lab.yaml"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return tmp_path / "p2" / "lab.yaml"


def up(bench: Bench, topology: Topology, *, replace: bool = False) -> list[str]:
    """Bring it up; what was said meanwhile."""
    words: list[str] = []
    watch = Watch(words=words.append)
    Lab(topology.name, bench.settings).up(topology, watch=watch, replace=replace)
    return words


def recorded(bench: Bench, lab: str, topology: Topology, source: str) -> None:
    """A lab that runs, with a record as an earlier version wrote it."""
    up(bench, topology)
    record = bench.state.read(lab)
    assert record is not None
    bench.state.write(dataclasses.replace(record, source=source))


def meant(bench: Bench, name: str | os.PathLike[str]) -> str:
    return origin.named(bench.settings, os.fspath(name))


# -- a file's identity -------------------------------------------------------------------


def test_a_topology_knows_its_files_real_path(first: Path, tmp_path: Path) -> None:
    os.chdir(first.parent)
    Path("link.yaml").symlink_to("lab.yaml")
    (tmp_path / "folder").symlink_to("p1")
    names = ["lab.yaml", "./lab.yaml", "../p1/lab.yaml", "link.yaml", f"{tmp_path}/folder/lab.yaml"]
    real = os.path.realpath(first)
    assert [load(name).file for name in names] == [real] * len(names)
    assert load("./lab.yaml", Overrides(name="varied")).file == real
    assert load("./lab.yaml").source == "./lab.yaml", "messages name it as it was typed"
    assert load_text(ONE, "x.yaml").file == ""


def test_a_pipe_and_a_deleted_folder_have_no_lasting_path(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        assert file_of(f"/dev/fd/{reading}") == ""
        os.write(writing, ONE.encode())
        os.close(writing)
        assert load(f"/dev/fd/{reading}").file == ""
    finally:
        os.close(reading)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert file_of("lab.yaml") == ""
    assert file_of("/etc/../lab.yaml") == "/lab.yaml"


def test_a_hard_link_is_the_same_file_and_a_copy_is_not(first: Path, tmp_path: Path) -> None:
    link, copy = tmp_path / "link.yaml", tmp_path / "copy.yaml"
    link.hardlink_to(first)
    copy.write_text(first.read_text())
    real = os.path.realpath(first)
    assert origin.is_same(real, file_of(first))
    assert origin.is_same(real, file_of(link))
    assert not origin.is_same(real, file_of(copy))
    assert not origin.is_same("", file_of(first))
    assert not origin.is_same(real, "")
    assert not origin.is_same("", "")
    os.chdir(first.parent)
    assert not origin.is_same("lab.yaml", file_of("lab.yaml")), "typed in which folder?"


# -- the lab that a file means -----------------------------------------------------------


def test_the_record_has_the_real_path(bench: Bench, first: Path) -> None:
    os.chdir(first.parent)
    up(bench, load("./lab.yaml"))
    record = bench.state.read("orch")
    assert record is not None
    assert record.source == os.path.realpath(first)


def test_a_relative_path_never_means_another_folders_lab(bench: Bench, first: Path) -> None:
    first.write_text(ONE.replace("orch", "orch-p1"))
    os.chdir(first.parent)
    up(bench, load("./lab.yaml"))
    os.chdir("../p2")
    assert meant(bench, "./lab.yaml") == "orch"  # which is not up: no lab came from this one
    up(bench, load("./lab.yaml"))
    assert (meant(bench, "lab.yaml"), meant(bench, first)) == ("orch", "orch-p1")


def test_every_name_of_the_file_means_its_lab(bench: Bench, first: Path, tmp_path: Path) -> None:
    up(bench, load(first))
    os.chdir(first.parent)
    Path("soft.yaml").symlink_to("lab.yaml")
    Path("hard.yaml").hardlink_to("lab.yaml")
    Path("plain").symlink_to("lab.yaml")
    names = ["lab.yaml", "./lab.yaml", "../p1/lab.yaml", "soft.yaml", "hard.yaml", "plain"]
    assert [meant(bench, name) for name in names] == ["orch"] * len(names)
    first.write_text("name: [broken\n")
    assert meant(bench, "lab.yaml") == "orch", "the record knows, whatever is in the file now"
    first.unlink()
    assert meant(bench, "lab.yaml") == "orch"
    assert meant(bench, tmp_path / "p1" / "lab.yaml") == "orch"


def test_a_lab_from_another_file_is_refused(bench: Bench, first: Path, second: Path) -> None:
    up(bench, load(first))
    for text in (OTHER, ONE):  # the same text in another place is another file all the same
        second.write_text(text)
        for name in ("lab.yaml", str(second)):
            with pytest.raises(UsageError) as caught:
                meant(bench, name)
            assert os.path.realpath(first) in caught.value.message
            assert "orch" in str(caught.value.hint)
    assert meant(bench, "orch") == "orch", "by its name it is meant, wherever it came from"


def test_a_moved_file_is_told_apart(bench: Bench, first: Path, tmp_path: Path) -> None:
    up(bench, load(first))
    moved = first.rename(tmp_path / "moved.yaml")
    with pytest.raises(UsageError, match="no longer exists"):
        meant(bench, moved)
    (said,) = up(bench, load(moved))  # it is as this one wants it, and nobody else's
    assert str(first) in said
    assert meant(bench, moved) == "orch"
    assert up(bench, load(moved)) == []


def test_a_variant_is_its_files(bench: Bench, first: Path) -> None:
    up(bench, load(first, Overrides(name="b")))
    assert meant(bench, first) == "b"
    up(bench, load(first, Overrides(name="a")))
    with pytest.raises(UsageError, match="a, b"):
        meant(bench, first)
    up(bench, load(first))
    assert meant(bench, first) == "orch", "the name that the file gives comes first"
    first.unlink()
    with pytest.raises(UsageError, match="a, b, orch"):
        meant(bench, first)


def test_a_variants_name_may_be_taken_by_another_file(
    bench: Bench, first: Path, second: Path
) -> None:
    up(bench, load(first, Overrides(name="taken")))
    with pytest.raises(UsageError, match="already up"):
        up(bench, load(second, Overrides(name="taken")))
    assert meant(bench, second) == "orch"


def test_a_shipped_topology_is_not_a_file_of_its_name(bench: Bench, tmp_path: Path) -> None:
    up(bench, load("two-node"))
    own = tmp_path / "two-node.yaml"
    own.write_text("name: two-node\nnodes: {a: {}}\n")
    with pytest.raises(UsageError, match=r"topologies/two-node\.yaml"):
        meant(bench, own)
    assert meant(bench, "two-node") == "two-node"
    up(bench, load("two-node"))


def test_a_file_without_ending_does_not_hide_a_lab(bench: Bench, first: Path) -> None:
    up(bench, load(first))
    Path("orch").write_text("name: else\nnodes: {a: {}}\n")
    assert meant(bench, "orch") == "orch"
    Path("script").write_text("no topology\n")
    assert meant(bench, "script") == "script"


def test_what_is_no_file_says_so(bench: Bench) -> None:
    for name in ("./gone.yaml", "gone.yml", "/nowhere/lab", f"./{'x' * 300}.yaml"):
        with pytest.raises(TopologyError):
            meant(bench, name)


# -- records that do not say it ----------------------------------------------------------


def test_an_earlier_versions_relative_path_is_no_file(bench: Bench, first: Path) -> None:
    os.chdir(first.parent)
    recorded(bench, "orch", load("./lab.yaml"), "./lab.yaml")
    with pytest.raises(UsageError, match="earlier version"):
        meant(bench, "./lab.yaml")
    os.chdir("../p2")
    with pytest.raises(UsageError, match="earlier version"):
        up(bench, load("./lab.yaml"))
    lab = Lab("orch", bench.settings)
    lab.up(dataclasses.replace(lab.topology(), file="./lab.yaml"))  # by its name: as it is
    os.chdir(first.parent)
    assert len(up(bench, load("./lab.yaml"))) == 1, "it is as this file wants it, which is told"
    assert meant(bench, "./lab.yaml") == "orch"


def test_an_earlier_versions_absolute_path_is_that_file(
    bench: Bench, first: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").symlink_to("p1")
    recorded(bench, "orch", load(first), f"{tmp_path}/folder/lab.yaml")
    assert meant(bench, first) == "orch"
    assert up(bench, load(first)) == []


def test_a_lab_without_a_file_is_no_files(bench: Bench, second: Path) -> None:
    up(bench, load_text(OTHER, "pipe"))
    with pytest.raises(UsageError, match="without a file"):
        meant(bench, second)
    assert up(bench, load_text(OTHER, "pipe")) == []
    with pytest.raises(UsageError, match="already up"):
        up(bench, load_text(ONE, "pipe"))


def test_a_lost_record_makes_no_lab_anybodys(bench: Bench, first: Path, second: Path) -> None:
    up(bench, load(first))
    bench.state.remove("orch")
    for file in (first, second):
        with pytest.raises(UsageError, match="record"):
            meant(bench, file)
    with pytest.raises(UsageError, match="record"):
        up(bench, load(second))
    assert sorted(bench.provider.nodes("orch")) == ["n1"]
    assert len(up(bench, load(first))) == 1
    assert meant(bench, first) == "orch"


def test_a_copy_does_not_take_a_lab_over(bench: Bench, first: Path, second: Path) -> None:
    up(bench, load(first))
    second.write_text(ONE)
    with pytest.raises(UsageError, match="already up"):
        up(bench, load(second))
    up(bench, load(second), replace=True)
    assert meant(bench, second) == "orch"
    with pytest.raises(UsageError, match="created from"):
        meant(bench, first)


# -- the commands ------------------------------------------------------------------------

ON_A_LAB = [
    ["down", "{}"],
    ["status", "{}"],
    ["graph", "{}"],
    ["capture", "-l", "{}", "n1"],
    ["verify", "{}"],
    ["conformance", "{}"],
    ["kubectl", "{}", "--", "get", "pods"],
    ["kubeconfig", "{}"],
    ["exec", "-l", "{}", "n1", "--", "true"],
    ["shell", "-l", "{}", "n1"],
    ["logs", "-l", "{}", "n1"],
    ["proxy", "-l", "{}", "n1"],
    ["proxy", "-l", "{}", "n1:80"],
    ["forward", "-l", "{}", "n1:80", "0"],
    ["diff", "{}"],
    ["save", "{}"],
    ["snapshot", "{}"],
    ["restore", "{}"],
    ["walk", "-l", "{}", "n1", "n1"],
    ["cp", "-l", "{}", "n1:/etc/hosts", "-"],
    ["restart", "-l", "{}", "n1"],
    ["stop", "-l", "{}", "n1"],
    ["start", "-l", "{}", "n1"],
    ["fault", "stop", "-l", "{}", "n1"],
    ["fault", "apply", "-l", "{}", "cut"],
    ["fault", "ls", "-l", "{}"],
    ["fault", "heal", "-l", "{}"],
    ["up", "{}"],
    ["vagrant", "describe", "{}"],
    ["vagrant", "joined", "{}", "other"],
    ["vagrant", "left", "{}", "other"],
]


def test_the_list_of_commands_is_whole() -> None:
    """A command that is added and is about a lab belongs into the list."""
    about_a_lab = set()
    for name in [*cli.COMMANDS, *cli.brought()]:
        command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
        words = {param.name for param in getattr(command, "params", [])}
        if words & {"lab", "lab_name"} or name in {"up", "diff", "fault", "vagrant"}:
            about_a_lab.add(name)
    assert about_a_lab == {argv[0] for argv in ON_A_LAB}


def commands(group: click.Command, *words: str) -> Iterator[tuple[str, click.Command]]:
    """Each command below a group, with its words."""
    if not isinstance(group, click.Group):
        yield " ".join(words), group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        one = group.get_command(context, name)
        assert one is not None
        yield from commands(one, *words, name)


def test_every_command_that_takes_a_file_takes_its_variables() -> None:
    about_a_lab = {name for argv in ON_A_LAB for name in (argv[0], " ".join(argv[:2]))}
    about_a_file = {"plan", "export", "topologies"}
    tested = []
    for words, one in commands(cli.cli):
        if words in about_a_lab | about_a_file or words.startswith("fault "):
            tested.append(words)
            assert ["--set"] in [param.opts for param in one.params], words
    assert {"verify", "fault loss", "vagrant left", "plan"} <= {*tested}


@pytest.fixture
def by_root(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(common, "make_settings", lambda **_: bench.settings)


@pytest.mark.usefixtures("by_root")
@pytest.mark.parametrize("argv", ON_A_LAB, ids=" ".join)
def test_no_command_touches_a_lab_that_came_from_another_file(
    bench: Bench, first: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    up(bench, load(first))
    before = bench.state.read("orch")
    bench.forget()
    assert cli.run([word.format("./lab.yaml") for word in argv]) == 2
    assert os.path.realpath(first) in capsys.readouterr().err
    assert bench.provider.calls == []
    assert labs(bench.settings) == ["orch"]
    assert bench.state.read("orch") == before


@pytest.mark.usefixtures("by_root")
def test_the_variable_may_name_a_file(
    bench: Bench,
    first: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    up(bench, load(first))
    monkeypatch.setenv("TESTBED_LAB", "./lab.yaml")
    assert cli.run(["status"]) == 2
    assert os.path.realpath(first) in capsys.readouterr().err
    monkeypatch.setenv("TESTBED_LAB", str(first))
    assert cli.run(["status"]) == 0


@pytest.mark.usefixtures("by_root")
def test_ls_shows_the_whole_path(
    bench: Bench, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chdir(first.parent)
    up(bench, load("./lab.yaml"))
    bench.provider.create_one("lost", spec("node1"))
    assert cli.run(["ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["lab"], row["source"]) for row in rows] == [
        ("lost", ""),
        ("orch", os.path.realpath(first)),
    ]


def test_a_lab_by_its_name_needs_no_file(bench: Bench, first: Path) -> None:
    bench.state.write(Record("orch", load(first).to_dict(), str(first)))
    first.unlink()
    os.chdir("/")
    assert common.lab_meant(bench.settings, "orch").name == "orch"
    with pytest.raises(NoSuchLab):
        common.lab_meant(bench.settings, "other").context()


@pytest.mark.parametrize(
    ("argv", "variable"),
    [
        (["down", "lab.yaml"], None),
        (["up", "./lab.yaml"], None),
        (["ls"], "TESTBED_STATE"),
        (["doctor"], "TESTBED_CACHE"),
        (["artifacts", "build", "flanneld", "--artifact", "flanneld=x"], None),
    ],
)
def test_a_deleted_current_folder(
    tmp_path: Path,
    argv: list[str],
    variable: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if variable:
        monkeypatch.setenv(variable, "relative")
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert cli.run(argv) == 2
    assert "Traceback" not in capsys.readouterr().err
