"""Names of Debian packages by release: all that a part needs to know of a release.

Parts name packages as Debian 12 does.  A later release is one entry here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

#: By ``VERSION_ID`` of os-release(5): a package's name in Debian 12, and what has taken its place.
RENAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "13": {
        "docker.io": ("docker.io", "docker-cli"),  # the client has a package of its own
        "libelf1": (
            "libelf1t64",
        ),  # 64-bit time_t: https://wiki.debian.org/ReleaseGoals/64bit-time
        "libicu72": ("libicu76",),
    },
}


def facts() -> dict[str, str]:
    """The fields of os-release(5); none on a system without the file."""
    fields = {}
    try:
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            fields[name] = value.strip("\"'")
    except OSError:
        pass
    return fields


def packages(names: Iterable[str]) -> list[str]:
    """The packages of this release that stand for packages of Debian 12."""
    found = facts()
    renamed = RENAMED.get(found.get("VERSION_ID", ""), {}) if found.get("ID") == "debian" else {}
    return [name for each in names for name in renamed.get(each, (each,))]
