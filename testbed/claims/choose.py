"""Choose the catalogues that a command uses.

The first of these that there is:

1. those that the command names, by folder or by the name of an installed one;
2. the folder ``claims`` beside the topology file that the lab came from;
3. ``[tool.testbed] catalogues`` of the nearest ``pyproject.toml`` that has this key;
4. the shipped catalogue.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from testbed.claims.catalogue import Catalogue, combine, shown
from testbed.claims.load import CLAIMS, load
from testbed.errors import UsageError
from testbed.registry import CATALOGUES

SHIPPED = "shipped"  #: the name of the catalogue that comes with testbed
PROJECT = "pyproject.toml"


def choose(
    names: Sequence[str] = (), *, source: str = "", project: Path | None = None
) -> Catalogue:
    """Return the catalogues to use, as one.

    ``names`` are those that the user gave, ``source`` is the file that the lab came from,
    ``project`` the folder in or above which a ``pyproject.toml`` is searched for (default: the
    working directory).  Raises UsageError, and CatalogueError for a catalogue with problems or
    for two with a claim of the same ID.
    """
    folders = [folder_of(name) for name in names] or beside(source)
    folders = folders or of_project(project or Path.cwd()) or [folder_of(SHIPPED)]
    return combine([load(folder) for folder in dict.fromkeys(map(Path.resolve, folders))])


def folder_of(name: str, base: Path | None = None) -> Path:
    """Return the folder of a catalogue: by the name of an installed one, or by a path.

    A path is relative to ``base`` (default: the working directory).  Raises UsageError.
    """
    if name == SHIPPED:
        return Path(__file__).parents[1] / "catalogues" / SHIPPED
    if name in CATALOGUES:
        return CATALOGUES[name]
    path = (base or Path.cwd()) / name
    if path.is_dir():
        if any((path / CLAIMS).glob("*.yaml")) and not any(path.glob("test_*.py")):
            hint = f"use the folder {name.rstrip('/')}/{CLAIMS}"
            raise UsageError(f"{name} has no checks: it is the folder above a catalogue", hint=hint)
        return path
    from testbed.topology.tree import nearest

    seen = "a file" if path.exists() else "no such folder"
    hint = nearest(name, installed()) if "/" not in name else "check the path"
    what = f"no catalogue {name!r}: {seen}, and none of that name is installed"
    raise UsageError(what, hint=hint)


def installed() -> list[str]:
    """Return the names of all catalogues that are installed."""
    return [SHIPPED, *(name for name in CATALOGUES if name != SHIPPED)]


def beside(source: str) -> list[Path]:
    """Return the folder ``claims`` beside a topology file, if it has documents."""
    if not source:
        return []
    folder = Path(source).parent / CLAIMS
    return [folder] if any(folder.glob("*.yaml")) else []


def of_project(start: Path) -> list[Path]:
    """Return the catalogues of the nearest ``pyproject.toml`` that names some.

    Raises UsageError for a wrong value.
    """
    for folder in (start, *start.parents):
        file = folder / PROJECT
        if not file.is_file():
            continue
        try:
            tables = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{shown(file)}: not TOML: {error}", hint="correct the file") from None
        tools = tables.get("tool")
        own = tools.get("testbed") if isinstance(tools, dict) else None
        if isinstance(own, dict) and "catalogues" in own:
            return [_of_project(file, name) for name in _names(file, own["catalogues"])]
    return []


def _names(file: Path, value: object) -> list[str]:
    if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
        return value
    raise UsageError(
        f"{shown(file)}: tool.testbed.catalogues: wanted a list of folders, saw {value!r}",
        hint='write it as catalogues = ["claims", "shipped"]',
    )


def _of_project(file: Path, name: str) -> Path:
    try:
        return folder_of(name, file.parent)
    except UsageError as error:
        error.message = f"{shown(file)}: tool.testbed.catalogues: {error.message}"
        raise
