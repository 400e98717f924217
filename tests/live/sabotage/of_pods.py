"""Pods and what their containers share, made wrong."""

from __future__ import annotations
