"""The published distribution: its names, its files, and the install lines in the docs."""

from __future__ import annotations

import email
import importlib.metadata
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from distribution import NAME, ROOT, build

import testbed

pytestmark = pytest.mark.source

FILES = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    *(ROOT / "examples").rglob("*.yml"),
    *(ROOT / ".github").rglob("*.yml"),
]
#: Of pip, pipx, uv and poetry: what follows, up to the end of the command.
INSTALLS = re.compile(
    r"(?:pip3? install|pipx (?:install|run)|uv (?:tool install|tool run|pip install|add)|uvx)"
    r"([^\n&;|`\"']*)"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.mark.thorough
def test_a_wheel_of_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = build("wheel", tmp_path / "again", source)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.thorough
def test_the_sdist_has_the_examples_and_the_wheel_has_not(wheel: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "examples").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted
    assert wanted <= names
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("examples/")]


@pytest.mark.thorough
def test_the_wheel_has_every_file(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "testbed").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {f"testbed/topologies/{path.name}" for path in (ROOT / "topologies").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert there == wanted


@pytest.mark.thorough
def test_the_distribution_has_a_name_of_its_own_and_the_command_keeps_its(wheel: Path) -> None:
    (folder,) = {
        name.partition("/")[0]
        for name in zipfile.ZipFile(wheel).namelist()
        if ".dist-info/" in name
    }
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        entries = archive.read(f"{folder}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == (NAME, testbed.__version__)
    assert "\ntestbed = testbed.__main__:main" in entries
    assert "\ntestbed = testbed.pytest_plugin" in entries


def test_the_version_is_found_by_the_distributions_name() -> None:
    assert importlib.metadata.version(NAME) == testbed.__version__


def test_every_line_that_installs_it_names_the_distribution() -> None:
    """PyPI's ``testbed`` is somebody else's."""
    lines = [line for path in FILES for line in INSTALLS.findall(path.read_text(encoding="utf-8"))]
    ours = [word for line in lines for word in line.split() if "testbed" in word]
    assert {re.split(r"[\[=<>~!]", word)[0] for word in ours} == {NAME}
