"""Services, names and the ways to them, made wrong."""

from __future__ import annotations
