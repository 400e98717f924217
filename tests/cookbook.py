"""The recipes of docs/cookbook.md: files, and commands that show what they do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cookbook.md"
RECIPE = re.compile(r"^### (.+)$", re.MULTILINE)
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LAB = "lab.yaml"


@dataclass(frozen=True)
class Recipe:
    """A topology with its files by name, and the commands below it."""

    title: str
    files: dict[str, str]
    commands: str

    def write(self, folder: Path) -> Path:
        """Write the files; return the path of the topology."""
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return folder / LAB


def recipes() -> list[Recipe]:
    _, *parts = RECIPE.split(PAGE.read_text(encoding="utf-8"))
    found = []
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        blocks = BLOCK.findall(text)
        files = {name or LAB: body for language, name, body in blocks if language != "sh"}
        (commands,) = (body for language, _, body in blocks if language == "sh")
        found.append(Recipe(title, files, commands))
    return found
