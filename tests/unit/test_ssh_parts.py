"""The parts of the ssh node that need no machine: frames, systemd's answers, what is copied."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import queue
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Self, cast

import paramiko
import pytest

from testbed.errors import (
    LabError,
    NodeNotRunning,
    NoSuchNode,
    OutputError,
    ReaderGone,
    TestbedError,
    TimeoutExpired,
)
from testbed.nodes.base import Service
from testbed.nodes.request import ENVIRONMENT, LIMIT, request
from testbed.nodes.ssh import services, terminal
from testbed.nodes.ssh.node import SshNode
from testbed.nodes.ssh.session import told
from testbed.nodes.stream import forward, pipes, provide
from testbed.nodes.stream.forward import Forward
from testbed.nodes.stream.wire import HEADER, NUMBER, WINDOW, Command, Link, Stream


class FakeChannel:
    """A channel whose far end is the test."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.coming: queue.Queue[bytes] = queue.Queue()
        self.timeout: float | None = None
        self.open = True

    def send(self, s: bytes) -> int:
        piece = s[:7]  # never all at once
        self.sent += piece
        return len(piece) if self.open else 0

    def recv(self, nbytes: int) -> bytes:
        if not self.open:
            return b""
        try:
            return self.coming.get(timeout=0.02)
        except queue.Empty:
            raise TimeoutError from None

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def close(self) -> None:
        self.open = False

    def say(self, number: int, kind: str, data: bytes = b"") -> None:
        for byte in HEADER.pack(number, ord(kind), len(data)) + data:
            self.coming.put(bytes([byte]))

    def frames(self) -> list[tuple[int, str, bytes]]:
        seen, rest = [], bytes(self.sent)
        while rest:
            number, kind, size = HEADER.unpack_from(rest)
            seen.append((number, chr(kind), rest[HEADER.size : HEADER.size + size]))
            rest = rest[HEADER.size + size :]
        return seen


class Far:
    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.alive = True
        self.link = Link(self.channel, lambda: self.alive, self.lost)
        self.channel.say(0, "h")
        assert self.link.greet(60)

    def lost(self) -> LabError:
        return LabError("broke") if self.alive else NoSuchNode("gone")

    def command(self, number: int = 1, input: bytes | None = None) -> Command:
        self.channel.say(number, "p", NUMBER.pack(4711))
        return Command("node1", lambda: self.link, ["x"], input=input, env=None)


@pytest.fixture
def far() -> Iterator[Far]:
    made = Far()
    yield made
    made.link.close()
    made.link.join()  # other tests count threads


def number(value: int) -> bytes:
    return NUMBER.pack(value)


