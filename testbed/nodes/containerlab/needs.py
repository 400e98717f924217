"""Requirements of the provider: containerlab in a version that is new enough, and an image."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.artifacts import bootstrap
from testbed.artifacts.node_image import TREE_PART
from testbed.errors import CommandError, MachineError, TimeoutExpired
from testbed.nodes.containerlab.cell import PROGRAM
from testbed.nodes.engine import parse_version
from testbed.process import run
from testbed.requirement import Requirement, requirement

if TYPE_CHECKING:
    from testbed.artifacts import Store

#: The first release with all keys of the files that we write (``hostname``).
OLDEST = (0, 79, 0)
#: The kernel's list of modules, without which containerlab ends (utils/kernel_module.go).
MODULES = Path("/proc/modules")
#: The list that the one of testbed reads instead, in a cell (artifacts/inventory.py).
OWN_LIST = b"/run/testbed/modules"


def probe(store: Store, provider: str) -> list[Requirement]:
    """Return the requirements of this machine other than artifacts.  Nothing is built."""
    return [version(store, provider), _builder(store, provider)]


def _builder(store: Store, provider: str) -> Requirement:
    """Check the programs that build the image of nodes, unless it is built already."""
    missing = bootstrap.lacking() if TREE_PART in store.unmade(provider) else {}
    return requirement(
        "image of nodes",
        f"no {', '.join(missing)}" if missing else "the programs that build it are installed",
        (provider,),
        ok=not missing,
        packages=tuple(sorted(set(missing.values()))),
    )


def version(store: Store, provider: str) -> Requirement:
    """Check the version of the user's own containerlab; ours has the right one."""
    name, oldest = f"{PROGRAM} version", _text(OLDEST)
    if not store.is_users(PROGRAM):
        found = store.version(PROGRAM)
        return Requirement(
            name, ok=True, detail=f"{found}, built by testbed", needed_by=(provider,)
        )
    path = store.binary(PROGRAM)
    number, seen = (0, 0, 0), ""
    try:
        said = run([path, "version", "--short"], timeout=60).stdout.strip()
        number, seen = parse_version(said), said or "no version"
    except CommandError as error:
        seen = error.stderr.strip() or f"exit status {error.status}"
    except TimeoutExpired as error:
        seen = error.message
    if number >= OLDEST and not MODULES.exists() and not _has(path, OWN_LIST):
        return Requirement(
            name,
            ok=False,
            detail=f"{seen} ({path}) needs {MODULES}, which this kernel does not have",
            fix=f"leave it out: {PROGRAM} as testbed builds it does without; or use a kernel with "
            "modules",
            needed_by=(provider,),
        )
    return Requirement(
        name,
        ok=number >= OLDEST,
        detail=f"{seen} ({path})" + ("" if number >= OLDEST else f", not {oldest} or later"),
        fix=f"update it to {oldest} or later, or leave it out: testbed builds its own",
        needed_by=(provider,),
    )


def require_version(store: Store, provider: str) -> None:
    """Raise MachineError if the user's own containerlab is too old or does not run.

    Without one, ours is built first.
    """
    path = store.binary(PROGRAM)
    if store.is_users(PROGRAM) and not (found := version(store, provider)).ok:
        raise MachineError(f"{path} cannot be used: {found.detail}", hint=found.fix)


def _has(path: Path, text: bytes) -> bool:
    """Tell whether a program contains a text."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
