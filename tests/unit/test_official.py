"""Programs that their makers build: downloaded if their site can be reached, else built here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

import pytest
from downloads import File, Server, archive, certified, serving

from testbed.artifacts import Store
from testbed.artifacts.fetch import NotFetched, text
from testbed.artifacts.inventory import INVENTORY, Inventory
from testbed.artifacts.official import Official
from testbed.artifacts.source import Job, Origin, Source
from testbed.cli import run
from testbed.errors import ArtifactError, Interrupted, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from testbed.artifacts.source import Preference

PROGRAMS = {name: f"kubernetes/server/bin/{name}" for name in ("kubelet", "kubectl")}
CONTENT = {path: f"#!{name}".encode() for name, path in PROGRAMS.items()}
#: Rows of the changelog of Kubernetes 1.36, in both forms that it has.
QUOTED = (
    "[kubernetes-server-linux-amd64.tar.gz](https://dl.k8s.io/v1.36.0/"
    "kubernetes-server-linux-amd64.tar.gz) | "
    "`1c64da92575451c2c7ff97c79b772e603995f8e76da1371a6b0746aaa27b65dc"
    "e81c4d734cbb50f40e71486a8e08df36f14e12974f97d4d29e41f23a172a6a25`\n"
)
PLAIN = (
    "[kubernetes-server-linux-arm64.tar.gz](https://dl.k8s.io/v1.36.2/"
    "kubernetes-server-linux-arm64.tar.gz) | "
    "7226d91204980892f593307f06acefd5579337ec5758c8615a0e46541a990083"
    "c6be9809b01fb9e06da7e9b6d7208a673fd5129b7145436c3fe6e726d1fa469d\n"
)


@dataclass
class Built(Source):
    """Stands in for a build that takes half an hour."""

    official: Official | None
    times: list[str] = field(default_factory=list)
    origin: ClassVar[Origin] = "go"

    def recipe(self) -> Mapping[str, object]:
        return {"module": "kubernetes"}

    def brings(self) -> tuple[str, ...]:
        return tuple(PROGRAMS)

    def version(self) -> str:
        return "v1.36.3"

    def published(self) -> Source | None:
        return self.official

    def fill(self, job: Job) -> str:
        self.times.append("built")
        (job.into / "bin").mkdir()
        for name in PROGRAMS:
            (job.into / "bin" / name).write_text("built")
        return self.version()


@dataclass
class Site:
    """A maker's site, and a machine with a cache."""

    web: Server
    folder: Path
    said: list[str] = field(default_factory=list)
    built: Built = field(init=False)

    def __post_init__(self) -> None:
        official = Official(
            "v1.36.3",
            self.web.url("/{version}/server-{machine}.tar.gz"),
            self.web.url("/changelog.md"),
            PROGRAMS,
        )
        self.built = Built(official)
        self.publish(archive(CONTENT))

    @property
    def address(self) -> str:
        assert self.built.official
        return self.built.official.address

    @property
    def file(self) -> File:
        return self.web.files[self.address.removeprefix(self.web.url(""))]

    def publish(self, data: bytes, digest: str = "", **how: object) -> None:
        """Put the archive on the site, and its checksum."""
        path = self.address.removeprefix(self.web.url(""))
        self.web.files[path] = File(data, **how)  # type: ignore[arg-type]
        digest = digest or hashlib.sha512(data).hexdigest()
        text = f"# v1.36.3\n\n[server.tar.gz]({self.address}) | `{digest}`\n"
        self.web.files["/changelog.md"] = File(text.encode())

    def store(self, way: Preference | None = None) -> Store:
        def tell(name: str, words: str, /, *, ended: bool = False) -> None:
            self.said.append(words)

        inventory = Inventory({"kubernetes": self.built}, images={}, tools={}, programs={})
        return Store(self.folder / "cache", progress=tell, inventory=inventory, way=way)

    def entries(self) -> list[Path]:
        return sorted((self.folder / "cache").glob("[!.]*"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("testbed.artifacts.fetch.PAUSE", 0.0)
    monkeypatch.setattr("testbed.artifacts.official.MACHINES", {os.uname().machine: "amd64"})
    with serving() as web:
        yield Site(web, tmp_path)


def test_programs_come_from_their_makers_if_the_site_answers(site: Site) -> None:
    kubelet = site.store().binary("kubelet")
    assert kubelet.read_text() == "#!kubelet"
    assert os.access(kubelet, os.X_OK)
    assert site.built.times == []
    store = site.store()
    (entry,) = store.list()
    assert (entry.origin, entry.state, entry.version) == ("release", "cached", "v1.36.3")
    assert store.versions() == {"kubernetes": "v1.36.3 (downloaded)"}
    assert store.versions_of(["kubelet"]) == {"kubernetes": "v1.36.3 (downloaded)"}
    note = (kubelet.parents[1] / "SHA512SUMS").read_text()
    assert note == f"{hashlib.sha512(site.file.data).hexdigest()}  {site.address}\n"


def test_the_site_is_asked_once(site: Site) -> None:
    site.store().binary("kubelet")
    asked = len(site.web.requests)
    site.store().binary("kubectl")
    assert site.store().made("kubelet") is not None
    assert len(site.web.requests) == asked


def test_a_wrong_sum_ends_it_with_both_sums(site: Site) -> None:
    site.publish(archive(CONTENT), digest="0" * 128)
    seen = hashlib.sha512(site.file.data).hexdigest()
    with pytest.raises(ArtifactError, match=rf"{seen}, expected.*changelog.md.* {'0' * 128}"):
        site.store().binary("kubelet")
    assert site.built.times == []
    assert site.entries() == []


def silent(site: Site) -> None:
    site.web.files["/changelog.md"].silent = True


def unlisted(site: Site) -> None:
    site.web.files["/changelog.md"].data = b"# v1.36.2\n"


def listed_twice(site: Site) -> None:
    more = f"[x]({site.address}) | `{'1' * 128}`\n"
    site.web.files["/changelog.md"].data += more.encode()


def no_list(site: Site) -> None:
    del site.web.files["/changelog.md"]


def no_archive(site: Site) -> None:
    site.file.status = 503


def silent_archive(site: Site) -> None:
    site.file.silent = True


def always_cut(site: Site) -> None:
    site.file.cuts, site.file.ranges = 1000, False


def no_server(site: Site) -> None:
    official = site.built.official
    assert official
    site.built.official = Official(
        official.release, official.url, "http://127.0.0.1:1/", official.programs
    )


@pytest.mark.parametrize(
    "trouble",
    [silent, unlisted, listed_twice, no_list, no_archive, silent_archive, always_cut, no_server],
)
def test_without_the_site_they_are_built(
    site: Site, monkeypatch: pytest.MonkeyPatch, trouble: object
) -> None:
    monkeypatch.setattr("testbed.artifacts.official.REACH", 0.3)
    trouble(site)  # type: ignore[operator]
    store = site.store()
    assert store.binary("kubelet").read_text() == "built"
    assert any("from its source" in words for words in site.said)
    assert store.versions() == {"kubernetes": "v1.36.3 (built)"}
    assert [entry.name for entry in site.entries()] == [store.list()[0].path.name]  # type: ignore[union-attr]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_checksum_is_asked_for_again_after_a_break(site: Site, ranges: bool) -> None:
    changelog = site.web.files["/changelog.md"]
    changelog.cuts, changelog.ranges = 1, ranges
    assert site.store().binary("kubelet").read_text() == "#!kubelet"
    starts = [one.start for one in site.web.requests if one.path == "/changelog.md"]
    assert starts == [0, len(changelog.data) // 2]


def test_a_long_document_is_no_list_of_checksums(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.artifacts.official.text", partial(text, limit=100))
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        site.store().binary("kubelet")


def test_a_site_that_asks_for_patience_has_three_seconds() -> None:
    from testbed.artifacts import official

    assert official.REACH == 3.0


def test_source_never_asks_the_site(site: Site) -> None:
    assert site.store("source").binary("kubelet").read_text() == "built"
    assert site.web.requests == []


def test_download_never_builds(site: Site) -> None:
    no_list(site)
    with pytest.raises(ArtifactError, match="404") as caught:
        site.store("download").binary("kubelet")
    assert "--from source" in (caught.value.hint or "")
    assert site.built.times == []


def test_both_are_kept_and_the_one_asked_for_last_is_used(site: Site) -> None:
    built, downloaded = "built", "#!kubelet"
    assert site.store("source").binary("kubelet").read_text() == built
    assert site.store().binary("kubelet").read_text() == built
    assert site.store("download").binary("kubelet").read_text() == downloaded
    assert site.store().binary("kubelet").read_text() == downloaded
    assert site.store("source").binary("kubelet").read_text() == built
    assert site.store().binary("kubelet").read_text() == built
    assert site.built.times == ["built"]
    assert len(site.entries()) == 2
    assert len({json.loads((e / "artifact.json").read_text())["key"] for e in site.entries()}) == 2


def test_a_choice_in_a_cache_that_cannot_be_written(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def utime(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    site.store("source").fetch("kubernetes")
    site.store("download").fetch("kubernetes")
    monkeypatch.setattr("os.utime", utime)
    site.store("download").fetch("kubernetes")  # it is the one in use
    with pytest.raises(ArtifactError, match="Read-only") as caught:
        site.store("source").fetch("kubernetes")
    assert "TESTBED_CACHE" in (caught.value.hint or "")


def test_a_missing_choice_is_missing(site: Site) -> None:
    site.store("download").fetch("kubernetes")
    assert [entry.state for entry in site.store("source").list()] == ["missing", "old"]
    assert [entry.state for entry in site.store().list()] == ["cached"]


def test_the_other_entry_is_old_and_both_are_removed(site: Site) -> None:
    site.store("download").fetch("kubernetes")
    site.store("source").fetch("kubernetes")
    states = {entry.origin: entry.state for entry in site.store().list()}
    assert states == {"go": "cached", "release": "old"}
    assert site.store().remove("kubernetes") > 0
    assert site.entries() == []


def test_a_program_that_was_lost_is_fetched_again(site: Site) -> None:
    site.store().binary("kubelet").unlink()
    assert site.store().binary("kubelet").read_text() == "#!kubelet"


def test_a_small_disk_ends_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(site.folder)._replace(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match="10 bytes are free"):
        site.store().binary("kubelet")
    assert site.built.times == []
    assert site.entries() == []


def test_an_archive_without_a_program_ends_it(site: Site) -> None:
    site.publish(archive({PROGRAMS["kubelet"]: b"x"}))
    with pytest.raises(ArtifactError, match="kubernetes/server/bin/kubectl is not in"):
        site.store().binary("kubelet")
    assert site.built.times == []


def test_an_interrupted_download_leaves_nothing(site: Site) -> None:
    site.publish(b"x" * 1000, stalls=True)
    store = site.store()
    threading.Timer(0.3, store.interrupt).start()
    with pytest.raises(Interrupted):
        store.binary("kubelet")
    assert site.built.times == []
    assert store.leftovers() == []
    assert site.entries() == []


@pytest.mark.parametrize(
    ("machine", "row", "release"),
    [("x86_64", QUOTED, "v1.36.0"), ("aarch64", PLAIN, "v1.36.2")],
)
def test_the_changelog_of_kubernetes_is_understood(
    monkeypatch: pytest.MonkeyPatch, machine: str, row: str, release: str
) -> None:
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "x", "6.1", "", machine)))
    (shipped,) = [s.published() for s in INVENTORY.parts.values() if s.published()]
    assert isinstance(shipped, Official)
    official = Official(release, shipped.url, shipped.sums, shipped.programs)
    assert official.listed(QUOTED + PLAIN).digest in row
    with pytest.raises(NotFetched):
        official.listed(QUOTED.replace("v1.36.0", "v1.36.9") + PLAIN.replace("1.36.2", "1.36.9"))


def test_a_processor_without_builds_of_the_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "x", "6.1", "", "riscv64")))
    assert [name for name, source in INVENTORY.parts.items() if source.published()] == []


