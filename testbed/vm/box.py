"""The box: the disk, kernel and initramfs that every virtual machine of a lab starts from.

Made of Debian packages alone by mmdebstrap, in namespaces of its own: nothing
is installed, mounted or started on this machine.  All that a lab's roles use
is in it, so nothing is installed when a lab comes up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts import release
from testbed.artifacts.cache import remove_tree, size
from testbed.artifacts.source import Job, Origin, Source, disk_full
from testbed.errors import ArtifactError, CommandError, MachineError
from testbed.process import which
from testbed.requirement import INSTALL, Requirement
from testbed.vm import guest, initramfs

if TYPE_CHECKING:
    from testbed.artifacts import Store

NAME = "box"  #: under which the store keeps boxes
SIZE = 4096  # MiB of the disk as a guest sees it; only what is written takes room here
FILLED = 0.9  # of a disk at most; the rest is the file system's own, and the guest's
ROOM = 3 << 30  # bytes that the making of a box needs for a while
PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
#: What the archive's signatures are checked with; not every Debian-like system has it.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DISK, KERNEL, INITRAMFS, MANIFEST = "disk.qcow2", "vmlinuz", "initramfs", "manifest.json"

PACKAGES = (
    # the machine
    "busybox-static", "dbus", "kmod", "linux-image-cloud-amd64", "openssh-server", "systemd",
    "systemd-sysv", "udev", "util-linux",
    # what roles start, and what those call
    "ca-certificates", "containerd", "docker.io", "etcd-client", "etcd-server", "iproute2", "ipset",
    "iptables", "nftables", "runc", "tini",
    # what checks use, and people
    "bridge-utils", "bsdutils", "conntrack", "curl", "ethtool", "iperf3", "iputils-arping",
    "iputils-ping", "less", "net-tools", "procps", "python3", "strace", "tcpdump",
)  # fmt: skip
WITHOUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
PARTS = ("flanneld",)  # of the store, beside Debian's packages
IMAGE_PARTS = ("nginx",)
FOLDERS = ("usr/sbin", "usr/bin", "usr/local/bin")  # of programs, as PATH has them


#: Of every Debian, or mounted when a guest runs: what is put there takes the place of all in it.
TREES = (
    "bin", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "root", "sbin", "srv", "usr",
    "var", "usr/bin", "usr/lib", "usr/lib64", "usr/local", "usr/local/bin", "usr/local/lib",
    "usr/local/sbin", "usr/sbin", "usr/share", "var/cache", "var/lib", "var/log", "var/tmp",
    "etc/ssh", "root/.ssh", "etc/systemd", "etc/systemd/system", "var/lib/testbed",
)  # fmt: skip
HIDDEN = ("boot", "dev", "proc", "run", "sys", "var/lock", "var/run")  # a guest sees others there


def bad_place(place: str) -> str:
    """What is wrong with the place of a file in a box; empty where it is a good one."""
    parts = Path(place).parts
    if not place.startswith("/") or ".." in parts:
        return "want an absolute place in the box"
    if place.endswith(("/", "/.")) or "/".join(parts[1:]) in TREES:
        return "that is a folder of the box; name the file in it too"
    plain = "/".join(parts[1:])
    hidden = next((name for name in HIDDEN if f"{plain}/".startswith(f"{name}/")), None)
    return f"a running machine does not show what the box has in /{hidden}" if hidden else ""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the user's that goes into a box."""

    source: Path
    place: str

    @property
    def digest(self) -> str:
        try:
            return f"{digest(self.source)} {os.access(self.source, os.X_OK)}"
        except OSError as error:
            raise ArtifactError(f"{self.source} cannot be read: {error.strerror}") from error


def _parts() -> dict[str, Source]:
    from testbed.artifacts.catalog import CATALOG

    return {name: CATALOG.parts[name] for name in (*PARTS, *IMAGE_PARTS)}