@pytest.mark.parametrize(
    ("number_of_error", "wanted"), [(errno.EPIPE, ReaderGone), (errno.ENOSPC, OutputError)]
)
def test_a_command_ends_when_standard_output_takes_no_more(
    number_of_error: int, wanted: type[TestbedError], far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `exec NODE -- yes | head -1`: it would run for ever, and its output pile up here."""

    def write(fd: int, _: bytes) -> None:
        raise OSError(number_of_error, os.strerror(number_of_error))

    monkeypatch.setattr(pipes, "write", write)
    with Path(os.devnull).open() as nothing, Path(os.devnull).open("w") as out:
        far.channel.say(1, "p", number(4711))
        far.channel.say(1, "e", b"not what ends it")
        far.channel.say(1, "o", b"y\n")
        files = [nothing.fileno(), out.fileno(), out.fileno()]
        with pytest.raises(wanted):
            pipes.with_files("node1", far.link, ["yes"], {}, files)
    assert (1, "k", b"") in far.channel.frames()


def test_a_commands_frames_become_its_result(far: Far) -> None:
    running = far.command(input=b"in")
    assert running.pid == 4711
    far.channel.say(1, "o", b"out")
    far.channel.say(1, "e", b"err")
    far.channel.say(9, "o", b"nobody's")
    far.channel.say(1, "x", number(-15))
    result = running.wait(60)
    assert (result.status, result.out, result.err) == (-15, b"out", b"err")
    (_, kind, fields), data, end = far.channel.frames()
    assert kind == "r"
    assert fields.split(b"\0")[0] == b"1"
    assert fields.endswith(b"\0x\0")
    assert (data, end) == ((1, "i", b"in"), (1, "i", b""))


def test_a_time_out_leaves_it_running(far: Far) -> None:
    running = far.command()
    with pytest.raises(TimeoutExpired, match=r"node1: x: .*0\.01 s"):
        running.wait(0.01)
    running.kill()
    assert running.wait().status == -9
    assert far.channel.frames()[-1] == (1, "k", b"")


def test_what_nobody_keeps_is_killed_with_the_next_request(far: Far) -> None:
    running = far.command()
    del running
    far.command(2)
    assert [frame[:2] for frame in far.channel.frames()] == [(1, "r"), (1, "k"), (2, "r")]


def test_input_waits_for_room(far: Far) -> None:
    stream = Stream(far.link)
    stream.room = 0
    far.channel.say(stream.number, "a", number(WINDOW))
    stream.finish(b"x" * 1000)
    assert far.channel.frames() == [(1, "i", b"x" * 1000), (1, "i", b"")]


def test_input_after_the_end_is_nobodys(far: Far) -> None:
    stream = Stream(far.link)
    stream.room = 0
    far.channel.say(stream.number, "x", number(0))
    stream.feed(b"x" * 1000)
    assert far.channel.frames() == []


def test_a_channel_that_closes_is_told(far: Far) -> None:
    running = far.command()
    far.channel.coming.put(b"")
    with pytest.raises(LabError, match="broke"):
        running.wait(60)
    with pytest.raises(LabError, match="broke"):
        Stream(far.link)


def test_a_machine_that_says_nothing_more_is_noticed(far: Far) -> None:
    running = far.command()
    far.alive = False
    with pytest.raises(NoSuchNode, match="gone"):
        running.wait(60)


def test_no_agent_no_link() -> None:
    channel = FakeChannel()
    channel.coming.put(b"")
    assert not Link(channel, lambda: True, lambda: LabError("broke")).greet(60)


def test_a_command_that_cannot_be_run_says_so(far: Far) -> None:
    far.channel.say(1, "x", number(11))
    with pytest.raises(LabError, match=r"node1: x: cannot be run \(error 11\)"):
        Command("node1", lambda: far.link, ["x"], input=None, env=None)


def test_requests_have_limits() -> None:
    assert request("n", ["a", "\udcff", ""]) == b"a\0\xff\0\0"
    with pytest.raises(ValueError, match="NUL"):
        request("n", ["a\0b"])
    with pytest.raises(LabError, match=f"{LIMIT + 1} bytes long"):
        request("n", ["x" * LIMIT])


# -- the connection -----------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [paramiko.SSHException("not active"), paramiko.ChannelException(2, "no"), EOFError()],
)
def test_no_error_of_paramikos_gets_out(error: Exception) -> None:
    with pytest.raises(LabError, match=r"not active|no|connection ended"), told():
        raise error


class FakeSession:
    """A connection on which no channel can be opened, as paramiko says it."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed

    def channel(self) -> paramiko.Channel:
        raise paramiko.SSHException("SSH session not active")


@pytest.mark.parametrize(("alive", "wanted"), [(False, NodeNotRunning), (True, LabError)])
def test_a_terminal_on_a_connection_that_has_ended(
    alive: bool, wanted: type[LabError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> socket.socket:
        raise OSError

    node = SshNode(
        "node1", "-", connect, key=tmp_path, host_key="", agent=lambda: tmp_path, folder=tmp_path,
        alive=lambda: alive, lab="lab", last_words=lambda: "Kernel panic",
    )  # fmt: skip
    monkeypatch.setattr(node, "_connected", lambda: FakeSession(closed=not alive))
    with pytest.raises(wanted) as caught:
        node.attach(["sh"], tty=True)
    assert type(caught.value) is wanted
    said = "session not active" if alive else "node1 of lab lab has ended\n    Kernel panic"
    assert said in str(caught.value)


class Silent:
    """The channel of a machine that is gone: closed, without an exit status."""

    def __init__(self) -> None:
        self._ours, theirs = os.pipe()
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)

    def fileno(self) -> int:
        return self._ours

    def recv(self, _: int) -> bytes:
        return b""

    def recv_exit_status(self) -> int:
        return -1

    def get_pty(self, *_: object) -> None:
        return

    exec_command = get_pty


def test_a_terminal_whose_machine_goes_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as user:
        monkeypatch.setattr("sys.stdin", user)
        monkeypatch.setattr("sys.stdout", user)
        with pytest.raises(EOFError):
            terminal.with_terminal(cast("paramiko.Channel", Silent()), ["sh"])
    os.close(ours)


# -- services -----------------------------------------------------------------

LISTED = (
    "dies\0dead\x0078\0exited 7\0\0"
    "etcd\0ready\x0077\0\0d2 with a space\0"
    "lost\0dead\x000\0\0d\0"
    "stopped\0dead\x0079\0killed TERM\0d\0"
)


def test_states_are_read() -> None:
    seen = services.states(LISTED)
    assert [(s.name, s.state, s.pid, s.status, s.digest) for s in seen.values()] == [
        ("dies", "dead", 0, 7, ""),
        ("etcd", "ready", 77, None, "d2 with a space"),
        ("lost", "dead", 0, None, "d"),
        ("stopped", "dead", 0, -15, "d"),
    ]
    assert services.states("") == {}


@pytest.mark.parametrize(
    ("text", "status"),
    [("exited 0", 0), ("killed KILL", -9), ("dumped ABRT", -6), ("", None), ("exited ", None)],
)
def test_ends_are_read(text: str, status: int | None) -> None:
    assert services.end_status(text) == status


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "a\n", "%i"])
def test_a_name_that_systemd_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="service"):
        services.unit_of(Service(name, ("true",)))
    if name:
        with pytest.raises(ValueError, match="service"):
            services.unit_of(Service("fine", ("true",), unit=name))


