"""Copies between this machine and a lab: the rules, owners, and what an interrupt leaves."""

from __future__ import annotations

import io
import os
import secrets
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hands import Hands

from testbed import owner
from testbed.errors import LabError, UsageError
from testbed.labs import copying
from testbed.labs.copying import Options, copy, split
from testbed.labs.unpack import Unpacking
from testbed.nodes.base import Node, NodeSpec
from testbed.nodes.fake import Answer, Call, FakeNode, FakeProvider

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench


def really(call: Call) -> Answer:
    """Run a command of the node on this machine, in folders of the test."""
    done = subprocess.run(call.words, input=call.input or b"", capture_output=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


class Sides:
    """A folder of this machine, and a root directory of the lab."""

    def __init__(self, tmp_path: Path) -> None:
        self.here = tmp_path / "here"
        self.there = tmp_path / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.provider = FakeProvider()
        for program in ("sh", "tar", "test", "mkdir", "rm"):
            self.provider.script([program], really)
        node = self.provider.create_one("lab", NodeSpec("n", "digest"))
        assert isinstance(node, FakeNode)
        self.node = node

    def place(self, where: str) -> tuple[Node, str]:
        assert where == "n/c"
        return self.node, str(self.there)

    def copy(self, source: str, target: str, **options: bool) -> None:
        copy(source, target, self.place, Options(**options))


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sides:
    made = Sides(tmp_path)
    monkeypatch.chdir(made.here)
    return made


def tree(folder: Path) -> dict[str, str]:
    """The files below a folder with their contents, links with their targets, folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


def fill(folder: Path) -> None:
    """A file and a folder with a file, and a folder and a file that exist at the other side."""
    (folder / "file").write_text("new")
    (folder / "tree" / "sub").mkdir(parents=True)
    (folder / "tree" / "leaf").write_text("leaf")


def have(folder: Path) -> None:
    (folder / "old").write_text("old")
    (folder / "box").mkdir()
    (folder / "box" / "kept").write_text("kept")


#: Source, target, and what has come (docs.docker.com/reference/cli/docker/container/cp).
RULES: list[tuple[str, str, dict[str, str]]] = [
    ("file", "new", {"new": "new"}),
    ("file", "old", {"old": "new"}),
    ("file", "box", {"box/file": "new"}),
    ("file", "box/", {"box/file": "new"}),
    ("file", ".", {"file": "new"}),
    ("tree", "new", {"new": "/", "new/leaf": "leaf", "new/sub": "/"}),
    ("tree", "new/", {"new": "/", "new/leaf": "leaf", "new/sub": "/"}),
    ("tree/", "new", {"new": "/", "new/leaf": "leaf", "new/sub": "/"}),
    ("tree/.", "new", {"new": "/", "new/leaf": "leaf", "new/sub": "/"}),
    ("tree", "box", {"box/tree": "/", "box/tree/leaf": "leaf", "box/tree/sub": "/"}),
    ("tree/", "box/", {"box/tree": "/", "box/tree/leaf": "leaf", "box/tree/sub": "/"}),
    ("tree/.", "box", {"box/leaf": "leaf", "box/sub": "/"}),
]
REFUSED = [
    ("nosuch", "new"),
    ("file", "new/"),
    ("file", "nosuch/new"),
    ("file/", "new"),
    ("file/.", "new"),
    ("tree", "old"),
    ("tree", "nosuch/new"),
]
BOTH_WAYS = pytest.mark.parametrize("to_the_lab", [True, False])


def over(sides: Sides, *, to_the_lab: bool) -> tuple[Path, Path, Callable[[str, str], None]]:
    """The folder of sources, that of targets, and the copy of a name to a name."""
    if to_the_lab:
        return sides.here, sides.there, lambda s, t: sides.copy(s, f"n/c:{t}")
    return sides.there, sides.here, lambda s, t: sides.copy(f"n/c:/{s}", t)


@BOTH_WAYS
@pytest.mark.parametrize(("source", "target", "come"), RULES)
def test_the_rules(
    source: str, target: str, come: dict[str, str], to_the_lab: bool, sides: Sides
) -> None:
    near, far, copied = over(sides, to_the_lab=to_the_lab)
    fill(near)
    have(far)
    before = tree(far)
    copied(source, target)
    assert tree(far) == before | come
    copied(source, target)  # again, over what is there now
    assert {**tree(far), **before | come} == tree(far)


@BOTH_WAYS
@pytest.mark.parametrize(("source", "target"), REFUSED)
def test_what_is_refused_changes_nothing(
    source: str, target: str, to_the_lab: bool, sides: Sides
) -> None:
    near, far, copied = over(sides, to_the_lab=to_the_lab)
    fill(near)
    have(far)
    before = tree(far)
    with pytest.raises((UsageError, LabError)) as caught:
        copied(source, target)
    assert caught.value.hint
    assert tree(far) == before


@BOTH_WAYS
def test_modes_times_and_links_are_kept(to_the_lab: bool, sides: Sides) -> None:
    near, far, copied = over(sides, to_the_lab=to_the_lab)
    box = near / "tree"
    box.mkdir()
    (box / "a").write_text("a")
    (box / "a").chmod(0o640)
    (box / "link").symlink_to("/nowhere")
    os.link(box / "a", box / "same")
    (box / "name with\nnewline").write_text("x")
    os.utime(box / "a", (1, 1_000_000))
    (box / "closed").mkdir(mode=0o500)
    box.chmod(0o750)
    copied("tree", "new")
    made = far / "new"
    assert stat.S_IMODE((made / "a").stat().st_mode) == 0o640
    assert (made / "a").stat().st_mtime == 1_000_000
    assert (made / "a").stat().st_ino == (made / "same").stat().st_ino
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert stat.S_IMODE((made / "closed").stat().st_mode) == 0o500
    assert str((made / "link").readlink()) == "/nowhere"
    assert (made / "name with\nnewline").read_text() == "x"


@BOTH_WAYS
def test_a_link_is_copied_as_such_unless_its_target_is_asked_for(
    to_the_lab: bool, sides: Sides
) -> None:
    near, far, copied = over(sides, to_the_lab=to_the_lab)
    fill(near)
    (near / "link").symlink_to("file")
    copied("link", "new")
    assert tree(far) == {"new": "-> file"}
    source, target = ("link", "n/c:/file") if to_the_lab else ("n/c:/link", "file")
    sides.copy(source, target, follow=True)
    assert tree(far)["file"] == "new"


def test_links_of_a_container_stay_in_its_root(sides: Sides) -> None:
    """As for its own processes: an absolute link begins at the container's root."""
    (sides.there / "etc").mkdir()
    (sides.there / "etc" / "passwd").write_text("its own")
    for name, to in (("abs", "/etc"), ("up", "../../../../etc"), ("round", "round")):
        (sides.there / name).symlink_to(to)
    (sides.here / "file").write_text("new")
    for name in ("abs", "up"):
        sides.copy(f"n/c:/{name}/passwd", "got")
        assert (sides.here / "got").read_text() == "its own"
    sides.copy("n/c:/../../etc/passwd", "got")
    assert (sides.here / "got").read_text() == "its own"
    sides.copy("file", "n/c:/abs")
    assert (sides.there / "etc" / "file").read_text() == "new"
    with pytest.raises(LabError, match="links"):
        sides.copy("n/c:/round/x", "got")


def test_a_whole_root_is_copied_without_what_the_kernel_shows(sides: Sides) -> None:
    (sides.there / "proc").mkdir()
    (sides.there / "proc" / "kcore").write_text("much")
    (sides.there / "etc").mkdir()
    sides.copy("n/c:/", "root")
    assert tree(sides.here) == {"root": "/", "root/etc": "/", "root/proc": "/"}


# -- streams --------------------------------------------------------------------------


class Stream(io.TextIOWrapper):
    """A standard stream that is a file."""


def redirected(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file = path.open("wb" if name == "stdout" else "rb")
    monkeypatch.setattr(sys, name, Stream(file))


@pytest.mark.parametrize(
    ("source", "names"),
    [("file", {"file"}), ("tree", {"tree", "tree/leaf", "tree/sub"}),
     ("tree/.", {".", "./leaf", "./sub"})],
)  # fmt: skip
def test_a_tar_stream_comes_out(
    source: str, names: set[str], sides: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(sides.there)
    redirected(tmp_path / "out.tar", monkeypatch, "stdout")
    sides.copy(f"n/c:/{source}", "-")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert {*tar.getnames()} == names


def test_a_tar_stream_goes_in(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(sides.here)
    have(sides.there)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add("tree")
        tar.add("file")
    redirected(tmp_path / "in.tar", monkeypatch, "stdin")
    sides.copy("-", "n/c:/box")
    assert tree(sides.there / "box") == {
        "kept": "kept", "file": "new", "tree": "/", "tree/leaf": "leaf", "tree/sub": "/",
    }  # fmt: skip
    for target in ("/old", "/nosuch"):
        with pytest.raises(LabError):
            sides.copy("-", f"n/c:{target}")


def test_a_damaged_stream_leaves_nothing(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    have(sides.there)
    before = tree(sides.there)
    (tmp_path / "in.tar").write_bytes(b"no archive" * 100)
    redirected(tmp_path / "in.tar", monkeypatch, "stdin")
    with pytest.raises(LabError):
        sides.copy("-", "n/c:/box")
    assert tree(sides.there) == before


# -- what an interrupt leaves ----------------------------------------------------------


def test_an_interrupt_here_leaves_the_old_file(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sides.there)
    (sides.here / "file").write_text("old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("testbed.labs.unpack.shutil.copyfileobj", stop)
    with pytest.raises(KeyboardInterrupt):
        sides.copy("n/c:/file", "file")
    assert tree(sides.here) == {"file": "old"}


def test_an_interrupt_on_the_way_to_the_lab_leaves_nothing(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sides.here)
    have(sides.there)
    before = tree(sides.there)

    class Half(tarfile.TarFile):
        def add(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("testbed.labs.copying.tarfile.open", Half.open)
    with pytest.raises(KeyboardInterrupt):
        sides.copy("tree", "n/c:/box")
    assert tree(sides.there) == before


def test_a_failed_command_of_the_node_says_why(sides: Sides) -> None:
    fill(sides.here)
    sides.provider.script(["sh", "-c", copying.UNPACK], Answer(1, err=b"No space left\n"))
    with pytest.raises(LabError, match="No space left"):
        sides.copy("file", "n/c:/new")
    fill(sides.there)
    sides.provider.script(["tar"], Answer(2, err=b"Input/output error\n"))
    with pytest.raises(LabError, match="Input/output error"):
        sides.copy("n/c:/tree", "new")
    sides.provider.script(["tar"], Answer(127))
    with pytest.raises(LabError, match="no tar"):
        sides.copy("n/c:/tree", "new2")


# -- owners, and streams that lie -------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_new_files_belong_to_the_owner_of_the_folder(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sides.there)
    (sides.there / "tree" / "link").symlink_to("leaf")
    monkeypatch.setattr(owner, "caller", lambda: owner.Owner(1234, 1235))
    os.chown(sides.here, 1234, 1235)
    sides.copy("n/c:/tree", "new")
    sides.copy("n/c:/file", "file")
    for path in (sides.here / "new", *(sides.here / "new").rglob("*"), sides.here / "file"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (1234, 1235), path


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
@BOTH_WAYS
def test_owners_and_rights_are_kept_when_asked_for(to_the_lab: bool, sides: Sides) -> None:
    near, far, copied = over(sides, to_the_lab=to_the_lab)
    (near / "a").write_text("x")
    os.chown(near / "a", 1234, 1235)
    (near / "a").chmod(0o4755)
    copied("a", "plain")
    source, target = ("a", "n/c:/kept") if to_the_lab else ("n/c:/a", "kept")
    sides.copy(source, target, archive=True)
    assert (far / "plain").stat().st_uid == 0
    assert (far / "kept").stat().st_uid == 1234
    assert stat.S_IMODE((far / "kept").stat().st_mode) == 0o4755


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, to
    return made


def stream(*entries: tarfile.TarInfo) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for one in entries:
            tar.addfile(one)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../out")],
        [entry("a/../../out")],
        [entry("up", tarfile.SYMTYPE, ".."), entry("up/out")],
        [entry("hard", tarfile.LNKTYPE, "../out")],
    ],
)
def test_no_entry_gets_out_of_its_folder(entries: list[tarfile.TarInfo], tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    (tmp_path / "in" / "out").write_text("mine")
    with pytest.raises((LabError, OSError)):
        Unpacking(folder).all(stream(*entries))
    assert (tmp_path / "in" / "out").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name != "up"]


def test_a_device_is_left_out(tmp_path: Path) -> None:
    Unpacking(tmp_path / "new").all(stream(entry("sda", tarfile.BLKTYPE), entry("file")))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_device_as_the_source_is_refused(sides: Sides) -> None:
    with pytest.raises(LabError) as refused:
        copy("n:/dev/null", "new", lambda _: (sides.node, ""))
    assert "exec n cat /dev/null" in (refused.value.hint or "")
    assert list(sides.here.iterdir()) == []


# -- the command ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("n:/a", ("n", "/a")),
        ("n:a:b", ("n", "/a:b")),
        ("n/c:", ("n/c", "/")),
        ("n/c:a/.", ("n/c", "/a/.")),
        ("./n:a", None),
        ("/n:a", None),
        ("../n:a", None),
        ("plain", None),
        ("-", None),
    ],
)
def test_a_path_of_the_lab_has_a_node_and_a_colon(text: str, parts: tuple[str, str] | None) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["a", "b"], 2),
        (["a:/x", "b:/y"], 2),
        (["nosuch:/x", "y"], 4),
        (["a/nosuch:/x", "y"], 4),
    ],
)
def test_wrong_use(
    argv: list[str],
    status: int,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hands = Hands(bench, monkeypatch, capsys)
    hands.up()
    said = hands("cp", *argv)
    assert (said.status, said.out) == (status, "")
    assert "-> " in said.err


def test_a_pipe_has_the_mode_of_the_archive(tmp_path: Path) -> None:
    pipe = entry("pipe", tarfile.FIFOTYPE)
    pipe.mode = 0o640
    Unpacking(tmp_path / "new", archive=True).all(stream(pipe))
    mode = (tmp_path / "new" / "pipe").stat().st_mode
    assert (stat.S_ISFIFO(mode), stat.S_IMODE(mode)) == (True, 0o640)


def test_a_file_that_somebody_made_in_the_place_of_ours_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00000000")
    outside, folder = tmp_path / "outside", tmp_path / "new"
    outside.write_text("theirs")
    folder.mkdir()
    (folder / f".testbed-00000000.{os.getpid()}").symlink_to(outside)
    with pytest.raises(OSError, match="exists"):
        Unpacking(folder).all(stream(entry("file")))
    assert outside.read_text() == "theirs"