@dataclass(frozen=True)
class Box(Source):
    """A Debian machine; ``packages`` and ``files`` come on top of what labs need.

    By default of this machine's own release: the programs that the store has need its libraries.
    """

    suite: str = field(default_factory=lambda: release.this().suite)
    size: int = SIZE
    packages: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    parts: Mapping[str, Source] = field(default_factory=_parts)
    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return {
            "suite": self.suite,
            "size": self.size,
            "packages": self.names,
            "without": list(WITHOUT),
            "files": sorted((file.place, file.digest) for file in self.files),
            "parts": {name: part.key() for name, part in self.parts.items()},
            "guest": [guest.FILES, guest.MASKED, guest.DISABLED, guest.GONE],
            "initramfs": [initramfs.init(), initramfs.MODULES],
            "form": 1,  # of the disk and the manifest
        }

    @property
    def names(self) -> list[str]:
        """All packages, by their names in its release; those of the user's are not translated."""
        own = release.packages(PACKAGES, release.named(self.suite))
        return sorted({*own, *self.packages})

    def whole(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (DISK, KERNEL, INITRAMFS, MANIFEST))

    def fill(self, job: Job) -> str:
        check(job.into)
        root = job.into / "root"
        try:
            bootstrap(job, self, root)
            job.say("settle the guest")
            guest.settle(root)
            for name in self.parts:
                _bring(root, name, job.part(name))
            for file in self.files:
                mode = 0o755 if os.access(file.source, os.X_OK) else 0o644
                guest.write(root, file.place, file.source.read_bytes(), mode)
            kernel = _kernel(root)
            (job.into / INITRAMFS).write_bytes(initramfs.initramfs(root, kernel))
            (root / "boot" / f"vmlinuz-{kernel}").rename(job.into / KERNEL)
            remove_tree(root / "boot")
            manifest = describe(job, self, root, kernel)
            _disk(job, root, self.size)
        finally:
            remove_tree(root)
        manifest["files"] = {
            name: {"size": (job.into / name).stat().st_size, "sha256": digest(job.into / name)}
            for name in (DISK, KERNEL, INITRAMFS)
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (job.into / MANIFEST).write_text(text, encoding="utf-8")
        return f"{self.suite}-{kernel}"


@dataclass(frozen=True, slots=True)
class Built:
    """A box that is in the cache."""

    folder: Path

    @property
    def disk(self) -> Path:
        """A qcow2 image with an ext4 file system right on it; never to be written."""
        return self.folder / DISK

    @property
    def kernel(self) -> Path:
        return self.folder / KERNEL

    @property
    def initramfs(self) -> Path:
        return self.folder / INITRAMFS

    @property
    def entry(self) -> str:
        """The key that the store keeps it by: its recipe's."""
        return self.folder.name.rpartition("-")[2]

    @property
    def key(self) -> str:
        """What tells this box from every other, also from one of the same recipe."""
        return str(self.manifest()["files"][DISK]["sha256"])[:16]

    @property
    def release(self) -> str:
        """A version of numbers alone, as Vagrant wants one: the kernel's, and this box's own."""
        numbers = re.findall(r"[0-9]+", self.manifest()["kernel"].partition("-cloud")[0])
        return ".".join([*numbers, str(int(self.key[:8], 16))])

    def manifest(self) -> dict[str, Any]:
        """``manifest.json``: suite, kernel, packages, programs by sum, images, files."""
        data: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        return data


def box(store: Store, source: Box | None = None) -> Built:
    """The box of a lab; made first if it is not in the cache.  Raises as Store.keep does."""
    return Built(store.keep(NAME, source or Box()))


def check(into: Path) -> None:
    """Raise MachineError or ArtifactError unless a box can be made here, below that folder."""
    if os.geteuid() != 0:
        raise MachineError(
            "a box can only be made by root: its files belong to many users",
            hint="run it again with sudo",
        )
    missing = lacking()
    if missing:
        raise MachineError(
            f"this machine lacks {', '.join(missing)}, with which boxes are made",
            hint="apt-get install -y --no-install-recommends " + " ".join(missing.values()),
        )
    free = shutil.disk_usage(into).free
    if free < ROOM:
        raise ArtifactError(
            f"making a box needs {ROOM >> 20} MiB for a while, and {free >> 20} are free in {into}",
            hint="make room, or give another folder with TESTBED_CACHE",
        )


def lacking() -> dict[str, str]:
    """What this machine lacks for the making of boxes, each with its Debian package."""
    missing = {name: package for name, package in PROGRAMS.items() if which(name) is None}
    return missing if KEYRING.exists() else {**missing, str(KEYRING): "debian-archive-keyring"}


def bootstrap(job: Job, spec: Box, root: Path) -> None:
    """Unpack and configure the packages into a folder.

    The mounts that their scripts need are in a mount namespace that nobody else sees, and all
    their processes end with ours: the first is killed with us, and the pid namespace with it.
    """
    alone = (
        "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
        "--pid", "--mount-proc", "--fork", "--kill-child", "--uts", "--ipc",
    )  # fmt: skip
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
    env = {
        "PATH": guest.PATH,
        "HOME": "/root",
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
        "TMPDIR": str(job.into),
        "INITRD": "No",  # initramfs-tools would spend half a minute on one that nobody boots
    }
    env |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    argv = [
        *alone, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        *options, f"--include={','.join(spec.names)}", spec.suite, str(root),
    ]  # fmt: skip
    try:
        job.run(argv, env=env, on_line=Progress(job))
    except CommandError as error:
        if disk_full(error):
            raise  # the store says so
        raise ArtifactError(
            f"Debian cannot be unpacked\n{error.message}", hint=_why(error)
        ) from error


def _why(error: CommandError) -> str:
    if unknown := re.search(r"Unable to locate package (\S+)", error.stderr):
        return f"Debian {error.argv[-2]} has no package named {unknown[1]}"
    return f"see that deb.debian.org can be reached, and has a release named {error.argv[-2]}"


class Progress:
    """Tells the few of mmdebstrap's lines that say how far it has got."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._done: dict[str, int] = {}

    def __call__(self, line: str) -> None:
        if line.startswith("I: ") and not line.endswith("..."):
            return
        if line.startswith("I: "):
            self._job.say(line.removeprefix("I: ").removesuffix("..."))
        elif found := re.match(r"(Get|Unpacking|Setting up)[ :]\S+", line):
            verb = "fetched" if found[1] == "Get" else found[1].split()[0].lower()
            self._done[verb] = number = self._done.get(verb, 0) + 1
            if number % 50 == 0:
                self._job.say(f"{verb} {number} packages")


def describe(job: Job, spec: Box, root: Path, kernel: str) -> dict[str, Any]:
    """What is in the tree."""
    answer = job.run(
        [
            "dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show",
            "--showformat=${Package}\t${Version}\t${Installed-Size}\n",
        ],
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    packages = {}
    for line in answer.stdout.splitlines():
        name, version, kibibytes = line.split("\t")
        packages[name] = {"version": version, "size": int(kibibytes or 0) * 1024}
    return {
        "suite": spec.suite,
        "kernel": kernel,
        "disk": spec.size << 20,
        "content": size(root),
        "packages": packages,
        "programs": programs(root),
        "images": {
            path.stem: {"place": f"{guest.IMAGES}/{path.name}", "sha256": digest(path)}
            for path in sorted((root / guest.IMAGES.lstrip("/")).glob("*.tar"))
        },
    }


def programs(root: Path) -> dict[str, str]:
    """Where each program is, by the sha256 of its content: what is there need not be copied in."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).iterdir()):
            if path.is_file() and not path.is_symlink():
                found[digest(path)] = f"/{folder}/{path.name}"
    return found


def digest(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(root: Path, name: str, folder: Path) -> None:
    """Put what a part of the store brings where a guest looks for it."""
    if (folder / "image.tar").exists():
        place = f"{guest.IMAGES}/{name}.tar"
        guest.write(root, place, (folder / "image.tar").read_bytes())
        return
    for program in sorted((folder / "bin").iterdir()):
        guest.write(root, f"usr/local/bin/{program.name}", program.read_bytes(), 0o755)


def _kernel(root: Path) -> str:
    releases = sorted(path.name for path in (root / "usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise ArtifactError(f"want one kernel in the box, got {' '.join(releases) or 'none'}")
    return releases[0]


def _disk(job: Job, root: Path, mebibytes: int) -> None:
    job.say("write the disk")
    if (content := size(root) >> 20) > mebibytes * FILLED:
        raise ArtifactError(
            f"what goes into the box takes {content} MiB, too much for a disk of {mebibytes} MiB",
            hint="give it a larger one with --size",
        )
    raw = job.into / "disk.raw"
    features = ("-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0")
    job.run(
        ["mke2fs", "-q", "-t", "ext4", *features, "-L", NAME, "-d", root, raw, f"{mebibytes}M"],
        env={**os.environ, "PATH": guest.PATH, "LC_ALL": "C"},
    )
    job.run(["qemu-img", "convert", "-O", "qcow2", raw, job.into / DISK])
    raw.unlink()


def probe(provider: str, cache: Path) -> list[Requirement]:
    """What a provider of machines made from a box must have: programs, and a guest that runs."""
    from testbed.vm import accel

    missing = lacking() | accel.lacking()
    packages = tuple(sorted(set(missing.values())))
    there = "all that makes and runs them is there"
    programs = Requirement(
        "virtual machines",
        ok=not missing,
        detail=f"no {', '.join(missing)}" if missing else there,
        fix=f"{INSTALL} {' '.join(packages)}" if packages else "",
        needed_by=(provider,),
        packages=packages,
    )
    try:
        found = accel.probe(cache)
        runs = Requirement("a guest", ok=True, detail=f"{found.kind}: {found.detail}; {found.cost}")
    except MachineError as error:
        runs = Requirement("a guest", ok=False, detail=error.message, fix=error.hint or "")
    return [programs, replace(runs, needed_by=(provider,))]
