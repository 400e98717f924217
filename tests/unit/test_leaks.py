"""Leftovers of no live lab are reported and removed; parts of live labs are kept."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from plugins import Elsewhere, declare_elsewhere

from testbed import files, leaks
from testbed.artifacts.cache import Cache
from testbed.errors import LabError
from testbed.labs.state import Record, State
from testbed.leftover import AGE, Judge, Leftover
from testbed.nodes.kubernetes import left as in_clusters
from testbed.nodes.kubernetes import remembered as of_pods
from testbed.nodes.netns import cgroups, find, leftovers
from testbed.testing.provider import spec

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.testing.fakes import Bench


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[find.Init]:
    """A machine without nodes, cgroups and temporary folders; nodes can be added."""
    inits: list[find.Init] = []
    monkeypatch.setattr(find, "inits", lambda: iter(inits))
    monkeypatch.setattr(cgroups, "labs", lambda: iter(()))
    monkeypatch.setattr(cgroups, "hierarchies", list)
    monkeypatch.setattr(leaks, "_temporary", lambda: iter(()))
    monkeypatch.setattr(leaks, "_cache", lambda _: iter(()))
    return inits


@pytest.fixture
def look(bench: Bench, quiet: list[find.Init]) -> Callable[[], list[Leftover]]:
    def settings(folder: Path) -> Settings:
        return bench.settings

    return lambda: leaks.leftovers(settings, bench.state.path)


def init_of(lab: str, state: Path, node: str = "node1") -> find.Init:
    began = find.started(os.getpid())
    assert began is not None
    return find.Init(os.getpid(), "node", lab, node, "-", str(state), began)


Look = Callable[[], "list[Leftover]"]


def test_a_machine_with_nothing_on_it(look: Look) -> None:
    assert look() == []


def test_a_record_of_what_does_not_run(look: Look, bench: Bench) -> None:
    bench.state.write(Record("a lab", {}))
    (found,) = look()
    assert found.kind == "record"
    assert found.command == "testbed down 'a lab'"
    assert leaks.fix([found]) == []
    assert look() == []
    assert bench.state.labs() == []


def test_a_live_lab_is_left_alone(look: Look, bench: Bench, quiet: list[find.Init]) -> None:
    bench.state.write(Record("lab", {}))
    quiet.append(init_of("lab", bench.state.path))
    assert look() == []


def test_a_live_lab_of_any_provider_is_left_alone(
    look: Look, bench: Bench, quiet: list[find.Init]
) -> None:
    """Its provider knows that it runs; nothing of it is a process of namespace nodes."""
    del quiet
    bench.provider.create("lab", [spec("node1")])
    bench.state.write(Record("lab", {}))
    assert look() == []
    bench.provider.destroy("lab")
    assert [one.kind for one in look()] == ["record"]


def test_a_lab_of_which_nothing_runs_is_not_live(
    look: Look, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its provider lists it for `down`: a cgroup is left, and no process."""
    bench.state.write(Record("lab", {}))
    monkeypatch.setattr(bench.provider, "labs", lambda: ["lab"])
    assert [one.kind for one in look()] == ["record"]


def test_a_lab_whose_place_does_not_answer_may_be_live(
    look: Look, bench: Bench, quiet: list[find.Init], monkeypatch: pytest.MonkeyPatch
) -> None:
    del quiet

    def nodes(lab: str) -> NoReturn:
        raise LabError(f"the cluster of {lab} does not answer")

    bench.state.write(Record("lab", {}))
    monkeypatch.setattr(bench.provider, "labs", lambda: ["lab"])
    monkeypatch.setattr(bench.provider, "nodes", nodes)
    assert look() == []

    def labs() -> NoReturn:
        raise LabError("the cluster does not answer")

    monkeypatch.setattr(bench.provider, "labs", labs)
    assert look() == []


