"""The distribution as it is published: built, and installed where nothing else is."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NAME = "container-testbed"


def build(what: str, into: Path, source: Path = ROOT) -> Path:
    """Build the sdist or the wheel of a source tree; return the one file that was made."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = into.iterdir()
    return made


def install(wheel: Path, into: Path) -> Path:
    """Install a wheel alone in a new environment; return the environment's folder of programs.

    The distributions that it requires, and no others, are those of the environment that runs
    the tests, so that no network is needed.
    """
    venv.create(into, with_pip=False, symlinks=True)
    packages = next(into.glob("lib/python*/site-packages"))
    programs = into / "bin"
    add(wheel, programs)
    share(packages)
    return programs


def share(packages: Path) -> None:
    """Link all distributions that ours requires, and no others, into a folder of packages."""
    for name in required():
        _share(name, packages)


def add(wheel: Path, programs: Path) -> None:
    """Install one more wheel, alone, in the environment of that folder of programs."""
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"),
            *("--python", str(programs / "python"), str(wheel)),
        ],
        check=True,
    )


def required() -> set[str]:
    """The names of all distributions that ours requires, and those that they require."""
    found: set[str] = set()
    due = [NAME]
    while due:
        for text in importlib.metadata.requires(due.pop()) or ():
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            if name not in found and (
                wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            ):
                found.add(name)
                due.append(name)
    return found


def _share(name: str, packages: Path) -> None:
    """Link the files of an installed distribution into another folder of packages."""
    distribution = importlib.metadata.distribution(name)
    for first in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
        place = packages / first
        if not place.exists():
            place.symlink_to(Path(str(distribution.locate_file(first))))
