"""The box: the disk, kernel and initramfs from which all virtual machines start.

It is built from Debian packages by mmdebstrap, in separate namespaces: nothing is
installed, mounted or started on this machine.  It contains everything that roles
use, so nothing is installed when a lab starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts import bootstrap, release
from testbed.artifacts.cache import remove_tree, size
from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError, MachineError
from testbed.process import run
from testbed.requirement import INSTALL, Requirement, requirement
from testbed.vm import guest, initramfs

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.artifacts.source import Runner

NAME = "box"  #: name of boxes in the store
SIZE = 4096  # MiB of the disk as a guest sees it; the file is sparse
FILLED = 0.9  # maximum share of the disk; the rest is for the file system and the guest
ROOM = 3 << 30  # bytes of temporary space for building a box
PROGRAMS = {**bootstrap.PROGRAMS, "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
DISK, KERNEL, INITRAMFS, MANIFEST = "disk.qcow2", "vmlinuz", "initramfs", "manifest.json"

PACKAGES = (
    # the machine
    "busybox-static", "dbus", "kmod", "linux-image-cloud-amd64", "openssh-server", "systemd",
    "systemd-sysv", "udev", "util-linux",
    # daemons of roles, and programs that they call
    "ca-certificates", "containerd", "docker.io", "etcd-client", "etcd-server", "iproute2", "ipset",
    "iptables", "nftables", "runc", "tini",
    *bootstrap.TOOLS,
)  # fmt: skip
PARTS = ("flanneld",)  # from the store, in addition to Debian's packages
IMAGE_PARTS = ("nginx",)
FOLDERS = ("usr/sbin", "usr/bin", "usr/local/bin")  # program folders, in the order of PATH


#: Folders of every Debian, or mount points of a running guest: a file there would replace them.
TREES = (
    "bin", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "root", "sbin", "srv", "usr",
    "var", "usr/bin", "usr/lib", "usr/lib64", "usr/local", "usr/local/bin", "usr/local/lib",
    "usr/local/sbin", "usr/sbin", "usr/share", "var/cache", "var/lib", "var/log", "var/tmp",
    "etc/ssh", "root/.ssh", "etc/systemd", "etc/systemd/system", "var/lib/testbed",
)  # fmt: skip
HIDDEN = ("boot", "dev", "proc", "run", "sys", "var/lock", "var/run")  # a guest mounts over them


def bad_place(place: str) -> str:
    """Return the problem with the path of a file in a box; empty if it is valid."""
    parts = Path(place).parts
    if not place.startswith("/") or ".." in parts:
        return "wanted an absolute path in the box"
    if place.endswith(("/", "/.")) or "/".join(parts[1:]) in TREES:
        return "it is a folder of the box; add the name of the file"
    plain = "/".join(parts[1:])
    hidden = next((name for name in HIDDEN if f"{plain}/".startswith(f"{name}/")), None)
    return f"a running machine hides the contents of /{hidden}" if hidden else ""


@dataclass(frozen=True, slots=True)
class File:
    """A user's file to add to a box."""

    source: Path
    place: str

    @property
    def digest(self) -> str:
        try:
            return f"{digest(self.source)} {os.access(self.source, os.X_OK)}"
        except OSError as error:
            raise ArtifactError(f"{self.source} cannot be read: {error.strerror}") from error


def _parts() -> dict[str, Source]:
    from testbed.artifacts.inventory import INVENTORY

    return {name: INVENTORY.parts[name] for name in (*PARTS, *IMAGE_PARTS)}


