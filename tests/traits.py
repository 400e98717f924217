"""Traits of nodes, for tests of what depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed.nodes.fake import FakeNode

if TYPE_CHECKING:
    import pytest


def be_a_machine(monkeypatch: pytest.MonkeyPatch, yes: bool = True) -> None:
    """Let fake nodes be machines of their own that may be emulated, or namespaces of this one."""
    for trait in ("shares_files", "shares_kernel"):
        monkeypatch.setattr(FakeNode, trait, not yes)
    for trait in ("has_system", "wakes"):
        monkeypatch.setattr(FakeNode, trait, yes)
    monkeypatch.setattr(FakeNode, "slowness", 5.0 if yes else 1.0)
