"""Each recipe of the cookbook on a real lab, with its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from cookbook import Recipe, recipes

from testbed.artifacts import Store
from testbed.registry import ROLES
from testbed.topology import load

pytestmark = pytest.mark.long


@pytest.mark.parametrize("recipe", recipes(), ids=lambda one: one.title)
def test_a_recipe_does_what_its_commands_show(recipe: Recipe, tmp_path: Path) -> None:
    file = recipe.write(tmp_path)
    topology = load(file)
    for name in topology.roles:
        if why := ROLES[name].lacking(Store(), topology):
            pytest.skip(why)
    state = {"TESTBED_STATE": str(tmp_path / "state"), "TESTBED_LAB": topology.name}
    up = call(tmp_path, "up", str(file), "-q", env=state)
    assert up.status == 0, up.err
    try:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        # `set -e` does not end the shell at a command after `!`.
        lines = [f"{line} || exit 1" for line in recipe.commands.splitlines()]
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)], env={**os.environ, **state, "PATH": path},
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)
    finally:
        down = call(tmp_path, "down", "--all", env=state)
    assert down.status == 0, down.err
