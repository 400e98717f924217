"""Requirements of labs, providers and roles on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from testbed.errors import MachineError

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


def need_root(what: str) -> None:
    """Raise MachineError unless this process runs as root."""
    if os.geteuid() != 0:
        raise MachineError(
            f"{what} needs root, to create namespaces, links and mounts",
            hint="run it with sudo; `plan`, `topologies`, `schema` and `doctor` work without root",
        )
