"""The state of a part of a node, as `status` shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """The state of a part of a node.

    ``ok`` is True if the state is the expected one.
    """

    name: str
    state: str
    ok: bool
    detail: str = ""
