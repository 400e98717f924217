"""Building of boxes, with stand-ins for mmdebstrap, mke2fs and qemu-img."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from testbed.artifacts import Store, bootstrap, release
from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, CommandError, MachineError, UsageError
from testbed.nodes.qemu import cli as command
from testbed.nodes.qemu.provider import QemuProvider
from testbed.process import Completed
from testbed.vm import box, guest, initramfs
from testbed.vm.box import Box, File

RELEASE = "6.1.0-1-cloud-amd64"


class Usage(NamedTuple):
    """As shutil.disk_usage gives it."""

    total: int
    used: int
    free: int


class Part(Source):
    """A part of the store that brings one program, or an image."""

    origin: Origin = "go"  # type: ignore[misc]  # a ClassVar in a source of the house

    def __init__(self, place: str, content: str = "content") -> None:
        self.place = place
        self.content = content

    def recipe(self) -> Mapping[str, object]:
        return {"place": self.place, "content": self.content}

    def fill(self, job: Job) -> str:
        raise NotImplementedError


def tree(root: Path) -> None:
    """As much of a Debian as a box needs."""
    for folder in ("usr/bin", "usr/sbin", "usr/local/bin", "boot", "root", "etc/ssh"):
        (root / folder).mkdir(parents=True)
    (root / "usr/bin/busybox").write_text("busybox")
    (root / "usr/sbin/dockerd").write_text("dockerd")
    (root / "usr/bin/sh").symlink_to("busybox")
    (root / "boot" / f"vmlinuz-{RELEASE}").write_text("kernel")
    modules = root / "usr/lib/modules" / RELEASE / "kernel/drivers"
    modules.mkdir(parents=True)
    for name in initramfs.MODULES:
        (modules / f"{name}.ko").write_text(name)
    (root / "lib").symlink_to("usr/lib")
    for key in ("ssh_host_rsa_key", "ssh_host_rsa_key.pub"):
        (root / "etc/ssh" / key).write_text("the same for all")
    wants = root / guest.SYSTEM / "multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "docker.service").symlink_to("/lib/systemd/system/docker.service")
    (root / "etc/hostname").write_text("the builder's")
    (root / "etc/resolv.conf").write_text("nameserver of the builder")


class Builder:
    """Does what the programs would do, and notes what they were asked."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}
        self.env: dict[str, Mapping[str, str]] = {}
        self.fails = ""
        self.says = "No space left on device"
        self.seen: dict[str, bytes] = {}

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[float], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Completed:
        words = [str(word) for word in argv]
        name = next(n for n in (*box.PROGRAMS, "dpkg-query") if n in words)
        self.calls[name] = words
        self.env[name] = env or {}
        if name == self.fails:
            raise CommandError(words, where="here", status=1, stderr=self.says)
        out = b""
        if name == "mmdebstrap":
            tree(Path(words[-1]))
            if on_line:
                on_line("I: extracting archives...")
        elif name == "dpkg-query":
            out = b"docker.io\t20.10.24\t147576\nusrmerge\t37\t\n"
        elif name == "mke2fs":
            root = Path(words[words.index("-d") + 1])
            self.seen = {
                str(p.relative_to(root)): p.read_bytes()
                for p in root.rglob("*")
                if p.is_file() and not p.is_symlink()
            }
            Path(words[-2]).write_text("raw")
        else:
            Path(words[-1]).write_text("qcow2")
        return Completed(tuple(words), 0, out, b"")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(bootstrap, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bootstrap, "KEYRING", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 40))
    return Builder()


@pytest.fixture
def parts() -> dict[str, Source]:
    return {"flanneld": Part("bin/flanneld"), "nginx": Part("image.tar")}


@pytest.fixture
def job(tmp_path: Path, builder: Builder, parts: dict[str, Part]) -> Job:
    def part(name: str) -> Path:
        folder = tmp_path / name
        path = folder / parts[name].place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(parts[name].content)
        return folder

    into = tmp_path / "into"
    into.mkdir()
    return Job(into, tmp_path / "shared", lambda _: None, builder, threading.Event(), part)