@dataclass(frozen=True)
class Box(Source):
    """A Debian machine with ``packages`` and ``files`` in addition to those that labs need.

    The default release is this machine's, because the store's programs need its libraries.
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
            "without": list(bootstrap.WITHOUT),
            "files": sorted((file.place, file.digest) for file in self.files),
            "parts": {name: part.key() for name, part in self.parts.items()},
            "guest": [guest.FILES, guest.MASKED, guest.DISABLED, guest.GONE],
            "initramfs": [initramfs.init(), initramfs.MODULES],
            "form": 1,  # of the disk and the manifest
        }

    @property
    def names(self) -> list[str]:
        """All packages, named as in the box's release; the user's are taken as given."""
        own = release.packages(PACKAGES, release.named(self.suite))
        return sorted({*own, *self.packages})

    def whole(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (DISK, KERNEL, INITRAMFS, MANIFEST))

    def fill(self, job: Job) -> str:
        bootstrap.check(job.into, "a box", ROOM, lacking())
        root = job.into / "root"
        try:
            bootstrap.bootstrap(job, self.suite, self.names, root)
            job.say("configure the guest")
            guest.settle(root)
            for name in self.parts:
                _bring(root, name, job.part(name))
            for file in self.files:
                mode = 0o755 if os.access(file.source, os.X_OK) else 0o644
                bootstrap.write(root, file.place, file.source.read_bytes(), mode)
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
    """A box in the cache."""

    folder: Path

    @property
    def disk(self) -> Path:
        """A qcow2 image with an ext4 file system and no partitions; must not be written."""
        return self.folder / DISK

    @property
    def kernel(self) -> Path:
        return self.folder / KERNEL

    @property
    def initramfs(self) -> Path:
        return self.folder / INITRAMFS

    @property
    def entry(self) -> str:
        """Its key in the store, a hash of its recipe."""
        return self.folder.name.rpartition("-")[2]

    @property
    def key(self) -> str:
        """A key that is unique to this box, even among boxes of the same recipe."""
        return str(self.manifest()["files"][DISK]["sha256"])[:16]

    @property
    def release(self) -> str:
        """A numeric version, as Vagrant requires: the kernel's, and this box's own."""
        numbers = re.findall(r"[0-9]+", self.manifest()["kernel"].partition("-cloud")[0])
        return ".".join([*numbers, str(int(self.key[:8], 16))])

    def manifest(self) -> dict[str, Any]:
        """``manifest.json``: suite, kernel, packages, programs by sum, images, files."""
        data: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        return data


def box(store: Store, source: Box | None = None) -> Built:
    """Return the box of a lab; build it first if it is not in the cache.

    Raises the errors of Store.keep.
    """
    return Built(store.keep(NAME, source or Box()))


def lacking() -> dict[str, str]:
    """Return programs missing for building boxes, each with its Debian package."""
    return bootstrap.lacking(PROGRAMS)


def describe(job: Job, spec: Box, root: Path, kernel: str) -> dict[str, Any]:
    """Return the manifest of a box: the contents of its tree."""
    packages = {
        name: {"version": version, "size": bytes_}
        for name, (version, bytes_) in bootstrap.installed(job, root).items()
    }
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
    """Return the path of each program by the sha256 of its content.

    Programs in the box do not have to be copied to a machine.
    """
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).iterdir()):
            if path.is_file() and not path.is_symlink():
                found[digest(path)] = f"/{folder}/{path.name}"
    return found


def digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(root: Path, name: str, folder: Path) -> None:
    """Copy the files of one of the store's parts to the places where a guest looks for them."""
    if (folder / "image.tar").exists():
        place = f"{guest.IMAGES}/{name}.tar"
        bootstrap.write(root, place, (folder / "image.tar").read_bytes())
        return
    for program in sorted((folder / "bin").iterdir()):
        bootstrap.write(root, f"usr/local/bin/{program.name}", program.read_bytes(), 0o755)


def _kernel(root: Path) -> str:
    releases = sorted(path.name for path in (root / "usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise ArtifactError(f"wanted one kernel in the box, saw {' '.join(releases) or 'none'}")
    return releases[0]


def _disk(job: Job, root: Path, mebibytes: int) -> None:
    job.say("write the disk")
    if (content := size(root) >> 20) > mebibytes * FILLED:
        raise ArtifactError(
            f"the contents of the box need {content} MiB, but the disk has {mebibytes} MiB",
            hint="use a larger --size",
        )
    raw = job.into / "disk.raw"
    features = ("-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0")
    job.run(
        ["mke2fs", "-q", "-t", "ext4", *features, "-L", NAME, "-d", root, raw, f"{mebibytes}M"],
        env={**os.environ, "PATH": bootstrap.PATH, "LC_ALL": "C"},
    )
    job.run(["qemu-img", "convert", "-O", "qcow2", raw, job.into / DISK])
    raw.unlink()


def summary(provider: str) -> Requirement:
    """Check the programs that build and run virtual machines, for machines that have none yet.

    It has no packages: only who asks for the provider gets them installed.
    """
    from testbed.vm import accel

    missing = lacking() | accel.lacking()
    there = "QEMU and the programs that build boxes are installed"
    return requirement(
        "virtual machines",
        f"no {', '.join(missing)}" if missing else there,
        (f"provider {provider}",),
        ok=not missing,
        fix=f"testbed doctor --provider {provider} --fix",
        required=False,
    )


def kvm(provider: str, cache: Path, runner: Runner = run) -> Requirement:
    """Test again whether virtual machines run under KVM."""
    from testbed.vm import accel

    detail, fix = "", ""
    try:
        answer = accel.probe(cache, fresh=True, runner=runner)
    except MachineError as error:
        ok, detail, fix = False, f"not tested: {error.message}", error.hint or ""
    else:
        ok, detail = answer.kind == "kvm", f"{answer.detail}; {answer.cost}"
        fix = "enable (nested) virtualization in the firmware or hypervisor"
    return requirement("KVM", detail, (f"provider {provider}",), ok=ok, fix=fix, required=False)


def probe(provider: str, cache: Path) -> list[Requirement]:
    """Return the requirements of a provider whose machines use a box.

    They are programs on this machine, and a test guest that runs.
    """
    from testbed.vm import accel

    missing = lacking() | accel.lacking()
    packages = tuple(sorted(set(missing.values())))
    there = "the programs that build and run them are installed"
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
