"""Downloads, from a server of this test's own: trusted by their sum alone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from downloads import Server, archive, serving

from testbed.artifacts.fetch import ATTEMPTS, NotFetched, _redirects
from testbed.artifacts.source import Job
from testbed.artifacts.url import Download
from testbed.errors import ArtifactError, Interrupted
from testbed.process import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("testbed.artifacts.fetch.PAUSE", 0.0)
    with serving() as web:
        yield web


@pytest.fixture
def job(tmp_path: Path) -> Job:
    into = tmp_path / "into"
    into.mkdir()
    return Job(into, tmp_path, lambda _: None, run, threading.Event(), lambda _: tmp_path)


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
    url, digest = server.put(archive({"./d/tool": b"tool", "d/other": b"other"}))
    Download(url, digest, "bin/tool", "d/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == b"tool"
    assert sorted(path.name for path in job.into.rglob("*")) == ["bin", "tool"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_that_reaches_outside_itself_is_refused(
    server: Server, job: Job, name: str
) -> None:
    url, digest = server.put(archive({name: b"evil", "tool": b"tool"}))
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
    server.moved["/moved"] = here.as_uri()
    digest = hashlib.sha256(b"here").hexdigest()
    with pytest.raises(ArtifactError, match="cannot be downloaded"):
        Download(server.url("/moved"), digest, "bin/tool").fill(job)
    assert not (job.into / "bin" / "tool").exists()


def test_a_missing_member_is_told_with_what_there_is(server: Server, job: Job) -> None:
    url, digest = server.put(archive({"other": b""}))
    with pytest.raises(ArtifactError, match=r"tool .*other"):
        Download(url, digest, "bin/tool", "tool").fill(job)


def test_names_of_an_archive_do_not_write_on_the_terminal(server: Server, job: Job) -> None:
    url, digest = server.put(archive({"\x1b[2J": b"", "one\ntwo": b""}))
    with pytest.raises(ArtifactError, match="one") as caught:
        Download(url, digest, "bin/tool", "tool").fill(job)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("data", [b"not a tar archive", b""])
def test_what_is_no_archive(server: Server, job: Job, data: bytes) -> None:
    url, digest = server.put(data)
    with pytest.raises(ArtifactError, match="cannot be unpacked") as caught:
        Download(url, digest, "bin/tool", "tool").fill(job)
    assert "\n" not in caught.value.message


def test_too_large_is_refused_before_the_end(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000)
    with pytest.raises(ArtifactError, match="larger than 999 bytes"):
        Download(url, digest, "bin/tool", limit=999).fill(job)


def test_a_large_member_of_a_small_archive_is_refused(server: Server, job: Job) -> None:
    url, digest = server.put(archive({"tool": bytes(1 << 20)}))
    with pytest.raises(ArtifactError, match="larger than"):
        Download(url, digest, "bin/tool", "tool", limit=1 << 16).fill(job)


def test_no_such_file_on_the_server(server: Server, job: Job) -> None:
    with pytest.raises(ArtifactError, match=r"/none cannot be downloaded: .*404"):
        Download(server.url("/none"), "0" * 64, "bin/tool").fill(job)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_is_continued(server: Server, job: Job, reset: bool) -> None:
    data = bytes(range(250)) * 4
    url, digest = server.put(data, cuts=2, reset=reset)
    Download(url, digest, "bin/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == data
    starts = [request.start for request in server.requests]
    # A reset may throw away what was sent before it.
    assert starts[1:] == sorted(starts[1:])
    assert reset or starts == [0, 500, 750]


def test_a_server_without_parts_sends_all_of_it_again(server: Server, job: Job) -> None:
    data = bytes(range(250)) * 4
    url, digest = server.put(data, cuts=2, ranges=False)
    Download(url, digest, "bin/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == data


def test_a_file_that_changes_meanwhile_is_not_mixed(server: Server, job: Job) -> None:
    old, new = b"a" * 1000, b"b" * 1000
    url, _ = server.put(old, cuts=1, tag='"first"', later=new)
    Download(url, hashlib.sha256(new).hexdigest(), "bin/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == new
    assert [request.start for request in server.requests] == [0, 500]


def test_a_server_that_refuses_to_continue_is_asked_for_all_of_it(server: Server, job: Job) -> None:
    url, _ = server.put(b"x" * 1000, cuts=1, later=b"short")
    Download(url, hashlib.sha256(b"short").hexdigest(), "bin/tool").fill(job)
    assert [request.start for request in server.requests] == [0, 500, 0]


def test_a_busy_server_is_asked_to_continue_later(server: Server, job: Job) -> None:
    url, digest = server.put(os.urandom(1000), cuts=1, busy=2)
    Download(url, digest, "bin/tool").fill(job)
    assert [request.start for request in server.requests] == [0, 500, 500, 500]


@pytest.mark.parametrize("covers", ["bytes 0-499/1000", "bytes 500-999/*", ""])
def test_a_server_that_sends_another_part_is_asked_for_all_of_it(
    server: Server, job: Job, covers: str
) -> None:
    url, digest = server.put(os.urandom(1000), cuts=1, covers=covers)
    Download(url, digest, "bin/tool").fill(job)
    assert [request.start for request in server.requests] == [0, 500, 0]


def test_a_connection_that_breaks_always_at_the_same_place(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000, cuts=1000, ranges=False)
    with pytest.raises(NotFetched, match="500 of 1000"):
        Download(url, digest, "bin/tool").fill(job)
    assert len(server.requests) == ATTEMPTS


def cancelled_at(job: Job, words: str) -> tuple[Job, list[str]]:
    """The job, cancelled once it says something that begins so, and all that it has said."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith(words):
            job.cancel.set()

    return dataclasses.replace(job, say=say), said


