"""Programs from Debian packages, unpacked into the cache and never installed.

So no maintainer script runs, no service starts on the host, and nothing conflicts
with a Docker that is installed there.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts import release
from testbed.artifacts.cache import Cache, remove_tree
from testbed.artifacts.source import Job, Origin, Source, disk_full, system
from testbed.errors import ArtifactError, CommandError
from testbed.process import which
from testbed.requirement import requirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.process import Completed
    from testbed.requirement import Requirement

LIBRARIES = {  # libraries of dockerd and runc that not every system has
    "libdevmapper.so.1.02.1": "libdevmapper1.02.1",
    "libseccomp.so.2": "libseccomp2",
    "libsystemd.so.0": "libsystemd0",
}


def libraries(needed_by: tuple[str, ...]) -> list[Requirement]:
    """Check that the libraries can be loaded."""
    import ctypes

    found = []
    for library, package in LIBRARIES.items():
        detail = "loads"
        try:
            ctypes.CDLL(library)
        except OSError as error:
            detail = str(error)
        ok = detail == "loads"
        found.append(requirement(library, detail, needed_by, ok=ok, packages=(package,)))
    return found


STATUS = Path("/var/lib/dpkg/status")  # packages that this machine has installed
HOOKS = tuple(
    f"APT::Update::{name}" for name in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
)
#: Approximate size in bytes of the package lists of one release.
LISTS = 64 << 20
#: Messages of apt in the locale C: a package that no list has, and an archive out of reach.
UNKNOWN = r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate"
OFFLINE = (
    "Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect",
    "Connection failed", "Network is unreachable", "Connection timed out",
)  # fmt: skip
SPAN = 3  # largest difference in length between a mistyped name and the one that was meant


@dataclass(frozen=True)
class DebianPackages(Source):
    """Programs by name, each with its path in its package.

    The version is that of the first package.  A program whose path ends in "?" is optional:
    not every release has it.
    """

    packages: Sequence[str]
    programs: Mapping[str, str]
    origin: ClassVar[Origin] = "debian"

    def recipe(self) -> Mapping[str, object]:
        return {
            "packages": release.packages(self.packages),
            "programs": dict(self.programs),
            "system": system(),
        }

    def brings(self) -> tuple[str, ...]:
        return tuple(name for name, place in self.programs.items() if not place.endswith("?"))

    def fill(self, job: Job) -> str:
        tree = job.into / "tree"
        versions = Apt(job).unpack(self.packages, tree)
        folder = job.into / "bin"
        folder.mkdir()
        for name, place in self.programs.items():
            found = inside(tree, place.removesuffix("?"))
            if found:
                found.rename(folder / name)
            elif not place.endswith("?"):
                raise ArtifactError(f"no {place} in the packages {' '.join(self.packages)}")
        remove_tree(tree)
        check_libraries(job, sorted(folder.iterdir()))
        return versions[self.packages[0]]


#: A wrapper for a program of a tree, which searches the tree for shared libraries first.
LAUNCHER = """\
#!/bin/sh
tree=$(dirname "$(readlink -f "$0")")/../tree
export LD_LIBRARY_PATH="$(echo "$tree"/usr/lib/*-linux-gnu)"
exec "$tree/{place}" "$@"
"""


@dataclass(frozen=True)
class DebianTree(DebianPackages):
    """Programs that need other files of their packages: libraries, headers.

    ``packages`` includes the packages of their shared libraries, except those that every system
    has.  Every program is required.
    """

    def recipe(self) -> Mapping[str, object]:
        return {**super().recipe(), "launcher": LAUNCHER}

    def fill(self, job: Job) -> str:
        tree = job.into / "tree"
        versions = Apt(job).unpack(self.packages, tree)
        (job.into / "bin").mkdir()
        for name, place in self.programs.items():
            if not inside(tree, place):
                raise ArtifactError(f"no {place} in the packages {' '.join(self.packages)}")
            launcher = job.into / "bin" / name
            launcher.write_text(LAUNCHER.format(place=place), encoding="utf-8")
            launcher.chmod(0o755)
        return versions[self.packages[0]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Unpacked packages: the version of each by name, and the texts of maintainer scripts."""

    versions: Mapping[str, str]
    scripts: Sequence[str] = ()


def lacking() -> str:
    """Return why this machine cannot unpack Debian packages; empty if it can."""
    if which("apt-get") and which("dpkg-deb"):
        return ""
    return "apt-get and dpkg-deb, which unpack Debian packages, are missing on this machine"