def test_both_origins_bring_the_same_programs_of_one_version() -> None:
    for source in INVENTORY.parts.values():
        official = source.published()
        assert official is None or official.brings() == source.brings()
        assert official is None or official.version() == source.version()
        assert official is None or official.key() != source.key()


def test_what_has_no_checksum_of_its_makers_is_not_downloaded(site: Site) -> None:
    site.store("download").refuse_unpublished(["kubernetes", "kubelet"])
    with pytest.raises(UsageError, match="nginx"):
        site.store("download").refuse_unpublished(["kubernetes", "nginx"])


@pytest.mark.parametrize(
    "words",
    [
        ["artifacts", "build", "flanneld", "--from", "download"],
        ["artifacts", "build", "--from", "elsewhere"],
        ["doctor", "--from", "source"],
        ["doctor", "--leaks", "--fix", "--from", "source"],
    ],
)
def test_wrong_use_on_the_command_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    assert run(words) == 2


def test_the_command_downloads_kubernetes_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The addresses are the real ones; a proxy leads them to a server of this test."""
    source = INVENTORY.parts["kubernetes"]
    official = source.published()
    if not isinstance(official, Official):
        pytest.skip("Kubernetes has no builds for this processor")
    data = archive({path: name.encode() for name, path in official.programs.items()})
    row = f"[kubernetes]({official.address}) | {hashlib.sha512(data).hexdigest()}\n"
    hosts = [urlsplit(url).netloc for url in (official.sums, official.address)]
    tls, trusted = certified(tmp_path, *hosts)
    monkeypatch.setattr("testbed.artifacts.fetch.PAUSE", 0.0)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(tls) as far, serving() as proxy:
        proxy.tunnel = far.port
        monkeypatch.setenv("https_proxy", proxy.url("/"))
        far.files[urlsplit(official.sums).path] = File(row.encode())
        far.files[urlsplit(official.address).path] = File(data, cuts=1)
        assert run(["artifacts", "build", "kubernetes", "--from", "download"]) == 0
    assert {request.path for request in proxy.requests} == {f"{host}:443" for host in hosts}
    store = Store(tmp_path / "cache")
    assert store.binary("kube-proxy").read_text() == "kube-proxy"
    assert store.version("kubernetes") == f"{official.release} (downloaded)"
    capsys.readouterr()
    assert run(["artifacts", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(one["origin"], one["state"]) for one in rows if one["name"] == "kubernetes"] == [
        ("release", "cached")
    ]
