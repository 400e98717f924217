"""A tree of Debian packages, unpacked and configured by mmdebstrap.

Nothing is installed, mounted or started on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts.source import Job, disk_full
from testbed.errors import ArtifactError, CommandError, MachineError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAMS = {"mmdebstrap": "mmdebstrap"}
#: Keyring for the archive's signatures; not every Debian-like system has it.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WITHOUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
#: Programs for checks and users, on machines that have their own file system.
TOOLS = (
    "bridge-utils", "bsdutils", "conntrack", "curl", "ethtool", "iperf3", "iputils-arping",
    "iputils-ping", "less", "net-tools", "procps", "python3", "strace", "tcpdump",
)  # fmt: skip


def check(into: Path, what: str, room: int, missing: Mapping[str, str]) -> None:
    """Raise MachineError or ArtifactError if a tree cannot be built below a folder.

    ``what`` names the result for messages ("a box"), ``room`` is the number of bytes that building
    it takes, ``missing`` the programs that this machine lacks, each with its Debian package.
    """
    if os.geteuid() != 0:
        raise MachineError(
            f"only root can build {what}, since its files have several owners",
            hint="run it with sudo",
        )
    if missing:
        raise MachineError(
            f"programs that build {what} are missing: {', '.join(missing)}",
            hint="apt-get install -y --no-install-recommends " + " ".join(missing.values()),
        )
    free = shutil.disk_usage(into).free
    if free < room:
        raise ArtifactError(
            f"building {what} needs {room >> 20} MiB temporarily, but {into} has only "
            f"{free >> 20} MiB free",
            hint="free space there, or set TESTBED_CACHE to another folder",
        )


def lacking(programs: Mapping[str, str] = PROGRAMS) -> dict[str, str]:
    """Return missing programs, and the keyring if it is missing, each with its Debian package."""
    missing = {name: package for name, package in programs.items() if which(name) is None}
    return missing if KEYRING.exists() else {**missing, str(KEYRING): "debian-archive-keyring"}


def bootstrap(job: Job, suite: str, packages: Iterable[str], root: Path) -> None:
    """Unpack and configure packages of a release into a folder.

    The mounts that their scripts need are in a private mount namespace.  All their processes
    end with ours: the first is killed with us, which ends the pid namespace.
    """
    alone = (
        "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private",
        "--pid", "--mount-proc", "--fork", "--kill-child", "--uts", "--ipc",
    )  # fmt: skip
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
    env = {
        "PATH": PATH,
        "HOME": "/root",
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
        "TMPDIR": str(job.into),
        "INITRD": "No",  # initramfs-tools would take half a minute for an unused image
    }
    env |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    argv = [
        *alone, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        *options, f"--include={','.join(packages)}", suite, str(root),
    ]  # fmt: skip
    try:
        job.run(argv, env=env, on_line=Progress(job))
    except CommandError as error:
        if disk_full(error):
            raise  # the store explains it
        raise ArtifactError(f"cannot unpack Debian\n{error.message}", hint=_why(error)) from error


def _why(error: CommandError) -> str:
    if unknown := re.search(r"Unable to locate package (\S+)", error.stderr):
        return f"Debian {error.argv[-2]} has no package named {unknown[1]}"
    return f"check that deb.debian.org is reachable and has a release named {error.argv[-2]}"


class Progress:
    """Reports the lines of mmdebstrap's output that show its progress."""

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


def installed(job: Job, root: Path) -> dict[str, tuple[str, int]]:
    """Return the packages of a tree: version and installed size in bytes, by name."""
    answer = job.run(
        [
            "dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show",
            "--showformat=${Package}\t${Version}\t${Installed-Size}\n",
        ],
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    rows = (line.split("\t") for line in answer.stdout.splitlines())
    return {name: (version, int(kibibytes or 0) * 1024) for name, version, kibibytes in rows}


def inside(root: Path, place: str) -> Path:
    """Return the path of a place in a tree; create missing parent folders.

    Raises ArtifactError if a link would lead out of the tree, as absolute links do.
    """
    top, folder = root.resolve(), root
    parts = Path(place.lstrip("/")).parts
    for part in parts[:-1]:
        folder = folder / part
        if ".." in parts or not folder.resolve().is_relative_to(top):
            raise ArtifactError(f"/{place.lstrip('/')} is outside of the tree")
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"/{place.lstrip('/')} is below a file of the tree")
        folder.mkdir(mode=0o755, exist_ok=True)
    return folder / parts[-1]


def write(root: Path, place: str, data: bytes, mode: int = 0o644) -> None:
    """Write a file into a tree; replace an existing file or link.

    Raises ArtifactError if the place is a folder.
    """
    path = inside(root, place)
    if path.is_dir() and not path.is_symlink():
        raise ArtifactError(
            f"/{place.lstrip('/')} is a folder of the tree",
            hint="add the name of the file",
        )
    remove(root, place)
    path.write_bytes(data)
    path.chmod(mode)


def link(root: Path, place: str, target: str) -> None:
    """Create a symbolic link in a tree; replace whatever exists at its place."""
    remove(root, place).symlink_to(target)


def remove(root: Path, place: str) -> Path:
    """Remove a file, link or folder from a tree; return its path."""
    path = inside(root, place)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path
