"""Requirements of the provider: containerlab in a version that is new enough, and an image."""

from __future__ import annotations

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
    return Requirement(
        name,
        ok=number >= OLDEST,
        detail=f"{seen} ({path})",
        fix=f"update it to {oldest} or later, or leave it out: testbed builds its own",
        needed_by=(provider,),
    )


def require_version(store: Store, provider: str) -> None:
    """Raise MachineError if the user's own containerlab is too old or does not run.

    Without one, ours is built first.
    """
    path = store.binary(PROGRAM)
    if store.is_users(PROGRAM) and not (found := version(store, provider)).ok:
        raise MachineError(
            f"{path} is not containerlab {_text(OLDEST)} or later: {found.detail}", hint=found.fix
        )


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
