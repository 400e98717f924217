"""Downloads, from a server of this test's own: trusted by their sum alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from testbed.artifacts.source import Job
from testbed.artifacts.url import Download
from testbed.errors import ArtifactError, Interrupted
from testbed.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.elsewhere: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path in outer.elsewhere:
                    self.send_response(302)
                    self.send_header("Location", outer.elsewhere[self.path])
                    self.end_headers()
                    return
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if self.path in outer.cut else data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, data: bytes) -> tuple[str, str]:
        name = f"/{len(self.files)}"
        self.files[name] = data
        return self.url(name), hashlib.sha256(data).hexdigest()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    into = tmp_path / "into"
    into.mkdir()
    return Job(into, tmp_path, lambda _: None, run, threading.Event(), lambda _: tmp_path)


def archive(**files: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_a_file_with_the_right_sum_is_put_in_place_and_executable(server: Server, job: Job) -> None:
    url, digest = server.put(b"#!/bin/sh\n")
    version = Download(url, digest, "bin/tool").fill(job)
    tool = job.into / "bin" / "tool"
    assert version == f"sha256.{digest[:8]}"
    assert tool.read_bytes() == b"#!/bin/sh\n"
    assert tool.stat().st_mode & 0o111
    assert sorted(path.name for path in job.into.iterdir()) == ["bin"]


def test_a_wrong_sum_is_told_and_nothing_is_put_in_place(server: Server, job: Job) -> None:
    url, digest = server.put(b"evil")
    with pytest.raises(ArtifactError, match=rf"{digest}.*{'0' * 64}"):
        Download(url, "0" * 64, "bin/tool").fill(job)
    assert not (job.into / "bin" / "tool").exists()


def test_a_member_of_an_archive(server: Server, job: Job) -> None:
    url, digest = server.put(archive(**{"./d/tool": b"tool", "d/other": b"other"}))
    Download(url, digest, "bin/tool", "d/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == b"tool"
    assert sorted(path.name for path in job.into.rglob("*")) == ["bin", "tool"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_that_reaches_outside_itself_is_refused(
    server: Server, job: Job, name: str
) -> None:
    url, digest = server.put(archive(**{name: b"evil", "tool": b"tool"}))
    with pytest.raises(ArtifactError, match="evil"):
        Download(url, digest, "bin/tool", "tool").fill(job)
    assert not list(job.into.parent.rglob("evil"))


def odd(kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no file."""
    info = tarfile.TarInfo("tool")
    info.type, info.linkname, info.devmajor, info.devminor = kind, target, 1, 3
    return info


@pytest.mark.parametrize(
    "member",
    [
        odd(tarfile.SYMTYPE, "/etc/passwd"),
        odd(tarfile.LNKTYPE, "/etc/passwd"),
        odd(tarfile.CHRTYPE),
        odd(tarfile.BLKTYPE),
        odd(tarfile.FIFOTYPE),
        odd(tarfile.DIRTYPE),
    ],
    ids=["symbolic link", "hard link", "character device", "block device", "fifo", "folder"],
)
def test_a_member_that_is_no_file_is_refused(
    server: Server, job: Job, member: tarfile.TarInfo
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.addfile(member)
    url, digest = server.put(data.getvalue())
    with pytest.raises(ArtifactError, match="regular file"):
        Download(url, digest, "bin/tool", "tool").fill(job)
    assert not (job.into / "bin" / "tool").exists()


def test_nothing_is_written_through_a_link_of_the_archive(server: Server, job: Job) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        link = odd(tarfile.SYMTYPE, str(job.shared))
        link.name = "bin"
        tar.addfile(link)
        file = tarfile.TarInfo("bin/tool")
        file.size = 4
        tar.addfile(file, io.BytesIO(b"tool"))
    url, digest = server.put(data.getvalue())
    Download(url, digest, "bin/tool", "bin/tool").fill(job)
    assert sorted(path.name for path in job.into.rglob("*")) == ["bin", "tool"]
    assert not (job.into / "bin").is_symlink()
    assert not (job.shared / "tool").exists()


def test_a_server_cannot_send_us_to_a_file_of_this_machine(
    server: Server, job: Job, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.write_bytes(b"here")
    server.elsewhere["/moved"] = here.as_uri()
    digest = hashlib.sha256(b"here").hexdigest()
    with pytest.raises(ArtifactError, match="cannot be downloaded"):
        Download(server.url("/moved"), digest, "bin/tool").fill(job)
    assert not (job.into / "bin" / "tool").exists()


def test_a_missing_member_is_told_with_what_there_is(server: Server, job: Job) -> None:
    url, digest = server.put(archive(other=b""))
    with pytest.raises(ArtifactError, match=r"tool .*other"):
        Download(url, digest, "bin/tool", "tool").fill(job)


def test_what_is_no_archive(server: Server, job: Job) -> None:
    url, digest = server.put(b"not a tar archive")
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        Download(url, digest, "bin/tool", "tool").fill(job)


def test_too_large_is_refused_before_the_end(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000)
    with pytest.raises(ArtifactError, match="larger than 999 bytes"):
        Download(url, digest, "bin/tool", limit=999).fill(job)


def test_a_large_member_of_a_small_archive_is_refused(server: Server, job: Job) -> None:
    url, digest = server.put(archive(tool=bytes(1 << 20)))
    with pytest.raises(ArtifactError, match="larger than"):
        Download(url, digest, "bin/tool", "tool", limit=1 << 16).fill(job)


def test_no_such_file_on_the_server(server: Server, job: Job) -> None:
    with pytest.raises(ArtifactError, match=r"/none cannot be downloaded: .*404"):
        Download(server.url("/none"), "0" * 64, "bin/tool").fill(job)


def test_a_connection_that_breaks(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000)
    server.cut.add("/0")
    with pytest.raises(ArtifactError, match=r"500 of 1000|cannot be downloaded"):
        Download(url, digest, "bin/tool").fill(job)


def test_no_server(job: Job) -> None:
    with pytest.raises(ArtifactError, match="cannot be downloaded"):
        Download("http://127.0.0.1:1/x", "0" * 64, "bin/tool").fill(job)


def test_a_download_can_be_cancelled(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000)
    job.cancel.set()
    with pytest.raises(Interrupted):
        Download(url, digest, "bin/tool").fill(job)


def test_the_key_is_the_content_not_the_address() -> None:
    one = Download("https://a.example/x", "0" * 64, "bin/tool")
    two = Download("https://b.example/x", "0" * 64, "bin/tool")
    assert one.key() == two.key()
    assert one.key() != Download("https://a.example/x", "1" * 64, "bin/tool").key()
