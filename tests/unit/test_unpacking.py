"""Archives that would reach outside of where they are unpacked, given to what unpacks them."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from testbed.artifacts.debian import Apt
from testbed.artifacts.pypi import PythonPackage
from testbed.artifacts.source import Job
from testbed.errors import ArtifactError, CommandError
from testbed.nodes.seed import DOCKER, Seed
from testbed.process import run

EVIL = b"evil"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nothing may be written to, beside the job's own."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Job:
    into, shared = tmp_path / "into", tmp_path / "shared"
    into.mkdir()
    shared.mkdir()
    return Job(into, shared, lambda _: None, run, threading.Event(), lambda _: tmp_path)


def archive(*members: tuple[str, bytes | str]) -> bytes:
    """A tar of files, given as bytes, and of symbolic links, given as text."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
                tar.addfile(info)
            else:
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
    return data.getvalue()


def hard_link(name: str, target: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.LNKTYPE, str(target)
        tar.addfile(info)
    return data.getvalue()


def nothing_in(outside: Path) -> bool:
    return list(outside.iterdir()) == []


# -- what an engine makes of images, out of a node -------------------------------------------------


def keep(job: Job, data: bytes) -> None:
    def harvest(_: Job, target: Path) -> None:
        target.write_bytes(data)

    Seed("20.10", DOCKER, [], harvest).fill(job)


def test_what_engines_make_of_images_is_for_its_owner_alone(job: Job) -> None:
    keep(job, archive(("overlay2/a/diff/bin/su", EVIL), ("image/repositories.json", b"{}")))
    assert job.into.stat().st_mode & 0o777 == 0o700
    assert (job.into / "layers/overlay2/a/diff/bin/su").read_bytes() == EVIL


def test_members_outside_of_it_are_not_written(job: Job, outside: Path) -> None:
    with pytest.raises(CommandError):
        keep(job, archive(("../../outside/file", EVIL)))
    keep_into(job, archive((f"{outside}/file", EVIL)))  # as if the tree were the root
    assert nothing_in(outside)


def keep_into(job: Job, data: bytes) -> None:
    """Into the folder of a job that has failed before."""
    shutil.rmtree(job.into)
    job.into.mkdir()
    keep(job, data)


def test_nothing_is_written_through_a_link(job: Job, outside: Path) -> None:
    with pytest.raises(CommandError):
        keep(job, archive(("overlay2/a/diff", str(outside)), ("overlay2/a/diff/file", EVIL)))
    assert nothing_in(outside)


@pytest.mark.parametrize("link", ["overlay2", "overlay2/a", "overlay2/a/diff"])
def test_nothing_is_taken_through_a_link(job: Job, outside: Path, link: str) -> None:
    """Otherwise a folder of this machine, its own Docker's, say, would be moved to the cache."""
    (outside / "a" / "diff").mkdir(parents=True)
    target = outside / Path(link).relative_to("overlay2") if link != "overlay2" else outside
    with pytest.raises(ArtifactError, match="is a link"):
        keep(job, archive((link, str(target))))
    assert (outside / "a" / "diff").is_dir()


def test_a_hard_link_to_a_file_of_this_machine_is_not_made(job: Job, outside: Path) -> None:
    mine = outside / "mine"
    mine.touch()
    with pytest.raises(CommandError):
        keep(job, hard_link("overlay2/a/diff/file", mine))
    assert mine.stat().st_nlink == 1


# -- Debian packages -------------------------------------------------------------------------------


def package(data: bytes) -> bytes:
    """A .deb (deb(5)): an ar archive of a version, the control files and the data."""
    control = archive(("./control", b"Package: evil\nVersion: 1\nArchitecture: all\n"))
    out = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar", control),
        ("data.tar", data),
    ):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + bytes(len(content) % 2)
    return out


def test_a_package_is_unpacked_below_its_folder_alone(job: Job, outside: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb here")
    apt, deb, tree = Apt(job), job.shared / "evil_1_all.deb", job.into / "tree"
    deb.write_bytes(package(archive((f"{outside}/file", EVIL))))
    assert apt._open([deb], tree) == {"evil": "1"}
    assert (tree / str(outside / "file").lstrip("/")).read_bytes() == EVIL
    for members in (
        [("../../outside/file", EVIL)],
        [("link", str(outside)), ("link/file", EVIL)],
    ):
        shutil.rmtree(tree)
        deb.write_bytes(package(archive(*members)))
        with pytest.raises(CommandError):
            apt._open([deb], tree)
    assert nothing_in(outside)


# -- a wheel ---------------------------------------------------------------------------------------


def wheel(folder: Path, name: str) -> str:
    """A wheel with one file of that name; its sha256."""
    path = folder / "evil-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, EVIL)
        file.writestr(
            "evil-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1\n"
        )
        about = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr("evil-1.dist-info/WHEEL", about)
        file.writestr("evil-1.dist-info/RECORD", f"{name},,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.long  # pip takes a second each time
def test_a_wheel_is_trusted_by_its_sum_and_stays_in_its_folder(
    job: Job, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(job.shared))
    good = wheel(job.shared, "inside/file")
    PythonPackage("evil", "1", (good,), {"file": "inside/file"}).fill(job)
    assert (job.into / "inside/file").read_bytes() == EVIL
    assert (job.into / "bin/file").read_bytes() == EVIL
    with pytest.raises(CommandError, match="DO NOT MATCH THE HASHES"):
        PythonPackage("evil", "1", ("0" * 64,), {"file": "inside/file"}).fill(job)
    bad = wheel(job.shared, "../../../outside/file")
    with pytest.raises(CommandError, match="outside the target directory"):
        PythonPackage("evil", "1", (bad,), {"x": "x"}).fill(job)
    assert nothing_in(outside)
