"""Requirements of this machine: what labs, providers and roles need here."""

from __future__ import annotations

import os
from dataclasses import dataclass

from testbed.errors import MachineError

LABS = ("every lab",)
INSTALL = "apt-get install -y --no-install-recommends"  #: a fix, before its packages


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement: whether it is met, and how to meet it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed_by: tuple[str, ...] = ()
    required: bool = True  #: False: only what ``needed_by`` names needs it
    packages: tuple[str, ...] = ()  #: Debian packages whose installation meets it


def requirement(
    name: str,
    detail: str,
    needed_by: tuple[str, ...] = LABS,
    *,
    ok: bool,
    fix: str = "",
    required: bool = True,
    packages: tuple[str, ...] = (),
) -> Requirement:
    """A requirement, without a fix where it is met; by default its packages are the fix."""
    if ok:
        fix, packages = "", ()
    elif packages and not fix:
        fix = f"{INSTALL} {' '.join(packages)}"
    return Requirement(name, ok, detail, fix, needed_by, required, packages)


def need_root(what: str) -> None:
    """Raise MachineError unless we are root."""
    if os.geteuid() != 0:
        raise MachineError(
            f"{what} needs root: it makes namespaces, links and mounts of its own",
            hint="run it again with sudo; `plan`, `topologies`, `schema` and `doctor` work without",
        )
