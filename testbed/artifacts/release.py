"""Differences between releases of Debian, as far as parts depend on them.

Parts use package names of Debian 12.  A later release is one entry here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian."""

    suite: str  #: its code name in the archive
    engine: str  #: the release of its own Docker Engine, the package docker.io
    #: Names of packages in Debian 12, and of those that replace them in this release.
    renamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


#: By ``VERSION_ID`` of os-release(5).
RELEASES: Mapping[str, Release] = {
    "12": Release("bookworm", "20.10"),
    "13": Release(
        "trixie",
        "26.1",
        {
            "docker.io": ("docker.io", "docker-cli"),  # the client is a separate package
            # 64-bit time_t: https://wiki.debian.org/ReleaseGoals/64bit-time
            "libelf1": ("libelf1t64",),
            "libglib2.0-0": ("libglib2.0-0t64",),
            "libicu72": ("libicu76",),
            "libwrap0": ("libwtmpdb0",),  # a library of OpenSSH's server
            "libvirt-daemon": (  # its drivers are only recommended
                "libvirt-daemon", "libvirt-daemon-driver-network", "libvirt-daemon-driver-qemu",
                "libvirt-daemon-driver-storage",
            ),
        },
    ),
}  # fmt: skip
DEFAULT = RELEASES["12"]


def facts() -> dict[str, str]:
    """Return the fields of os-release(5); empty on a system without the file."""
    fields = {}
    try:
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            fields[name] = value.strip("\"'")
    except OSError:
        pass
    return fields


def this() -> Release:
    """Return the release of this machine; Debian 12 for a system that is not listed."""
    found = facts()
    version = found.get("VERSION_ID", "") if found.get("ID") == "debian" else ""
    return RELEASES.get(version, DEFAULT)


def named(suite: str) -> Release:
    """Return the release of a code name; one like Debian 12 for a name that is not listed."""
    known = {release.suite: release for release in RELEASES.values()}
    return known.get(suite, Release(suite, DEFAULT.engine))


def packages(names: Iterable[str], release: Release | None = None) -> list[str]:
    """Return the packages of a release, by default this machine's, for those of Debian 12."""
    renamed = (release or this()).renamed
    return [name for each in names for name in renamed.get(each, (each,))]