def test_leftovers_of_a_provider_are_reported(
    look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare_elsewhere(monkeypatch)
    folder = tmp_path / "part"
    folder.mkdir()

    def left(judge: Judge) -> list[Leftover]:
        live = judge.fate("lab", tmp_path)
        return [Leftover("folder", str(folder), live or "nobody's", "rmdir", remove=folder.rmdir)]

    monkeypatch.setattr(Elsewhere, "leftovers", left)
    (found,) = look()
    assert found.about == "nobody's"
    assert leaks.fix([found]) == []
    assert not folder.exists()


def test_what_is_being_made_is_left_alone(look: Look, bench: Bench, quiet: list[find.Init]) -> None:
    quiet.append(init_of("lab", bench.state.path))
    with bench.state.lock("lab", "up lab"):
        assert look() == []
        (bench.state.path / ".lab.part-x").write_text("half")
        assert look() == []
    assert {one.kind for one in look()} == {"nodes", "file"}


def test_a_lab_that_becomes_live_meanwhile_is_not_removed(look: Look, bench: Bench) -> None:
    bench.state.write(Record("lab", {}))
    found = look()
    with bench.state.lock("lab", "up lab"):
        assert leaks.fix(found) == []
    assert bench.state.labs() == ["lab"]


def test_nodes_of_another_state_folder(
    look: Look, quiet: list[find.Init], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_sees_what_we_see", lambda _: True)
    other = State(tmp_path / "other")
    other.write(Record("lab", {}))
    quiet.append(init_of("lab", other.path))
    (found,) = look()
    assert (found.theirs, found.command) == (True, "")
    other.remove("lab")
    (found,) = look()
    assert not found.theirs
    assert found.command == f"TESTBED_STATE={other.path} testbed down lab"


def test_what_cannot_be_judged_is_theirs(
    look: Look, quiet: list[find.Init], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_sees_what_we_see", lambda _: False)
    quiet.append(init_of("lab", tmp_path / "gone"))
    (found,) = look()
    assert found.theirs
    called: list[str] = []
    monkeypatch.setattr(leaks._Look, "whole", lambda *_: called.append("removed"))
    assert leaks.fix([found]) == []
    assert called == []


def test_the_lock_and_pieces_of_who_was_killed(look: Look, bench: Bench) -> None:
    bench.state.ensure()
    for name in (".lab.lock", ".lab.part-abc", ".x.y.part-1_2"):
        (bench.state.path / name).write_text("")
    found = look()
    assert [Path(one.name).name for one in found] == [".lab.lock", ".lab.part-abc", ".x.y.part-1_2"]
    assert leaks.fix(found) == []
    assert list(bench.state.path.iterdir()) == []


def test_a_lock_that_is_held_is_no_leftover(look: Look, bench: Bench) -> None:
    with bench.state.lock("lab", "up lab"):
        assert look() == []
        assert bench.state.holder("lab").startswith("testbed up lab")
    assert bench.state.holder("lab") == ""


def test_what_is_not_ours_in_the_state_folder_stays(look: Look, bench: Bench) -> None:
    bench.state.ensure()
    for name in ("notes.txt", ".hidden", ".part-1", "lab.lock"):
        (bench.state.path / name).write_text("mine")
    assert look() == []


def test_a_state_folder_that_is_gone_is_not_there_afterwards(tmp_path: Path) -> None:
    gone = tmp_path / "a" / "b"
    with leaks._without_trace(gone), State(gone).lock("lab", "fix"):
        assert gone.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_on_which_nobody_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind(str(tmp_path / "dead.sock"))
        alive.bind(str(tmp_path / "alive.sock"))
        alive.listen()
        assert [path.name for path in leaks._dead_sockets(tmp_path)] == ["dead.sock"]


def test_temporary_files_of_writers_that_have_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for name in (f".machine.{process.pid}", f".accel.{os.getpid()}", ".machine.json", "x.1"):
        (tmp_path / name).write_text("")
    (tmp_path / f".tmp-cc-0123.{os.getpid()}.{time.monotonic_ns()}").mkdir()  # the cache's own
    assert [path.name for path in files.abandoned(tmp_path)] == [f".machine.{process.pid}"]


def test_what_the_cache_was_left_with(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name in ("mine-1", "theirs-2", "old-3"):
        (tmp_path / f".tmp-{name}.1.2").mkdir()
    with (tmp_path / ".lock-theirs-2").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [p.name for p in cache.leftovers()] == [".tmp-mine-1.1.2", ".tmp-old-3.1.2"]
        cache.sweep()
        assert [p.name for p in tmp_path.glob(".tmp-*")] == [".tmp-theirs-2.1.2"]


def test_temporary_folders_once_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("testbed-doctor-a", "testbed-cc-b", "other"):
        (tmp_path / name).mkdir()
    for name in ("testbed-doctor-a", "other"):
        os.utime(tmp_path / name, (0, 0))
    found = list(leaks._temporary())
    assert [Path(one.name).name for one in found] == ["testbed-doctor-a"]
    assert leaks.fix(found) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "testbed-cc-b"]


def test_what_cannot_be_removed_is_told(look: Look, bench: Bench) -> None:
    bench.state.ensure()
    (bench.state.path / "lab.json").mkdir()  # whoever did that
    (found,) = look()
    ((same, why),) = leaks.fix([found])
    assert same == found
    assert "cannot remove the record" in why


def test_cgroups_of_a_lab_that_nobody_knows(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE", 0)
    monkeypatch.setattr(cgroups, "labs", lambda: iter(["lab.0123abcd"]))
    monkeypatch.setattr(cgroups, "busy", lambda _: False)
    monkeypatch.setattr(cgroups, "age", lambda _: AGE + 1)
    (found,) = look()
    assert not found.theirs
    assert "rmdir" in found.command
    monkeypatch.setattr(cgroups, "age", lambda _: 1.0)
    assert [one.theirs for one in look()] == [True]
    monkeypatch.setattr(cgroups, "age", lambda _: AGE + 1)
    monkeypatch.setattr(cgroups, "busy", lambda _: True)
    assert [one.theirs for one in look()] == [True]


def test_as_data(look: Look, bench: Bench) -> None:
    bench.state.write(Record("lab", {}))
    (found,) = look()
    assert json.loads(json.dumps(found.to_dict())) == {
        "kind": "record",
        "name": str(bench.state.path / "lab.json"),
        "about": "of lab lab, which does not run",
        "command": "testbed down lab",
        "theirs": False,
    }


def test_every_kind_has_its_line_in_the_docs() -> None:
    modules = (leaks.__file__, leftovers.__file__, of_pods.__file__, in_clusters.__file__)
    source = "".join(Path(str(one)).read_text(encoding="utf-8") for one in modules)
    page = (Path(__file__).parents[2] / "docs" / "leaks.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r'(?:Leftover|whole)\(\s*"(\w+)"', source))
    assert kinds == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