def test_an_unpacked_member_has_a_rate_and_can_be_cancelled(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.artifacts.fetch.TELL", 0.0)
    telling, said = cancelled_at(job, "unpack tool, ")
    url, digest = server.put(archive({"tool": bytes(4 << 20)}))
    with pytest.raises(Interrupted):
        Download(url, digest, "bin/tool", "tool").fill(telling)
    assert said[-1].startswith("unpack tool, 1.0 MiB of 4.0 MiB, ")


def test_a_file_of_unknown_size(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000, sized=False)
    Download(url, digest, "bin/tool").fill(job)
    assert (job.into / "bin" / "tool").stat().st_size == 1000


def test_a_stalled_download_can_be_cancelled(server: Server, job: Job) -> None:
    url, digest = server.put(b"x" * 1000, stalls=True)
    threading.Timer(0.2, job.cancel.set).start()
    with pytest.raises(Interrupted):
        Download(url, digest, "bin/tool").fill(job)


def test_a_stalled_download_ends(server: Server, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.artifacts.fetch.STALL", 0.2)
    monkeypatch.setattr("testbed.artifacts.fetch.ATTEMPTS", 1)
    url, digest = server.put(b"x" * 1000, stalls=True)
    with pytest.raises(NotFetched, match=r"no answer|timed out"):
        Download(url, digest, "bin/tool").fill(job)


def test_bytes_and_rate_are_told_and_the_wait_too(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.artifacts.fetch.TELL", 0.0)
    telling, said = cancelled_at(job, "download, 2.0 MiB of 4.0 MiB, 0 bytes/s")
    url, digest = server.put(bytes(4 << 20), stalls=True)
    with pytest.raises(Interrupted):
        Download(url, digest, "bin/tool").fill(telling)
    told = [words for words in said if words.startswith("download, 2.0 MiB of 4.0 MiB")]
    assert all(words.endswith("/s") for words in said)
    assert told[-1].endswith(", 0 bytes/s")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("https://a.example/x", "http://a.example/x"),
        ("HTTPS://a.example/x", "http://a.example/x"),
        ("https://a.example/x", "ftp://a.example/x"),
        ("http://a.example/x", "ftp://a.example/x"),
    ],
)
def test_a_redirect_without_tls_or_http_is_refused(asked: str, told: str) -> None:
    import urllib.request

    request = urllib.request.Request(asked)
    with pytest.raises(OSError, match="redirected to"):
        _redirects().redirect_request(request, None, 302, "", {}, told)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("https://a.example/x", "https://b.example/x"),
        ("https://a.example/x", "HTTPS://b.example/x"),
        ("http://a.example/x", "https://b.example/x"),
        ("http://a.example/x", "http://b.example/x"),
    ],
)
def test_a_redirect_to_another_host_is_allowed(asked: str, told: str) -> None:
    import urllib.request

    request = urllib.request.Request(asked)
    followed = _redirects().redirect_request(request, None, 302, "", {}, told)
    assert followed.full_url == told


def test_a_redirect_is_followed(server: Server, job: Job) -> None:
    _, digest = server.put(b"tool")
    server.moved["/old"] = "/0"
    Download(server.url("/old"), digest, "bin/tool").fill(job)
    assert (job.into / "bin" / "tool").read_bytes() == b"tool"


def test_a_circle_of_redirects_ends(server: Server, job: Job) -> None:
    server.moved["/a"], server.moved["/b"] = "/b", "/a"
    with pytest.raises(NotFetched, match="redirect"):
        Download(server.url("/a"), "0" * 64, "bin/tool").fill(job)


def test_a_proxy_of_the_environment_is_asked(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url("/"))
    _, digest = server.put(b"tool")
    Download("http://not.example.invalid/0", digest, "bin/tool").fill(job)
    assert [request.proxied for request in server.requests] == [True]


def test_a_proxy_that_refuses(server: Server, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", server.url("/"))
    with pytest.raises(NotFetched, match="403"):
        Download("https://not.example.invalid/0", "0" * 64, "bin/tool").fill(job)
    assert [request.path for request in server.requests] == ["not.example.invalid:443"]


def test_a_proxy_is_not_asked_for_addresses_without_one(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url, digest = server.put(b"tool")
    Download(url, digest, "bin/tool").fill(job)
    assert [request.proxied for request in server.requests] == [False]


def test_a_full_disk_is_no_fault_of_the_server(server: Server, job: Job) -> None:
    url, digest = server.put(b"tool")
    (job.into / "download").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Download(url, digest, "bin/tool").fill(job)


def test_a_disk_that_is_too_small_is_told_before_it_is_full(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(job.into)._replace(free=999)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    url, digest = server.put(b"x" * 1000)
    with pytest.raises(ArtifactError, match="999 bytes are free") as caught:
        Download(url, digest, "bin/tool").fill(job)
    assert "TESTBED_CACHE" in (caught.value.hint or "")


def test_a_full_disk_is_no_fault_of_the_archive(server: Server, job: Job) -> None:
    url, digest = server.put(archive({"tool": b"tool"}))
    (job.into / "bin").mkdir()
    (job.into / "bin" / "tool").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Download(url, digest, "bin/tool", "tool").fill(job)


def test_an_archive_that_ends_too_early(server: Server, job: Job) -> None:
    whole = archive({"tool": os.urandom(1 << 16)})
    url, digest = server.put(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        Download(url, digest, "bin/tool", "tool").fill(job)


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