def test_a_box_is_a_disk_a_kernel_an_initramfs_and_a_manifest(
    job: Job, builder: Builder, parts: dict[str, Source]
) -> None:
    source = Box("bookworm", parts=parts)
    assert source.fill(job) == f"bookworm-{RELEASE}"
    assert source.whole(job.into)
    assert {path.name for path in job.into.iterdir()} == {
        box.DISK, box.KERNEL, box.INITRAMFS, box.MANIFEST,
    }  # fmt: skip
    manifest = box.Built(job.into).manifest()
    assert manifest["kernel"] == RELEASE
    assert manifest["packages"]["docker.io"] == {"version": "20.10.24", "size": 147576 * 1024}
    assert manifest["packages"]["usrmerge"]["size"] == 0
    assert manifest["images"]["nginx"]["place"] == f"{guest.IMAGES}/nginx.tar"
    assert set(manifest["files"]) == {box.DISK, box.KERNEL, box.INITRAMFS}
    assert manifest["files"][box.KERNEL]["sha256"] == box.digest(job.into / box.KERNEL)
    places = set(manifest["programs"].values())
    assert {"/usr/sbin/dockerd", "/usr/local/bin/flanneld", "/usr/bin/busybox"} <= places
    assert "/usr/bin/sh" not in places  # a link
    assert "boot" not in {name.split("/")[0] for name in builder.seen}
    assert builder.seen["etc/hostname"] == b"box\n"


def test_packages_are_unpacked_in_namespaces_that_end_with_us(
    job: Job, builder: Builder, parts: dict[str, Source]
) -> None:
    Box(suite="trixie", size=2048, packages=("htop",), parts=parts).fill(job)
    words = builder.calls["mmdebstrap"]
    assert words.index("setpriv") < words.index("unshare") < words.index("mmdebstrap")
    assert {"--mount", "--pid", "--kill-child"} <= set(words)
    assert words[-2:] == ["trixie", str(job.into / "root")]
    (included,) = [word for word in words if word.startswith("--include=")]
    # Debian 13 has Docker's client in a package of its own.
    assert {"htop", "docker.io", "docker-cli"} <= {*included.partition("=")[2].split(",")}
    assert builder.env["mmdebstrap"]["INITRD"] == "No"
    assert builder.calls["mke2fs"][-1] == "2048M"


@pytest.mark.parametrize(
    ("os_release", "suite"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "bookworm"),
        ({"ID": "debian", "VERSION_ID": "13"}, "trixie"),
        ({"ID": "other", "VERSION_ID": "13"}, "bookworm"),
        ({}, "bookworm"),
    ],
)
def test_a_box_is_of_this_machines_release(
    monkeypatch: pytest.MonkeyPatch, os_release: dict[str, str], suite: str
) -> None:
    """runc of Debian 13, which the store has there, does not run with Debian 12's C library."""
    monkeypatch.setattr(release, "facts", lambda: os_release)
    assert Box().suite == suite
    assert ("docker-cli" in Box().names) == (suite == "trixie")


def test_a_users_file_goes_in(
    job: Job, builder: Builder, parts: dict[str, Source], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mine.chmod(0o755)
    Box(files=(File(mine, "/opt/deep/mine"),), parts=parts).fill(job)
    assert builder.seen["opt/deep/mine"] == b"mine"


@pytest.mark.parametrize("fails", ["mmdebstrap", "mke2fs", "qemu-img"])
def test_when_a_step_fails_the_tree_goes_and_the_reason_is_shown(
    job: Job, builder: Builder, parts: dict[str, Source], fails: str
) -> None:
    builder.fails = fails
    with pytest.raises((CommandError, ArtifactError), match="No space left"):
        Box(parts=parts).fill(job)
    assert not (job.into / "root").exists()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("E: Unable to locate package nothing", "Debian nosuch has no package named nothing"),
        ("E: 404 Not Found", "named nosuch"),
    ],
)
def test_what_stopped_mmdebstrap_has_its_hint(
    job: Job, builder: Builder, parts: dict[str, Source], said: str, hint: str
) -> None:
    builder.fails, builder.says = "mmdebstrap", said
    with pytest.raises(ArtifactError, match="mmdebstrap") as caught:
        Box(suite="nosuch", parts=parts).fill(job)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("fails", ["mmdebstrap", "mke2fs", "qemu-img"])
@pytest.mark.parametrize(
    "says", ["write (28: No space left on device)", "E: You don't have enough free space in /x."]
)
def test_a_disk_that_gets_full_is_said_in_a_sentence_and_nothing_is_left(
    builder: Builder, tmp_path: Path, fails: str, says: str
) -> None:
    builder.fails, builder.says = fails, f"Get:1 something\n{says}\nE: mmdebstrap failed to run"
    store = Store(tmp_path / "cache", runner=builder)
    with pytest.raises(ArtifactError) as caught:
        box.box(store, Box(parts={}))
    first, second = caught.value.message.splitlines()
    assert f"the disk of {tmp_path / 'cache'} is full" in first
    assert second.strip() == says
    assert "TESTBED_CACHE" in str(caught.value.hint)
    assert not list((tmp_path / "cache").glob(".tmp-*"))


