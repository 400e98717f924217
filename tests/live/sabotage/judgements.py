"""Judgements of a check that were seen with both results: finer than its claim.

A check may judge several times, and its claim flips with the first that
fails.  Each place in the suites that judges is watched for itself.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.catalogues.shipped import FOLDER
from testbed.claims.observation import Observation

METHODS = ("holds", "holds_when", "fails_when")


@dataclass(frozen=True, order=True)
class Place:
    """A call of ``observe.holds`` or its kind in a suite: the file's name, the first line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@functools.cache
def places() -> dict[Place, int]:
    """All that judge, each with its last line."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in METHODS
            ):
                found[Place(path.name, node.lineno)] = node.end_lineno or node.lineno
    return found


def at(file: str, line: int) -> Place | None:
    """The judgement that a line is part of."""
    name = Path(file).name
    inside = [p for p, end in places().items() if p.file == name and p.line <= line <= end]
    return max(inside, default=None)


@contextlib.contextmanager
def watched(seen: set[tuple[Place, bool]]) -> Iterator[None]:
    """Enter into ``seen`` each judgement of the block, and how it comes out."""

    def watch(real: Callable[..., None]) -> Callable[..., None]:
        value = "fails" if real.__name__ == "fails_when" else "holds"
        signature = inspect.signature(real)

        def judge(*given: Any, **named: Any) -> None:
            caller = sys._getframe(1)
            place = at(caller.f_code.co_filename, caller.f_lineno)
            if place:
                held = bool(signature.bind(*given, **named).arguments[value])
                seen.add((place, held))
            real(*given, **named)

        return judge

    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            patch.setattr(Observation, name, watch(getattr(Observation, name)))
        yield
