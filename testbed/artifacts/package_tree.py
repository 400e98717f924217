"""Trees of Debian packages that are laid over the files of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from testbed.artifacts import maintainer, release
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.debian import Apt, inside
from testbed.artifacts.source import Job, Origin, Source, system

#: Parts of packages that nobody reads on a node.
UNREAD = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
)
#: Folders that are links into /usr (https://wiki.debian.org/UsrMerge).
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: The file of a tree that describes its packages.
ABOUT = "packages.json"
DPKG = Path("/var/lib/dpkg/info")


@dataclass(frozen=True)
class PackageTree(Source):
    """A tree of packages with those of their dependencies that this machine has not installed.

    It is for nodes that see this machine's files: ``tree`` is laid over them.  No maintainer
    script runs; :mod:`testbed.artifacts.maintainer` reads from them what a node needs.
    """

    packages: tuple[str, ...]
    origin: ClassVar[Origin] = "debian"

    @property
    def name(self) -> str:
        """The name of its entry in the cache."""
        return (
            "packages-" + "-".join(re.sub("[^a-z0-9.]+", "-", name) for name in self.packages)[:60]
        )

    def recipe(self) -> Mapping[str, object]:
        return {"packages": release.packages(self.packages), "system": system(), "form": 1}

    def whole(self, folder: Path) -> bool:
        """Tell whether the tree exists, and this machine still has the packages that it needs."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return all(_is_installed(name) for name in about["needs"])

    def fill(self, job: Job) -> str:
        tree = job.into / "tree"
        apt = Apt(job, "use a machine with Debian, or remove the packages from the nodes")
        got = apt.unpack_lacking(self.packages, tree)
        for place in UNREAD:
            remove_tree(tree / place)
        for name in MERGED:
            if (tree / name).is_dir():
                merge(tree / name, tree / "usr" / name, name)
        for link, target in (
            pair for text in got.scripts for pair in maintainer.alternatives(text)
        ):
            _link(tree, link, target)
        # The closure may have another choice of alternatives than this machine.
        others = [name for name in apt.closure(self.packages) if name not in got.versions]
        about = {
            "versions": got.versions,
            "needs": [name for name in others if _is_installed(name)],
            "accounts": [
                *_lines(tree, "sysusers.d"),
                *(line for text in got.scripts for line in maintainer.accounts(text)),
            ],
            "folders": maintainer.folders("\n".join(_lines(tree, "tmpfiles.d"))),
        }
        (job.into / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        # Owners are the packages' (owner.give_tree), and others must not reach setuid programs.
        job.into.chmod(0o700)
        first = release.packages(self.packages)[0]
        return got.versions.get(first) or _installed_version(job, first)


def of_roles() -> dict[str, dict[str, Source]]:
    """Return the trees with the packages of roles, by role and by name."""
    from testbed.registry import ROLES

    trees = {name: PackageTree(role.packages) for name, role in ROLES.usable().items()}
    return {role: {tree.name: tree} for role, tree in trees.items() if tree.packages}


def _is_installed(package: str) -> bool:
    return (DPKG / f"{package}.list").exists() or any(DPKG.glob(f"{package}:*.list"))


def _installed_version(job: Job, package: str) -> str:
    found = job.run(["dpkg-query", "--show", "--showformat=${Version}", package], check=False)
    return found.stdout.strip() or "installed"


def _lines(tree: Path, folder: str) -> list[str]:
    """Return the lines of the files in a folder of /usr/lib, without comments."""
    texts = [path.read_text("utf-8") for path in sorted((tree / "usr/lib" / folder).glob("*.conf"))]
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _link(tree: Path, link: str, target: str) -> None:
    """Add a link of update-alternatives(1) to a tree that has its target."""
    place, there = (str(path).lstrip("/") for path in (link, target))
    if place.partition("/")[0] in MERGED:
        place = f"usr/{place}"
    path = tree / place
    if inside(tree, there) and not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def merge(folder: Path, into: Path, place: str) -> None:
    """Move all of a folder into another one, which may exist.

    ``place`` is the folder's path in its tree. A relative link that leads out of its own folder
    becomes an absolute one.
    """
    into.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        target = into / path.name
        if path.is_symlink() and (text := str(path.readlink())).startswith(".."):
            target.unlink(missing_ok=True)
            target.symlink_to(os.path.normpath(f"/{place}/{text}"))
        elif path.is_dir() and not path.is_symlink() and target.is_dir():
            merge(path, target, f"{place}/{path.name}")
        else:
            path.rename(target)
    remove_tree(folder)


def about(folder: Path) -> dict[str, Any]:
    """Return the description of a filled folder.

    It has ``versions`` of packages by name, ``needs`` (packages of this machine), ``accounts``
    (lines of sysusers.d(5)), and ``folders`` (path, mode, user, group).
    """
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found
