"""The bug reports of examples/bugs: a folder each, with a lab, its tests and a page."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples" / "bugs"
BUGS = sorted(path for path in FOLDER.iterdir() if path.is_dir())
