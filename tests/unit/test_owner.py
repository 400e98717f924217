"""Folders and owners of files when root works for a user."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import threading
from pathlib import Path

import pytest

from testbed import boot_cache, files, owner
from testbed.artifacts import config
from testbed.artifacts.cache import Cache
from testbed.artifacts.source import Job
from testbed.errors import MachineError
from testbed.labs import state
from testbed.labs.state import Record, State
from testbed.process import Completed
from testbed.report import last

USER, GROUP = 1234, 4321
OTHER = 2345
BASES = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
OWN = ("TESTBED_CACHE", "TESTBED_STATE", "TESTBED_CONFIG", "SUDO_UID", "SUDO_GID")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder, which HOME names."""
    path = tmp_path / "home"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, USER, GROUP)
    for name in (*BASES, *OWN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.fixture
def sudo(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As of `sudo -E`."""
    monkeypatch.setenv("SUDO_UID", str(USER))
    monkeypatch.setenv("SUDO_GID", str(GROUP))
    return home


def roots() -> Path:
    return Path(pwd.getpwuid(0).pw_dir)


def chosen() -> list[Path]:
    return [owner.cache(), state.folder(), config.default_path()]


def below(folder: Path) -> list[Path]:
    return [
        folder / ".cache/testbed",
        folder / ".local/state/testbed",
        folder / ".config/testbed/config.toml",
    ]


def ids(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


# -- which folders ----------------------------------------------------------------------------


@as_root
def test_the_callers_folders_are_used(sudo: Path) -> None:
    assert chosen() == below(sudo)


@as_root
def test_somebody_elses_home_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `su` that keeps HOME, or of a container with another's folder for it."""
    assert chosen() == below(roots())
    for uid in (str(OTHER), "0", "", "-1", "x"):
        monkeypatch.setenv("SUDO_UID", uid)
        monkeypatch.setenv("SUDO_GID", "0")
        assert chosen() == below(roots()), uid
    monkeypatch.setenv("HOME", str(home / "not" / "there"))  # it would be created in a user's
    assert chosen() == below(roots())


@as_root
def test_roots_own_home_may_be_anywhere(home: Path) -> None:
    os.chown(home, 0, 0)
    assert chosen() == below(home)


def test_an_ordinary_users_home_is_what_home_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    monkeypatch.setenv("SUDO_UID", str(USER))
    monkeypatch.setenv("SUDO_GID", str(GROUP))
    assert chosen() == below(home)
    assert owner.caller() is None


@as_root
def test_base_folders_are_looked_at_as_the_home_folder_is(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in BASES:
        monkeypatch.setenv(name, str(home / name))
    assert chosen() == below(roots())
    monkeypatch.setenv("SUDO_UID", str(USER))
    monkeypatch.setenv("SUDO_GID", str(GROUP))
    wanted = [home / "XDG_CACHE_HOME/testbed", home / "XDG_STATE_HOME/testbed",
              home / "XDG_CONFIG_HOME/testbed/config.toml"]  # fmt: skip
    assert chosen() == wanted
    for name in BASES:
        monkeypatch.setenv(name, "relative")  # which the specification has ignored
    assert chosen() == below(home)


@as_root
def test_folders_that_are_named_are_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(home / name) for name in "abc"]
    for name, value in zip(
        ("TESTBED_CACHE", "TESTBED_STATE", "TESTBED_CONFIG"), names, strict=True
    ):
        monkeypatch.setenv(name, value)
    assert [str(path) for path in chosen()] == names


# -- whom things belong to --------------------------------------------------------------------


@as_root
def test_a_folder_that_may_not_be_looked_at_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, real = tmp_path / "a" / "secret", Path.stat
    secret.mkdir(parents=True)

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self == secret:  # root may look at every folder
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    assert owner.existing(secret) == tmp_path / "a"
    assert owner.existing(tmp_path / "b" / "c") == owner.existing(tmp_path) == tmp_path
    assert owner.uid_of(secret) == os.geteuid()
    assert owner.existing(Path("/")) == Path("/")


def test_folders_on_the_way_belong_to_the_caller(sudo: Path, tmp_path: Path) -> None:
    folder = sudo / ".cache" / "a" / "b"
    owner.make(folder, 0o700)
    owner.make(folder, 0o700)  # once more
    for path in (folder, folder.parent, folder.parent.parent):
        assert ids(path) == (USER, GROUP)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    owner.make(tmp_path / "roots" / "own")
    assert ids(tmp_path / "roots") == ids(tmp_path / "roots" / "own") == (0, os.getegid())


@as_root
def test_without_sudo_nothing_is_given_away(home: Path) -> None:
    owner.make(home / "a")
    files.write(home / "b", "text")
    assert ids(home / "a")[0] == ids(home / "b")[0] == 0


@as_root
def test_what_was_there_keeps_its_owner(sudo: Path) -> None:
    (sudo / "a").mkdir()
    os.chown(sudo / "a", OTHER, OTHER)
    owner.make(sudo / "a" / "b")
    assert ids(sudo / "a") == (OTHER, OTHER)
    assert ids(sudo / "a" / "b")[0] == 0, "it is in nobody's folder but that other user's"


@as_root
def test_state_cache_and_reports(sudo: Path) -> None:
    """Everything that a lab leaves in a user's folders."""
    there = State(state.folder())
    there.write(Record("lab", {}))
    with there.lock("lab", "test"):
        pass
    last.keep(there.path, {"run": 1})
    boot_cache.keep(owner.cache(), "found", 1)
    files.write(sudo / "report.html", "text")
    found = list(sudo.rglob("*"))
    assert {path.name for path in found} >= {"lab.json", "last.json", ".found.json", "report.html"}
    assert {path: ids(path) for path in found} == dict.fromkeys(found, (USER, GROUP))
    files.write(sudo / "report.html", "again")
    assert ids(sudo / "report.html") == (USER, GROUP)


@as_root
def test_what_root_left_earlier_is_given_when_it_is_written_again(sudo: Path) -> None:
    (sudo / "report.html").write_text("of an earlier version")
    files.write(sudo / "report.html", "text")
    assert ids(sudo / "report.html") == (USER, GROUP)


def fill(cache: Cache, name: str, mode: int) -> Path:
    def build(folder: Path) -> str:
        (folder / "bin").mkdir()
        (folder / "bin" / "tool").write_text("x")
        (folder / "link").symlink_to("/etc/passwd")
        os.chown(folder / "bin" / "tool", OTHER, OTHER) if name == "others" else None
        folder.chmod(mode)
        return "1"

    return cache.fill(
        name, "key", "cc", build, say=lambda _: None, cancel=threading.Event()
    )  # fmt: skip


@as_root
def test_what_is_in_the_cache(sudo: Path) -> None:
    cache = Cache(owner.cache())
    before = ids(Path("/etc/passwd"))
    folder = fill(cache, "plain", 0o755)
    for path in (folder, *folder.rglob("*"), *cache.folder.glob(".lock-*")):
        assert ids(path) == (USER, GROUP), path
    assert ids(Path("/etc/passwd")) == before
    # What engines have made of images: there an owner is data.
    private = fill(cache, "private", 0o700)
    assert {ids(path)[0] for path in (private, *private.rglob("*"))} == {0}
    assert ids(fill(cache, "others", 0o755) / "bin" / "tool") == (OTHER, OTHER)


# -- traps ------------------------------------------------------------------------------------


@as_root
def test_no_link_is_followed_to_change_an_owner_or_a_file(sudo: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    there = State(state.folder())
    there.ensure()
    for name in ("lab.json", ".lab.lock", "runs"):
        (there.path / name).symlink_to(precious if name != "runs" else tmp_path)
        os.chown(there.path / name, USER, GROUP, follow_symlinks=False)
    there.write(Record("lab", {}))
    with pytest.raises(MachineError), there.lock("lab", "test", timeout=0):
        pass
    with pytest.raises(MachineError):
        last.keep(there.path, {"run": 1})
    cache = Cache(owner.cache())
    owner.make(cache.folder)
    (cache.folder / ".lock-plain-key").symlink_to(tmp_path / "created")
    with pytest.raises(MachineError):
        fill(cache, "plain", 0o755)
    assert (precious.read_text(), ids(precious)[0]) == ("precious", 0)
    assert not (tmp_path / "created").exists()
    assert not (tmp_path / "last.json").exists()


@as_root
def test_a_users_link_to_a_folder_of_somebody_elses(sudo: Path, tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (sudo / ".cache").symlink_to(tmp_path / "roots")
    os.chown(sudo / ".cache", USER, GROUP, follow_symlinks=False)
    with pytest.raises(MachineError) as caught:
        owner.make(sudo / ".cache" / "testbed")
    assert str(sudo / ".cache") in caught.value.message
    assert list((tmp_path / "roots").iterdir()) == []
    os.chown(tmp_path / "roots", USER, GROUP)  # the user's own, on another disk, say
    owner.make(sudo / ".cache" / "testbed")
    assert ids(tmp_path / "roots" / "testbed") == (USER, GROUP)


@as_root
def test_a_second_name_of_another_file_is_not_given(sudo: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = sudo / "folder"
    owner.make(folder)
    os.link(precious, folder / "name")
    owner.give_tree(folder)
    assert ids(precious)[0] == 0


# -- other programs ---------------------------------------------------------------------------


@as_root
def test_tools_that_fill_the_cache_keep_out_of_the_users_folders(
    sudo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    def runner(*_: object, env: dict[str, str], **__: object) -> Completed:
        seen.append(env)
        return Completed((), 0, b"", b"")

    job = Job(tmp_path, tmp_path, lambda _: None, runner, threading.Event(), lambda _: tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("XDG_CACHE_HOME", str(sudo / "x"))
    monkeypatch.setenv("GOPATH", str(tmp_path))
    job.run(["go"])
    job.run(["go"], env={"A": "b", "GOCACHE": str(sudo / "chosen")})
    assert seen[0]["HOME"] == str(roots())
    assert "XDG_CACHE_HOME" not in seen[0]
    assert seen[0]["GOPATH"] == str(tmp_path), "root's own stays"
    assert seen[1] == {"A": "b", "GOCACHE": str(sudo / "chosen")}, "our own choice stays"
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    job.run(["go"])
    assert seen[2]["HOME"] == str(sudo)


# -- what another program creates -------------------------------------------------------------


@as_root
def test_what_a_program_creates_is_given(sudo: Path) -> None:
    there, tree = sudo / "there", sudo / "tree"
    there.write_text("roots")
    tree.mkdir()
    os.chown(tree, USER, GROUP)
    (tree / "before").write_text("roots")
    with owner.giving([there, tree, sudo / "new", sudo / "none", sudo / "gone" / "deep"]):
        there.write_text("written again")
        (sudo / "new" / "inner").mkdir(parents=True)
        (sudo / "new" / "inner" / "file").touch()
        (tree / "after").touch()
        (tree / "link").symlink_to("/etc/passwd")
        os.link(tree / "before", tree / "second name")
        (sudo / "beside").touch()
    given = ["new", "new/inner", "new/inner/file", "tree/after", "tree/link"]
    kept = ["there", "tree/before", "tree/second name", "beside"]
    assert {name: ids(sudo / name) for name in given} == dict.fromkeys(given, (USER, GROUP))
    assert {name: ids(sudo / name) for name in kept} == dict.fromkeys(kept, (0, 0))


@as_root
def test_nothing_is_given_in_a_folder_of_somebody_else(sudo: Path, tmp_path: Path) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    with owner.giving([roots, roots / "file"]):
        (roots / "file").touch()
    assert ids(roots / "file") == (0, 0)


@as_root
def test_nothing_is_given_without_sudo(home: Path) -> None:
    with owner.giving([home / "file"]):
        (home / "file").touch()
    assert ids(home / "file") == (0, 0)
