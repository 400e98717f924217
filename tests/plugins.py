"""Plug-ins that are registered for the length of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.nodes.fake import FakeProvider
from testbed.registry import PROVIDERS, Declared, Registry

if TYPE_CHECKING:
    import pytest


class Elsewhere(FakeProvider):
    """A provider whose nodes are on a fabric of its own."""

    name = "elsewhere"
    fabric_of = ""


class Overseas(FakeProvider):
    """Another one."""

    name = "overseas"
    fabric_of = ""


def declare(
    monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], name: str, *values: str
) -> None:
    """Register a name as if a distribution had declared it, once for each value."""
    points = [Declared(name, value, f"{name}-{n}") for n, value in enumerate(values)]
    monkeypatch.setattr(registry, "_declared", {**registry.declared(), name: points})


def declare_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both providers above."""
    for kind in (Elsewhere, Overseas):
        declare(monkeypatch, PROVIDERS, kind.name, f"{__name__}:{kind.__name__}")
