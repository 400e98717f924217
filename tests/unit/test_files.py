"""Files for the user: whole or not at all, and devices, pipes and sockets stay what they are."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import files
from testbed.errors import Interrupted, MachineError, UsageError

NEW = "new content\n" * 10


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def alone(path: Path) -> bool:
    """Tell whether a file is alone in its folder."""
    return [one.name for one in path.parent.iterdir()] == [path.name]


# -- regular files ---------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write(path, NEW)
    assert (path.read_text(), mode(path), alone(path)) == (NEW, 0o640, True)
    files.write(path.with_name("key"), b"\x00\xff", private=True)
    assert (path.with_name("key").read_bytes(), mode(path.with_name("key"))) == (b"\0\xff", 0o600)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("before", [0o600, 0o666, 0o755, 0o440])
def test_a_file_that_is_there_keeps_its_mode(before: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(before)
    files.write(path, NEW)
    assert (path.read_text(), mode(path), alone(path)) == (NEW, before, True)
    files.write(path, NEW, private=True)
    assert mode(path) == 0o600


def test_it_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A reader of the old file reads all of it."""
    path = tmp_path / "a"
    path.write_text("old")
    with path.open() as reader:
        files.write(path, NEW)
        assert reader.read() == "old"


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")
def test_a_file_that_is_there_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    files.write(path, NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_link_keeps_its_name_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, second = tmp_path / "folder" / "a", tmp_path / "link", tmp_path / "second"
    link.symlink_to("folder/a")
    second.symlink_to(link)
    files.write(second, "one")  # which leads to nothing yet
    assert target.read_text() == "one"
    files.write(second, NEW)
    assert target.read_text() == NEW
    assert (second.readlink(), link.readlink()) == (link, Path("folder/a"))
    assert alone(target)


@pytest.mark.parametrize("make", [
    lambda path: path.mkdir(),
    lambda path: path.symlink_to(path.name),  # a loop
    lambda path: path.symlink_to("nowhere/at/all"),
])  # fmt: skip
def test_where_no_file_can_be(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(path)
    before = path.lstat()
    for refused in (files.check, lambda one: files.write(one, NEW)):
        with pytest.raises(UsageError) as caught:
            refused(path)
        assert str(path) in caught.value.message
        assert caught.value.hint
    assert path.lstat().st_ino == before.st_ino
    assert alone(path)


@pytest.mark.parametrize("name", ["nowhere/a", "file/a", "a" * 300])
def test_where_no_file_can_be_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        files.write(tmp_path / name, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_may_be_as_long_as_the_file_system_lets_them(tmp_path: Path) -> None:
    path = tmp_path / ("名" * 85)
    files.write(path, NEW)
    assert path.read_text() == NEW


def test_what_is_no_character_is_written_as_it_is_spelled(tmp_path: Path) -> None:
    files.write(tmp_path / "a", "a\ud800b")
    assert (tmp_path / "a").read_text() == "a\\ud800b"


# -- failures --------------------------------------------------------------------------------


@contextlib.contextmanager
def small() -> Iterator[None]:
    """No file may be larger than 20 octets: the kernel then fails as where a disk is full.

    That is so for pytest's own files too, so let nothing else happen meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("old", [None, "old"])
def test_no_room_leaves_what_was_there(old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if old is not None:
        path.write_text(old)
    with pytest.raises(MachineError) as caught, small():
        files.write(path, NEW)
    assert str(path) in caught.value.message
    assert "File too large" in caught.value.message
    assert [one.read_text() for one in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_flush_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's disk may say so only then."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        files.write(tmp_path / "a", NEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_was_there(
    signum: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    flush = os.fsync

    def interrupted(fd: int) -> None:
        signal.raise_signal(signum)
        flush(fd)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interrupted) as caught:
        files.write(path, NEW)
    assert caught.value.signum == signum
    assert (path.read_text(), alone(path)) == ("old", True)


def test_a_file_that_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 7)
    source, path = tmp_path / "source", tmp_path / "a"
    source.write_text(NEW)
    files.copy(source, path)
    assert path.read_text() == NEW


def no_rename(*_: object, **__: object) -> None:
    raise OSError(16, "Device or resource busy")  # as of a file that is a mount point


def test_what_cannot_be_replaced_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is bound into a container, or one in a folder of somebody else's."""
    path = tmp_path / "a"
    monkeypatch.setattr(os, "rename", no_rename)
    for old in ("old", NEW + "and more"):
        path.write_text(old)
        inode = path.stat().st_ino
        files.write(path, NEW)
        assert (path.read_text(), path.stat().st_ino, alone(path)) == (NEW, inode, True)
    files.write(path, "", private=True)
    assert (path.read_text(), mode(path)) == ("", 0o600)


@pytest.mark.parametrize("old", ["old", ""])
def test_what_is_written_over_is_not_cut(
    old: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text(old)
    monkeypatch.setattr(os, "rename", no_rename)

    def full(fd: int, *_: object) -> None:
        os.ftruncate(fd, 4096)  # what there was of room
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MachineError, match="No space left"):
        files.write(path, NEW)
    assert (path.read_text(), alone(path)) == (old, True)


# -- into what is no regular file ------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A device that takes nothing: one of our own, or the machine's, which only root could harm."""
    if os.geteuid() != 0:
        return Path("/dev/full")
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("w").close()
    except PermissionError:
        pytest.skip("no devices can be made, or used, here")
    return path


def test_a_device_stays_one(full: Path, tmp_path: Path) -> None:
    before = full.stat()
    link = tmp_path / "link"
    link.symlink_to(full)
    for path in (full, link):
        files.check(path)
        with pytest.raises(MachineError, match="No space left on device"):
            files.write(path, NEW)
        assert full.stat() == before
    files.write(full, "")


def reads(path: Path, got: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: got.append(path.read_text()))
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 1 << 18])
def test_a_fifo_is_written_into(size: int, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    got: list[str] = []
    files.check(path)  # does not wait for a reader
    thread = reads(path, got)
    files.write(path, "x" * size)
    thread.join()
    assert got == ["x" * size]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_fifo_whose_reader_goes(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: path.open("rb", buffering=0).close())
    thread.start()
    with pytest.raises(MachineError, match="reader"):
        files.write(path, "x" * (1 << 20))
    thread.join()


def test_a_socket_is_written_into(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        with pytest.raises(MachineError, match="refused"):  # nobody listens
            files.write(path, NEW)
        server.listen()
        files.check(path)
        files.write(path, NEW)
        with server.accept()[0] as there, there.makefile() as text:
            assert text.read() == NEW
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}"])
def test_a_descriptor_of_ours_is_used_as_it_is(name: str, tmp_path: Path) -> None:
    """Its place in a regular file, too; and a socket can be opened by no name."""
    path = tmp_path / "a"
    with path.open("w") as file:
        file.write("before ")
        file.flush()
        place = Path(name.format(file.fileno(), pid=os.getpid()))
        files.check(place)
        files.write(place, "written ")
        file.write("after")
    assert path.read_text() == "before written after"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        files.write(name.format(theirs.fileno(), pid=os.getpid()), "hello")
        assert ours.recv(10) == b"hello"
    reader, writer = os.pipe()  # as `>(...)` of a shell
    link = tmp_path / "link"
    link.symlink_to(name.format(writer, pid=os.getpid()))
    files.write(link, "hello")
    assert os.read(reader, 10) == b"hello"
    os.close(writer)
    for refused in (files.check, lambda one: files.write(one, NEW)):
        with pytest.raises(UsageError):
            refused(link)
    os.close(reader)


def test_a_file_that_another_process_has_open_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("a") as file:
        file.write("before ")
        file.flush()
        script = "import sys; sys.stdin.read(); print('after', flush=True)"
        with subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=file
        ) as other:
            files.write(f"/proc/{other.pid}/fd/1", "written ")
    assert path.read_text() == "before written after\n"


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.leads_to_stdout(Path(name))
    files.check(Path(name))
    files.write(name, "容器\n")
    assert capsys.readouterr().out == "容器\n"


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/fd/2", "a", "stdout", "/dev/null"])
def test_what_is_not_standard_output(name: str) -> None:
    assert not files.leads_to_stdout(Path(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for refused in (files.check, lambda one: files.write(one, NEW)):
        with pytest.raises(MachineError, match="Permission denied"):
            refused(tmp_path / "a")
    tmp_path.chmod(0o700)