def test_a_service_is_a_unit_of_its_packages_name() -> None:
    assert services.unit_of(Service("dockerd", ("true",), unit="docker")) == "docker.service"
    assert services.unit_of(Service("etcd", ("true",))) == "etcd.service"


def test_a_service_gets_its_words_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ["a b", "$HOME", "'", "%i", "\n", "\udcff"]
    service = Service("s", ("printf", "%s\\0", *odd), env={"A": "b 'c", "PATH": "/usr/bin:/bin"})
    monkeypatch.setattr(services, "FOLDER", str(tmp_path))
    (tmp_path / "s").mkdir()
    (tmp_path / "run").write_bytes(services.script(service))
    out = subprocess.run(["sh", tmp_path / "run"], capture_output=True, check=True).stdout
    assert out.split(b"\0")[:-1] == [os.fsencode(word) for word in odd]
    assert (tmp_path / "s" / "pid").read_text(encoding="utf-8").strip().isdigit()


def test_a_service_gets_its_variables_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("s", ("sh", "-c", 'pwd; echo "$A"; echo "$PATH"'), env={"A": "b 'c"})
    monkeypatch.setattr(services, "FOLDER", str(tmp_path))
    (tmp_path / "s").mkdir()
    (tmp_path / "run").write_bytes(services.script(service))
    out = subprocess.run(["sh", tmp_path / "run"], capture_output=True, check=True, text=True)
    folder, variable, path = out.stdout.splitlines()
    assert (folder, variable, path) == ("/", "b 'c", ENVIRONMENT["PATH"])


