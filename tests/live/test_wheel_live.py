"""The wheel alone: installed in an empty environment, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from distribution import build, install

LAB = "wheel-test"
TEST = """
def test_docker(lab):
    assert lab.node("host").run(["docker", "--version"], check=False).status in {0, 127}
    assert lab.engine("host").version

def test_host(host):
    assert host.check_output("uname -s") == "Linux"
"""
#: Imports every module, and says where each was found that lies elsewhere.
WALK = """
import importlib, pkgutil, sys, testbed
for module in pkgutil.walk_packages(testbed.__path__, "testbed."):
    if not module.name.endswith("__main__") and ".suites." not in module.name:
        importlib.import_module(module.name)
folder = testbed.__path__[0]
print(folder, *(m.__file__ for name, m in sys.modules.items()
    if name.split(".")[0] == "testbed" and not m.__file__.startswith(folder)))
"""


class Installed:
    """The programs of an environment that has the wheel alone, in an empty folder."""

    def __init__(self, programs: Path, empty: Path, state: Path) -> None:
        self.environment = programs.parent
        self.folder = empty
        self._env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTEST", "PYTHON", "TESTBED", "VIRTUAL_ENV"))
        }
        self._env |= {"PATH": f"{programs}:{os.environ['PATH']}", "TESTBED_STATE": str(state)}
        if cache := os.environ.get("TESTBED_CACHE"):
            self._env["TESTBED_CACHE"] = cache

    def __call__(self, *argv: str, status: int = 0) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self._env, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (argv, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("wheel")
    programs = install(build("wheel", folder / "dist"), folder / "environment")
    (folder / "empty").mkdir()
    found = Installed(programs, folder / "empty", folder / "state")
    yield found
    found("testbed", "down", "--all")


def test_no_module_is_from_elsewhere_or_needs_more_than_is_required(installed: Installed) -> None:
    (folder,) = installed("python", "-c", WALK).split()
    assert Path(folder).is_relative_to(installed.environment)


def test_a_lab_comes_is_checked_and_goes(installed: Installed) -> None:
    installed("testbed", "up", "docker-single", "--name", LAB, "-q")
    checked = installed("testbed", "verify", LAB, "-k", "docker0_is", "--html", "report.html")
    assert "as expected" in checked
    assert (installed.folder / "report.html").stat().st_size > 10_000
    (installed.folder / "test_own.py").write_text(TEST)
    # testinfra's `host` is each of the two nodes.
    command = ("python", "-m", "pytest", "test_own.py", "--testbed-lab", LAB)
    assert "3 passed" in installed(*command)
    installed("testbed", "down", LAB)
    assert installed("testbed", "ls", "--json").strip() == "[]"