class Apt:
    """The host's apt with the host's settings and package lists; writes only to the cache."""

    def __init__(
        self, job: Job, instead: str = "name each program's file: --artifact NAME=PATH"
    ) -> None:
        if missing := lacking():
            raise ArtifactError(missing, hint=instead)
        self._job = job
        self._own_lists = False
        self._env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def unpack(
        self, packages: Sequence[str], tree: Path, *, depends: bool = False
    ) -> dict[str, str]:
        """Unpack packages, with ``depends`` also their dependencies; return version by package.

        ``packages`` are names of Debian 12.
        """
        packages = release.packages(packages)
        debs = self._job.into / "debs"
        (debs / "partial").mkdir(parents=True)
        try:
            if depends:  # as if nothing were installed, so that all packages are fetched
                self._download(packages, debs, None)
            else:
                self._apt("download", *packages, cwd=debs)
            return self._open(sorted(debs.glob("*.deb")), tree)
        finally:
            remove_tree(debs)

    def unpack_lacking(self, packages: Sequence[str], tree: Path) -> Unpacked:
        """Unpack packages with those of their dependencies that this machine has not installed.

        A package that is installed is not unpacked, either, unless another one needs it newer.
        """
        debs = self._job.into / "debs"
        (debs / "partial").mkdir(parents=True)
        try:
            self._download(release.packages(packages), debs, STATUS)
            found = sorted(debs.glob("*.deb"))
            versions = self._open(found, tree)
            return Unpacked(versions, [text for deb in found for text in self._scripts(deb)])
        finally:
            remove_tree(debs)

    def _download(self, packages: Sequence[str], debs: Path, installed: Path | None) -> None:
        """Download packages with their dependencies, without those that are installed.

        ``installed`` is a status file of dpkg, None for one of a machine without packages.  Apt
        gets a copy: it locks the file's folder, as every dpkg that is running does.
        """
        status = self._job.into / "status"
        status.write_bytes(installed.read_bytes() if installed and installed.exists() else b"")
        self._apt(
            "--option", f"Dir::State::status={status}",
            "--option", f"Dir::Cache::archives={debs}",
            "--yes", "--no-install-recommends", "--download-only", "install", *packages,
        )  # fmt: skip
        status.unlink()

    def _scripts(self, deb: Path) -> list[str]:
        """Return the texts of a package's maintainer scripts; empty for those that it lacks."""
        texts = (
            self._job.run(["dpkg-deb", "--info", deb, name], env=self._env, check=False).stdout
            for name in ("preinst", "postinst")
        )
        return [text for text in texts if text]

    def closure(self, packages: Sequence[str]) -> list[str]:
        """Return the names of packages and of all that they need, directly or not."""
        nothing = self._job.into / "status"
        nothing.touch()
        try:
            done = self._run(
                "--option", f"Dir::State::status={nothing}",
                "--no-install-recommends", "--simulate", "install", *release.packages(packages),
            )  # fmt: skip
        except CommandError:  # what it needs on this machine is in no archive
            return []
        finally:
            nothing.unlink()
        return re.findall(r"^Inst (\S+)", done.stdout, re.MULTILINE)

    def _open(self, debs: Sequence[Path], tree: Path) -> dict[str, str]:
        tree.mkdir()
        versions = {}
        for number, deb in enumerate(debs, 1):
            self._job.say(f"unpack {number} of {len(debs)}: {deb.name.split('_')[0]}")
            self._job.run(["dpkg-deb", "--extract", deb, tree], env=self._env)
            fields = self._job.run(
                ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", deb], env=self._env
            )
            package, _, version = fields.stdout.partition(" ")
            versions[package] = version.strip()
        return versions

    def _apt(self, *words: str, cwd: Path | None = None) -> None:
        try:
            self._run(*words, cwd=cwd)
        except CommandError as first:
            self._refuse_full(first)
            # The host's lists are empty, or name packages that the archive has replaced.
            self._job.say("update the package lists")
            self._own_lists = True
            lists = self._job.shared / "apt" / "lists"
            (lists / "partial").mkdir(parents=True, exist_ok=True)
            try:
                # Apt itself does not wait for another apt that is updating the same folder.
                shared = Cache(self._job.shared)
                with shared.lock("apt", say=self._job.say, cancel=self._job.cancel):
                    self._run("--config-file", str(self._without_hooks()), "update")
                self._run(*words, cwd=cwd)
            except CommandError as error:
                self._refuse_full(error)
                raise self._unavailable(error, first) from error

    def _without_hooks(self) -> Path:
        """Return a configuration file without the machine's commands for an update (apt.conf(5)).

        They are about its own lists, and change files of the machine.
        """
        path = self._job.shared / "apt" / "apt.conf"
        path.write_text("".join(f"#clear {name};\n" for name in HOOKS), encoding="utf-8")
        return path

    def _unavailable(self, error: CommandError, first: CommandError) -> ArtifactError:
        """Return the error for packages that apt cannot get, also with new lists.

        ``first`` is the error with the lists that this machine had.
        """
        said = f"{first.stderr}\n{error.stderr}"
        offline = any(words in error.stderr for words in OFFLINE)
        unknown = list(dict.fromkeys(filter(None, map("".join, re.findall(UNKNOWN, said)))))
        hint = "check whether `apt-get update` works"
        if offline:
            hint = (
                "connect this machine to the Debian archive that its sources.list(5) names, or set "
                "a proxy (http_proxy); packages that are in the cache need no network"
            )
        if not unknown:
            return ArtifactError(f"cannot get Debian packages\n{error}", hint=hint)
        known = self._names()
        close = [match for name in unknown for match in closest_packages(name, known)]
        words = f"Debian has no package{'s' if unknown[1:] else ''} {', '.join(unknown)}"
        if offline:
            words += " in the lists of this machine, and they cannot be updated"
        if close:
            hint = f"did you mean {' or '.join(dict.fromkeys(close))}?" + (
                f" Else {hint}" * offline
            )
        elif not offline:
            hint = "`apt-cache search WORD` finds packages by what they are for"
        return ArtifactError(words, hint=hint)

    def _names(self) -> list[str]:
        """Return the names of all packages in the lists."""
        argv = ["apt-cache", *self._options(), "pkgnames"]
        return self._job.run(argv, env=self._env, check=False).stdout.split()

    def _refuse_full(self, error: CommandError) -> None:
        """Raise ArtifactError if a command failed because the disk is full.

        apt may report another error: on a full disk it truncates its lists, and then knows none
        of the packages.
        """
        free = shutil.disk_usage(self._job.shared).free
        said = disk_full(error)
        if said or free < LISTS:
            raise ArtifactError(
                f"cannot download Debian packages: only {free >> 20} MiB are free on the disk of "
                f"{self._job.shared}" + (f"\n    {said}" if said else ""),
                hint="free space there, or set TESTBED_CACHE to another folder",
            ) from error

    def _options(self) -> list[str]:
        cache = self._job.shared / "apt" / "cache"
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        options = [f"Dir::Cache={cache}", "APT::Sandbox::User=", "Acquire::Retries=2"]
        if self._own_lists:
            options.append(f"Dir::State::lists={self._job.shared / 'apt' / 'lists'}")
        return [word for option in options for word in ("--option", option)]

    def _run(self, *words: str, cwd: Path | None = None) -> Completed:
        argv = ["apt-get", "--quiet", *self._options(), *words]
        return self._job.run(argv, cwd=cwd, env=self._env, on_line=self._heard)

    def _heard(self, line: str) -> None:
        got = re.match(r"Get:\d+ \S+ \S+ \S+ (\S+) \S+ \S+ \[(.+)\]", line)
        if got:
            self._job.say(f"download {got[1]} ({got[2]})")


