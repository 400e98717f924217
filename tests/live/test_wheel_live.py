"""The wheel alone, and with another's: installed in an empty environment, used from a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from distribution import ROOT, add, build, install
from pages import write_files

LAB = "wheel-test"
TEST = """
def test_docker(lab):
    assert lab.node("host").run(["docker", "--version"], check=False).status in {0, 127}
    assert lab.engine("host").version

def test_host(host):
    assert host.check_output("uname -s") == "Linux"
"""
#: Imports every module, and says where each was found that lies elsewhere. The checks of a suite
#: need pytest's plug-ins; a plug-in of Ansible is loaded by Ansible alone.
WALK = """
import importlib, pkgutil, sys, testbed
ELSEWHERE = ("__main__", ".ansible.connection")
for module in pkgutil.walk_packages(testbed.__path__, "testbed."):
    if not module.name.endswith(ELSEWHERE) and ".suites." not in module.name:
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


@pytest.mark.seconds(10)
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


# -- a distribution of somebody else's: that of docs/extending.md ---------------------

BUILD = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
include = ["rack.py", "rack_cli.py", "web.py", "web_claims"]
"""


@pytest.fixture(scope="module")
def extended(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The environment with the page's distribution, and the page's files in its folder."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    source = tmp_path_factory.mktemp("theirs")
    write_files("extending.md", source)
    (project,) = re.findall(r"```toml\n(\[project\].*?)```", page, re.DOTALL)
    (source / "pyproject.toml").write_text(project + BUILD, encoding="utf-8")
    (topology,) = re.findall(r"```yaml\n(name: hello\n.*?)```", page, re.DOTALL)
    (installed.folder / "hello.yaml").write_text(topology, encoding="utf-8")
    (source / "web_claims" / "labs").mkdir()
    (source / "web_claims" / "labs" / "hello.yaml").write_text(topology, encoding="utf-8")
    for test in source.glob("test_*.py"):
        test.rename(installed.folder / test.name)
    wheel = build("wheel", tmp_path_factory.mktemp("dist") / "theirs", source)
    add(wheel, installed.environment / "bin")
    return installed


def test_a_lab_with_anothers_role_comes_is_checked_and_goes(extended: Installed) -> None:
    extended("testbed", "up", "./hello.yaml", "-q")
    found = json.loads(extended("testbed", "status", "hello", "--json"))
    assert "web" in json.dumps(found)
    extended("testbed", "fault", "kill", "server/web", "-l", "hello")
    extended("testbed", "fault", "heal", "-l", "hello")
    extended("testbed", "verify", "hello", "test_web.py")
    command = ("python", "-m", "pytest", "test_web.py", "--testbed-lab", "hello")
    assert "2 passed, 1 skipped" in extended(*command)
    claims = json.loads(extended("testbed", "claims", "--catalogue", "web-manual", "--json"))
    assert [claim["needs"] for claim in claims] == [["web"]]
    own = ("testbed", "verify", "hello", "--catalogue", "web-manual")
    assert "1 as expected" in extended(*own)
    assert "1 of 1 checks were seen to fail" in extended(*own, "--prove")
    extended("testbed", "down", "hello")
    assert extended("testbed", "ls", "--json").strip() == "[]"
    extended("testbed", "verify", "--all", "--catalogue", "web-manual")


def choices(schema: object) -> Iterator[str]:
    """The words of all enumerations in a schema: a variable is allowed beside them."""
    if isinstance(schema, dict):
        yield from schema.get("enum", ())
    inner = schema.values() if isinstance(schema, dict) else schema
    for part in inner if isinstance(inner, Iterable) and not isinstance(inner, str) else ():
        yield from choices(part)


def test_anothers_provider_is_known_everywhere(extended: Installed) -> None:
    keys = json.loads(extended("testbed", "schema"))["properties"]
    roles = keys["nodes"]["additionalProperties"]["properties"]["roles"]
    assert {"rack", "qemu"} <= set(choices(keys["provider"]))
    assert {"web", "docker"} <= set(choices(roles))
    assert "rack inventory" in extended(
        "testbed", "doctor", "--provider", "rack", "--quick", status=3
    )
    extended("testbed", "plan", "./hello.yaml", "--provider", "rack")
    assert "  rack " in extended("testbed", "--help")
    assert extended("testbed", "rack") == ""  # there is no inventory
    extended("testbed", "up", "./hello.yaml", "--provider", "rack", "-q", status=3)
    assert extended("testbed", "ls", "--json").strip() == "[]"


@pytest.mark.thorough
def test_anothers_provider_and_role_keep_the_contracts(extended: Installed) -> None:
    """The provider's machines are in memory; the role is tried on real nodes, too."""
    summary = extended("python", "-m", "pytest", "-rs", "test_rack.py", "test_role.py")
    assert re.search(r"\d+ passed, 9 skipped in", summary), summary
    assert "needs root" not in summary
    assert extended("testbed", "ls", "--json").strip() == "[]"
