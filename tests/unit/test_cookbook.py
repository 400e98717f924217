"""The recipes of the cookbook, as far as no lab is needed: tests/live runs them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cookbook import Recipe, recipes

from testbed.labs import plan
from testbed.topology import load, names

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.source

RECIPES = recipes()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: one.title)
def test_a_recipe_has_a_plan(recipe: Recipe, tmp_path: Path) -> None:
    topology = load(recipe.write(tmp_path))
    assert plan.make(topology).steps
    assert len(recipe.files["lab.yaml"].splitlines()) <= 20, "a recipe is small"


def test_commands_are_those_of_a_shell() -> None:
    assert all("testbed" in recipe.commands for recipe in RECIPES)
    text = "".join(f"({recipe.commands})\n" for recipe in RECIPES)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_each_recipe_is_a_lab_of_its_own(tmp_path: Path) -> None:
    found = []
    for number, recipe in enumerate(RECIPES):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(load(recipe.write(folder)).name)
    assert len({*found}) == len(found) >= 20
    assert not {*found} & {*names()}
