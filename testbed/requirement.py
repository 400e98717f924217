"""Requirements of labs, providers and roles on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.errors import MachineError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Iterable

LABS = ("every lab",)
INSTALL = "apt-get install -y --no-install-recommends"  #: fix command, followed by packages


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement: its state (``ok``, ``detail``) and its fix if it is not met."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed_by: tuple[str, ...] = ()
    required: bool = True  #: False if only the users in ``needed_by`` need it
    packages: tuple[str, ...] = ()  #: Debian packages that meet it when installed


@dataclass(frozen=True, slots=True)
class Feature:
    """A kernel feature, with the command that tries it."""

    name: str
    try_it: str  #: shell command, run in temporary namespaces; exit status 0 means available
    option: str  #: the kernel's build option, or another possible cause
    #: Users other than roles and providers, in words.
    needed_by: tuple[str, ...] = ()


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
    """Return a requirement, without a fix if it is met; the default fix installs its packages."""
    if ok:
        fix, packages = "", ()
    elif packages and not fix:
        fix = f"{INSTALL} {' '.join(packages)}"
    return Requirement(name, ok, detail, fix, needed_by, required, packages)


def program(
    name: str, package: str, needed_by: tuple[str, ...] = LABS, *, required: bool = True
) -> Requirement:
    """Return the requirement of a program on this machine, with its Debian package."""
    path = which(name)
    return requirement(
        name,
        path or "not found",
        needed_by,
        ok=path is not None,
        required=required,
        packages=(package,),
    )


def merge(given: Iterable[Requirement]) -> list[Requirement]:
    """Return one requirement for each name, in the order of the first ones.

    Requirements of one name that several users have are one with all users.  It is required if
    any of them is, and unmet if any is.
    """
    found: dict[str, Requirement] = {}
    for item in given:
        seen = found.get(item.name, item)
        found[item.name] = replace(
            seen if not seen.ok else item,
            needed_by=tuple(dict.fromkeys((*seen.needed_by, *item.needed_by))),
            required=seen.required or item.required,
        )
    return list(found.values())


def need_root(what: str) -> None:
    """Raise MachineError unless this process runs as root."""
    if os.geteuid() != 0:
        raise MachineError(
            f"{what} needs root, to create namespaces, links and mounts",
            hint="run it with sudo; `plan`, `topologies`, `schema` and `doctor` work without root",
        )
