"""Policies and who enforces them, made wrong."""

from __future__ import annotations
