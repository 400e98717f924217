"""The way into the cluster by HTTP, made wrong."""

from __future__ import annotations