def test_what_is_missing_is_said_before_anything_is_done(
    job: Job, builder: Builder, parts: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 5 << 20))
    with pytest.raises(ArtifactError, match=r"3072 MiB .* 5 MiB"):
        Box(parts=parts).fill(job)
    monkeypatch.setattr(bootstrap, "which", lambda name: None if name == "mke2fs" else name)
    with pytest.raises(MachineError, match="mke2fs") as caught:
        Box(parts=parts).fill(job)
    assert "e2fsprogs" in str(caught.value.hint)
    monkeypatch.setattr(bootstrap, "KEYRING", Path("/nowhere/keyring.gpg"))
    with pytest.raises(MachineError, match=r"mke2fs, /nowhere/keyring.gpg") as caught:
        Box(parts=parts).fill(job)
    assert "debian-archive-keyring" in str(caught.value.hint)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="root"):
        Box(parts=parts).fill(job)
    assert not builder.calls


def test_what_goes_in_decides_the_key(parts: dict[str, Source], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("one")

    def key(**given: Any) -> str:
        return Box(**{"parts": parts, **given}).key()

    first = key(files=(File(mine, "/mine"),))
    keys = {
        key(), key(suite="other"), key(size=1024), key(packages=("htop",)), first,
        key(files=(File(mine, "/yours"),)),
        key(parts={**parts, "flanneld": Part("bin/flanneld", "another")}),
    }  # fmt: skip
    assert len(keys) == 7
    assert key(packages=("docker.io",)) == key()  # it is in anyway
    mine.write_text("two")
    assert key(files=(File(mine, "/mine"),)) != first
    mine.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        key(files=(File(mine, "/mine"),))


# -- the guest ---------------------------------------------------------------------


def test_a_settled_guest_has_no_key_and_starts_nothing_but_sshd(tmp_path: Path) -> None:
    tree(tmp_path)
    guest.settle(tmp_path)
    guest.settle(tmp_path)
    assert not list((tmp_path / "etc/ssh").glob("ssh_host_*"))
    assert not (tmp_path / "etc/resolv.conf").exists()
    wants = tmp_path / guest.SYSTEM / "multi-user.target.wants"
    assert [path.name for path in wants.iterdir()] == ["ssh.service"]
    masked = tmp_path / guest.SYSTEM / "systemd-udevd.service"
    assert masked.readlink() == Path("/dev/null")
    assert stat.S_IMODE((tmp_path / "root/.ssh").stat().st_mode) == 0o700
    sshd = (tmp_path / "etc/ssh/sshd_config").read_text()
    assert "PasswordAuthentication no" in sshd


def test_nothing_is_written_outside_of_a_tree(tmp_path: Path) -> None:
    root, host = tmp_path / "root", tmp_path / "host"
    root.mkdir()
    host.mkdir()
    (root / "etc").symlink_to(host)
    for place in ("etc/hostname", "/etc/deep/name", "../host/name", "usr/../../host/name"):
        with pytest.raises(ArtifactError, match="outside"):
            bootstrap.write(root, place, b"x")
    assert not list(host.iterdir())
    (root / "name").symlink_to(host / "name")
    bootstrap.write(root, "name", b"x")  # the link itself is replaced
    assert not list(host.iterdir())


# -- the initramfs -----------------------------------------------------------------


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    cpio = shutil.which("cpio") or shutil.which("busybox")
    if cpio is None:
        pytest.skip("there is no cpio here")
    tree(tmp_path / "root")
    data = initramfs.initramfs(tmp_path / "root", RELEASE)
    argv = [cpio, "-t"] if cpio.endswith("cpio") else [cpio, "cpio", "-t"]
    answer = subprocess.run(argv, input=data, capture_output=True, check=True)
    names = answer.stdout.decode().split()
    assert {"init", "bin/busybox", "dev/console", "modules/virtio_blk.ko"} <= set(names)


def test_an_archive_has_each_name_and_content_aligned() -> None:
    data = initramfs.archive([initramfs.Item("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n")])
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    assert int(data[14:22], 16) == stat.S_IFREG | 0o755
    assert int(data[54:62], 16) == len(b"#!/bin/sh\n")
    assert int(data[94:102], 16) == len("init\0")
    assert data[110:115] == b"init\0"
    assert data[116:126] == b"#!/bin/sh\n"
    assert b"TRAILER!!!\0" in data


def test_modules_load_after_what_they_need() -> None:
    place = initramfs.MODULES.index
    assert place("virtio_ring") < place("virtio") < place("virtio_pci") < place("virtio_blk")
    assert place("failover") < place("net_failover") < place("virtio_net")
    assert subprocess.run(["sh", "-n"], input=initramfs.init().encode(), check=True)


def test_modules_that_are_compressed_or_built_in(tmp_path: Path) -> None:
    """As a kernel of Debian 13 has them."""
    tree(tmp_path)
    folder = tmp_path / "usr/lib/modules" / RELEASE
    shutil.rmtree(folder / "kernel")
    (folder / "kernel").mkdir()
    disk, link = lzma.compress(b"a module"), b"not compressed"
    (folder / "kernel/virtio_blk.ko.xz").write_bytes(disk)
    (folder / "kernel/virtio-net.ko").write_bytes(link)
    others = [name for name in initramfs.MODULES if name not in {"virtio_blk", "virtio_net"}]
    lines = [f"kernel/drivers/{name.replace('_', '-')}.ko\n" for name in others]
    (folder / "modules.builtin").write_text("".join(lines))
    data = initramfs.initramfs(tmp_path, RELEASE)
    assert b"a module" in data
    assert link in data
    assert disk not in data
    assert b"for module in virtio_blk virtio_net; do" in data


@pytest.mark.parametrize("lacks", ["usr/bin/busybox", "virtio_blk.ko"])
def test_what_an_initramfs_lacks_is_said(tmp_path: Path, lacks: str) -> None:
    tree(tmp_path)
    for path in [tmp_path / lacks, *tmp_path.rglob(lacks)]:
        path.unlink(missing_ok=True)
    with pytest.raises(ArtifactError, match=Path(lacks).stem):
        initramfs.initramfs(tmp_path, RELEASE)


# -- the commands ------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    config = tmp_path / "config.toml"
    config.touch()
    monkeypatch.setenv("TESTBED_CACHE", str(folder))
    monkeypatch.setenv("TESTBED_CONFIG", str(config))
    for key in ("aaaa", "bbbb"):
        entry = folder / f"box-bookworm-{key}"
        entry.mkdir(parents=True)
        record = {"name": "box", "version": "bookworm", "key": key, "origin": "debian", "size": 7}
        (entry / "artifact.json").write_text(json.dumps(record))
        (entry / box.MANIFEST).write_text("{}")
    return folder


def test_boxes_are_listed_and_removed_by_key(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.command.main(["ls", "--json"], standalone_mode=False)
    assert [entry["key"] for entry in json.loads(capsys.readouterr().out)] == ["aaaa", "bbbb"]
    command.command.main(["rm", "aaaa"], standalone_mode=False)
    assert [path.name for path in cache.glob("box-*")] == ["box-bookworm-bbbb"]
    with pytest.raises(UsageError, match="aaaa"):
        command.command.main(["rm", "aaaa"], standalone_mode=False)
    command.command.main(["rm", "--all"], standalone_mode=False)
    assert not list(cache.glob("box-*"))
    capsys.readouterr()
    command.command.main(["ls"], standalone_mode=False)
    assert "testbed box build" in capsys.readouterr().out


def snapshot(cache: Path, key: str, of: str) -> Path:
    entry = cache / f"vm-snapshot-7.2-{key}"
    entry.mkdir()
    record = {"name": "vm-snapshot", "version": "7.2", "key": key, "origin": "engine", "size": 5}
    (entry / "artifact.json").write_text(json.dumps({**record, "of": of}))
    return entry


def test_a_box_is_shown_and_removed_with_its_snapshots(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, of in (("a1", "aaaa"), ("b1", "bbbb"), ("b2", "bbbb"), ("c1", "gone")):
        snapshot(cache, key, of)
    monkeypatch.setattr(Box, "key", lambda _: "bbbb")
    monkeypatch.setattr(QemuProvider, "fits", lambda _, folder: folder.name.endswith("b2"))
    command.command.main(["ls", "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["key"], one["used"]) for one in shown] == [
        ("box", "aaaa", False),
        ("snapshot", "a1", False),
        ("box", "bbbb", True),
        ("snapshot", "b1", False),
        ("snapshot", "b2", True),
        ("snapshot", "c1", False),
    ]
    assert [one.get("box") for one in shown] == [None, "aaaa", None, "bbbb", "bbbb", "gone"]
    command.command.main(["ls"], standalone_mode=False)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "removed box" in lines["c1"]
    assert lines["b2"].endswith(" labs")
    assert lines["b1"].endswith(" -")
    command.command.main(["rm", "bbbb"], standalone_mode=False)
    assert "removed 1 box(es) and 2 snapshot(s)" in capsys.readouterr().out
    command.command.main(["rm", "a1"], standalone_mode=False)
    assert {path.name for path in cache.glob("[bv]*")} == {
        "box-bookworm-aaaa",
        "vm-snapshot-7.2-c1",
    }
    command.command.main(["rm", "--all"], standalone_mode=False)
    assert not list(cache.glob("[bv]*"))


@pytest.fixture
def nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file ``mine``, and no box whatever is asked for."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(box, "box", lambda *_: pytest.fail("a box is built"))
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("mine").touch()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("mine", "FILE:PLACE"), ("mine:there", "absolute path"), (":/there", "FILE"),
        ("mine:", "absolute path"), ("mine:/../there", "absolute path"), ("mine:/", "a folder"),
        ("mine://", "a folder"), ("mine:/.", "a folder"), ("mine:/opt/", "a folder"),
        ("mine:/etc", "a folder"), ("mine:/usr/./bin", "a folder"), ("mine:/run/x", "hides"),
        ("mine:/var/run/x", "hides"), ("mine:/proc", "hides"), ("nothing:/x", "nothing"),
        (".:/x", "does not exist"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_put_there_is_refused_before_anything_is_built(
    given: str, why: str, nothing_is_built: None
) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        command.command.main(["build", "--file", given], standalone_mode=False)
    assert caught.value.where == f"--file {given}"


def test_of_two_files_none_is_in_the_others_way(nothing_is_built: None) -> None:
    for other in ("/opt/a/b", "//opt/a"):
        given = [
            word for place in ("/opt/a", "/opt/a-b", other) for word in ("--file", f"mine:{place}")
        ]
        with pytest.raises(UsageError, match="/opt/a and /"):
            command.command.main(["build", *given], standalone_mode=False)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--suite", ""), ("--suite", "--help"), ("--suite", "a b"), ("--suite", "../x"),
        ("--package", ""), ("--package", "a,b"), ("--package", "a b"), ("--package", "docker.io-"),
        ("--package", "-x"), ("--package", "~n"),
    ],
)  # fmt: skip
def test_what_apt_would_read_otherwise_is_refused(
    option: str, given: str, nothing_is_built: None
) -> None:
    with pytest.raises(UsageError) as caught:
        command.command.main(["build", f"{option}={given}"], standalone_mode=False)
    assert caught.value.where == option


def test_a_file_takes_the_place_of_a_file_and_never_of_a_folder(tmp_path: Path) -> None:
    bootstrap.write(tmp_path, "etc/deep/name", b"x")
    bootstrap.write(tmp_path, "etc/deep/name", b"y")
    with pytest.raises(ArtifactError, match="/etc/deep is a folder"):
        bootstrap.write(tmp_path, "/etc/deep", b"x")
    with pytest.raises(ArtifactError, match="below a file"):
        bootstrap.write(tmp_path, "/etc/deep/name/x", b"x")
    assert (tmp_path / "etc/deep/name").read_bytes() == b"y"


def test_a_disk_that_is_too_small_is_told_before_it_is_written(
    job: Job, builder: Builder, parts: dict[str, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "size", lambda _: 950 << 20)
    with pytest.raises(ArtifactError, match=r"950 MiB.* 1024 MiB") as caught:
        Box(size=1024, parts=parts).fill(job)
    assert "--size" in str(caught.value.hint)
    assert "mke2fs" not in builder.calls


def test_the_store_keeps_a_box(
    tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "cache", runner=builder)
    source = Box(parts={})
    made = box.box(store, source)
    assert made.disk.is_file()
    assert made.kernel.is_file()
    assert made.initramfs.is_file()
    assert len(made.key) == 16
    builder.calls.clear()
    assert box.box(store, source) == made
    assert not builder.calls
    made.disk.unlink()  # somebody made room
    assert box.box(store, source).disk.is_file()