@pytest.mark.parametrize("text", [services.START, services.STOP, services.KILL, services.LIST])
def test_the_scripts_are_shell(text: str) -> None:
    done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# -- what is copied -----------------------------------------------------------


def test_a_place_is_told_by_content(tmp_path: Path) -> None:
    one, same, other = tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "c" / "x"
    for path, text in ((one, "1"), (same, "1"), (other, "2")):
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
    assert provide.place(one) == provide.place(same) != provide.place(other)
    assert provide.place(one).startswith(f"{provide.FOLDER}/")
    assert provide.place(one).endswith("/x")
    one.chmod(0o755)
    os.utime(one, ns=(1, 1))
    assert provide.place(one) != provide.place(same)  # a program is another thing than a file
    for mode in (0o744, 0o654, 0o645):  # whoever may run it; who may write it is all the same
        same.chmod(0o666)
        before = provide.place(same)
        same.chmod(mode)
        assert provide.place(same) != before


def test_a_folders_place_changes_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "file"
    file.write_text("1", encoding="utf-8")
    before = provide.place(tmp_path)
    file.write_text("2", encoding="utf-8")
    assert provide.place(tmp_path) != before


def test_what_is_of_the_system() -> None:
    assert provide.is_system(Path("/usr/sbin/dockerd"))
    assert not provide.is_system(Path("/usr/local/bin/dockerd"))
    assert not provide.is_system(Path("/home/user/dockerd"))


def test_packed_follows_links_and_belongs_to_root(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "real").write_text("text", encoding="utf-8")
    (tmp_path / "bin" / "link").symlink_to("../real")
    with tarfile.open(fileobj=BytesIO(provide.packed(tmp_path / "bin", {}))) as tar:
        found = tar.getmember("bin/link")
        assert (found.isfile(), found.uid, found.uname) == (True, 0, "root")


def test_what_goes_far_is_compressed_once(tmp_path: Path) -> None:
    file = tmp_path / "tool"
    file.write_bytes(bytes(100_000))
    first = provide.compressed(file)
    assert len(first) < 10_000
    assert gzip.decompress(first) == provide.packed(file, {})
    assert provide.compressed(file) is first
    file.write_bytes(bytes(100_001))
    assert gzip.decompress(provide.compressed(file)) == provide.packed(file, {})


def test_of_what_the_machine_has_only_a_link_goes_along(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("has", "text"), ("lacks", "other")):
        (tmp_path / "bin" / name).write_text(text, encoding="utf-8")
    known = {hashlib.sha256(b"text").hexdigest(): "/usr/bin/has"}
    with tarfile.open(fileobj=BytesIO(provide.packed(tmp_path / "bin", known))) as tar:
        assert tar.getmember("bin/has").linkname == "/usr/bin/has"
        assert tar.getmember("bin/lacks").isfile()


# -- sockets ------------------------------------------------------------------


def gone() -> Link:
    raise NoSuchNode("gone")


@pytest.mark.parametrize("depth", [1, 12])
def test_a_socket_can_be_reached_however_deep_its_folder(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["deep-folder"] * depth)
    made = Forward(folder, "node1", "/run/docker.sock", gone)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(made.path)
        assert ours.recv(1) == b""  # hung up at once, for the machine is gone
    made.close()
    assert list(folder.iterdir()) == []


def test_sockets_of_killed_processes_are_swept(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    old = tmp_path / f"node1.{child.pid}.1.sock"
    mine = tmp_path / f"node1.{os.getpid()}.77.sock"
    old.touch()
    mine.touch()
    Forward(tmp_path, "node1", "/x", gone).close()
    assert not old.exists()
    assert mine.exists()


def test_the_agent_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler here")
    source = str(Path(forward.__file__).with_name("agent.c"))
    argv = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "agent"), source]
    subprocess.run(argv, check=True)
