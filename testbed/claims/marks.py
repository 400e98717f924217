"""The tests that check claims, found by their marks without running anything."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.claims.catalogue import Place

if TYPE_CHECKING:
    from pathlib import Path

#: The mark of :mod:`testbed.pytest_plugin`, which the layers above this one define.
MARK = "testbed_claim"
CHANGES = "testbed_changes"
FAULT = "fault"  #: the fixture of tests that break a lab
QUICK = re.compile(rf"\b{MARK}\b(?:\(\s*(?:\"([^\"\\\n]*)\"|'([^'\\\n]*)'|(.)))?")


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of a test; ``claim`` is empty if it is not a constant there.

    ``changes`` tells that the test changes the machines of its lab, by a mark of its own or of its
    module, or by faults.
    """

    claim: str
    place: Place
    changes: bool = False


def files(folder: Path) -> list[Path]:
    """Return the files of checks in a folder, and in the folders below it."""
    return sorted(path for path in folder.rglob("test_*.py") if path.is_file())


def ids(folder: Path) -> set[str]:
    """Return the words in the marks, by a quick look that comments can mislead.

    The word is empty for a mark without a constant.
    """
    return {
        one or other
        for path in files(folder)
        for one, other, _ in QUICK.findall(path.read_text(encoding="utf-8", errors="replace"))
    }


def marked(folder: Path, word: str = "") -> Iterator[Mark]:
    """Yield the marks of all tests in a folder, in the order of files and lines.

    Only files that contain ``word`` are read.  A file that Python cannot read counts as one mark
    without a claim.
    """
    for path in files(folder):
        text = path.read_text(encoding="utf-8", errors="replace")
        if MARK not in text or word not in text:
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):  # pytest reports it
            yield Mark("", Place(path, 1))
            continue
        yield from sorted(_marks(path, tree), key=lambda mark: mark.place.line)


def _marks(path: Path, tree: ast.Module) -> Iterator[Mark]:
    all_change = any(
        _has_changes(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(one, ast.Name) and one.id == "pytestmark" for one in node.targets)
    )
    inside: dict[ast.AST, ast.FunctionDef] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                inside.update(dict.fromkeys(ast.walk(decorator), node))
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and node.attr == MARK):
            continue
        call = calls.get(node)  # none if the mark is kept in a variable, and used elsewhere
        word = call.args[0] if call and call.args else None
        claim = word.value if isinstance(word, ast.Constant) else ""
        test = inside.get(node)
        place = Place(path, test.lineno if test else node.lineno, test.name if test else "")
        changes = all_change or (test is not None and _changes(test))
        yield Mark(claim if isinstance(claim, str) else "", place, changes)


def _changes(test: ast.FunctionDef) -> bool:
    return any(map(_has_changes, test.decorator_list)) or any(
        one.arg == FAULT for one in test.args.args
    )


def _has_changes(mark: ast.expr) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == CHANGES for one in ast.walk(mark))