def closest_packages(name: str, known: Sequence[str]) -> list[str]:
    """Return the names of packages that are most like a mistyped one.

    >>> closest_packages("tcpdmup", ["tcpdump", "tcpflow", "frr"])
    ['tcpdump']
    """
    import difflib

    likely = [one for one in known if abs(len(one) - len(name)) <= SPAN]
    return difflib.get_close_matches(name, likely, n=2, cutoff=0.8)


def inside(tree: Path, place: str) -> Path | None:
    """Return the file at a place of an unpacked tree; None if there is none.

    Links are followed as if the tree were the root.  Since Debian 13, packages have under
    ``usr`` the files that earlier releases have in ``bin``, ``sbin`` and ``lib``
    (https://wiki.debian.org/UsrMerge), so both places are searched.
    """
    bare = place.removeprefix("usr/")
    places = (tree / place, tree / bare, tree / "usr" / bare)
    path = next((p for p in places if p.is_symlink() or p.exists()), tree / place)
    for _ in range(8):  # links to links, but not an endless ring of them
        if not path.is_symlink():
            return path if path.is_file() else None
        target = path.readlink()
        base = tree if target.is_absolute() else path.parent
        path = Path(os.path.normpath(base / str(target).lstrip("/")))
        if not path.is_relative_to(tree):
            return None
    return None


def check_libraries(job: Job, programs: Sequence[Path]) -> None:
    """Raise ArtifactError, with the packages to install, if a shared library is missing."""
    if not which("ldd"):
        return
    answer = job.run(["ldd", *programs], env={**os.environ, "LC_ALL": "C"}, check=False)
    missing = sorted(set(re.findall(r"^\s+(\S+) => not found", answer.stdout, re.MULTILINE)))
    if missing:
        packages = " ".join(LIBRARIES.get(library, library) for library in missing)
        raise ArtifactError(
            f"shared libraries are missing on this machine: {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {packages}",
        )
