"""The files that a page of the documentation shows in its blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def files_of(page: str) -> dict[str, str]:
    """The blocks that have the name of a file, by that name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def write_files(page: str, folder: Path) -> Path:
    """Write the files of a page into a folder, and return it."""
    for name, text in files_of(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
