"""Messages of failed assertions on walks in pytest: what was compared, as paths."""

from __future__ import annotations

from difflib import ndiff
from typing import Any

from testbed.walk.compare import Path, difference
from testbed.walk.model import Hops, Walk

AROUND = 2  # hops before and after a marked one


def explain(op: str, left: Any, right: Any, *, whole: bool) -> list[str] | None:
    """Return the lines of pytest's message for ``left op right``; None for other things.

    pytest shows eight of them, unless it is called with ``-vv``: then ``whole`` is true.
    """
    if isinstance(left, Walk) and isinstance(right, Walk) and op == "==":
        if left.path == right.path:
            return ["two walks are never equal, as their times differ: compare `.path`"]
        return _apart(left.path, right.path, whole=whole)
    if isinstance(left, Path) and isinstance(right, Path) and op == "==":
        return _apart(left, right, whole=whole)
    if isinstance(right, Hops) and op in ("in", "not in"):
        return [f"{left!r} {op} the path:", *_marked(right, left, whole=whole)]
    if isinstance(left, Hops) and isinstance(right, list) and op == "==":
        lines = [line.rstrip() for line in ndiff(list(map(str, right)), left)]
        kept = [line for line in lines if whole or line[:1] in "+-"]
        return ["the packets took another path:", *(one for one in kept if one[:1] != "?")]
    return None


def _apart(seen: Path, wanted: Path, *, whole: bool) -> list[str]:
    found = difference(wanted, seen)  # as in pytest's own messages, - is what was wanted
    ends = [one.end for one in (seen, wanted)]
    head = "the packets took another path"
    if ends[0] != ends[1]:
        head += f" ({ends[0]}, wanted {ends[1]})"
    return [f"{head}:", *(str(found).splitlines() if whole else found.short())]


def _marked(hops: Hops, wanted: Any, *, whole: bool) -> list[str]:
    """Return hops, the wanted ones with a mark; without ``whole`` those around them."""
    at = [number for number, hop in enumerate(hops) if hop == wanted]
    return [
        f"{'>' if number in at else ' '} {hop}"
        for number, hop in enumerate(hops)
        if whole or not at or any(abs(number - one) <= AROUND for one in at)
    ]
